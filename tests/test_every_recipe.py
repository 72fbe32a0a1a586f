"""Properties of every recipe that trains: its smallest preset on one synthetic corpus, without any download."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import torch
from torch import nn

import batch_variants
import polymodal as pm
import synthetic
from polymodal import recipes
from polymodal.constraints import validate_constraints
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import open_saved
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.modalities.text import TextTokenizer
from polymodal.rng import ExampleRNG
from polymodal.training import Run, RuntimeConfig, load_run
from polymodal.training.grad_cache import ALONE, backward, weighted_sum
from polymodal.training.parallel import World
from polymodal.training.stages import active_stages, call_hooks, on_start
from polymodal.types import Batch, Stage

NAMES = [name for name in recipes.entries() if hasattr(recipes.find(name), "build")]
STEPS = 20
STARTS = {"mpo": "mono_internvl"}  # what starts from a run of another recipe
EMBEDDED = ("image", "text", "video", "sound", "points", "views", "table", "thread")
PARAMETER_TOLERANCE = 0.02  # papers round
FORWARD_SAMPLED = {  # the gradients differ by design
    "moma": "Experts choose among the tokens of a forward pass.",
    "inductive_moment_matching": "Times and noise are sampled in the forward pass.",
}
OF_A_PROCESS = {  # losses whose negatives are sampled from the batch of a process, as in the released code
    "abn_blip": ("lm",),
    "alpro": ("itm",),
    "tip": ("itm",),
    "mslam": ("contrastive",),
    "visualgptscore": ("itm",),
}


class Subject(Protocol):
    """What a batch and a method are made of."""

    @property
    def recipe(self) -> Any: ...
    @property
    def processor(self) -> Any: ...


@pytest.fixture(scope="module", params=NAMES)
def run(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of about four steps in every stage."""
    recipe, corpus = recipes.find(request.param).tiny(), synthetic.corpus_for(request.param, corpus)
    folder = tmp_path_factory.mktemp(request.param) / "run"
    steps, init = pm.Budget(steps=4 * len(active_stages(recipe))), None
    if request.param in STARTS:
        init = folder.parent / "start"
        pm.train(recipes.find(STARTS[request.param]).tiny(), corpus, steps, out=init)
    return pm.train(recipe, corpus, steps, out=folder, init=init)


def name_of(run: Subject) -> str:
    """The name of the run's recipe."""
    return type(run.recipe).__module__.rpartition(".")[2]


def examples_of(run: Subject, corpus: Corpus) -> list[dict[str, Any]]:
    """The first training examples, as many as a batch has."""
    corpus = synthetic.corpus_for(name_of(run), corpus)
    return Reader(corpus, run.processor).read_all(corpus.rows("train")[: run.recipe.batch_size])[1]


def batch_of(run: Subject, corpus: Corpus, stage: Stage, rows: slice = slice(None)) -> Batch:
    """A batch of a stage, or the micro-batch of some of its rows."""
    examples = examples_of(run, corpus)
    rng = ExampleRNG(ExampleRNG.of(0, 0, len(examples)).seeds[rows])
    return getattr(run.recipe, stage.batch)(examples[rows], run.processor, rng)


def built(run: Subject) -> nn.Module:
    """The method before training."""
    torch.manual_seed(0)
    return run.recipe.build(run.processor)


