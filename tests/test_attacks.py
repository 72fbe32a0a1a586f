"""Attacks stay in their bounds, know only their source, and count success among what was right before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.attacks.attack import Attack
from polymodal.attacks.evaluate import (
    Pairs,
    Ranks,
    _together,
    attack_scores,
    perturb_pairs,
    reranked,
    success,
    summary,
)
from polymodal.attacks.masked_lm import WordModel, clean
from polymodal.attacks.perturbation import (
    Victim,
    in_place_of,
    padded_copy,
    projected_ascent,
    resized_copy,
    with_one_word_changed,
    words_by_importance,
)
from polymodal.attacks.stop_words import STOP_WORDS
from polymodal.claim import AttackClaim
from polymodal.corpora import Corpus
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip, siglip
from polymodal.recipes.security import set_level_attack
from polymodal.reproduce.attacks import compare_attacks
from polymodal.reproduce.claim import claim_record
from polymodal.reproduce.result import Arm
from polymodal.serving.attack import attack_runs
from polymodal.training import Run, train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
SET = set_level_attack.Recipe(eps=8.0, step_size=2.0)
PAIR = dataclasses.replace(SET, use_all_captions=False, scales=(), update_text_twice=False)


@pytest.fixture(scope="module")
def source(small_emoji: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A CLIP that knows its training images."""
    return train(
        clip.Recipe(), small_emoji, Budget(steps=120), out=tmp_path_factory.mktemp("runs") / "clip", runtime=QUIET
    )


@pytest.fixture(scope="module")
def target(small_emoji: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "siglip"
    return train(siglip.Recipe(), small_emoji, Budget(steps=120), seed=1, out=out, runtime=QUIET)


@pytest.fixture(scope="module")
def pairs(small_emoji: Corpus, source: Run) -> Pairs:
    return Pairs.of(small_emoji, source, "train", 60)


@pytest.fixture(scope="module")
def words(small_emoji: Corpus) -> WordModel:
    return WordModel.of(small_emoji, "en")


@pytest.fixture(scope="module")
def victim(source: Run) -> Victim:
    source.model.eval()
    return Victim(source.model, source.processor)


def pixels(pairs: Pairs, count: int = 8) -> torch.Tensor:
    arrays = np.stack([np.array(image) for image in pairs.images[:count]])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def test_ascent_stays_in_the_ball_and_reaches_its_best_corner() -> None:
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def objective(changed: torch.Tensor) -> torch.Tensor:
        return (changed * weights).sum()

    found = projected_ascent(image, objective, 0.03, 0.01, 10, torch.Generator().manual_seed(0))
    assert (found - image).abs().max() <= 0.03 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    torch.testing.assert_close(found, (image + 0.03 * weights.sign()).clamp(0, 1))  # a linear objective's maximum
    with_momentum = projected_ascent(image, objective, 0.03, 0.01, 10, torch.Generator().manual_seed(0), 1.0)
    torch.testing.assert_close(with_momentum, found)
    without = projected_ascent(image, objective, 0.03, 0.01, 0, torch.Generator().manual_seed(0))
    assert 0 < (without - image).abs().max() <= 0.03 + 1e-6


def test_gradient_reaches_the_pixels_through_every_copy() -> None:
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    for scale in (0.5, 0.75, 1.25, 1.5):
        copy = resized_copy(image, scale, 0.05, torch.Generator().manual_seed(0))
        assert copy.shape == image.shape
        (gradient,) = torch.autograd.grad(copy.sum(), image)
        assert (gradient != 0).float().mean() > 0.5
    smooth = torch.full((1, 3, 16, 16), 0.5)
    torch.testing.assert_close(resized_copy(smooth, 0.5, 0.0, torch.Generator()), smooth)
    padded = padded_copy(image, 0.5, torch.Generator().manual_seed(3))
    assert padded.shape == image.shape
    (gradient,) = torch.autograd.grad(padded.sum(), image)
    assert gradient.abs().sum() > 0


def test_the_most_important_word_is_the_one_that_moves_the_vector_most(victim: Victim) -> None:
    captions = [["red", "apple", "and", "pear"], ["dog"]]
    order = words_by_importance(victim, captions)
    whole = victim.encode_text(["red apple and pear"]).softmax(-1)
    moved = []
    for place in range(4):
        lacking = [*captions[0]]
        lacking[place] = "[UNK]"
        moved.append(float(F.kl_div(victim.encode_text([" ".join(lacking)]).log_softmax(-1), whole, reduction="sum")))
    assert order[0] == np.argsort(moved)[::-1].tolist()
    assert order[1] == [0]


def test_the_language_model_knows_what_stands_beside_what(words: WordModel) -> None:
    captions = [(["flag", "of", "France"], 0), (["a", "the", "of"], 1), (["apple"] * 40, 35)]
    first, second, beyond = words.candidates(captions, 10)
    assert "flag" not in first
    assert not STOP_WORDS & {*first, *second}
    assert beyond == []  # a word behind what the model reads stays
    (every,), (likely,) = (words.candidates([(["apple"], 0)], 10, floor) for floor in (-1e9, 0.3))
    assert likely == every[: len(likely)], "a floor of the logit leaves out the last"
    assert words.candidates([(["apple"], 0)], 10, 1e9) == [[]]
    rng = np.random.default_rng(0)
    rows = [text for text in ("flag: Japan", "flag: Peru", "woman running", "man running") for _ in range(30)]
    model = WordModel(
        [*rows, *(" ".join(rng.choice(["flag:", "woman", "man", "running"], 2)) for _ in range(9))], 0, 200
    )
    offered = model.candidates([(["woman", "running"], 0)], 3)[0]
    assert offered[0] == "man"


def test_punctuation_stays_where_it_was() -> None:
    assert in_place_of("(Blood", "type") == "(type"
    assert in_place_of("button,", "key") == "key,"
    assert clean("“here”") == "here"


def test_at_most_one_word_changes_and_the_caption_moves_away(victim: Victim, words: WordModel, pairs: Pairs) -> None:
    with torch.no_grad():
        away = victim.encode_image(pixels(pairs, 20)).repeat_interleave(2, 0)
    texts = pairs.texts[:40]
    changed = with_one_word_changed(victim, words, texts, away, 10)
    before, after = ((victim.encode_text(side) * away).sum(1) for side in (texts, changed))
    assert (after <= before + 1e-6).all()
    assert sum(old != new for old, new in zip(texts, changed, strict=True)) > 20
    for old, new in zip(texts, changed, strict=True):
        different = [a for a, b in zip(old.split(), new.split(), strict=True) if a != b]
        assert len(different) <= 1
        assert not {clean(word) for word in different} & STOP_WORDS


def test_words_behind_the_maximum_length_stay(victim: Victim, words: WordModel, pairs: Pairs) -> None:
    away = victim.encode_text(pairs.texts[:20])
    for length in (2, 3):
        changed = with_one_word_changed(victim, words, pairs.texts[:20], away, 10, length)
        for old, new in zip(pairs.texts, changed, strict=False):
            assert old.split()[length - 1 :] == new.split()[length - 1 :]


def test_a_fused_model_reranks_the_most_similar(monkeypatch: pytest.MonkeyPatch) -> None:
    """k = 2: the third candidate cannot win whatever its logit."""
    monkeypatch.setattr("polymodal.attacks.evaluate.RERANKED", 2)
    scores = reranked(
        torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 9.0], [9.0, 1.0, 2.0]])
    )
    assert scores.argsort(1, descending=True).tolist() == [[1, 0, 2], [2, 1, 0]]


