"""IMM: the mapping r(s, t), the loss on groups of particles, its limits, sampling and conditions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polymodal import corpora
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.tasks.image_generation import ImageClassifier
from polymodal.objectives.diffusion import SIGMA_DATA, ddim_step, eta_from_time, loss_weight, sample_times
from polymodal.objectives.mmd import laplace_mmd
from polymodal.recipes.generation import inductive_moment_matching as imm
from polymodal.training import RuntimeConfig, train
from polymodal.types import Budget

TINY = {"image_size": 8, "patch_size": 2, "width": 32, "depth": 2, "num_heads": 2}
BATCH = {"image": torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "label": torch.arange(8) % 3}


def method(**choices) -> imm.IMM:
    """With random weights also where a fresh one begins at zero."""
    torch.manual_seed(0)
    made = imm.IMM(imm.Recipe(**TINY, **choices), num_classes=0 if choices.get("conditions") == () else 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


@pytest.mark.parametrize("schedule", ["fm", "vp_cosine"])
def test_r_is_a_constant_eta_before_t_and_between_s_and_t(schedule: str) -> None:
    made = method(noise_schedule=schedule, f_type="simple_edm")
    t = torch.linspace(0.01, 0.994, 50)
    r = made.mapping(torch.full_like(t, 0.006), t)
    assert (r < t).all()
    assert (r >= 0.006).all()
    difference = (eta_from_time(t, schedule) - eta_from_time(r, schedule))[(r > 0.00601) & (t < 0.9)]
    assert len(difference) > 5
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=1e-2, atol=0)
    torch.testing.assert_close(made.mapping(t - 1e-5, t), t - 1e-5)


def test_times_are_uniform_down_to_the_smallest() -> None:
    torch.manual_seed(0)
    t = sample_times(20_000, 0.006, 0.994, "uniform", "fm", torch.device("cpu"))
    assert ((t >= 0.006) & (t <= 0.994)).all()
    counts = torch.histc(t, 20, 0.006, 0.994)
    assert counts.min() > 850
    assert (t < 0.0159).float().mean() == pytest.approx(0.01, abs=0.004)  # no point mass at the smallest
    eta = eta_from_time(sample_times(20_000, 0.006, 0.994, "log_normal", "fm", torch.device("cpu")), "fm").log()
    assert eta.median() == pytest.approx(-1.1, abs=0.06)


@pytest.mark.parametrize("objective", ["mmd", "consistency"])
def test_the_loss_in_plain_loops(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, s, t = method(objective=objective), torch.rand(8) * 0.3, 0.4 + torch.rand(8) * 0.5
    particles = 4 if objective == "mmd" else 1
    monkeypatch.setattr(imm, "sample_times", lambda count, *others: t[:count])
    torch.manual_seed(1)
    found = made.losses(BATCH)[objective].item()
    torch.manual_seed(1)
    noise, expected = SIGMA_DATA * torch.randn(8, 3, 8, 8), 0.0
    groups = 8 // particles
    s = 0.006 + (t[:groups] - 0.006) * torch.rand(groups)
    r = made.mapping(s, t[:groups])
    for group in range(groups):
        points = []
        for row in range(group * particles, (group + 1) * particles):
            one, label = [time[group : group + 1] for time in (s, r, t)], {"label": BATCH["label"][row : row + 1]}
            data, condition = SIGMA_DATA * BATCH["image"][row : row + 1], made.flow_map.condition(label)
            x_t = (1 - one[2]) * data + one[2] * noise[row : row + 1]
            x_r = ddim_step(x_t, data, one[1], one[2])
            points.append(
                [made.flow_map(x, one[0], now, condition).flatten() for x, now in ((x_t, one[2]), (x_r, one[1]))]
            )
        y_t, y_r = (torch.stack(ys)[None] for ys in zip(*points, strict=True))
        kernel = 1 / (SIGMA_DATA * (one[2] - one[0])).clamp(min=1e-3)
        gap = laplace_mmd(y_t, y_r, kernel) if objective == "mmd" else kernel * (y_t - y_r).square().mean()
        expected += (loss_weight(one[2], "fm", 5.0, 1.0) * gap).item() / groups
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("particles", [1, 2, 4])
def test_the_network_runs_twice_a_step_whatever_the_particles(particles: int) -> None:
    made, calls = method(num_particles=particles), []
    forward = made.flow_map.backbone.forward
    made.flow_map.backbone.forward = lambda *given: calls.append(torch.is_grad_enabled()) or forward(*given)
    made.losses(BATCH)["mmd"].backward()
    assert calls == [True, False]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_flow_arrives_at_the_data(steps: int) -> None:
    made, data = method(objective="flow", temb_type="none"), torch.randn(3, 8, 8)
    made.flow_map.network = lambda x, s, t, condition: (x - data) / t.view(-1, 1, 1, 1) / SIGMA_DATA
    images = made.generate_images({"label": torch.tensor([0, 1])}, steps, torch.Generator().manual_seed(0))
    distance = (images - data / SIGMA_DATA).abs().max()
    assert distance < 0.02 * (1 + (data / SIGMA_DATA).abs().max() + 4)


def test_a_flow_has_no_second_time_and_its_control_has() -> None:
    x, condition, t = torch.randn(2, 3, 8, 8), torch.randn(2, 32), torch.tensor([0.8, 0.9])
    for temb_type in ("none", "identity", "stride"):
        made = method(objective="flow", temb_type=temb_type).flow_map
        one, other = (made.network(x, s, t, condition) for s in (t / 2, t / 3))
        assert torch.equal(one, other) == (temb_type == "none")


@pytest.mark.parametrize("sampler", ["pushforward", "restart"])
@pytest.mark.parametrize(
    ("schedule", "choices", "between"),
    [
        ("fm", {"mid_nt": (1.4,)}, [0.58333331]),
        ("fm", {"mid_nt": (3.0, 1.4, 0.2)}, [0.75, 0.58333331, 0.16666667]),
        ("fm", {"discretization": "edm"}, [0.97386864, 0.84809924, 0.29044335]),
        ("vp_cosine", {"mid_nt": (1.4,)}, [0.60513693]),
        ("vp_cosine", {"mid_nt": (3.0, 1.4, 0.2)}, [0.79516721, 0.60513693, 0.12566592]),
        ("vp_cosine", {"discretization": "edm"}, [0.97509272, 0.85346748, 0.23299492]),
    ],
)
def test_sampling_times_are_those_of_the_released_code(
    sampler: str, schedule: str, choices: dict, between: list[float]
) -> None:
    """The calls of both generators of generate_images.py, lumalabs/imm@c9473e9, from 0.994 to 0.006."""
    made, calls = method(sampler=sampler, noise_schedule=schedule, f_type="simple_edm", **choices), []
    forward = made.flow_map.forward
    made.flow_map.forward = lambda x, s, t, *more: calls.append((t[0].item(), s[0].item())) or forward(x, s, t, *more)
    made.generate_images({"label": torch.tensor([0])}, len(between) + 1, torch.Generator().manual_seed(0))
    ends = [0.006] * (len(between) + 1) if sampler == "restart" else [*between, 0.006]
    torch.testing.assert_close(torch.tensor(calls), torch.tensor([*zip([0.994, *between], ends, strict=True)]))


@pytest.mark.parametrize("size", [1, 4, 7, 8])
def test_a_classifier_of_small_images_judges_them(size: int) -> None:
    """Below 8 pixels a side, the third pooling had nothing left."""
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert ImageClassifier(3)(image).isfinite().all()


@pytest.mark.parametrize("sampler", ["pushforward", "restart"])
def test_the_same_seed_makes_the_same_images_and_guidance_changes_them(sampler: str) -> None:
    made, batch = method(sampler=sampler), {"label": torch.tensor([0, 1, 2])}
    first, again, other = (made.generate_images(batch, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    guided = method(sampler=sampler, cfg_scale=2.0)
    assert not torch.allclose(guided.generate_images(batch, 3, torch.Generator().manual_seed(0)), first, atol=1e-3)


def test_unconditional_images_are_learned_and_generated() -> None:
    made = method(conditions=())
    assert made.losses({"image": BATCH["image"], "num_images": torch.tensor(8)})["mmd"].isfinite()
    assert made.losses({"image": BATCH["image"][:3], "num_images": torch.tensor(3)})["mmd"].isfinite()  # a short batch
    assert made.generate_images({"num_images": torch.tensor(5)}, 2).shape == (5, 3, 8, 8)


def test_the_published_preset_is_the_released_configuration() -> None:
    recipe = imm.Recipe.paper()
    assert (recipe.f_type, recipe.temb_type, recipe.noise_schedule) == ("simple_edm", "identity", "fm")
    assert (recipe.conditions, recipe.mid_nt, recipe.t_min, recipe.t_max) == ((), (1.4,), 0.006, 0.994)
    optimizer = recipe.optimizer
    assert (optimizer.lr_scheduler, optimizer.max_grad_norm, optimizer.warmup_ratio) == ("constant", 0.0, 0.0)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"batch_size": 30}, "groups of 4"),
        ({"mid_nt": (0.2, 1.4)}, "--mid-nt are decreasing etas"),
        ({"mid_nt": (200.0,)}, "below that of --t-max"),
        ({"mid_nt": (0.001,)}, "above that of --t-min"),
        ({"objective": "flow", "f_type": "identity"}, "euler_fm"),
        ({"noise_schedule": "vp_cosine"}, "goes with --noise-schedule fm"),
        ({"t_max": 1.0}, "--t-max is below 1"),
    ],
)
def test_what_does_not_go_together_is_refused(choices: dict, said: str) -> None:
    def build() -> None:
        recipe = imm.Recipe(**TINY, **choices)
        recipe.build(fit_processor(recipe, corpora.digits()))

    with pytest.raises(UserError, match=said):
        build()


@pytest.mark.parametrize("size", [2, 6])
def test_micro_batches_hold_whole_groups_of_particles(size: int) -> None:
    recipe = imm.Recipe(**TINY, batch_size=12)
    with pytest.raises(UserError, match="groups of 4 examples"):
        train(recipe, corpora.digits(), Budget(steps=1), runtime=RuntimeConfig(micro_batch=size))
    train(replace(recipe, objective="flow"), corpora.digits(), Budget(steps=1), runtime=RuntimeConfig(micro_batch=size))