def learnable(model: nn.Module) -> set[str]:
    """The parameters that the method does not freeze itself, as it does with a momentum encoder."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def enter(model: nn.Module, stage: Stage, names: set[str]) -> list[nn.Parameter]:
    """Begin a stage as the trainer does, and return what it trains."""
    on_start(stage, model)()
    call_hooks(model, "before_training")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names and any(fnmatchcase(name, pattern) for pattern in stage.trainable))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_every_recipe_is_here() -> None:
    assert len(NAMES) > 10
    assert all(hasattr(recipes.find(name), "tiny") for name in NAMES)


def test_every_parameter_is_trained_by_a_stage_or_frozen_by_the_method(run: Run) -> None:
    patterns = [pattern for stage in active_stages(run.recipe) for pattern in stage.trainable]
    left = [name for name in learnable(built(run)) if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    assert not left, f"no stage trains {sorted(left)}"


def test_losses_of_every_stage_are_finite(run: Run) -> None:
    logged = [entry for entry in run.history if "losses" in entry]
    stages = active_stages(run.recipe)
    assert {entry.get("stage", stages[0].name) for entry in logged} == {stage.name for stage in stages}
    for entry in logged:
        assert entry["losses"]
        assert all(math.isfinite(value) for value in entry["losses"].values()), entry
    assert not any("skipped_step" in entry for entry in run.history)


def test_every_stage_overfits_one_batch(run: Run, corpus: Corpus) -> None:
    """Twenty steps on the same batch with the same random numbers reduce the loss, and every parameter gets a
    gradient in one of the stages."""
    model = built(run).train()
    names, reached = learnable(model), set[str]()
    for stage in active_stages(run.recipe):
        batch, values = batch_of(run, corpus, stage), []
        optimizer = torch.optim.Adam(enter(model, stage, names), 3e-3)
        for step in range(STEPS):
            torch.manual_seed(0)
            total = weighted_sum(getattr(model, stage.losses)(batch), stage.loss_weights)
            optimizer.zero_grad()
            total.backward()
            reached |= {name for name, parameter in model.named_parameters() if parameter.grad is not None}
            optimizer.step()
            call_hooks(model, "after_step", step / STEPS)
            values.append(float(total.detach()))
        assert sum(values[-5:]) < sum(values[:5]), f"{stage.name}: {values}"
    assert names <= reached, f"no loss reaches {sorted(names - reached)}"


def test_a_saved_run_is_the_same_run(run: Run, corpus: Corpus) -> None:
    assert run.directory is not None
    again = load_run(run.directory)
    assert again.recipe == run.recipe
    saved, state = again.model.state_dict(), run.model.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], value) for name, value in state.items())
    if not hasattr(run.model, "embed"):
        return
    examples = examples_of(run, corpus)
    columns = {name: [example[name] for example in examples] for name in EMBEDDED if name in examples[0]}
    if "text" in columns:
        columns["text"] = [captions[0].text for captions in columns["text"]]
    assert len(columns) > 1
    vectors, others = (one.embed(**columns) for one in (run, again))
    for name in columns:
        assert torch.equal(vectors[name], others[name]), name


def losses_of(model: Any, stage: Stage, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return getattr(model, stage.losses)(batch)


def test_padding_changes_no_loss(run: Run, corpus: Corpus) -> None:
    model = built(run).eval()
    for stage in active_stages(run.recipe):
        enter(model, stage, learnable(model))
        model.eval()
        batch = batch_of(run, corpus, stage)
        losses = losses_of(model, stage, batch)
        padded = losses_of(model, stage, batch_variants.with_padding(batch))
        assert {name: loss.item() for name, loss in padded.items()} == pytest.approx(
            {name: loss.item() for name, loss in losses.items()}, rel=1e-4, abs=1e-6
        ), stage.name


def test_padding_changes_no_embedding(run: Run, corpus: Corpus) -> None:
    if not hasattr(run.model, "embed"):
        pytest.skip("This method embeds nothing.")
    example, tested = examples_of(run, corpus)[0], 0
    for name, longer in batch_variants.LONGER.items():
        if name in example:
            value = example[name][0].text if name == "text" else example[name]
            alone, both = (run.embed(**{name: values})[name] for values in ([value], [value, longer(value)]))
            assert torch.allclose(torch.as_tensor(both[:1]), torch.as_tensor(alone), atol=1e-5), name
            tested += 1
    assert tested or "text" not in example


def test_empty_modalities_have_finite_losses_and_gradients(run: Run, corpus: Corpus) -> None:
    examples, model = examples_of(run, corpus), built(run)
    for stage in active_stages(run.recipe):
        enter(model, stage, learnable(model))

        def make(examples: list[dict[str, Any]], stage: Stage = stage) -> Batch:
            rng = ExampleRNG.of(0, 0, len(examples))
            return getattr(run.recipe, stage.batch)(examples, run.processor, rng)

        columns = [
            (name, count) for name in batch_variants.EMPTY if name in examples[0] for count in (1, len(examples))
        ]
        batches = {where: make(batch_variants.emptied(examples, *where)) for where in columns}
        whole = make(examples)
        if any(name.startswith("masked_") for name in whole):
            batches |= {
                ("masked", 0): batch_variants.none_masked(whole),
                ("masked", 1): batch_variants.all_masked(whole),
            }
        for where, batch in batches.items():
            losses = losses_of(model, stage, batch)
            assert all(loss.isfinite() for loss in losses.values()), (stage.name, where, losses)
            model.zero_grad(set_to_none=True)
            if any(loss.requires_grad for loss in losses.values()):
                weighted_sum(losses, stage.loss_weights).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is None or parameter.grad.isfinite().all(), (stage.name, where, name)


def test_scores_are_finite(run: Run, corpus: Corpus) -> None:
    scores = pm.evaluate(run, corpus)
    assert scores
    for score in scores:
        assert math.isfinite(score.value), score.name


def test_micro_batches_train(run: Run, corpus: Corpus) -> None:
    """A step of micro-batches in every stage has finite losses, or is refused in one sentence."""
    steps, refusal = pm.Budget(steps=len(active_stages(run.recipe))), ""
    try:
        data, runtime = synthetic.corpus_for(name_of(run), corpus), RuntimeConfig(micro_batch=2)
        halved = pm.train(run.recipe, data, steps, init=run.record.get("init"), runtime=runtime)
    except UserError as error:
        refusal = str(error)
    compares = [getattr(getattr(type(run.model), s.losses), "whole_batch", False) for s in active_stages(run.recipe)]
    assert "compare the examples of a batch" in refusal or not any(compares)
    if refusal:
        assert refusal.endswith(".")
        assert "\n" not in refusal
        return
    losses = [value for entry in halved.history for value in entry.get("losses", {}).values()]
    assert losses
    assert all(map(math.isfinite, losses))


def test_micro_batches_have_the_gradients_of_the_whole_batch(run: Run, corpus: Corpus) -> None:
    name = name_of(run)
    if name in FORWARD_SAMPLED:
        pytest.skip(FORWARD_SAMPLED[name])
    model = built(run).eval()
    names = learnable(model)
    for stage in active_stages(run.recipe):
        if getattr(getattr(type(model), stage.losses), "whole_batch", False):
            continue  # refused, which the test above sees
        enter(model, stage, names)
        whole = gradients(model, stage, [batch_of(run, corpus, stage)])
        half = run.recipe.batch_size // 2
        parts = gradients(
            model, stage, [batch_of(run, corpus, stage, rows) for rows in (slice(half), slice(half, None))]
        )
        assert_equal_gradients(parts, whole, stage.name)


def assert_equal_gradients(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor], stage: str) -> None:
    assert whole
    assert whole.keys() == found.keys()
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * scale), (stage, name)


def of_process(run: Subject, corpus: Corpus, world: World, pieces: int) -> dict[str, dict[str, torch.Tensor]]:
    """The gradients of every stage, averaged over processes, each of which has its part of the batch in micro-batches.

    pieces: micro-batches of a process; stages that refuse them are left out.
    """
    model, found = built(run).eval(), {}
    names = learnable(model)
    size = run.recipe.batch_size // world.size // pieces
    for stage in active_stages(run.recipe):
        enter(model, stage, names)
        if pieces > 1 and getattr(getattr(type(model), stage.losses), "whole_batch", False):
            continue
        first = world.rank * pieces
        rows = [slice(size * n, size * (n + 1)) for n in range(first, first + pieces)]
        weights = dict(stage.loss_weights) | dict.fromkeys(OF_A_PROCESS.get(name_of(run), ()), 0.0)
        batches = [batch_of(run, corpus, stage, own) for own in rows]
        found[stage.name] = gradients(model, dataclasses.replace(stage, loss_weights=weights), batches, world)
        world.all_reduce_mean(list(found[stage.name].values()))
    return found


def work(rank: int, folder: str) -> None:
    """One of two processes, for all recipes, as starting takes longer than everything else."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world, corpus, found = World(rank, 2, torch.device("cpu")), open_saved(Path(folder) / "corpus"), {}
    for name in (name for name in NAMES if name not in FORWARD_SAMPLED):
        recipe = recipes.find(name).tiny()
        subject = SimpleNamespace(recipe=recipe, processor=fit_processor(recipe, synthetic.corpus_for(name, corpus)))
        found[name] = [of_process(subject, corpus, world, pieces) for pieces in (1, 2)]
    if world.first:
        torch.save(found, f"{folder}/gradients.pt")
    torch.distributed.barrier()
    os._exit(0)  # threads of gloo now and then abort while Python shuts down


