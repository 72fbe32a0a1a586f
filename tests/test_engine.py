"""The parts of the training engine: pieces of a batch, stages, harmony, LoRA, guards, checkpoints, kills."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polymodal import corpora
from polymodal.data.batch_order import Bucketed, batch_order
from polymodal.data.loader import Reader, TrainingData
from polymodal.data.processor import fit_processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.lora import LoRALinear, add_lora, merge_lora
from polymodal.layers.projection_head import ProjectionHead
from polymodal.modalities import Text
from polymodal.recipes.dual_encoders import clip, siglip, sparc
from polymodal.training import Interrupted, load_run, train
from polymodal.training import checkpoint as checkpoint_file
from polymodal.training.feature_cache import weights_key
from polymodal.training.grad_cache import backward, two_halves
from polymodal.training.gradient_harmonization import GradientHarmonizer, gradient_cosine, project_conflicting
from polymodal.training.initialization import from_pretrained
from polymodal.training.optimizer import OptimizerConfig, adamw, layer_scales, learning_rate
from polymodal.training.parallel import World
from polymodal.training.run_index import find_runs
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.tracking import flatten
from polymodal.types import Budget, Stage

RECIPES = {"clip": clip.Recipe, "siglip": siglip.Recipe, "sparc": sparc.Recipe}
QUIET = RuntimeConfig(logger="none")
BLOCKS = ImageEncoderConfig(width=64, depth=2)


def weights(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


def gradients_of(model, batches):
    model.zero_grad()
    losses = backward(model, model.losses, batches, {}, lambda _: nullcontext())
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Batches


def data_of(corpus, recipe, processor, **options):
    return TrainingData(Reader(corpus, processor), 24, 5, recipe.training_batch, **options)


def test_batches_are_the_same_for_any_number_of_processes_workers_and_pieces(small_emoji):
    recipe = clip.Recipe()
    processor = fit_processor(recipe, small_emoji)
    whole = data_of(small_emoji, recipe, processor)
    halves = [data_of(small_emoji, recipe, processor, process=p, processes=2, micro_batch=4) for p in range(2)]
    ahead = [data_of(small_emoji, recipe, processor, **how) for how in ({"num_threads": 3}, {"num_workers": 2})]
    for _ in range(20):  # more than an epoch
        (batch,) = next(whole)
        others = [next(data)[0] for data in ahead]
        pieces = [piece for half in halves for piece in next(half)]
        assert len(pieces) == 6
        torch.testing.assert_close(batch["image"], torch.cat([piece["image"] for piece in pieces]))
        for same in others:
            torch.testing.assert_close(batch["image"], same["image"])
            assert processor.tokenizer.decode(batch["text"]) == processor.tokenizer.decode(same["text"])
        texts = [text for piece in pieces for text in processor.tokenizer.decode(piece["text"])]
        assert processor.tokenizer.decode(batch["text"]) == texts
    assert whole.keys(3) == halves[0].keys(3) + halves[1].keys(3)
    assert len(set(whole.keys(3))) == 24
    taken, (batch,) = whole.taken, next(whole)
    for again in (data_of(small_emoji, recipe, processor), ahead[1]):
        assert again is not ahead[1] or again.taken == taken
        again.taken = taken
        torch.testing.assert_close(next(again)[0]["image"], batch["image"])
    ahead[1].close()


def test_what_processes_cannot_read_is_counted_and_ends_the_run_with_a_sentence(small_emoji):
    recipe = clip.Recipe()
    table = small_emoji.table.to_pylist()
    rows = small_emoji.rows("train")
    for row in rows[:5]:
        table[row]["image"] = b"no image"
    some = dataclasses.replace(small_emoji, table=pa.Table.from_pylist(table, small_emoji.table.schema))
    processor = fit_processor(recipe, some)
    data = data_of(some, recipe, processor, num_workers=2)
    for _ in range(2 * len(rows) // 24):
        assert sum(len(batch["image"]) for batch in next(data)) == 24
    assert set(data.reader.skipped) == {some.key(int(row)) for row in rows[:5]}
    before = len(multiprocessing.active_children())
    data.close()
    assert len(multiprocessing.active_children()) == before - 2
    for row in rows[:-24]:
        table[row]["image"] = b"no image"
    broken = dataclasses.replace(some, table=pa.Table.from_pylist(table, some.table.schema))
    hopeless = data_of(broken, recipe, processor, num_workers=2)
    with pytest.raises(UserError, match="cannot be read, more than a tenth"):
        next(hopeless)


def test_buckets_put_equally_long_examples_together(small_emoji):
    rng = np.random.default_rng(0)
    texts = ["x" * int(length) for length in rng.integers(1, 100, 250)]
    corpus = dataclasses.replace(
        small_emoji, table=pa.table({"text": texts}), splits={"train": np.arange(250)}, columns={"text": Text()}
    )
    lengths = corpus.stored_lengths("text")
    assert lengths.tolist() == [len(text) for text in texts]
    plain = batch_order(corpus, 10, seed=3)
    bucketed = Bucketed(plain, lengths, window=6, epoch=25, seed=3)
    for epoch in (0, 1):
        batches = [bucketed[25 * epoch + number] for number in range(25)]
        assert sorted(np.concatenate(batches)) == sorted(
            np.concatenate([plain[25 * epoch + number] for number in range(25)])
        ), "the same examples, each once an epoch"
        assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 25
        order = np.array([lengths[batch].mean() for batch in batches])
        assert np.any(np.diff(order[:6]) < 0), "short batches do not all come first"
    assert np.mean([np.ptp(lengths[plain[number]]) for number in range(25)]) > 70
    np.testing.assert_array_equal(bucketed[7], Bucketed(plain, lengths, window=6, epoch=25, seed=3)[7])


def test_how_long_values_are_without_decoding_them(small_emoji):
    captions = [[{"text": "cat", "language": "en"}, {"text": "chat", "language": "fr"}], None, []]
    table = pa.table({"captions": captions, "sound": [b"12345", b"", None], "series": [[1.0, 2.0], [3.0], None]})
    corpus = dataclasses.replace(small_emoji, table=table)
    assert corpus.stored_lengths("captions").tolist() == [7, 0, 0]
    assert corpus.stored_lengths("sound").tolist() == [5, 0, 0]
    assert corpus.stored_lengths("series").tolist() == [2, 1, 0]
    mixed = corpora.mix_corpora([(small_emoji, 1.0), (small_emoji, 1.0)])
    own = small_emoji.stored_lengths("captions").tolist()
    assert mixed.stored_lengths("captions").tolist() == own + own


def test_training_with_buckets_goes_on_as_if_it_had_not_stopped(small_emoji):
    recipe = clip.Recipe(length_bucketing=4)
    processor = fit_processor(recipe, small_emoji)
    whole = data_of(small_emoji, recipe, processor, length_bucketing=4)
    halves = [
        data_of(small_emoji, recipe, processor, length_bucketing=4, process=p, processes=2, num_threads=p)
        for p in range(2)
    ]
    for _ in range(6):
        next(whole)
    for half in halves:
        half.taken = 6
    joined = torch.cat([next(half)[0]["image"] for half in halves])
    torch.testing.assert_close(joined, next(whole)[0]["image"])


@pytest.mark.parametrize("name", RECIPES)
def test_cached_gradients_of_small_pieces_equal_those_of_the_whole_batch(name, small_emoji):
    recipe = RECIPES[name]()
    processor = fit_processor(recipe, small_emoji)
    torch.manual_seed(0)
    model = recipe.build(processor)
    whole, pieces = (data_of(small_emoji, recipe, processor, micro_batch=size).batch(0) for size in (24, 4))
    losses, expected = gradients_of(model, whole)
    cached_losses, cached = gradients_of(model, pieces)
    assert_close(losses, cached_losses)
    assert_close(expected, cached)


def test_batch_norm_is_not_cut_into_pieces(small_emoji):
    class Normed(clip.CLIP):
        def __init__(self, recipe, vocabulary):
            super().__init__(recipe, vocabulary)
            self.norm = ProjectionHead([8, 8, 8])

    recipe = clip.Recipe()
    processor = fit_processor(recipe, small_emoji)
    model = Normed(recipe, processor.tokenizer.vocab_size)
    pieces = data_of(small_emoji, recipe, processor, micro_batch=12).batch(0)
    with pytest.raises(UserError, match="batch norm"):
        gradients_of(model, pieces)


def test_a_method_with_losses_of_its_own_takes_the_mean_over_pieces(small_emoji):
    class Own(clip.CLIP):
        def losses(self, batch):
            return super().losses(batch) | {"brightness": self.encode_image(batch["image"]).mean()}

    recipe = clip.Recipe()
    processor = fit_processor(recipe, small_emoji)
    model = Own(recipe, processor.tokenizer.vocab_size)
    pieces = data_of(small_emoji, recipe, processor, micro_batch=12).batch(0)
    losses, gradients = gradients_of(model, pieces)
    each = [gradients_of(model, [piece]) for piece in pieces]
    for name in losses:
        torch.testing.assert_close(losses[name], (each[0][0][name] + each[1][0][name]) / 2)
    assert_close(gradients, {name: (each[0][1][name] + each[1][1][name]) / 2 for name in gradients})


@pytest.mark.parametrize(
    "change", [{"micro_batch": 8}, {"activation_checkpointing": True}, {"num_threads": 2}, {"num_workers": 2}], ids=str
)
def test_how_a_run_is_executed_does_not_change_it(change, small_emoji):
    recipe = sparc.Recipe(batch_size=32)
    plain = train(recipe, small_emoji, Budget(steps=4), runtime=QUIET)
    other = train(recipe, small_emoji, Budget(steps=4), runtime=dataclasses.replace(QUIET, **change))
    assert_close(weights(plain), weights(other))


def test_half_precision_trains_about_the_same_losses(small_emoji):
    recipe = clip.Recipe(batch_size=16)
    runs = [
        train(recipe, small_emoji, Budget(steps=3), runtime=dataclasses.replace(QUIET, precision=precision))
        for precision in ("float32", "bfloat16")
    ]
    one, other = (run.history[-1]["losses"]["contrastive"] for run in runs)
    assert one == pytest.approx(other, abs=0.05)
    assert one != other
    assert {tensor.dtype for tensor in weights(runs[1]).values()} == {torch.float32}


# Stages


@dataclasses.dataclass(frozen=True)
class TwoStages(clip.Recipe):
    def stages(self):
        return (
            Stage("text", fraction=1, trainable=("text_encoder.*", "text_projection.*")),
            Stage("all but text", fraction=2, trainable=("image_*", "logit_scale.*"), lr_scale=0.5),
        )


class Hooked(clip.CLIP):
    """Pulls its logit scale up, and keeps what the trainer calls it with."""

    def __init__(self, recipe, vocabulary):
        super().__init__(recipe, vocabulary)
        self.calls = []

    def before_training(self):
        self.calls.append((None, None))

    def after_step(self, fraction):
        self.calls.append((round(fraction, 6), self.logit_scale().item()))

    def losses(self, batch):
        return super().losses(batch) | {"up": -100.0 * self.logit_scale()}


class OfTwoStages(clip.Recipe):
    def stages(self):
        return (Stage("first", fraction=1), Stage("second", fraction=1, trainable=("image_*",)))

    def build(self, processor):
        return Hooked(self, processor.tokenizer.vocab_size)


def test_hooks_of_modules_are_called_in_every_stage_and_the_logit_scale_stays_bounded(small_emoji):
    recipe = OfTwoStages(
        batch_size=16,
        logit_scale_init=99.0,
        optimizer=dataclasses.replace(OfTwoStages.optimizer, learning_rate=0.1, warmup_ratio=0.0),
    )
    run = train(recipe, small_emoji, Budget(steps=4), runtime=QUIET)
    assert [call[0] for call in run.model.calls] == [None, 0.5, 1.0, None, 0.5, 1.0]  # fractions of the stage
    # The method's own hook comes before that of its logit scale, and sees what the step made of it.
    assert run.model.calls[1][1] > 100
    assert run.model.logit_scale().item() == pytest.approx(100.0)


def test_a_stage_trains_what_it_names_and_nothing_else(small_emoji, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    recipe = TwoStages(batch_size=16)
    begin = train(recipe, small_emoji, Budget(steps=1), runtime=QUIET)  # weights before the second step
    torch.manual_seed(0)
    fresh = dict(recipe.build(fit_processor(recipe, small_emoji)).named_parameters())
    for name, tensor in begin.model.named_parameters():
        assert torch.equal(tensor, fresh[name]) or name.startswith("text_"), name
    run = train(recipe, small_emoji, Budget(steps=30), runtime=QUIET, out=tmp_path / "whole")
    stages = [entry["stage"] for entry in run.history if "losses" in entry]
    assert stages == ["text", "all but text", "all but text"]
    rates = [entry["learning_rate"] for entry in run.history if "losses" in entry]
    assert max(rates[1:]) <= 0.5 * recipe.optimizer.learning_rate
    first, second = run.record["flops_by_stage"].values()
    assert first != second
    assert min(first, second) < run.record["flops_an_example"] < max(first, second)

    def stop(progress, reached, losses):
        if progress.step == 14:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(recipe, small_emoji, Budget(steps=30), runtime=QUIET, out=tmp_path / "stopped", on_step=stop)
    resumed = train(recipe, small_emoji, Budget(steps=30), runtime=QUIET, out=tmp_path / "stopped")
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    assert resumed.record["flops_an_example"] == run.record["flops_an_example"]
    # Features are kept under the weights that made them, also where training went on in a later stage.
    keys = {folder.name for folder in (tmp_path / "cache" / "features").iterdir()}
    assert keys == {weights_key(run.model.text_encoder)}


def test_frozen_parameters_have_no_gradient_and_no_optimizer_state(small_emoji):
    model = clip.Recipe().build(fit_processor(clip.Recipe(), small_emoji))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("image_"))
    optimizer = adamw(model, OptimizerConfig())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in model.named_parameters() if name.startswith("image_")}


def test_a_stage_without_parameters_says_so(small_emoji):
    @dataclasses.dataclass(frozen=True)
    class Typo(clip.Recipe):
        def stages(self):
            return (Stage("warm-up", trainable=("imge_encoder.*",)),)

    with pytest.raises(UserError, match="'warm-up' trains nothing"):
        train(Typo(batch_size=16), small_emoji, Budget(steps=1))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("first", batch="trainig_batch"), "There is no batch in .* for the stage 'first' 'trainig_batch'"),
        (Stage("first", losses="lossess"), "There is no losses in CLIP .*; did you mean 'losses'"),
        (Stage("first", on_start="init_form_tower"), "on_start in CLIP"),
        (Stage("first", fraction=0.0), "fractions of all stages are 0"),
        (Stage("first", fraction=-0.1), "leave less than nothing for 'first'"),
    ],
)
def test_a_stage_names_methods_that_exist(stage, message, small_emoji, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Wrong(clip.Recipe):
        def stages(self):
            return (stage, Stage("second", fraction=max(stage.fraction, 0.0)))

    with pytest.raises(UserError, match=message):
        train(Wrong(batch_size=16), small_emoji, Budget(steps=1), runtime=QUIET, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_calls_the_methods_that_it_names(small_emoji):
    class Named(clip.CLIP):
        begun = 0

        def begin(self):
            self.begun += 1

        @two_halves("encode", "compared")
        def own_losses(self, batch):
            return self.compared(self.encode({"image": batch["image"], "text": batch["text"]}))

        def compared(self, vectors):
            return {"own": 2 * self.contrastive_losses(vectors)["contrastive"]}

    @dataclasses.dataclass(frozen=True)
    class Recipe(clip.Recipe):
        def stages(self):
            return (
                Stage("never", 0.0, losses="none such"),
                Stage("own", 0.5, batch="own_batch", losses="own_losses", on_start="begin"),
                Stage("rest", 0.5),
            )

        def build(self, processor):
            return Named(self, processor.tokenizer.vocab_size)

        def own_batch(self, examples, processor, example_rng):
            return super().training_batch(examples, processor, example_rng) | {"nobody reads it": torch.zeros(1)}

    runs = [
        train(Recipe(batch_size=16), small_emoji, Budget(steps=4), runtime=dataclasses.replace(QUIET, micro_batch=size))
        for size in (0, 4)
    ]
    for run in runs:
        assert run.model.begun == 1
        assert [set(entry["losses"]) for entry in run.history if "losses" in entry] == [{"own"}, {"contrastive"}]
    assert_close(weights(runs[0]), weights(runs[1]), 1e-4)  # a batch in micro-batches has the same negatives


def test_loss_weights_of_a_stage(small_emoji):
    @dataclasses.dataclass(frozen=True)
    class GlobalOnly(sparc.Recipe):
        def stages(self):
            return (Stage("global", loss_weights={"local": 0.0, "global": 2.0}),)

    one = train(GlobalOnly(batch_size=16), small_emoji, Budget(steps=3), runtime=QUIET)
    other = train(sparc.Recipe(batch_size=16, local_weight=0, global_weight=1), small_emoji, Budget(steps=3))
    assert_close(weights(one), weights(other))


def test_a_stage_may_have_data_of_its_own(small_emoji, scenes):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class TwoCorpora(clip.Recipe):
        def stages(self):
            return (Stage("emoji"), Stage("scenes", corpus=lambda: scenes))

        def training_batch(self, examples, processor, example_rng):
            seen.append({example["text"][0].text for example in examples})
            return super().training_batch(examples, processor, example_rng)

    train(TwoCorpora(batch_size=16), small_emoji, Budget(steps=4), runtime=QUIET)
    captions = {scenes.value(row, "caption")[0].text for row in scenes.rows("train")}
    assert [texts <= captions for texts in seen] == [False] * 3 + [True] * 3  # a first one counts operations


@pytest.mark.parametrize("budget", [Budget(tokens=1500), Budget(flops=1e9)], ids=str)
def test_budgets_of_tokens_and_operations(budget, small_emoji):
    run = train(clip.Recipe(batch_size=16), small_emoji, budget, runtime=QUIET)
    used = {"tokens": run.record["tokens"], "flops": run.record["examples"] * run.record["flops_an_example"]}[
        budget.unit
    ]
    asked = budget.tokens or budget.flops
    assert asked <= used < asked + used / run.record["steps"] * 2
    assert run.record["steps"] > 1


def test_a_run_starts_from_another_run_and_from_pretrained_weights(small_emoji, tmp_path):
    towers = {"image": BLOCKS, "batch_size": 16}
    first = train(clip.Recipe(**towers), small_emoji, Budget(steps=3), out=tmp_path / "first", runtime=QUIET)
    recipe = siglip.Recipe(**towers, optimizer=OptimizerConfig(learning_rate=0.0))
    second = train(recipe, small_emoji, Budget(steps=1), init=tmp_path / "first", runtime=QUIET)
    assert torch.equal(weights(second)["image_projection.weight"], weights(first)["image_projection.weight"])
    fewer = small_emoji.with_splits({name: rows[:40] for name, rows in small_emoji.splits.items()})
    texts = ["a red fruit", "flag: france", "smiling face"]
    assert (
        fit_processor(siglip.Recipe(), fewer)(text=texts)["text"].ids.tolist()
        != first.processor(text=texts)["text"].ids.tolist()
    )
    third = train(recipe, fewer, Budget(steps=1), init=tmp_path / "first", runtime=QUIET)
    assert third.processor(text=texts)["text"].ids.tolist() == first.processor(text=texts)["text"].ids.tolist()
    assert torch.equal(weights(third)["text_encoder.embedding.weight"], weights(first)["text_encoder.embedding.weight"])
    with pytest.raises(UserError, match="holds no finished run"):
        train(recipe, small_emoji, Budget(steps=1), init=tmp_path / "nowhere", out=tmp_path / "second")
    assert not (tmp_path / "second").exists()
    published = {"vision.layers.0.ln.weight": torch.full((64,), 3.0), "vision.head": torch.ones(2)}
    (tmp_path / "hub").mkdir()
    save_file(published, tmp_path / "hub" / "model.safetensors")
    rename = {r"vision\.layers\.(\d+)\.ln\.(.*)": r"transformer.blocks.\1.norm1.\2"}
    assert from_pretrained(str(tmp_path / "hub"), rename, prefix="image_encoder.")(second.model) == 1
    assert weights(second)["image_encoder.transformer.blocks.0.norm1.weight"].eq(3).all()
    with pytest.raises(UserError, match=r"agrees in name and shape .*vision\.head"):
        from_pretrained(str(tmp_path / "hub"), {})(second.model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no \.safetensors file"):
        from_pretrained(str(tmp_path / "empty"), {})(second.model)


# Gradient harmonization


def test_realigned_gradients_follow_the_paper():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        one, other = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        aligned = project_conflicting(torch.stack([one, other]))
        if one @ other >= 0:
            assert torch.equal(aligned, torch.stack([one, other]))
            continue
        torch.testing.assert_close(aligned[0], one - (one @ other) / (other @ other) * other)
        torch.testing.assert_close(aligned[1], other - (one @ other) / (one @ one) * one)
        assert abs(aligned[0] @ other) < 1e-9
        assert abs(aligned[1] @ one) < 1e-9
        together = aligned.sum(0)
        assert together @ one >= -1e-9
        assert together @ other >= -1e-9
    against = project_conflicting(torch.tensor([[1.0, 2.0], [-2.0, -4.0]]))
    torch.testing.assert_close(against, torch.zeros(2, 2))
    zero = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert torch.equal(project_conflicting(zero), zero)
    assert gradient_cosine(zero) == 1.0
    assert gradient_cosine(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])) == pytest.approx(-(0.5**0.5))


class TwoLosses(nn.Module):
    """Quadratic losses of one shared vector and of one parameter each that the other does not have."""

    def __init__(self, first, second):
        super().__init__()
        self.shared, self.own = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
        self.first, self.second = torch.tensor(first), torch.tensor(second)

    def losses(self, batch):
        return {"first": self.first @ self.shared + self.own.sum(), "second": self.second @ self.shared}


@pytest.mark.parametrize(
    ("kind", "fraction", "expected"),
    [
        ("realign", 0.0, [1.0 - 0.5, 0.5 + 1.0]),  # (1, 0) and (-1, 1): (1/2, 1/2) and (0, 1)
        ("curriculum", 0.0, None),  # cosine -0.71 is below the first threshold
        ("both", 1.0, None),
    ],
)
def test_harmonized_gradients(kind, fraction, expected):
    method, alone = TwoLosses([1.0, 0.0], [-1.0, 1.0]), World(0, 1, torch.device("cpu"))
    harmony = GradientHarmonizer(kind)
    losses = harmony.backward(method, [{}], {}, lambda _: nullcontext(), fraction, alone)
    assert set(losses) == {"first", "second"}
    if expected is None:
        assert method.shared.grad is None
        assert method.own.grad is None
    else:
        torch.testing.assert_close(method.shared.grad, torch.tensor(expected))
        torch.testing.assert_close(method.own.grad, torch.ones(1))
    report = harmony.report()["gradient_harmonization"]
    assert report["gradient_cosine"] == pytest.approx(-(0.5**0.5))
    assert (report["conflict_rate"], report["skip_rate"]) == (1.0, float(expected is None))


@dataclasses.dataclass(frozen=True)
class Realigned(sparc.Recipe):
    def gradient_transform(self):
        return GradientHarmonizer("realign")


@dataclasses.dataclass(frozen=True)
class Both(sparc.Recipe):
    def gradient_transform(self):
        return GradientHarmonizer("both")


@dataclasses.dataclass(frozen=True)
class OneLoss(clip.Recipe):
    def gradient_transform(self):
        return GradientHarmonizer("both")


def test_agreeing_gradients_are_the_plain_ones_bit_for_bit(small_emoji):
    plain = train(sparc.Recipe(batch_size=16), small_emoji, Budget(steps=1), runtime=QUIET)
    kept = train(Realigned(batch_size=16), small_emoji, Budget(steps=1), runtime=QUIET)
    (entry,) = [entry for entry in kept.history if "gradient_harmonization" in entry]
    if entry["gradient_harmonization"]["conflict_rate"] == 0:
        assert_close(weights(plain), weights(kept), tolerance=1e-6)
    assert entry["losses"] == plain.history[-1]["losses"]
    pieces = dataclasses.replace(QUIET, micro_batch=4)
    both = train(Both(batch_size=16), small_emoji, Budget(steps=10), runtime=pieces)
    assert set(both.history[-1]["gradient_harmonization"]) == {"gradient_cosine", "conflict_rate", "skip_rate"}


def test_a_single_loss_has_nothing_to_harmonize(small_emoji):
    with pytest.raises(UserError, match="only 'contrastive'"):
        train(OneLoss(batch_size=16), small_emoji, Budget(steps=1), runtime=QUIET)


# Optimisation


def test_stable_then_decaying_and_constant_rates():
    wsd = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1, cooldown_ratio=0.25, lr_scheduler="wsd")
    assert [learning_rate(wsd, f) for f in (0.05, 0.1, 0.5, 0.75, 0.875, 1.0)] == [0.5, 1, 1, 1, 0.5, 0]
    constant = OptimizerConfig(learning_rate=1.0, lr_scheduler="constant")
    assert learning_rate(constant, 0.9) == learning_rate(constant, 1.0) == 1.0


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("linear", [0.5, 1.0, 0.55, 0.1]),
        ("cosine", [0.5, 1.0, 0.55, 0.1]),
        ("wsd", [0.5, 1.0, 1.0, 0.1]),
        ("inverse_sqrt", [0.5, 1.0, (0.2 / 0.6) ** 0.5, 0.2**0.5]),
    ],
)
def test_the_rate_falls_to_its_minimum(scheduler, expected):
    config = OptimizerConfig(learning_rate=2.0, warmup_ratio=0.2, min_lr_ratio=0.1, lr_scheduler=scheduler)
    assert [learning_rate(config, f) / 2 for f in (0.1, 0.2, 0.6, 1.0)] == pytest.approx(expected)


def test_layer_decay_falls_from_the_head_to_the_patches(small_emoji):
    recipe = clip.Recipe(image=dataclasses.replace(BLOCKS, stem=(8,)))
    model = recipe.build(fit_processor(recipe, small_emoji))
    scales = layer_scales(model, 0.5)
    assert scales["image_projection.weight"] == scales["image_encoder.norm_post.weight"] == 1.0
    assert scales["image_encoder.transformer.blocks.1.norm1.weight"] == 0.5
    assert scales["image_encoder.transformer.blocks.0.fc1.bias"] == 0.25
    for below in ("stem.convolutions.0.weight", "patch_embedding.weight", "positions"):
        assert scales[f"image_encoder.{below}"] == 0.125
    assert scales["text_encoder.embedding.weight"] == 1.0  # a tower without blocks
    assert set(layer_scales(model, 1.0).values()) == {1.0}


def test_a_stage_may_train_some_parameters_more_slowly(small_emoji):
    @dataclasses.dataclass(frozen=True)
    class Slow(clip.Recipe):
        def stages(self):
            rates = {"text_encoder.embedding.*": 0.5, "text_encoder.*": 0.0, "image_encoder.*": 0.1}
            return (Stage("training", lr_scale=0.5, lr_scales=rates),)

    recipe = Slow(batch_size=32)
    model = recipe.build(fit_processor(recipe, small_emoji))
    rates = recipe.stages()[0].lr_scales
    scales = {
        id(parameter): group["lr_scale"]
        for group in adamw(model, recipe.optimizer, rates).param_groups
        for parameter in group["params"]
    }
    of = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    assert of["text_encoder.embedding.weight"] == 0.5, "the first pattern that fits"
    assert of["text_encoder.norm_post.weight"] == 0.0
    assert of["image_encoder.positions"] == 0.1
    assert of["image_projection.weight"] == 1.0
    torch.manual_seed(0)
    begun = recipe.build(fit_processor(recipe, small_emoji))
    run = train(recipe, small_emoji, Budget(steps=3), weights_like=begun)
    moved = {
        name: float((parameter - before).detach().abs().max())
        for (name, parameter), before in zip(run.model.named_parameters(), begun.parameters(), strict=True)
    }
    assert moved["text_encoder.norm_post.weight"] == 0.0
    assert 0 < moved["image_encoder.norm_post.weight"] < 0.2 * moved["logit_scale.logit_scale"]


def test_low_rank_updates_begin_at_zero_train_alone_and_merge():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    x = torch.randn(4, 5)
    before, plain = model(x), {name: p.clone() for name, p in model.named_parameters()}
    assert add_lora(model, rank=2, targets=("0",)) == 1
    assert torch.equal(model(x), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.lora_a", "0.lora_b"}
    assert isinstance(model[0], LoRALinear)
    nn.init.normal_(model[0].lora_b)
    changed = model(x)
    assert not torch.allclose(changed, before)
    update = model[0].lora_b @ model[0].lora_a
    merge_lora(model)
    torch.testing.assert_close(model(x), changed)
    torch.testing.assert_close(model[0].weight, plain["0.weight"] + update)
    assert torch.equal(model[2].weight, plain["2.weight"])
    with pytest.raises(UserError, match="No linear layer has a name like"):
        add_lora(model, 2, ("attention.*",))


def test_a_run_with_low_rank_updates_is_a_plain_run_afterwards(small_emoji, tmp_path):
    recipe = clip.Recipe(image=BLOCKS, batch_size=16, lora_rank=2, lora_target_modules=("*.attention.*",))
    run = train(recipe, small_emoji, Budget(steps=5), out=tmp_path / "run", runtime=QUIET)
    torch.manual_seed(0)
    fresh = dict(recipe.build(fit_processor(recipe, small_emoji)).named_parameters())
    changed = {name for name, tensor in run.model.named_parameters() if not torch.equal(tensor, fresh[name])}
    assert changed
    assert all(".attention." in name and name.endswith("weight") for name in changed)
    assert_close(weights(run), weights(load_run(tmp_path / "run")), tolerance=0)


# Guards


def poisoned(recipe_type, at, times):
    """A recipe whose method's loss is not a number at some steps."""

    class Poisoned(clip.CLIP):
        calls = 0

        def contrastive_losses(self, vectors):
            if self.training and torch.is_grad_enabled():
                type(self).calls += 1
            losses = super().contrastive_losses(vectors)
            bad = at < type(self).calls <= at + times  # the first call only counts floating-point operations
            return {"contrastive": losses["contrastive"] * (float("nan") if bad else 1.0)}

    @dataclasses.dataclass(frozen=True)
    class Recipe(recipe_type):
        def build(self, processor):
            return Poisoned(self, processor.tokenizer.vocab_size)

    return Recipe(batch_size=16)


