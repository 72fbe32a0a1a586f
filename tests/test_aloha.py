"""ALOHa: what a caption speaks of, which reference it is matched with, and which metric sees what is made up."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymodal.cli.attacking import score
from polymodal.errors import UserError
from polymodal.evaluation.caption_metric import CaptionScore, Metric
from polymodal.recipes.metrics import aloha
from polymodal.recipes.metrics.aloha import Recipe, match_objects, parse_objects
from polymodal.serving.scoring import score_captions

BY = "test"


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


GOLDEN = np.load(Path(__file__).parent / "golden" / "aloha.npz")


def test_scores_are_those_of_the_released_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for objects without a reference, which there do not lower the score, and negative similarities."""
    vectors = dict(zip(GOLDEN["phrases"].tolist(), GOLDEN["vectors"], strict=True))
    monkeypatch.setattr(aloha, "embed_phrases", lambda _, entry: np.stack([vectors[phrase] for phrase in entry]))
    compared = 0
    for case in json.loads(str(GOLDEN["cases"])):
        empty = 1.0 if case["reduction"] == "mean" else 0.0
        metric = Recipe(reduction=case["reduction"], coco_only=case["coco"], empty_score=empty)
        score = metric.score_lines(case["target"], case["reference"], case["detections"])
        entries = [list(entry) for entry in parse_objects(case["target"], reference=False)]
        if not case["coco"]:
            assert entries == list(map(list, dict.fromkeys(map(tuple, case["targets"]))))
        similarities = [similarity for _, similarity in case["matches"]]
        if case["score"] is None:
            assert not entries
        elif 0.0 in similarities:
            assert case["reduction"] == "mean" or score.value <= max(case["score"], 0.0) + 1e-6
        elif case["reduction"] == "min" or min(similarities, default=1.0) > 0:
            compared += 1
            assert score.value == pytest.approx(max(case["score"], 0.0), abs=1e-5), case
    assert compared > 70


def test_both_alternatives_of_a_reference_are_references() -> None:
    """The root nouns of "dog or cat" are an entry of their own (released code: reference mode yields two entries)."""
    metric = Recipe()
    assert metric.score_lines("- dog\n- cat", "- dog or cat").value == pytest.approx(1, abs=1e-5)
    assert metric.score_lines("- dog\n- cat\n- hat", "- dog or cat").value == 0
    assert metric.score_lines("- dog\n- wolf", "- dog\n- dog", detections=["dog"]).value == 0, "one dog"
    assert Recipe(add_root_nouns=False).score_lines("- dog\n- cat", "- dog or cat").value == 0


def test_many_alternatives_are_compared_by_entry() -> None:
    """Beyond `MAX_CHOICES` choices the most similar alternatives of two entries count."""
    lines = "\n".join(f"- {a} or {b}" for a, b in itertools.combinations(["dog", "cat", "car", "hat", "tree"], 2))
    assert Recipe().score_lines("- dog", lines).value == pytest.approx(1, abs=1e-5)
    assert 0 < Recipe().score_lines("- violin", lines).value < 1
    assert Recipe(coco_only=True).score_lines("- violin", lines) == CaptionScore(1.0, {})


def test_alternatives_count_by_the_better_one() -> None:
    metric = Recipe()
    references = ["a dog beside a pizza"]
    either = metric.score("a dog or a violin", references)
    assert list(either.objects) == ["dog or violin"]
    assert either.value == pytest.approx(metric.score("a dog", references).value)
    brute = max(metric.score(f"a {one}", references).value for one in ("dog", "violin"))
    assert either.value == pytest.approx(brute)


def test_an_alternative_outside_coco_hides_no_hallucinated_object() -> None:
    """Released code with coco_objects and min: a choice without objects scores 0, so that it is never the best."""
    metric = Recipe(coco_only=True, similarity_model="exact")
    assert metric.score_lines("- dog or violin", "- cat") == CaptionScore(0.0, {"dog or violin": 0.0})
    assert metric.score_lines("- dog or violin", "- dog").value == 1
    assert metric.score_lines("- violin or harp", "- dog") == CaptionScore(1.0, {})
    assert Recipe(coco_only=True, empty_score=0.0).score_lines("- violin", "- dog") == CaptionScore(0.0, {})


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


def test_wrong_uses_are_one_sentence(polymodal, tmp_path: Path) -> None:
    finished = polymodal("train", "aloha", "--corpus", "scenes")
    assert finished.returncode == 2
    assert "polymodal score aloha" in finished.stderr
    with pytest.raises(UserError, match="no sentence-transformers model"):
        Recipe(similarity_model=str(tmp_path / "nothing")).score("a dog", ["a cat"])


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


def test_the_command_keeps_the_scores_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("captions.jsonl").write_text('{"caption": "a dog", "references": ["a cat"]}\n')
    Path("scores.jsonl").write_text("kept")
    score(["aloha", "captions.jsonl"])
    assert "scores-2.jsonl" in capsys.readouterr().out
    assert Path("scores.jsonl").read_text() == "kept"
    assert json.loads(Path("scores-2.jsonl").read_text())["caption"] == "a dog"
    score(["aloha", "captions.jsonl", "--out", "scores.jsonl"])
    assert "in place of the file that was there" in " ".join(capsys.readouterr().out.split())