@pytest.fixture(scope="module")
def of_two(synthetic_folder: Path) -> dict[str, list[dict[str, dict[str, torch.Tensor]]]]:
    """The gradients that two processes compute of every recipe: with whole halves of the batch, and with quarters."""
    torch.multiprocessing.spawn(work, (str(synthetic_folder),), nprocs=2)
    return torch.load(synthetic_folder / "gradients.pt", weights_only=True)


def test_two_processes_have_the_gradients_of_one(
    run: Run, corpus: Corpus, of_two: dict[str, list[dict[str, dict[str, torch.Tensor]]]]
) -> None:
    name = name_of(run)
    if name in FORWARD_SAMPLED:
        pytest.skip(FORWARD_SAMPLED[name])
    one = of_process(run, corpus, ALONE, 1)
    for two in of_two[name]:
        for stage, found in two.items():
            assert_equal_gradients(found, one[stage], stage)


def gradients(model: nn.Module, stage: Stage, batches: list[Batch], world: World = ALONE) -> dict[str, torch.Tensor]:
    """The gradients of a stage's losses, by parameter."""

    @contextmanager
    def forward(piece: int) -> Iterator[None]:
        torch.manual_seed(piece)
        yield

    model.zero_grad(set_to_none=True)
    backward(model, getattr(model, stage.losses), batches, stage.loss_weights, forward, stage.losses, world)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=NAMES)