def test_captions_are_edited_from_the_clean_ones_in_the_last_pass(source: Run, words: WordModel, pairs: Pairs) -> None:
    _, captions = SET.attack(source.model, source.processor, words, pixels(pairs), pairs.captions[:8])
    for old, new in zip(pairs.captions, captions, strict=False):
        for one, other in zip(old, new, strict=True):
            assert sum(a != b for a, b in zip(one.split(), other.split(), strict=True)) <= 1


def test_what_an_attack_leaves_is_what_files_hold(source: Run, small_emoji: Corpus) -> None:
    pairs = Pairs.of(small_emoji, source, "train", 16)
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    changed = perturb_pairs(SET, source, small_emoji, pairs, seed=3)
    again = perturb_pairs(SET, source, small_emoji, pairs, seed=3)
    assert changed.texts == again.texts
    for old, new, same in zip(pairs.images, changed.images, again.images, strict=True):
        assert np.array_equal(np.array(new), np.array(same))
        assert np.abs(np.array(new, dtype=int) - np.array(old, dtype=int)).max() <= 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.model.state_dict().items())


def test_success_is_counted_among_what_was_right() -> None:
    before = Ranks(np.array([1, 1, 7]), np.array([1, 2, 1, 1, 9]))
    after = Ranks(np.array([2, 1, 1]), np.array([1, 1, 3, 2, 1]))
    scores = {score.name: score for score in success(before, after, np.array([0, 0, 1, 1, 2]), "a_to_b")}
    assert scores["a_to_b/image_to_text/attack_success@1"].value == pytest.approx(1 / 2)
    assert scores["a_to_b/text_to_image/attack_success@1"].value == pytest.approx(2 / 3)
    assert scores["a_to_b/text_to_image/R@1_before"].value == pytest.approx(3 / 5)
    assert scores["a_to_b/text_to_image/attack_success@10"].value == 0
    same = success(before, before, np.array([0, 0, 1, 1, 2]), "a_to_b")
    assert all(score.value == 0 for score in same if "success" in score.name)
    broken = dataclasses.replace(after, broken=True)  # by NaN, which misleads nobody
    assert all(s.value == 0 for s in success(before, broken, np.array([0, 0, 1, 1, 2]), "a") if "success" in s.name)
    nothing = Ranks(np.array([9, 9, 9]), np.array([9] * 5))
    none_right = {score.name: score for score in success(nothing, after, np.array([0, 0, 1, 1, 2]), "a")}
    assert none_right["a/image_to_text/attack_success@1"].estimate() == (0, 0, 0)


