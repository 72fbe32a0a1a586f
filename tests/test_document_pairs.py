"""Parts of pipelines that pair the images of documents with texts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from format_samples import png
from polymodal.corpora import from_path
from polymodal.curation.cluster_cap import cluster_capped
from polymodal.curation.document_pairs import Kept, pools_of
from polymodal.curation.hierarchical_retrieval import ClusterIndex, flat_search, normalized, retrieval_recall
from polymodal.curation.hub_language_models import CausalPerplexity, ChatModelMerger
from polymodal.curation.merged_texts import mine_tags, template_merger, top_tags
from polymodal.curation.mixed_documents import CaptionedImage, mixed_documents, retrieval_precision
from polymodal.curation.perplexity_filter import cross_fitted_perplexities, in_interval
from polymodal.curation.quality import words_of
from polymodal.curation.semantic_duplicates import duplicate_components, first_of_components, near_any
from polymodal.curation.sentences import (
    SentenceRules,
    UnigramModel,
    caption_complexity,
    count_words,
    first_of_each,
    has_action,
    split_sentences,
)
from polymodal.errors import UserError
from tiny_checkpoints import TEXT_MODELS, save, save_decoder_tokenizer


def vectors(rows: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return normalized(np.random.default_rng(seed).normal(size=(rows, dim)))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One car. Two cars!  Three?", ["One car.", "Two cars!", "Three?"]),
        (
            "Dr. Who met J. Smith at 3.5 p.m. in May. It rained.",
            ["Dr. Who met J. Smith at 3.5 p.m. in May.", "It rained."],
        ),
        ('He said "Stop." Then he left', ['He said "Stop."', "Then he left"]),
        ("first line\n\nsecond  line", ["first line", "second line"]),
        ("这是狗。那是猫！好", ["这是狗。", "那是猫！", "好"]),
        ("هل هذا كلب؟ نعم", ["هل هذا كلب؟", "نعم"]),
        ("e.g. version 2.0 is out... and more", ["e.g. version 2.0 is out... and more"]),
        ("  \n", []),
    ],
)
def test_sentences_are_extracted(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_rules_of_a_sentence() -> None:
    rules = SentenceRules(min_complexity=1, require_action=True)
    reasons = {
        "a cat 😀 sits here": "emoji",
        "read it on example.com now": "url",
        "two words": "min_words",
        "word " * 82: "max_words",
        "and the or": "min_complexity",
        "the red cat": "require_action",
        "a cat is on a mat": None,
    }
    assert {text: rules.why_not(text) for text in reasons} == reasons
    assert SentenceRules().why_not("word " * 81) is None
    assert count_words("这是狗 dog") == 4
    assert caption_complexity("dog and cat") == 0
    assert caption_complexity("dog on mat") == 1
    assert caption_complexity("a red dog on a mat") == 2
    assert has_action("a dog running") and not has_action("a red dog")  # noqa: PT018


def test_the_entropy_is_a_sum_over_words_with_the_probabilities_of_the_corpus() -> None:
    sentences = ["the cat sat", "the dog sat down", "a bird"]
    counts = Counter(word for sentence in sentences for word in sentence.split())
    expected = 0.0
    for word in ["the", "cat", "the"]:
        p = counts[word] / 9
        expected -= p * math.log(p)
    model = UnigramModel.fit(sentences)
    assert model.entropy("The cat, the zebra!") == pytest.approx(expected)
    assert model.entropy("the cat sat on") > model.entropy("the cat")  # not the entropy of its own histogram


def test_repeated_sentences_and_those_of_evaluations_go() -> None:
    assert first_of_each(["A cat.", "a  cat!", "a dog", "A cat 2", "A cat 3"], excluded=["a DOG."]) == [0, 3, 4]


def test_near_duplicates_are_the_components_of_a_plain_union_find() -> None:
    angles = np.array([0.0, 2.0, 0.2, 0.1, 2.05, 4.0])  # 0 ~ 0.1 ~ 0.2, a chain whose ends differ
    points, threshold = np.stack([np.cos(angles), np.sin(angles)], axis=1), math.cos(0.15)
    parent = list(range(6))
    for i in range(6):
        for j in range(i):
            if points[i] @ points[j] >= threshold:
                old, new = parent[i], parent[j]
                parent = [new if one == old else one for one in parent]
    ours = duplicate_components(points, threshold)
    assert all((ours[i] == ours[j]) == (parent[i] == parent[j]) for i in range(6) for j in range(6))
    assert first_of_components(ours).tolist() == [True, True, False, False, False, True]
    apart = duplicate_components(points, threshold, within=np.array([0, 0, 1, 0, 1, 0]))
    assert first_of_components(apart).tolist() == [True, True, True, False, True, True]
    assert near_any(points, points[:1], threshold).tolist() == [True, False, False, True, False, False]


def test_two_level_retrieval_costs_the_centers_and_one_cluster() -> None:
    rows, queries = vectors(300), vectors(20, seed=1)
    exact = flat_search(queries, rows, 3)
    for query, found in zip(queries, exact.rows, strict=True):
        assert found.tolist() == sorted(range(300), key=lambda row: -(query @ rows[row]))[:3]
    index = ClusterIndex.fit(rows, 12, seed=0)
    retrieved = index.search(queries, 3)
    for query, found, computed in zip(queries, retrieved.rows, retrieved.computed, strict=True):
        nearest = max(range(len(index.centers)), key=lambda center: query @ index.centers[center])
        members = index.members[nearest].tolist()
        assert found[: len(members)].tolist() == sorted(members, key=lambda row: -(query @ rows[row]))[:3]
        assert computed == len(index.centers) + len(members)
    assert sorted(np.concatenate(index.members).tolist()) == list(range(300))
    assert 0.2 < retrieval_recall(retrieved, exact) < 1
    assert retrieval_recall(index.search(queries, 3, num_probed=4), exact) > retrieval_recall(retrieved, exact)


def test_one_cluster_and_all_clusters_equal_flat_search() -> None:
    rows, queries = vectors(50), vectors(7, seed=1)
    exact = flat_search(queries, rows, 4)
    for index, probed in ((ClusterIndex.fit(rows, 1), 1), (ClusterIndex.fit(rows, 6), 6)):
        retrieved = index.search(queries, 4, probed)
        assert np.array_equal(retrieved.rows, exact.rows)
        assert np.allclose(retrieved.similarities, exact.similarities)
        assert retrieved.computed.tolist() == [50 + len(index.centers)] * 7
    few = ClusterIndex.fit(rows[:2], 1).search(queries, 4)
    assert (few.rows[:, 2:] == -1).all()
    assert (few.similarities[:, 2:] == -np.inf).all()


def test_no_cluster_exceeds_the_cap_and_smaller_ones_stay_whole() -> None:
    clusters = np.random.default_rng(0).permutation(np.repeat([3, 5, 9], [40, 7, 11]))
    kept = cluster_capped(clusters, 10, seed=1)
    assert Counter(clusters[kept].tolist()) == {3: 10, 5: 7, 9: 10}
    assert np.array_equal(kept, np.sort(kept))
    assert np.array_equal(kept, cluster_capped(clusters, 10, seed=1))
    assert not np.array_equal(kept, cluster_capped(clusters, 10, seed=2))
    assert np.array_equal(cluster_capped(clusters, 100, seed=1), np.arange(58))
    assert len(cluster_capped(np.zeros(0, int), 3, 0)) == 0
    often = Counter(row for seed in range(300) for row in cluster_capped(np.zeros(8, int), 2, seed).tolist())
    assert min(often.values()) > 40  # 75 expected: no row is preferred


def test_the_template_keeps_the_sentence_and_a_tag() -> None:
    sentence, caption, tags = (
        "The temple of Kyoto was built in 1397.",
        "A golden house at a lake.",
        ["lake", "temple", "pine"],
    )
    merged = template_merger(sentence, caption, tags)
    assert merged == "A golden house at a lake with pine: The temple of Kyoto was built in 1397."
    assert template_merger(sentence, "", ["pine", "snow"]) == f"An image of pine and snow: {sentence}"
    assert template_merger(sentence, "the temple", ["temple"]) == sentence
    for text in (merged, template_merger(sentence, "", tags)):
        assert {*words_of(sentence)} <= {*words_of(text)}
        assert {*tags} & {*words_of(text)}


def test_tags_are_given_or_frequent_and_the_nearest_of_an_image() -> None:
    sentences = ["the red cat", "a cat of the house", "the house of 12 men"]
    assert mine_tags(sentences, 3, base=["dog"]) == ["dog", "cat", "house"]
    names, tags = ["x", "y", "z"], np.eye(3)
    assert top_tags(np.array([[0.1, 0.9, 0.3]]), tags, names, 2) == [["y", "z"]]
    assert top_tags(np.eye(3)[:2], tags[:0], [], 2) == [[], []]


def test_perplexities_are_kept_inside_an_interval_or_quantiles() -> None:
    values = np.array([10.0, 30, 50, 200, 201])
    assert in_interval(values, 30, 200).tolist() == [False, True, True, True, False]
    assert in_interval(values, 0, 1, quantile=0.25).tolist() == [False, True, True, True, False]
    good = [f"the {a} cat sat on the {b} mat" for a in ("red", "big", "old") for b in ("new", "wet", "dry")]
    scored = cross_fitted_perplexities([*good, "zqx vvk jjw qqp xxz"], pieces=300)
    assert scored[-1] > 2 * max(scored[:-1])
    assert len(cross_fitted_perplexities(["alone"])) == 1


def test_perplexity_of_a_causal_language_model_in_a_plain_loop(tmp_path: Path) -> None:
    model = TEXT_MODELS["gpt2"]()
    from transformers import GPT2LMHeadModel

    save(GPT2LMHeadModel(model), tmp_path)
    save_decoder_tokenizer(tmp_path, ["a red cat on the mat"] * 3, starts=True)
    perplexity = CausalPerplexity(str(tmp_path))
    ids = perplexity.tokenizer("a red cat")["input_ids"]
    total = 0.0
    with torch.no_grad():
        for place in range(1, len(ids)):
            total += float(perplexity.model(torch.tensor([ids[:place]])).logits[0, -1].log_softmax(-1)[ids[place]])
    assert perplexity(["a red cat"]) == [pytest.approx(math.exp(-total / (len(ids) - 1)), rel=1e-4)]
    with pytest.raises(UserError, match="has no chat template"):
        ChatModelMerger(str(tmp_path))
    with pytest.raises(UserError, match="is no causal language model that can be read"):
        CausalPerplexity(str(tmp_path / "nothing"))


def test_documents_of_users_become_pools(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    rows = [
        {"texts": ["A cat sits. It sleeps.", None, "The end"], "images": [None, "0.png", None]},
        {"texts": [None, "Two dogs"], "images": ["1.png", None]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "documents.parquet")
    corpus = from_path(tmp_path / "documents.parquet")
    pools = pools_of(corpus, range(2), lambda width, height: None)
    assert [tuple(sentence) for sentence in pools.sentences] == [
        ("A cat sits.", 0), ("It sleeps.", 0), ("The end", 0), ("Two dogs", 1),
    ]  # fmt: skip
    assert [(image.row, image.piece) for image in pools.images] == [(0, 1), (1, 0)]
    assert pools.data(pools.images[0]) != pools.data(pools.images[1])
    assert pools_of(corpus, range(2), lambda width, height: "small").rejected == {"small": 2}


def test_finished_shards_are_not_computed_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def embed(items: list[int]) -> np.ndarray:
        calls.append(len(items))
        return np.array([[3.0 * item, 4.0 * item] for item in items])

    kept = Kept(tmp_path)
    first = kept.embed("some", list(range(1, 2051)), embed)
    assert np.allclose(first, [0.6, 0.8])
    (tmp_path / "some-000002048.npy").unlink()
    assert np.array_equal(kept.embed("some", list(range(1, 2051)), embed), first)
    assert calls == [2048, 2, 2]
    assert kept.texts("words", [1, 2], lambda items: [str(item) for item in items]) == ["1", "2"]
    assert kept.texts("words", [1, 2], lambda items: ["never"]) == ["1", "2"]


def test_documents_of_known_pairs_keep_all_sentences_and_name_their_images() -> None:
    images = [CaptionedImage(f"k{n}", bytes([n]), (f"s{n}", f"t{n}"), "ab"[n % 2]) for n in range(10)]
    for elsewhere in (0.0, 1.0):
        documents = list(mixed_documents(images, ["filler"], np.random.default_rng(0), 3, elsewhere=elsewhere))
        texts = Counter(piece["text"] for one in documents for piece in one["document"] if piece["figure"] is None)
        assert texts == Counter([f"{kind}{n}" for n in range(10) for kind in "st"] + ["filler"] * 10)
        own = 0
        for one in documents:
            keys = [f"k{piece['figure'][0]}" for piece in one["document"] if piece["figure"]]
            assert one["key"].split() == keys
            assert len({int(key[1:]) % 2 for key in keys}) == 1  # of one group
            own += sum(piece["text"] in {f"s{key[1:]}" for key in keys} for piece in one["document"])
        assert (own == 10) == (elsewhere == 0)
    assert retrieval_precision([["a", "b"], []], [frozenset("a"), frozenset("b")]) == 0.25
