"""Pairs of a model's own answers, what is measured of workings and captions, and runs that learn from the pairs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.corpora.saved import load_description, open_saved
from polymodal.curation import preferences
from polymodal.curation.preferences import PairOptions, correctness_pairs, write_preferences
from polymodal.data.conversation import DESCRIBE, Turn
from polymodal.data.instructions import FINAL, THINK, chain_of_thought_turn, final_answer
from polymodal.data.loader import Reader
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.errors import UserError
from polymodal.evaluation.question_answering import _same, question_scores
from polymodal.evaluation.tasks.vqa_captioning import object_hallucination_scores
from polymodal.modalities.preference import Preference
from polymodal.modalities.question import Question
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.preference import mpo
from polymodal.reproduce.compare import Start, compare
from polymodal.reproduce.result import Arm
from polymodal.training import Run, train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
SMALL = LanguageModelConfig(
    vocab_size=320, context_length=160, width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=64
)
SHAPE = {"language_model": SMALL, "tile_size": 48, "patch_size": 8, "patch_embed_dim": 16}
TINY = mono_internvl.Recipe(
    **SHAPE,
    batch_size=16,
    max_turns=5,
    optimizer=OptimizerConfig(learning_rate=2e-2),
    stage_fractions=(0, 0, 0, 0, 1),
    visual_experts=False,
)
LEARN = mpo.Recipe(
    **SHAPE, visual_experts=False, batch_size=8, optimizer=dataclasses.replace(mpo.Recipe.optimizer, learning_rate=2e-3)
)
OPTIONS = PairOptions(examples=24, num_return_sequences=8, caption_fraction=1.0, max_new_tokens=24)


@pytest.fixture(scope="module")
def counting() -> Corpus:
    corpus = pm.corpora.counting()
    few = {name: rows[:96] if name == "train" else rows[:10] for name, rows in corpus.splits.items()}
    return corpus.with_splits(few)


@pytest.fixture(scope="module")
def taught(counting: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model that has seen right answers, and gives some."""
    return train(TINY, counting, Budget(steps=250), out=tmp_path_factory.mktemp("mpo") / "taught", runtime=QUIET)