def test_a_few_steps_that_are_not_finite_are_left_out(small_emoji):
    run = train(poisoned(clip.Recipe, at=3, times=2), small_emoji, Budget(steps=12), runtime=QUIET)
    left_out = [entry for entry in run.history if "skipped_step" in entry]
    assert [entry["skipped_step"]["not_finite"] for entry in left_out] == [["contrastive", "gradient"]] * 2
    assert all(len(entry["skipped_step"]["keys"]) == 16 for entry in left_out)
    assert run.record["skipped_steps"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())


def test_too_many_of_them_stop_the_run_with_the_loss_and_the_examples(small_emoji):
    with pytest.raises(UserError, match=r"The loss 'contrastive' is nan at step 6 after 3 .* examples google/"):
        train(
            poisoned(clip.Recipe, at=3, times=99),
            small_emoji,
            Budget(steps=12),
            runtime=dataclasses.replace(QUIET, max_nonfinite_steps=3),
        )


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(small_emoji, tmp_path, monkeypatch):
    often = dataclasses.replace(QUIET, save_interval="2steps")
    recipe, budget = clip.Recipe(batch_size=16), Budget(steps=12)
    whole = train(recipe, small_emoji, budget, runtime=often)
    real, written = checkpoint_file.save_file, []

    def full(tensors, path, metadata=None):
        written.append(path)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint_file, "save_file", full)
    with pytest.raises(UserError, match=r"the disk is full\); mend that, then go on with: polymodal resume"):
        train(recipe, small_emoji, budget, out=tmp_path / "run", runtime=often)
    assert [path.name for path in sorted((tmp_path / "run").glob("checkpoint-*"))] == ["checkpoint-4"]
    monkeypatch.setattr(checkpoint_file, "save_file", real)
    resumed = train(recipe, small_emoji, budget, out=tmp_path / "run", runtime=often)
    assert_close(weights(whole), weights(resumed), tolerance=0)