def published(request: pytest.FixtureRequest, corpus: Corpus) -> tuple[str, nn.Module]:
    """A recipe's published preset with the published vocabulary, on the meta device."""
    name = request.param
    recipe = recipes.find(name).paper()
    validate_constraints(recipe)
    assert active_stages(recipe)
    if name == "alpro":
        recipe = dataclasses.replace(recipe, use_pem=False)  # entities need WordNet, a download
    if name == "clippings":
        recipe = dataclasses.replace(recipe, batch_size=12)  # the classes of this corpus fill no larger batch
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        for learn in ("train", "characters"):
            patch.setattr(TextTokenizer, learn, of_full_size(getattr(TextTokenizer, learn)))
        patch.setattr(TextTokenizer, "vocab_size", property(lambda tokenizer: tokenizer.published))
        with torch.device("cpu"):
            fewer = dataclasses.replace(recipe, batch_size=12)  # of so few examples
            processor = fit_processor(fewer, synthetic.corpus_for(name, corpus))
        return name, recipe.build(processor)


def of_full_size(learn: Callable[..., TextTokenizer]) -> Callable[..., TextTokenizer]:
    """Tokenizers that say they have all entries that they may have: the corpus of the tests has few words."""

    def learned(texts: Any, vocabulary: int, *more: Any, **options: Any) -> TextTokenizer:
        tokenizer = learn(texts, vocabulary, *more, **options)
        vars(tokenizer)["published"] = vocabulary
        return tokenizer

    return learned


def test_the_published_preset_builds(published: tuple[str, nn.Module]) -> None:
    assert learnable(published[1])


def test_the_published_preset_has_the_published_number_of_parameters(
    published: tuple[str, nn.Module],
) -> None:
    name, model = published
    counts = sys.modules[recipes.find(name).__module__].paper.parameters
    if not counts:
        pytest.skip("No number is published.")
    for patterns, count in counts.items():
        pattern, *without = patterns.split(" !")
        own = sum(
            value.numel()
            for one, value in model.named_parameters()
            if fnmatchcase(one, pattern) and not any(fnmatchcase(one, other) for other in without)
        )
        assert own == pytest.approx(count, rel=PARAMETER_TOLERANCE), patterns