@pytest.fixture(scope="module")
def pairs(taught: Run, counting: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_preferences(taught, counting, tmp_path_factory.mktemp("mpo") / "pairs", OPTIONS)


def test_every_right_answer_stands_before_every_wrong_one() -> None:
    finals = {"a so 3": "3", "b so 3": "3", "so 2": "2", "so 33": "33", "no end": None}
    made = correctness_pairs("How many?", finals, "3", 15, np.random.default_rng(0))
    assert {(pair.chosen, pair.rejected) for pair in made} == {
        ("a so 3", "so 2"),
        ("b so 3", "so 2"),
        ("a so 3", "no end"),
        ("b so 3", "no end"),
    }, "33 contains 3, so it may be meant right"
    assert {pair.kind for pair in made if pair.rejected == "no end"} == {"no answer"}
    assert len(correctness_pairs("How many?", finals, "3", 3, np.random.default_rng(0))) == 3
    assert not correctness_pairs("How many?", {"3": "3"}, "3", 15, np.random.default_rng(0))
    assert not correctness_pairs("How many?", {"4": "4"}, "3", 15, np.random.default_rng(0))


def test_a_full_stop_after_an_answer_makes_it_neither_right_nor_wrong() -> None:
    """No answer with a rationale was ever right where answers of the corpus end in one."""
    finals = {text: final_answer(text) for text in (f"so {FINAL} Yes.", f"so {FINAL} yes", f"so {FINAL} No.")}
    made = correctness_pairs("Is it red?", finals, "Yes.", 15, np.random.default_rng(0))
    assert {(pair.chosen, pair.rejected) for pair in made} == {
        (f"so {FINAL} Yes.", f"so {FINAL} No."),
        (f"so {FINAL} yes", f"so {FINAL} No."),
    }
    assert _same("yes", "Yes.")
    assert not _same("no", "Yes.")


def test_a_caption_without_spaces_is_preferred_to_a_blind_one() -> None:
    """Half of one word is none, as in the released pipeline: the rejected answer is not the caption and more."""
    begun = []

    def drawn(**columns: list) -> list[str]:
        begun.extend(columns.get("begun", []))
        return ["一只红色的猫", "a red cat"] if "image" in columns else ["一辆车", "bus"]

    examples = [{"image": None}, {"image": None}]
    pairs = [(pair.chosen, pair.rejected) for pair in preferences._blind(examples, OPTIONS, drawn) if pair]
    assert begun == ["", "a"]
    assert pairs == [("一只红色的猫", "一辆车"), ("a red cat", "a bus")]


def test_a_working_ends_in_its_final_answer() -> None:
    question = Question("How many things are there?", "3", "count", "cat 2, key 1, so 3.")
    said = chain_of_thought_turn(question)
    assert said == Turn(f"cat 2, key 1, so 3. {FINAL} 3", f"How many things are there? {THINK}")
    assert final_answer(said.answer) == "3"
    assert final_answer("cat 2, final answer: YES.") == "yes"
    assert final_answer("cat 2, so 2.") is None
    assert final_answer("cat 2. Final answer:") is None


def test_pairs_are_what_they_say(pairs: Corpus, counting: Corpus, taught: Run) -> None:
    made = load_description(pairs.choices["data"])["made"]
    held = [pair for row in pairs.rows("train") for pair in pairs.value(row, "preferences")]
    assert sum(made["counts"]["pairs"].values()) == len(held) > 20
    assert {pair.kind for pair in held} >= {"correctness", "dropout"}
    for row in pairs.rows("train"):
        truth = {question.question: question.answer for question in pairs.value(row, "questions")}
        for pair in pairs.value(row, "preferences"):
            assert pair.chosen != pair.rejected
            if pair.kind == "dropout":
                words = pair.chosen.split()
                begun = words[: len(words) // 2]
                assert pair.question == DESCRIBE
                assert pair.rejected.split()[: len(begun)] == begun
            else:
                answer = truth[pair.question.removesuffix(f" {THINK}")]
                assert final_answer(pair.chosen) == answer
                assert final_answer(pair.rejected) != answer
    assert len(pairs.rows("test")) == len(counting.rows("test"))
    first = counting.rows("test")[0]
    assert pairs.raw(pairs.rows("test")[0], "image") == counting.raw(first, "image")


def test_the_same_seed_makes_the_same_pairs(pairs: Corpus, taught: Run, counting: Corpus, tmp_path: Path) -> None:
    again = write_preferences(taught, counting, tmp_path / "again", OPTIONS)
    assert again.table.equals(pairs.table)
    others = write_preferences(taught, counting, tmp_path / "others", dataclasses.replace(OPTIONS, seed=1))
    assert not others.table.equals(pairs.table)


def test_asking_goes_on_where_it_was_stopped(
    pairs: Corpus, taught: Run, counting: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(chunks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        yield chunks[0]
        raise KeyboardInterrupt

    file = tmp_path / ".again.unfinished.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_preferences(taught, counting, tmp_path / "again", OPTIONS, stopped)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    with pytest.raises(UserError, match="was begun with another run, other data or options"):
        write_preferences(taught, counting, tmp_path / "again", dataclasses.replace(OPTIONS, seed=1))
    with file.open("a") as kept:
        kept.write('{"pairs": [[1, [["how m')  # as a killed process leaves it
    asked, ask = [], preferences._pairs_of
    monkeypatch.setattr(preferences, "_pairs_of", lambda *given: asked.append(given) or ask(*given))
    again = write_preferences(taught, counting, tmp_path / "again", OPTIONS)
    assert len(asked) == -(-OPTIONS.examples // preferences.CHUNK) - 1
    assert again.table.equals(pairs.table)
    assert (
        load_description(tmp_path / "again")["made"]["counts"]
        == load_description(pairs.choices["data"])["made"]["counts"]
    )
    assert not file.exists()


def test_a_blind_caption_goes_on_without_the_image(taught: Run) -> None:
    processor = taught.processor
    prompts = processor(question=[DESCRIBE], begun=["duck 2,"])["prompts"]
    assert not prompts.features
    assert processor.texts(prompts.ids.tolist())[0].endswith("duck 2,")


def test_a_full_folder_and_a_model_that_knows_nothing_are_refused(
    taught: Run, counting: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="is not empty"):
        write_preferences(taught, counting, tmp_path / "full", OPTIONS)
    ignorant = dataclasses.replace(taught, model=TINY.build(taught.processor).eval())
    with pytest.raises(UserError, match="No pair came out of 24 questions: 0 of"):
        write_preferences(ignorant, counting, tmp_path / "none", dataclasses.replace(OPTIONS, caption_fraction=0.0))
    assert not [path.name for path in tmp_path.iterdir() if "none" in path.name], "nothing is left behind"
    with pytest.raises(UserError, match="--num-return-sequences is at least 2"):
        PairOptions(num_return_sequences=1)


def test_workings_are_scored_beside_direct_answers(taught: Run, counting: Corpus) -> None:
    reader = Reader(counting, taught.processor)
    metrics = {score.name: score for score in question_scores(taught.model, taught.processor, reader, "test")}
    gain, right = metrics["test/cot/gain_over_direct"], metrics["test/cot/accuracy"]
    assert gain.weights is not None
    assert right.weights is not None
    assert gain.weights.tolist() == right.weights.tolist() == [3.0] * 10, "three questions of each have a working"
    assert not metrics["test/cot/no_answer_rate"].higher_is_better
    assert right.chance is not None
    assert 0 < right.chance < 1


def test_captions_are_searched_for_what_is_not_there(counting: Corpus, taught: Run) -> None:
    class Told(torch.nn.Module):
        """Says of every image that there are ducks and keys."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def generate_text(self, batch: dict, decoding: object = None, generator: object = None) -> list[list[int]]:
            ids = taught.processor.tokenizer(["duck 2, key 1."]).ids[0, 1:-1].tolist()
            return [ids] * len(batch["prompts"])

        def log_likelihood(self, batch: dict) -> torch.Tensor:
            raise NotImplementedError

    reader = Reader(counting, taught.processor)
    scores = {score.name: score for score in object_hallucination_scores(Told(), taught.processor, reader, "test")}
    there = [{region.name for region in counting.value(row, "regions")} for row in counting.rows("test")]
    right = sum(len({"duck", "key"} & names) for names in there)
    assert scores["test/captions/CHAIR_i"].value == pytest.approx(1 - right / (2 * len(there)))
    assert scores["test/captions/object_recall"].value == pytest.approx(right / sum(map(len, there)))


def test_a_comparison_trains_on_what_its_start_makes(counting: Corpus, tmp_path: Path) -> None:
    def makes(run: Run, corpus: Corpus, folder: Path, seed: int) -> Corpus:
        return write_preferences(run, corpus, folder, dataclasses.replace(OPTIONS, seed=seed))

    arms = [Arm("chosen alone", dataclasses.replace(LEARN, dpo_weight=0.0, bco_weight=0.0)), Arm("mixed", LEARN)]
    start = Start(TINY, Budget(steps=60), makes)
    found = compare(arms, counting, Budget(steps=2), 1, tmp_path / "out", start=start)
    made = open_saved(tmp_path / "out" / "made" / "seed-0")
    assert [trial.run.record["corpus"] for trial in found.trials] == [dict(made.choices)] * 2
    references = [trial.run.model.reference.state_dict() for trial in found.trials]
    assert all(torch.equal(references[0][name], references[1][name]) for name in references[0])
    assert "test/cot/accuracy" in found.score_names
    again = compare(arms, counting, Budget(steps=2), 1, tmp_path / "out", start=start)
    assert again.estimate(arms[1], "test/cot/accuracy") == found.estimate(arms[1], "test/cot/accuracy")


def test_pairs_and_a_run_by_commands(taught: Run, polymodal, tmp_path: Path) -> None:
    few = ["--corpus", "counting", "--examples", "16", "--num-return-sequences", "6", "--out", "pairs"]
    made = polymodal("sample-preferences", str(taught.directory), *few)
    assert made.returncode == 0, made.stderr
    assert "right answers" in made.stdout
    assert f"Next: polymodal train mpo --data pairs --init {taught.directory}" in made.stdout
    assert json.loads((tmp_path / "pairs" / "corpus.json").read_text())["made"]["counts"]["questions"] == 16
    again = polymodal("sample-preferences", str(taught.directory), "--corpus", "counting", "--out", "pairs")
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    sizes = ["--batch-size", "4", "--budget", "2steps", "--logger", "none", "--out", "run"]
    trained = polymodal("train", "mpo", "--data", "pairs", "--init", str(taught.directory), *sizes)
    assert trained.returncode == 0, trained.stderr
    for words, sentence in (
        (("--data", "pairs"), "name the run whose pairs these are by --init RUN"),
        (("--corpus", "counting", "--init", str(taught.directory)), "make some with: polymodal sample-preferences RUN"),
    ):
        refused = polymodal("train", "mpo", *words, "--budget", "2steps")
        assert refused.returncode == 2
        assert sentence in refused.stderr


def test_preferences_are_shown(pairs: Corpus) -> None:
    from polymodal.corpora.contact_sheet import describe_row as shown

    said = shown(pairs, int(pairs.rows("train")[0]))
    assert "rather than" in said["preferences"]
    assert isinstance(pairs.value(pairs.rows("train")[0], "preferences")[0], Preference)
