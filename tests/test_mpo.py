"""MPO: pairs of a model's own answers, losses of preferences, the reference, and a run from start to finish."""

from __future__ import annotations

import dataclasses
import json
import math
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
from polymodal.data.sequence import pad_sequences
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.errors import UserError
from polymodal.evaluation.question_answering import question_scores
from polymodal.evaluation.tasks.vqa_captioning import object_hallucination_scores
from polymodal.modalities.preference import Preference
from polymodal.modalities.question import Question
from polymodal.objectives.autoregressive import segment_sum
from polymodal.objectives.preference import aot, bco, dpo, hinge, ipo, orpo, robust_dpo, sppo
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.preference import mpo
from polymodal.reproduce.compare import Start, compare
from polymodal.reproduce.result import Arm
from polymodal.rng import ExampleRNG
from polymodal.training import Run, load_run, train
from polymodal.training.initialization import from_run
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


def rewards(seed: int = 0, count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, count, generator=generator, dtype=torch.float64))


# Losses


def test_a_model_that_is_its_own_reference_loses_the_logarithm_of_two() -> None:
    zero = torch.zeros(4)
    assert dpo(zero, zero).item() == pytest.approx(math.log(2))
    assert bco(zero, zero, 0.0).item() == pytest.approx(2 * math.log(2))
    assert aot(zero, zero).item() == pytest.approx(math.log(2))
    assert hinge(zero, zero).item() == 1
    assert ipo(zero, zero, 0.1).item() == pytest.approx(25)
    assert sppo(zero, zero, 0.1).item() == pytest.approx(50)


def test_losses_are_their_formulas() -> None:
    chosen, rejected = rewards()

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    pairs = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    mean = lambda of: pytest.approx(np.mean([of(c, r) for c, r in pairs]))  # noqa: E731
    assert dpo(chosen, rejected).item() == mean(lambda c, r: -log_sigmoid(c - r))
    assert dpo(chosen, rejected, 0.2).item() == mean(lambda c, r: -0.8 * log_sigmoid(c - r) - 0.2 * log_sigmoid(r - c))
    assert robust_dpo(chosen, rejected, 0.2).item() == mean(
        lambda c, r: (-0.8 * log_sigmoid(c - r) + 0.2 * log_sigmoid(r - c)) / 0.6
    )
    assert hinge(chosen, rejected).item() == mean(lambda c, r: max(0, 1 - (c - r)))
    assert bco(chosen, rejected, 0.3).item() == mean(lambda c, r: -log_sigmoid(c - 0.3) - log_sigmoid(0.3 - r))
    assert ipo(chosen, rejected, 0.5).item() == mean(lambda c, r: ((c - r) / 0.5 - 1) ** 2)
    assert sppo(chosen, rejected, 0.5).item() == mean(lambda c, r: (c / 0.5 - 1) ** 2 + (r / 0.5 + 1) ** 2)
    below, lower = -chosen.abs() - 0.1, -rejected.abs() - 0.1
    odds = lambda x: x - math.log(1 - math.exp(x))  # noqa: E731
    expected = [-log_sigmoid(odds(c) - odds(r)) for c, r in zip(below.tolist(), lower.tolist(), strict=True)]
    assert orpo(below, lower).item() == pytest.approx(np.mean(expected))


def test_robust_dpo_is_right_on_average_where_pairs_are_the_wrong_way_round() -> None:
    chosen, rejected = rewards()
    share = 0.3
    expected = (1 - share) * robust_dpo(chosen, rejected, share) + share * robust_dpo(rejected, chosen, share)
    assert expected.item() == pytest.approx(dpo(chosen, rejected).item())


def test_a_constant_on_all_rewards_and_on_the_center_changes_nothing() -> None:
    chosen, rejected = rewards()
    moved = bco(chosen + 2.5, rejected + 2.5, torch.tensor(0.4 + 2.5))
    torch.testing.assert_close(moved, bco(chosen, rejected, torch.tensor(0.4)))


