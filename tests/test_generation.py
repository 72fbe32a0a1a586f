"""Inductive moment matching: jumps, discrepancies, schedules, samplers; figures of generated images."""

from __future__ import annotations

import dataclasses
import math

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
from polymodal.evaluation.tasks.image_generation import frechet_distance, image_classifier, kernel_distance, real_images
from polymodal.layers.diffusion_transformer import DiffusionTransformer, sinusoidal_timestep_embedding
from polymodal.modalities.image import patchify, unpatchify
from polymodal.modalities.text import Tokens
from polymodal.objectives.diffusion import add_noise, alpha_sigma, ddim_step, flow_matching_loss, time_from_eta
from polymodal.recipes.generation import inductive_moment_matching as imm
from polymodal.rng import ExampleRNG
from polymodal.serving.image_generation import generate_images, known_classes
from polymodal.serving.images import save_image
from polymodal.training import load_run, train
from polymodal.types import Budget

TINY = {"image_size": 8, "patch_size": 2, "width": 32, "depth": 2, "num_heads": 2}
CHOICES = [
    (parameters, interpolant) for parameters in ("euler", "edm", "identity") for interpolant in ("fm", "vp_cosine")
]


def network(**choices) -> imm.JumpNetwork:
    """With random weights also where a fresh one begins at zero."""
    torch.manual_seed(0)
    method = imm.JumpNetwork(imm.Recipe(**TINY, **choices), classes=3)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return method.eval()


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


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


@pytest.mark.parametrize(("parameterization", "noise_schedule"), CHOICES)
def test_a_jump_to_where_it_is_changes_nothing(parameterization: str, noise_schedule: str) -> None:
    method = network(parameterization=parameterization, noise_schedule=noise_schedule)
    x, condition = torch.randn(2, 3, 8, 8), method.condition({"label": torch.tensor([0, 2])})
    torch.testing.assert_close(method.jump(x, times(0.3, 0.8), times(0.3, 0.8), condition), x)
    assert not torch.allclose(method.jump(x, times(0.1, 0.2), times(0.3, 0.8), condition), x, atol=1e-3)


@pytest.mark.parametrize(("parameterization", "noise_schedule"), CHOICES)
def test_the_coefficient_is_the_output_s_share_of_a_jump(parameterization: str, noise_schedule: str) -> None:
    method = network(parameterization=parameterization, noise_schedule=noise_schedule)
    x, condition, to, time = torch.randn(2, 3, 8, 8), torch.randn(2, 32), times(0.1, 0.4), times(0.3, 0.8)
    method._output = lambda x, to, time, condition: torch.zeros_like(x)
    without = method.jump(x, to, time, condition)
    method._output = lambda x, to, time, condition: torch.ones_like(x)
    share = (method.jump(x, to, time, condition) - without).abs().flatten(1).mean(1)
    torch.testing.assert_close(
        share, imm.coefficient(to, time, parameterization, noise_schedule).abs(), atol=1e-5, rtol=1e-4
    )


def test_the_discrepancy_is_that_of_the_plain_sums() -> None:
    torch.manual_seed(0)
    a, b, weight = torch.randn(2, 4, 6), torch.randn(2, 4, 6), times(1.0, 3.0)
    found = imm.laplace_discrepancy(a, b, weight)
    for group in range(2):
        kernel = lambda x, y, w=weight[group]: math.exp(-w * (x - y).norm() / 6)  # noqa: E731
        sums = [
            sum(kernel(x, y) for x in first[group] for y in second[group]) / 16
            for first, second in ((a, a), (b, b), (a, b))
        ]
        assert found[group].item() == pytest.approx(sums[0] + sums[1] - 2 * sums[2], abs=1e-5)
    assert (found > 0).all()
    torch.testing.assert_close(
        imm.laplace_discrepancy(a, a[:, [2, 0, 3, 1]], weight), torch.zeros(2), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("noise_schedule", ["fm", "vp_cosine"])
def test_a_jump_is_learned_from_a_little_before_it_and_its_weight_is_finite(noise_schedule: str) -> None:
    method = network(noise_schedule=noise_schedule)
    time = torch.linspace(0.01, 0.994, 50)
    earlier = method.before(time)
    assert (earlier < time).all()
    assert (earlier >= method.recipe.t_min).all()
    (alpha_r, sigma_r), (alpha, sigma) = (alpha_sigma(when.double(), noise_schedule) for when in (earlier, time))
    steps = (sigma / alpha - sigma_r / alpha_r)[(earlier > method.recipe.t_min + 1e-6) & (time < 0.9)]
    assert len(steps) > 5
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-2, atol=0)
    weight = imm.loss_weight(time, noise_schedule, 5.0, 1.0)
    assert weight.isfinite().all()
    assert (weight >= 0).all()


