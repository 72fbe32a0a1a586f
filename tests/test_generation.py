"""Image generation: noise schedules, flow maps held to official numbers, metrics, and generation by runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from PIL import Image as PILImage

from polymodal import corpora
from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation import evaluate, validation
from polymodal.evaluation.tasks.image_generation import (
    frechet_distance,
    image_classifier,
    kernel_distance,
    real_images,
    rows_of_classes,
)
from polymodal.layers.diffusion_transformer import DiffusionTransformer, sinusoidal_timestep_embedding
from polymodal.modalities.image import patchify, unpatchify
from polymodal.modalities.text import Tokens
from polymodal.models.flow_map import FlowMap
from polymodal.objectives.diffusion import (
    add_noise,
    alpha_sigma,
    ddim_step,
    eta_from_time,
    flow_matching_loss,
    loss_weight,
    sampling_times,
    time_from_eta,
)
from polymodal.objectives.mmd import laplace_mmd
from polymodal.recipes.generation import inductive_moment_matching as imm
from polymodal.rng import ExampleRNG
from polymodal.serving.image_generation import generate_images, known_classes
from polymodal.serving.images import save_image
from polymodal.training import load_run, train
from polymodal.types import Budget

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TINY = {"image_size": 8, "patch_size": 2, "width": 32, "depth": 2, "num_heads": 2}


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


GOLDEN = np.load(Path(__file__).parent / "golden" / "inductive_moment_matching.npz")
MAPS = [("fm", f_type) for f_type in ("euler_fm", "simple_edm", "identity")]
MAPS += [("vp_cosine", f_type) for f_type in ("simple_edm", "identity")]


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name]).float()


class Known(torch.nn.Module):
    """The network that the official numbers were made with."""

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        self.seen = x, times
        t, s, label = times[..., None, None, None].unbind(1)
        return torch.tanh(x) * torch.cos(t) + torch.sin(s) + 0.3 * label


class AsInput(torch.nn.Module):
    """A time embedding that shows the time. place: of t, s and the condition."""

    def __init__(self, place: int):
        super().__init__()
        self.place = place

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        return time[:, None] * torch.eye(3)[self.place]


def known_map(schedule: str, f_type: str, temb_type: str = "identity") -> FlowMap:
    condition = lambda batch: torch.zeros(3)  # noqa: E731
    made = FlowMap(Known(), torch.nn.Identity(), 4, f_type, temb_type, schedule)
    made.embed_t, made.embed_s, made.condition.forward = AsInput(0), AsInput(1), condition
    return made


@pytest.mark.parametrize(("schedule", "f_type"), MAPS)
@pytest.mark.parametrize("temb_type", ["identity", "stride"])
def test_flow_maps_have_the_official_numbers(schedule: str, f_type: str, temb_type: str) -> None:
    x, s, t = (golden(name) for name in ("x", "s", "t"))
    made = known_map(schedule, f_type, temb_type)
    torch.testing.assert_close(made(x, s, t, torch.zeros(4, 3)), golden(f"{schedule}/{f_type}/{temb_type}/f"), **CLOSE)
    scaled, times = made.backbone.seen
    torch.testing.assert_close(scaled, golden(f"{schedule}/c_in_x"), **CLOSE)
    for place, name in enumerate("ts"):  # the embedding of times multiplies by 1000 itself
        torch.testing.assert_close(1000 * times[:, place], golden(f"{schedule}/{f_type}/{temb_type}/c_noise_{name}"))
    torch.testing.assert_close(made(x, t, t, torch.zeros(4, 3)), x)


def test_guidance_has_the_official_numbers() -> None:
    x, s, t = (golden(name) for name in ("x", "s", "t"))
    condition = torch.tensor([0.0, 0.0, 1.0]).expand(4, -1)
    torch.testing.assert_close(known_map("fm", "euler_fm")(x, s, t, condition, 1.5), golden("cfg_1.5"), **CLOSE)


@pytest.mark.parametrize("f_type", ["simple_edm", "euler_fm"])
@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("uniform_4", {"steps": 4}),
        ("edm_3", {"steps": 3, "discretization": "edm"}),
        ("mid", {"steps": 2, "mid_nt": (1.4,)}),
    ],
)
def test_samplers_have_the_official_numbers(
    name: str, choices: dict, f_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, times = known_map("fm", f_type), sampling_times(0.994, 0.006, **choices)
    found = made.sample(golden("x"), times, torch.zeros(4, 3))
    torch.testing.assert_close(found, golden(f"pushforward/{name}/{f_type}"), **CLOSE)
    fresh = iter(golden("restart_noise"))
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: next(fresh))
    found = made.sample(golden("x"), times, torch.zeros(4, 3), restart=True)
    torch.testing.assert_close(found, golden(f"restart/{name}/{f_type}"), **CLOSE)


@pytest.mark.parametrize("schedule", ["fm", "vp_cosine"])
def test_noise_schedules_have_the_official_numbers(schedule: str) -> None:
    x, y, s, t = (golden(name) for name in ("x", "y", "s", "t"))
    torch.testing.assert_close(ddim_step(x, y, s, t, schedule), golden(f"{schedule}/ddim"), **CLOSE)
    torch.testing.assert_close(add_noise(y, x, t, schedule), golden(f"{schedule}/add_noise"), **CLOSE)
    torch.testing.assert_close(eta_from_time(t, schedule).float(), golden(f"{schedule}/eta"), rtol=1e-5, atol=1e-5)
    for k in (8, 15):
        recipe = imm.Recipe(**TINY, noise_schedule=schedule, f_type="simple_edm", mapping_k=k)
        time = golden("times")[1:]  # s is below all of them
        r = imm.IMM(recipe, 3).mapping(torch.zeros_like(time), time)
        torch.testing.assert_close(r, torch.minimum(golden(f"{schedule}/r_{k}")[1:], time - imm.MIN_GAP), **CLOSE)


@pytest.mark.parametrize("schedule", ["fm", "vp_cosine"])
def test_the_loss_weight_has_the_slope_of_the_log_signal_to_noise_ratio(schedule: str) -> None:
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    alpha, sigma = alpha_sigma(t, schedule)
    log_snr = 2 * (alpha / sigma).log()
    (slope,) = torch.autograd.grad(log_snr.sum(), t)
    expected = -0.5 * slope * alpha**2 / (alpha**2 + sigma**2) / (1 + (log_snr - 4).exp())
    torch.testing.assert_close(loss_weight(t, schedule, 4.0, 2.0), expected)


def test_the_mmd_in_plain_loops() -> None:
    torch.manual_seed(0)
    a, b, weight = torch.randn(2, 4, 6), torch.randn(2, 3, 6), times(1.0, 3.0)
    found = laplace_mmd(a, b, weight)
    for group in range(2):
        kernel = lambda x, y, w=weight[group]: math.exp(-w * (x - y).norm() / 6)  # noqa: E731
        means = [
            np.mean([kernel(x, y) for x in first[group] for y in second[group]])
            for first, second in ((a, a), (b, b), (a, b))
        ]
        assert found[group].item() == pytest.approx(means[0] + means[1] - 2 * means[2], abs=1e-5)
    assert (found > 0).all()
    torch.testing.assert_close(laplace_mmd(a, a[:, [2, 0, 3, 1]], weight), torch.zeros(2), atol=1e-6, rtol=0)


def test_patches_and_back() -> None:
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(unpatchify(patchify(image, 2), 2), image)


def test_a_fresh_backbone_gives_zero_and_then_listens_to_its_condition() -> None:
    torch.manual_seed(0)
    backbone = DiffusionTransformer(8, 2, 32, 2, 2)
    image, condition = torch.randn(2, 3, 8, 8), torch.randn(2, 32)
    assert backbone(image, condition).abs().max() == 0
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(backbone(image, condition), backbone(image, condition.flip(0)), atol=1e-3)


def test_near_times_have_near_features() -> None:
    features = sinusoidal_timestep_embedding(times(0.5, 0.501, 0.9), 64)
    assert (features[0] - features[1]).norm() < (features[0] - features[2]).norm()


@pytest.mark.parametrize("noise_schedule", ["fm", "vp_cosine"])
def test_ddim_with_the_true_data_goes_along_the_path(noise_schedule: str) -> None:
    data, noise = torch.randn(2, 4), torch.randn(2, 4)
    time, middle, to = times(0.9, 0.6), times(0.5, 0.5), times(0.2, 0.1)
    x = add_noise(data, noise, time, noise_schedule)
    torch.testing.assert_close(ddim_step(x, data, to, time, noise_schedule), add_noise(data, noise, to, noise_schedule))
    torch.testing.assert_close(ddim_step(x, data, time, time, noise_schedule), x)
    by_way = ddim_step(ddim_step(x, data, middle, time, noise_schedule), data, to, middle, noise_schedule)
    torch.testing.assert_close(by_way, ddim_step(x, data, to, time, noise_schedule))
    alpha, sigma = alpha_sigma(time, noise_schedule)
    torch.testing.assert_close(time_from_eta(sigma / alpha, noise_schedule), time)


def test_flow_matching_wants_noise_minus_data() -> None:
    data, noise = torch.randn(2, 4), torch.randn(2, 4)
    assert flow_matching_loss(noise - data, data, noise) == 0
    assert flow_matching_loss(torch.zeros(2, 4), data, noise) > 0


def test_label_and_text_add_up_and_what_is_hidden_does_not_count() -> None:
    torch.manual_seed(0)
    method = imm.IMM(imm.Recipe(**TINY), num_classes=3, vocab_size=50).eval().flow_map
    label, text = torch.tensor([0, 1]), Tokens(torch.tensor([[1, 5, 2], [1, 7, 2]]), torch.tensor([3, 3]))
    both = method.condition({"label": label, "text": text})
    nothing = method.condition({})
    alone = [method.condition({"label": label}), method.condition({"text": text})]
    torch.testing.assert_close(alone[0] + alone[1] - nothing, both)
    hidden = torch.tensor([False, True])
    shown = method.condition({"label": label, "text": text, "text_shown": ~hidden})
    torch.testing.assert_close(shown, torch.stack([both[0], alone[0][1]]))


def test_the_kernel_distance_is_small_among_the_same_and_large_among_others() -> None:
    torch.manual_seed(0)
    one, same, other = torch.randn(300, 8), torch.randn(300, 8), torch.randn(300, 8) + 1
    near, far = (kernel_distance("", one, second).value for second in (same, other))
    assert abs(near) < 0.1 * far
    kernel = lambda a, b: (1 + a @ b.T / 8) ** 3  # noqa: E731
    own, theirs = kernel(one, one), kernel(other, other)
    expected = (own.sum() - own.trace() + theirs.sum() - theirs.trace()) / 300 / 299 - 2 * kernel(one, other).mean()
    assert far == pytest.approx(expected.item(), rel=1e-3)


def test_the_frechet_distance_is_that_of_the_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(200, 5)), 2 * rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) + 1
    first, second = np.cov(one.T), np.cov(other.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    found = frechet_distance("", torch.from_numpy(one).float(), torch.from_numpy(other).float()).value
    assert found == pytest.approx(expected, rel=1e-4)
    same = torch.from_numpy(one).float()
    assert frechet_distance("", same, same.flip(0)).value == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def digits() -> Corpus:
    return corpora.digits()


@pytest.fixture(scope="module")
def trained(digits: Corpus, tmp_path_factory: pytest.TempPathFactory):
    recipe = imm.Recipe(
        **TINY,
        batch_size=64,
        optimizer=dataclasses.replace(imm.Recipe.optimizer, learning_rate=2e-3, ema_decay=0.9),
    )
    out = tmp_path_factory.mktemp("digits") / "run"
    return train(recipe, digits, Budget(steps=80), out=out, validate=validation(digits))


def test_the_classifier_that_judges_knows_real_digits(digits: Corpus) -> None:
    processor = fit_processor(imm.Recipe(**TINY), digits)
    reader = Reader(digits, processor)
    known = real_images(processor, reader, "train")
    classifier = image_classifier(digits, known["image"], known["label"])
    batch = real_images(processor, reader, "test")
    assert (classifier(batch["image"]).argmax(1) == batch["label"]).float().mean() > 0.9
    assert image_classifier(digits, known["image"], known["label"]) is classifier


def test_real_images_that_generated_ones_are_compared_with_have_their_classes() -> None:
    known, wanted = torch.arange(60) % 3, torch.tensor([2, 0, 0, 1, 2] * 6)
    rows = rows_of_classes(known, wanted)
    assert torch.equal(known[rows], wanted)
    assert len(rows.unique()) == 30
    assert torch.equal(rows, rows_of_classes(known, wanted))
    assert (rows[:5] > 10).any()  # not the first ones
    few = rows_of_classes(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0, 1, 5]))
    assert torch.equal(few[:4] == 2, torch.tensor([False, False, False, True]))


def test_unconditional_generation_is_scored_without_accuracy(digits: Corpus) -> None:
    recipe = imm.Recipe(**TINY, conditions=())
    few = digits.with_splits(digits.splits | {"test": digits.rows("test")[:60]})
    run = train(recipe, few, Budget(steps=2))
    scores = {score.name: score for score in evaluate(run, few)}
    assert scores["test/generation_in_2/frechet_distance"].value > scores["test/real_images/frechet_distance"].value
    assert "test/generation_in_2/accuracy" not in scores
    (row,) = generate_images(run, [""], 3, 1)
    assert len(row) == 3
    assert known_classes(run) == [""]


def test_moments_train_and_are_scored_by_steps(trained, digits: Corpus) -> None:
    losses = [entry["losses"]["mmd"] for entry in trained.history if "losses" in entry]
    assert losses[-1] < losses[0]
    few = digits.with_splits(digits.splits | {"test": digits.rows("test")[:100]})
    scores = {score.name: score for score in evaluate(trained, few)}
    assert scores["test/real_images/accuracy"].value > 0.9
    for steps in (1, 2, 4, 8, 32):
        assert scores[f"test/generation_in_{steps}/accuracy"].chance == pytest.approx(0.1)
        assert not scores[f"test/generation_in_{steps}/kernel_distance"].higher_is_better
    untrained = dataclasses.replace(trained, model=trained.recipe.build(trained.processor))
    before = {score.name: score for score in evaluate(untrained, few)}
    name = "test/generation_in_4/kernel_distance"
    assert scores[name].value < before[name].value


def test_generated_images_are_looked_at_while_it_trains(trained) -> None:
    looks = [entry["validation"] for entry in trained.history if "validation" in entry]
    assert len(looks) > 1
    for steps in (1, 8):
        first, *_, last = [look[f"validation/generation_in_{steps}/frechet_distance"] for look in looks]
        assert 0 < last < first


def test_images_from_words(small_emoji: Corpus, tmp_path) -> None:
    recipe = imm.Recipe(
        **TINY | {"image_size": 8},
        batch_size=32,
        optimizer=dataclasses.replace(imm.Recipe.optimizer, learning_rate=2e-3),
    )
    train(recipe, small_emoji, Budget(steps=10), out=tmp_path / "run")
    run = load_run(tmp_path / "run")
    category = run.processor.label.names[0]
    rows = generate_images(run, [category, "a red fruit", "a blue flag"], 2, 2)
    assert [len(row) for row in rows] == [2, 2, 2]
    assert np.asarray(rows[1][0]).shape == (8, 8, 3)
    batch = recipe.training_batch(
        Reader(small_emoji, run.processor).read_all(small_emoji.rows("train")[:200])[1],
        run.processor,
        ExampleRNG.of(0, 0, 200),
    )
    label, text = batch["label_shown"].float(), batch["text_shown"].float()
    assert label.mean().item() == pytest.approx(0.9 * 0.75, abs=0.1)
    assert (label * text).mean().item() == pytest.approx(0.45, abs=0.1)
    assert known_classes(run) == list(run.processor.label.names)


def test_the_command_makes_a_sheet(trained, polymodal, tmp_path) -> None:
    done = polymodal("generate", str(trained.directory), "three", "seven", "--steps", "2", "--count", "5")
    assert done.returncode == 0, done.stderr
    image = PILImage.open(tmp_path / "generated.png")
    assert np.asarray(image).std() > 1
    assert image.height == 4 + 2 * 68


@pytest.mark.parametrize(
    ("labels", "steps", "said"), [(["threee"], 1, "did you mean 'three'"), (["one"], 0, "at least 1")]
)
def test_wrong_words_and_numbers_are_named(labels: list[str], steps: int, said: str, trained) -> None:
    with pytest.raises(UserError, match=said):
        generate_images(trained, labels, 2, steps)


def test_a_sheet_needs_a_name_and_a_place(tmp_path) -> None:
    for name in ("x.foo", "nowhere/x.png"):
        with pytest.raises(UserError, match="x"):
            save_image(PILImage.new("RGB", (2, 2)), str(tmp_path / name))