def test_the_chance_level_of_pooled_queries_is_that_of_each_direction() -> None:
    """Two images with 3 and 1 captions: each direction and each victim has its own chance and number of queries."""
    owner = np.array([0, 0, 0, 1])
    right = Ranks(np.array([1, 1]), np.array([1, 1, 1, 1]))
    scores = [score for target in "ab" for score in success(right, right, owner, f"a_to_{target}")]
    scores += [dataclasses.replace(score, name=score.name.replace("a_to", "b_to")) for score in scores]
    of = {score.name: score for score in scores}
    ways = [of[f"a_to_b/{way}/R@1_before"] for way in ("image_to_text", "text_to_image")]
    assert [way.chance for way in ways] == [pytest.approx((3 / 4 + 1 / 4) / 2), pytest.approx(1 / 2)]
    ways[0] = dataclasses.replace(ways[0], chance=0.2)
    pooled = _together("other_models/R@1_before", ways)
    assert pooled.chance == pytest.approx((2 * 0.2 + 4 * 0.5) / 6)
    assert summary(scores, ["a", "b"])[0].chance is None, "success has no chance level"


def test_the_set_tears_more_apart_than_chance_and_the_source_falls_first(
    source: Run, target: Run, small_emoji: Corpus, pairs: Pairs
) -> None:
    runs = {"clip": source, "siglip": target}
    before = {name: Ranks.of(run, pairs) for name, run in runs.items()}
    metrics = {}
    for label, attack in (("set", SET), ("noise", dataclasses.replace(PAIR, top_k=0, num_iters=0))):
        assert isinstance(attack, Attack)
        scores = [score for name in runs for score in attack_scores(attack, name, runs, small_emoji, pairs, before)[0]]
        metrics[label] = {score.name: score.value for score in summary(scores, list(runs))}
    assert metrics["set"]["same_model/R@10_before"] > 0.3
    assert metrics["set"]["same_model/attack_success@10"] > metrics["set"]["other_models/attack_success@10"]
    assert metrics["set"]["other_models/attack_success@10"] > 0.2 > metrics["noise"]["other_models/attack_success@10"]


def test_a_claim_about_attacks_trains_its_victims_once(small_emoji: Corpus, tmp_path: Path) -> None:
    quick = dataclasses.replace(PAIR, num_iters=1)
    claim = AttackClaim(
        sentence="",
        baseline=dataclasses.replace(quick, top_k=0),
        treatment=quick,
        victims={"clip": clip.Recipe(batch_size=16), "siglip": siglip.Recipe(batch_size=16)},
        split="train",
        examples=20,
        corpus="emoji",
        budget=Budget(steps=2),
        seeds=1,
        metrics=("other_models/attack_success@10", "clip_to_siglip/text_to_image/attack_success@10"),
    )
    arms = [Arm("baseline", claim.baseline), Arm("treatment", claim.treatment)]
    found = compare_attacks(arms, claim, small_emoji, claim.budget, 1, tmp_path)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    began = [json.loads((path.parent / "run.json").read_text())["seed"] for path in weights]
    assert sorted(began) == [0, 1], "victims that begin alike are attacked alike"
    assert [trial.run.record["steps"] for trial in found.trials] == [
        trial.arm.recipe.num_iters for trial in found.trials
    ]
    record = claim_record("set_level_attack", claim, found)
    assert set(record["metrics"]) == set(claim.metrics)
    assert (record["verdict"], record["why"]) == ("no verdict", "1 seed, and a verdict needs 3")
    json.dumps(record)
    again = compare_attacks(arms, claim, small_emoji, claim.budget, 1, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert again.difference(again.arms[1], claim.metrics[0]) == pytest.approx(
        tuple(record["difference"].values()), abs=1e-5
    )


def test_a_user_attacks_own_runs(source: Run, target: Run, small_emoji: Corpus, tmp_path: Path) -> None:
    runs = {"clip": source, "siglip": target}
    rows = attack_runs(PAIR, runs, small_emoji, "train", 12, 0, str(tmp_path / "out"))
    assert len(rows) == 8
    assert {row[:2] for row in rows} == {(a, b) for a in runs for b in runs}
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    held = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert {"name", "chance", "value", "low", "high"} == set(held[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        attack_runs(PAIR, runs, small_emoji, "train", 12, 0, str(tmp_path / "file"))


def test_wrong_uses_are_one_sentence(polymodal, source: Run, tmp_path: Path) -> None:
    for arguments, said in (
        (("train", "set_level_attack", "--corpus", "emoji"), "trains nothing"),
        (("attack", "clip", str(source.directory)), "is no attack"),
        (("attack", "set_level_attack", str(source.directory), "--corpus", "digits"), "images and captions"),
    ):
        finished = polymodal(*arguments)
        assert finished.returncode == 2
        assert said in finished.stderr
        assert "Traceback" not in finished.stderr