def test_the_newest_checkpoints_are_kept(small_emoji, tmp_path):
    kept = []

    def look(progress, reached, losses):
        kept.append(sorted(int(path.name.rpartition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*")))

    options = dataclasses.replace(QUIET, save_interval="1steps", keep_checkpoints=3)
    train(
        clip.Recipe(batch_size=16), small_emoji, Budget(steps=15), out=tmp_path / "run", on_step=look, runtime=options
    )
    assert max(len(steps) for steps in kept) in (3, 4)  # 4 while the oldest is being removed
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_wrong_options_are_one_sentence(small_emoji):
    for wrong in ({"keep_checkpoints": 0}, {"save_interval": "often"}, {"micro_batch": -1}):
        with pytest.raises(UserError):
            RuntimeConfig(**wrong)
    with pytest.raises(UserError, match="Micro-batches of 5 do not divide the 16"):
        train(clip.Recipe(batch_size=16), small_emoji, Budget(steps=1), runtime=RuntimeConfig(micro_batch=5))


def test_killed_at_random_instants_a_run_ends_in_the_same_weights(few_emoji, tmp_path):
    """Twenty SIGKILLs, at least some of them during a checkpoint."""
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(few_emoji), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    kills, during_a_write = map(int, done.stdout.split())
    assert kills == 20
    assert during_a_write > 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(
            clip.Recipe(batch_size=16, optimizer=dataclasses.replace(clip.Recipe.optimizer, ema_decay=0.9)),
            corpora.from_path(few_emoji),
            Budget(steps=200),
            runtime=QUIET,
        )
    finally:
        torch.set_num_threads(threads)
    killed = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, killed[name]), name
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["state"], record["steps"]) == ("finished", 200)
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history if "losses" in entry][-1] == 200
    assert np.all(np.diff([entry["step"] for entry in history]) >= 0)


