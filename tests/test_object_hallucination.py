"""Object parsers, CHAIR, and the test of metrics of hallucination on captions with known mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from polymodal.claim import MetricClaim
from polymodal.corpora import Corpus
from polymodal.corpora._wordnet import WordNet, wordnet
from polymodal.encoders.static_text import static_text
from polymodal.errors import UserError
from polymodal.evaluation.caption_metric import CaptionScore, Metric
from polymodal.evaluation.chair import Chair
from polymodal.evaluation.coco import COCO_CLASSES
from polymodal.evaluation.hallucination import (
    WRONG,
    _localized,
    _threshold,
    average_precision,
    cases,
    hallucination_scores,
    listed_class,
    scenes_of,
)
from polymodal.evaluation.object_parser import ChatModelParser, object_lines, root
from polymodal.evaluation.statistics import Estimate
from polymodal.recipes.metrics.aloha import Recipe, parse_objects
from polymodal.reproduce.claim import claim_record
from polymodal.reproduce.metrics import compare_metrics
from polymodal.reproduce.result import Arm
from polymodal.reproduce.verdict import Evidence
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
        ("a dog under a table", ["- dog", "- table"]),
        ("two wine glasses, a stop sign and a kite", ["- wine glass", "- stop sign", "- kite"]),
        ("traffic lights, two hot-dogs and a baseball bat", ["- traffic light", "- hot dog", "- baseball bat"]),
        ("a boy eating a hot dog beside a bathroom sink", ["- boy", "- hot dog", "- bathroom sink"]),
        ("a street sign, a bus stop sign and a pizza box", ["- street sign", "- bus stop sign", "- pizza box"]),
        ("two bowls, white vases, cards and a pair of skis", ["- bowl", "- white vase", "- card", "- skis"]),
        ("girls feed ducks, a man stands, sheep stand on a hill", ["- girl", "- duck", "- man", "- sheep", "- hill"]),
        ("no dog on the grass, a man without a hat", ["- grass", "- man"]),
        ("a wolf that may be asleep on a sofa", ["- wolf", "- sofa"]),
        ("possibly a dog on a sofa", ["- dog (possibly)", "- sofa"]),
        ("what may be a dog or a cat", ["- dog or cat (possibly)"]),
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


def plural(name: str) -> str:
    return {"person": "people", "mouse": "mice", "knife": "knives"}.get(
        name, f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else f"{name}s"
    )


def test_every_class_of_coco_is_one_object_and_in_the_list(lexicon: WordNet) -> None:
    assert len(COCO_CLASSES) == 80
    for name in COCO_CLASSES:
        line = object_lines(f"there is a {name}", lexicon)
        assert line == f"- {name}"
        assert listed_class(name, lexicon) == listed_class(line.removeprefix("- "), lexicon) == COCO_CLASSES[name]
        assert Chair().score(f"a {name}", [f"a {name}"], ()).objects != {}
        many = name if name.endswith("s") or name in ("sheep", "broccoli") else plural(name)
        assert object_lines(f"red {many} near it", lexicon) == f"- red {name}"
        assert root(f"red {name}", lexicon) == name


def test_chair_sees_its_list_only() -> None:
    chair = Chair()
    assert isinstance(chair, Metric)
    assert chair.score("a dove, a taxi and a volcano", ["a bird and a car"]).objects == {"dove": 1.0, "taxi": 1.0}
    assert chair.score("a pizza and a dog", ["a dog"]).value == 0.5
    assert chair.score("a pizza", ["a dog"], detections=["pizza"]).value == 1
    assert chair.score("a volcano", ["a dog"]).value == 1
    assert chair.score("a stop sign", ["a dog"], detections=["stop sign"]).value == 1
    assert chair.score("a stop sign", ["a dog"]).value == 0


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
        assert (case.wrong is not None) == (case.kind in ("in_list", "out_of_list", "added", "similar"))
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


def test_the_object_that_was_made_up_is_found_in_the_plural(lexicon: WordNet) -> None:
    judged = CaptionScore(0.1, {"small glove": 0.1, "dog": 1.0})
    assert _localized(judged, "gloves", lexicon)
    assert not _localized(judged, "dog", lexicon)
    assert not _localized(CaptionScore(0.1, {"pelican": 0.1}), "can", lexicon)
    assert not _localized(CaptionScore(0.1, {"dog": 0.1, "cat": 0.1}), "cat", lexicon), "two are lowest"


def test_the_threshold_does_not_flag_synonyms_for_one_wrong_caption() -> None:
    values = {kind: np.array([0.1, 0.2, 0.2, 0.8]) for kind in WRONG}
    values |= {"true": np.ones(4), "synonym": np.array([0.5, 0.6, 0.6, 0.7])}
    assert _threshold(values) == 0.2
    assert _threshold(values | {"synonym": np.ones(4)}) == 0.8


def test_too_few_images_are_one_sentence(scenes: Corpus) -> None:
    with pytest.raises(UserError, match="30 or more"):
        hallucination_scores(Recipe(), scenes, 1, 0)


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


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """A random chat model of words."""
    words = {word: n for n, word in enumerate(["<end>", "dog", "cat", "-", "user", "assistant", "system", "or"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"
    fast.save_pretrained(tmp_path / "chat")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_positions=512, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


def test_a_chat_model_lists_objects(chat_model: Path, tmp_path: Path) -> None:
    parser = ChatModelParser(str(chat_model), max_new_tokens=5)
    said = parser.messages("these captions describe", ["a dog", "a cat"])
    assert [one["role"] for one in said] == ["system", *["user", "assistant"] * 3, "user"]
    assert said[-1]["content"] == "a dog\na cat", "all reference captions in one call"
    for one, lines in zip(said[2:-1:2], (3, 2, 2), strict=True):
        assert len(parse_objects(one["content"], reference=True)) == lines, "examples are in the format that is parsed"
    assert parser.parse_caption("a dog") == parser.parse_caption("a dog")
    assert isinstance(Recipe(object_parser=str(chat_model)).score("a dog", ["a cat"]).value, float)
    fast = PreTrainedTokenizerFast.from_pretrained(chat_model)
    fast.chat_template = None
    fast.save_pretrained(chat_model)
    for place in (chat_model / "chat_template.jinja",):
        place.unlink(missing_ok=True)
    with pytest.raises(UserError, match="no chat template"):
        ChatModelParser(str(chat_model))
    with pytest.raises(UserError, match="no causal language model"):
        ChatModelParser(str(tmp_path / "nothing"))
