"""ALOHa: what a caption speaks of, which reference it is matched with, and which metric sees what is made up."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from polymodal.claim import MetricClaim
from polymodal.corpora import Corpus
from polymodal.corpora._wordnet import WordNet, wordnet
from polymodal.encoders.static_text import static_text
from polymodal.errors import UserError
from polymodal.evaluation.caption_metric import Metric
from polymodal.evaluation.hallucination import average_precision, cases, hallucination_scores, listed_class, scenes_of
from polymodal.evaluation.statistics import Estimate
from polymodal.recipes.metrics._chair import Chair
from polymodal.recipes.metrics._objects import object_lines, root
from polymodal.recipes.metrics.aloha import Recipe, match_objects, parse_objects
from polymodal.reproduce.claim import claim_record
from polymodal.reproduce.metrics import compare_metrics
from polymodal.reproduce.result import Arm
from polymodal.reproduce.verdict import Evidence
from polymodal.serving.scoring import score_captions
from polymodal.types import Budget

BY = "test"


@pytest.fixture(scope="module")
def lexicon() -> WordNet:
    return wordnet(BY)


@pytest.mark.parametrize(
    ("caption", "lines"),
    [
        ("A large dog and two small cats.", ["- large dog", "- small cat"]),
        ("an orange cat on an orange", ["- orange cat", "- orange"]),
        ("a woman with a teddy bear, possibly a violin", ["- woman", "- teddy bear", "- violin (possibly)"]),
        ("a dog or a wolf beside a tree", ["- dog or wolf", "- tree"]),
        ("a dog, a dog and a dog at the top left", ["- dog"]),
        ("a large seal is beside a can", ["- large seal", "- can"]),
        ("he can seal it", []),
        ("great joy and sadness", []),
        ("", []),
    ],
)
def test_objects_of_a_caption(lexicon: WordNet, caption: str, lines: list[str]) -> None:
    assert object_lines(caption, lexicon).splitlines() == lines


def test_nouns_and_what_they_are_kinds_of(lexicon: WordNet) -> None:
    assert lexicon.noun("women") == "woman"
    assert lexicon.noun("boxes") == "box"
    assert lexicon.noun("Teddy Bears") == "teddy_bear"
    assert lexicon.noun("seven-thirty") is None
    assert lexicon.is_thing("volcano")
    assert not lexicon.is_thing("sadness")
    assert "animal" in lexicon.kinds("dog")
    assert "squeeze_box" in lexicon.synonyms("accordion")
    assert root("large red teddy bear", lexicon) == "teddy bear"
    assert listed_class("dove", lexicon) == "bird"
    assert listed_class("woman", lexicon) == "person"
    assert listed_class("tiger", lexicon) is None  # a kind of person in its first sense, an animal in the other
    assert listed_class("volcano", lexicon) is None


def test_static_vectors_know_what_is_alike() -> None:
    car, automobile, violin, nothing = static_text(BY)(["car", "automobile", "violin", ""])
    assert car @ automobile > 0.5 > car @ violin
    assert np.linalg.norm(car) == pytest.approx(1, abs=1e-5)
    assert not nothing.any()


def test_lines_to_entries() -> None:
    lines = "- Dog\n- dog\n-x\nno dash\n- cat or kitten\n- hat (possibly)\n- red car, auto (left)\n"
    assert parse_objects(lines, reference=False) == [("dog",), ("cat", "kitten"), ("red car", "auto")]
    assert parse_objects(lines, reference=True) == [("dog",), ("cat", "kitten"), ("hat",), ("red car", "auto")]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_matching_against_brute_force(targets: int, references: int, seed: int) -> None:
    similarity = np.random.default_rng(seed).uniform(-1, 1, (targets, references))
    found = match_objects(similarity)
    size = max(targets, references)
    padded = np.zeros((size, size))
    padded[:targets, :references] = similarity
    chosen = min(targets, references)
    best = max(
        sum(similarity[a, b] for a, b in zip(rows, columns, strict=True))
        for rows in itertools.combinations(range(targets), chosen)
        for columns in itertools.permutations(range(references), chosen)
    )
    assert found.sum() == pytest.approx(best)
    assert (found == 0).sum() >= targets - chosen
    order = np.random.default_rng(seed).permutation(references)
    np.testing.assert_allclose(match_objects(similarity[:, order]), found)


def test_an_object_without_a_reference_of_its_own_scores_nothing() -> None:
    assert match_objects(np.array([[0.9], [0.8]])).tolist() == [0.9, 0.0]
    scored = Recipe().score("a dog and a wolf", ["a dog"])
    assert scored.value == 0
    assert Recipe(matching="nearest").score("a dog and a wolf", ["a dog"]).value > 0


def test_alternatives_count_by_the_better_one() -> None:
    metric = Recipe()
    references = ["a dog beside a pizza"]
    either = metric.score("a dog or a violin", references)
    assert list(either.objects) == ["dog or violin"]
    assert either.value == pytest.approx(metric.score("a dog", references).value)
    brute = max(metric.score(f"a {one}", references).value for one in ("dog", "violin"))
    assert either.value == pytest.approx(brute)


def test_invariants_of_the_score() -> None:
    metric = Recipe()
    assert isinstance(metric, Metric)
    references = ["a red car and a dog", "a hound near an automobile"]
    own = metric.score(references[0], references)
    assert own.value == pytest.approx(1, abs=1e-5)
    assert metric.score("a dog and a red car", references[::-1]).value == pytest.approx(1, abs=1e-5)
    more = metric.score("a red car, a dog and a volcano", references)
    assert more.value < own.value
    assert min(more.objects, key=more.objects.__getitem__) == "volcano"
    assert metric.score("a red car, a dog and possibly a volcano", references).value == own.value
    assert metric.score("a volcano", references, detections=["Volcano"]).value == pytest.approx(1, abs=1e-5)
    assert metric.score("great joy", references) == metric.score("great joy", [])
    assert metric.score("great joy", []).value == 1
    assert metric.score("a dog", []).value == 0
    assert Recipe(add_root_nouns=False).score("a car", ["a red car"]).value < metric.score("a car", ["a red car"]).value


def test_exact_words_know_no_synonyms() -> None:
    exact = Recipe(similarity_model="exact")
    assert exact.score("a large dog", ["a brown dog"]).value == 1
    assert exact.score("an automobile", ["a car"]).value == 0
    assert 0 < Recipe().score("an automobile", ["a car"]).value < 1


def test_chair_sees_its_list_only() -> None:
    chair = Chair()
    assert isinstance(chair, Metric)
    assert chair.score("a dove, a taxi and a volcano", ["a bird and a car"]).objects == {"dove": 1.0, "taxi": 1.0}
    assert chair.score("a pizza and a dog", ["a dog"]).value == 0.5
    assert chair.score("a pizza", ["a dog"], detections=["pizza"]).value == 1
    assert chair.score("a volcano", ["a dog"]).value == 1


def test_average_precision_is_a_mean_over_wrong_captions() -> None:
    rng = np.random.default_rng(0)
    wrong, right = rng.integers(0, 6, 40) / 5, rng.integers(1, 7, 60) / 5
    labels = np.r_[np.ones(40), np.zeros(60)]
    wanted = average_precision_score(labels, -np.r_[wrong, right])
    alone = np.arange(100)
    assert average_precision("AP", wrong, right, alone[:40], alone[40:]).value == pytest.approx(wanted)


def test_an_average_precision_without_a_scene_is_that_of_the_other_captions() -> None:
    rng = np.random.default_rng(1)
    scenes_of_wrong, scenes_of_right = rng.integers(8, size=20), rng.integers(8, size=30)
    wrong, right = rng.normal(size=20), rng.normal(1, size=30)
    score = average_precision("", wrong, right, scenes_of_wrong, scenes_of_right)
    left_out = []
    for scene in range(8):
        kept, others = wrong[scenes_of_wrong != scene], right[scenes_of_right != scene]
        labels = np.r_[np.ones(len(kept)), np.zeros(len(others))]
        left_out.append(average_precision_score(labels, -np.r_[kept, others]))
    expected = score.value - 7 * (np.array(left_out) - np.mean(left_out))
    np.testing.assert_allclose(score.clusters, expected)


def test_spoilt_captions_are_spoilt_as_they_say(scenes: Corpus, lexicon: WordNet) -> None:
    of_scenes = scenes_of(scenes, "test", 60)
    names = {scene.caption: scene.names for scene in of_scenes}
    found = cases(of_scenes, lexicon, seed=1)
    assert found == cases(of_scenes, lexicon, seed=1)
    assert found != cases(of_scenes, lexicon, seed=2)
    by_references = {scene.references: scene for scene in of_scenes}
    for case in found:
        scene = by_references[case.references]
        assert (case.wrong is not None) == (case.kind in ("in_list", "out_of_list", "added"))
        if case.wrong is not None:
            assert case.wrong in case.caption
            assert case.wrong not in names[scene.caption]
            here = [noun for name in scene.names if (noun := lexicon.noun(name))]
            assert not any(lexicon.noun(case.wrong) in lexicon.kinds(noun) for noun in here)
        if case.kind in ("in_list", "out_of_list"):
            assert (listed_class(case.wrong, lexicon) is not None) == (case.kind == "in_list")
        if case.kind == "synonym":
            assert case.caption != scene.caption


def test_a_metric_that_knows_and_one_that_does_not(scenes: Corpus, lexicon: WordNet) -> None:
    found = {s.name: s for s in hallucination_scores(Recipe(), scenes, 40, 0)}
    chair = {s.name: s for s in hallucination_scores(Chair(), scenes, 40, 0)}
    assert found["out_of_list/average_precision"].value > 0.8
    assert chair["out_of_list/average_precision"].value == pytest.approx(0.5, abs=0.02)
    assert chair["in_list/average_precision"].value > 0.8
    assert found["out_of_list/localisation"].value > found["out_of_list/localisation"].chance
    assert found["doubted/changed_scores"].value == 0


def test_a_claim_about_metrics(scenes: Corpus, tmp_path: Path) -> None:
    metrics = ("out_of_list/average_precision", "synonym/false_alarms")
    claim = MetricClaim("", Chair(), Recipe(), "scenes", Budget(examples=30), 2, metrics)
    arms = [Arm("baseline", claim.baseline), Arm("treatment", claim.treatment)]
    record = claim_record("aloha", claim, compare_metrics(arms, scenes, claim.budget, 3, tmp_path))
    assert record["verdict"] == "supported", "though the baseline is at chance by construction"
    assert not Evidence.from_json(record["deciding"][0]).clears_chance(Estimate(**record["baseline"]))
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [0, 1, 2]
    with pytest.raises(UserError, match="400examples"):
        compare_metrics(arms, scenes, Budget(steps=3), 1, tmp_path)


def test_captions_of_a_file_are_judged(tmp_path: Path) -> None:
    path, out = tmp_path / "captions.jsonl", tmp_path / "scores.jsonl"
    path.write_text(
        '{"caption": "a dog", "references": ["a cat"], "key": 7}\n\n{"caption": "a cat", "references": ["a cat"]}\n'
    )
    assert len(score_captions(Recipe(), path, out)) == 2
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["key"] == 7
    assert set(first["objects"]) == {"dog"}
    assert second["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", "line 1 of .* is not JSON"),
        ('{"caption": "a"}', 'lacks a list of texts called "references"'),
        ('{"caption": 1, "references": []}', 'lacks a text called "caption"'),
        ('{"caption": "a", "references": [1]}', "references"),
        ("[1]", "caption"),
    ],
)
def test_files_that_are_not_like_that(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        score_captions(Recipe(), path, tmp_path / "scores.jsonl")


def test_wrong_uses_are_one_sentence(polymodal, tmp_path: Path) -> None:
    finished = polymodal("train", "aloha", "--corpus", "scenes")
    assert finished.returncode == 2
    assert "polymodal score aloha" in finished.stderr
    with pytest.raises(UserError, match="no sentence-transformers model"):
        Recipe(similarity_model=str(tmp_path / "nothing")).score("a dog", ["a cat"])