# Seeing it


def test_runs_lists_states_and_show_draws_curves(polymodal, few_emoji, tmp_path):
    options = ["--data", str(few_emoji), "--batch-size", "16", "--out", "run"]
    done = polymodal("train", "clip", "--budget", "30steps", *options)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    shown = polymodal("runs", "show", "run")
    assert shown.returncode == 0, shown.stderr
    for said in ("polymodal train clip", "finished", "losses", "validation/text_to_image", "learning rate", "30.0"):
        assert said in shown.stdout
    record = json.loads(polymodal("runs", "show", "run", "--json").stdout)
    assert record["history"][-1]["step"] == 30
    (row,) = json.loads(polymodal("runs", "--json").stdout)
    assert row["state"] == "finished"
    assert 0 <= row["best"]["validation/text_to_image/R@10"] <= 1
    assert row["best"] == record["best"]
    for wrong, said in ((["runs", "shwo"], "did you mean 'show'"), (["runs", "show", "nowhere"], "is not a run")):
        done = polymodal(*wrong)
        assert done.returncode == 2
        assert said in done.stderr


def test_a_killed_run_says_so_and_is_resumed(few_emoji, tmp_path):
    command = [sys.executable, "-m", "polymodal", "train", "clip", "--data", str(few_emoji), "--budget", "100000steps"]
    command += ["--batch-size", "16", "--save-interval", "5steps", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoint-*")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    (row,) = find_runs(tmp_path)
    assert row["state"] == "killed"
    assert row["steps"] >= 5
    process = subprocess.Popen(
        [sys.executable, "-m", "polymodal", "resume", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True
    )
    while find_runs(tmp_path)[0]["steps"] <= row["steps"]:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    assert find_runs(tmp_path)[0]["state"] == "running"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: polymodal resume" in said
    assert find_runs(tmp_path)[0]["state"] == "interrupted"


def test_figures_become_curves_by_their_place():
    assert flatten({"step": 3, "losses": {"local": 0.5}, "stage": "one", "validation": {"a/R@1": 1}}) == {
        "step": 3,
        "losses/local": 0.5,
        "validation/a/R@1": 1,
    }


def test_a_tracker_that_is_not_installed_is_one_sentence(small_emoji, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    options = dataclasses.replace(QUIET, logger="wandb")
    with pytest.raises(UserError, match="pip install wandb"):
        train(clip.Recipe(batch_size=16), small_emoji, Budget(steps=1), out=tmp_path / "run", runtime=options)