@pytest.mark.parametrize("particles", [1, 2, 4])
def test_the_network_runs_twice_a_step_whatever_the_particles(particles: int) -> None:
    method = network(num_particles=particles)
    calls = []
    forward = method.backbone.forward
    method.backbone.forward = lambda *given: calls.append(torch.is_grad_enabled()) or forward(*given)
    batch = {"image": torch.randn(8, 3, 8, 8), "label": torch.zeros(8).long()}
    method.losses(batch)["mmd"].backward()
    assert calls == [True, False]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_flow_arrives_at_the_data(steps: int) -> None:
    method = network(objective="flow")
    data = torch.randn(3, 8, 8)
    method._output = lambda x, to, time, condition: (x - data) / time.view(-1, 1, 1, 1) / imm.SIGMA
    made = method.generate_images({"label": torch.tensor([0, 1])}, steps, torch.Generator().manual_seed(0))
    distance = (made - data / imm.SIGMA).abs().max()
    assert distance < 0.02 * (1 + (data / imm.SIGMA).abs().max() + 4)


@pytest.mark.parametrize("sampler", ["pushforward", "restart"])
def test_the_same_seed_makes_the_same_images_and_guidance_of_one_is_none(sampler: str) -> None:
    method = network(sampler=sampler)
    batch = {"label": torch.tensor([0, 1, 2])}
    first, again, other = (method.generate_images(batch, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    guided = network(sampler=sampler, cfg_scale=2.0)
    assert not torch.allclose(guided.generate_images(batch, 3, torch.Generator().manual_seed(0)), first, atol=1e-3)


def test_label_and_text_add_up_and_what_is_hidden_does_not_count() -> None:
    torch.manual_seed(0)
    method = imm.JumpNetwork(imm.Recipe(**TINY), classes=3, vocabulary=50).eval()
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
    classifier = image_classifier(digits, known)
    batch = real_images(processor, reader, "test")
    assert (classifier(batch["image"]).argmax(1) == batch["label"]).float().mean() > 0.9
    assert image_classifier(digits, known) is classifier


@pytest.mark.parametrize("objective", ["consistency", "flow"])
def test_the_other_objectives_train(objective: str, digits: Corpus) -> None:
    recipe = imm.Recipe(
        **TINY,
        objective=objective,
        batch_size=64,
        optimizer=dataclasses.replace(imm.Recipe.optimizer, learning_rate=2e-3),
    )
    losses = [e["losses"][objective] for e in train(recipe, digits, Budget(steps=60)).history if "losses" in e]
    assert losses[-1] < losses[0]


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


@pytest.mark.parametrize(
    ("choices", "said"),
    [({"batch_size": 30}, "groups of 4"), ({"objective": "flow", "noise_schedule": "vp_cosine"}, "fm")],
)
def test_what_does_not_go_together_is_refused(choices: dict, said: str, digits: Corpus) -> None:
    recipe = imm.Recipe(**TINY, **choices)
    processor = fit_processor(recipe, digits)
    with pytest.raises(UserError, match=said):
        recipe.build(processor)


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