def test_aot_does_not_ask_which_answer_belongs_to_which() -> None:
    chosen, rejected = rewards()
    order = torch.randperm(len(rejected), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(aot(chosen, rejected[order]), aot(chosen, rejected))
    assert not torch.isclose(dpo(chosen, rejected[order]), dpo(chosen, rejected))


# Pairs


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
                begun = words[: max(1, len(words) // 2)]
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


# The method


def both(pairs: Corpus, recipe: mpo.Recipe, taught: Run) -> tuple[mpo.MPO, dict]:
    """The method as it is before its first step, and a batch."""
    processor = taught.processor
    model = recipe.build(processor)
    from_run(taught.directory)(model)
    model.keep_reference()
    _, examples = Reader(pairs, processor).read_all(pairs.rows("train")[:8])
    return model.train(), recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 8))


def test_before_the_first_step_no_answer_has_a_reward(pairs: Corpus, taught: Run) -> None:
    model, batch = both(pairs, LEARN, taught)
    losses = model.losses(batch)
    assert losses["dpo"].item() == pytest.approx(0.8 * math.log(2), abs=1e-5)
    assert losses["bco"].item() == pytest.approx(0.2 * 2 * math.log(2), abs=1e-5)
    assert model.mean_reward.item() == pytest.approx(0, abs=1e-6)
    total = sum(losses.values())
    total.backward()
    assert all(parameter.grad is None for parameter in model.reference.parameters())
    assert any(parameter.grad is not None for parameter in model.language_model.parameters())


def test_generation_is_the_mean_over_tokens_of_chosen_answers(pairs: Corpus, taught: Run) -> None:
    model, batch = both(pairs, LEARN, taught)
    processor = taught.processor
    half = len(batch["sequences"]) // 2
    with torch.no_grad():
        generation = model.losses(batch)["sft"]
        token_losses, row, _ = model.token_losses(batch)
    chosen = row < half
    assert generation.item() == pytest.approx(token_losses[chosen].mean().item(), abs=1e-5)
    asked = batch["sequences"].predicted
    assert int(chosen.sum()) == int(asked[:half].sum())
    assert processor.conversation.end in batch["sequences"].ids[0][asked[0]].tolist(), "the end mark counts"


def test_answers_together_are_as_likely_as_apart(pairs: Corpus, taught: Run) -> None:
    model, batch = both(pairs, LEARN, taught)
    processor, sequences = taught.processor, batch["sequences"]
    _, examples = Reader(pairs, processor).read_all(pairs.rows("train")[:8])
    lots = zip(examples, ExampleRNG.of(0, 0, 8).generators, strict=True)
    drawn = [mpo.one_pair(example["preferences"], rng) for example, rng in lots]
    with torch.no_grad():
        losses, row, _ = model.token_losses({"sequences": sequences})
        together = -segment_sum(losses, row, len(sequences))
        for number, (example, pair) in enumerate(zip(examples, drawn, strict=True)):
            form = processor.conversation
            alone = pad_sequences([form.sequence(example["image"], [Turn(pair.rejected, pair.question)])])
            expected = model.log_likelihood({"sequences": alone})[0]
            torch.testing.assert_close(together[len(examples) + number], expected, atol=1e-3, rtol=1e-4)


def test_a_shared_beginning_cancels_in_the_margin(taught: Run, pairs: Corpus) -> None:
    """The reward of what both answers begin with is the same, whatever the model has learned since."""
    model, _ = both(pairs, LEARN, taught)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    processor = taught.processor
    image = pairs.value(pairs.rows("train")[0], "image")
    said = ["duck 2, key 1.", "duck 2, cat 3, bomb 1."]
    image = processor.image.open(image)
    batch = pad_sequences([processor.conversation.sequence(image, [Turn(text, DESCRIBE)]) for text in said])
    with torch.no_grad():
        own, rows, _ = model.token_losses({"sequences": batch})
        reference = model.reference.token_losses({"sequences": batch}).nats
    gain = [(reference - own)[rows == row] for row in (0, 1)]
    shared = int((batch.ids[0][batch.predicted[0]][:3] == batch.ids[1][batch.predicted[1]][:3]).sum())
    assert shared >= 2
    torch.testing.assert_close(gain[0][:shared], gain[1][:shared], atol=1e-4, rtol=1e-4)
    assert gain[0][:shared].abs().sum() > 0.01


def test_the_center_is_the_mean_of_all_rewards_so_far(pairs: Corpus, taught: Run) -> None:
    model, _ = both(pairs, LEARN, taught)
    seen = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0, 0.0, 1.0])]
    assert model._center(seen[0]).item() == pytest.approx(1.5)
    assert model._center(seen[1]).item() == pytest.approx(float(torch.cat(seen).mean()))
    assert {"mean_reward", "rewards_seen"} <= set(model.state_dict()), "a checkpoint has it"


@pytest.mark.parametrize("loss", ["robust_dpo", "hinge", "ipo", "sppo", "aot", "orpo"])
def test_every_other_loss_of_pairs_runs(loss: mpo.PreferenceLoss, pairs: Corpus, taught: Run) -> None:
    recipe = dataclasses.replace(LEARN, loss_type=loss, bco_weight=0.0, sft_weight=0.0, label_smoothing=0.1)
    model, batch = both(pairs, recipe, taught)
    losses = model.losses(batch)
    assert set(losses) == {"dpo"}
    losses["dpo"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_preferences_are_learned_and_the_run_answers(pairs: Corpus, taught: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = train(LEARN, pairs, Budget(steps=25), out=out, init=taught.directory, runtime=QUIET)
    assert run.processor.tokenizer.vocab_size == taught.processor.tokenizer.vocab_size
    texts = ["how many things are there?", "duck 2, key 1, so 3. final answer: 3"]
    assert run.processor.tokenizer(texts).ids.tolist() == taught.processor.tokenizer(texts).ids.tolist()
    first, last = (run.history[place]["losses"] for place in (0, -1))
    assert last["dpo"] < first["dpo"] < 0.8 * math.log(2) + 0.05
    reference = run.model.reference.state_dict()
    own = taught.model.state_dict()
    assert all(torch.equal(reference[name], own[name]) for name in own), "the reference stays what the run began with"
    again = load_run(out)
    reader = Reader(pairs, again.processor)
    for made in (question_scores, object_hallucination_scores):
        metrics = {score.name: score.value for score in made(again.model, again.processor, reader, "test")}
        assert all(0 <= abs(value) <= 1 for value in metrics.values())
    assert {"test/captions/CHAIR_i", "test/captions/object_recall"} <= set(metrics)


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


def test_the_paper_preset_has_the_published_figures() -> None:
    recipe = mpo.Recipe.paper()
    assert (recipe.dpo_weight, recipe.bco_weight, recipe.sft_weight, recipe.beta) == (0.8, 0.2, 1.0, 0.1)
    assert (
        recipe.optimizer.learning_rate,
        recipe.optimizer.weight_decay,
        recipe.batch_size,
        recipe.optimizer.warmup_ratio,
    ) == (
        5e-6,
        0.05,
        256,
        0.05,
    )


# By the command line


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
    sizes = ["--language-model.width", "32", "--language-model.depth", "2", "--language-model.mlp-dim", "64"]
    sizes += [
        "--language-model.context-length",
        "160",
        "--tile-size",
        "48",
        "--patch-embed-dim",
        "16",
        "--batch-size",
        "4",
    ]
    sizes += ["--no-visual-experts", "--budget", "2steps", "--logger", "none", "--out", "run"]
    trained = polymodal("train", "mpo", "--data", "pairs", "--init", str(taught.directory), *sizes)
    assert trained.returncode == 0, trained.stderr
    without = polymodal("train", "mpo", "--corpus", "counting", "--budget", "2steps")
    assert without.returncode == 2
    assert "make some with: polymodal sample-preferences RUN" in without.stderr


def test_preferences_are_shown(pairs: Corpus) -> None:
    from polymodal.corpora.contact_sheet import describe_row as shown

    said = shown(pairs, int(pairs.rows("train")[0]))
    assert "rather than" in said["preferences"]
    assert isinstance(pairs.value(pairs.rows("train")[0], "preferences")[0], Preference)
