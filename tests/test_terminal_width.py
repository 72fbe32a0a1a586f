"""What commands print fits the width of a terminal, and keeps what matters at 60 columns."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from polymodal.evaluation import Score
from polymodal.reproduce.display import Display
from polymodal.reproduce.leaderboard import comparison_verdict, cost_table, headline, rows, terminal_table
from polymodal.reproduce.result import Arm, ComparisonResult, Trial
from polymodal.training.progress import Progress
from polymodal.training.progress_bar import cells, progress_bar
from polymodal.training.run_display import RunDisplay
from polymodal.types import Budget

WIDTHS = (60, 80, 120)
TASK = "test/text_to_image"


def printed(what, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(what)
    return console.file.getvalue()


def comparison(better, metrics=("R@10", "R@1", "MRR", "median_rank")):
    """better: for each metric, what every arm has."""
    rng = np.random.default_rng(0)
    labels = ("clip", "sparc --local-weight 0.5", "mono_internvl")
    arms = [Arm(label, None) for label in labels]
    trials = []
    for seed in range(3):
        for number, arm in enumerate(arms):
            scores = {}
            for place, metric in enumerate(metrics):
                value = better[place][number]
                noise = 0 if value in (0.0, 1.0) else rng.normal(0, 0.02, 50)
                scores[f"{TASK}/{metric}"] = Score(f"{TASK}/{metric}", value + noise * np.ones(50), 0.1, headline=place)
            trials.append(Trial(arm, seed, None, scores))
    return ComparisonResult(arms, None, Budget(steps=1), [0, 1, 2], trials)


TELLING = [(0.7, 0.6, 0.5)] * 4
SATURATED = [(1.0, 1.0, 0.6), (0.5, 0.8, 0.3), (0.6, 0.7, 0.3), (0.6, 0.7, 0.3)]


@pytest.fixture(autouse=True)
def cost(monkeypatch):
    cost = {"seconds": 25.1, "steps": 350, "examples": 89_600, "flops": 1.2e12, "parameters": 2e5}
    monkeypatch.setattr(ComparisonResult, "cost", lambda *_: cost)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_leaderboard_fits(width):
    for table in (terminal_table(comparison(TELLING), width), cost_table(comparison(TELLING))):
        lines = printed(table, width).splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)
        assert any("mono_internvl" in line for line in lines), "no label is broken"
    assert ("R@1 " in printed(terminal_table(comparison(TELLING), width), width)) or width < 80


@pytest.mark.parametrize("width", WIDTHS)
def test_a_live_table_fits(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    display = Display(["clip", "mono_internvl"], [0], Budget(seconds=60), console)
    display.state["clip", 0] |= {"state": "54%", "losses": "global 0.800  local 1.234", "left": "0:12"}
    lines = printed(display.table(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    for text in ("clip", "mono_internvl", "54%", "global 0.800", "local 1.234"):
        assert text in "\n".join(lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_of_a_training_shows_stage_percent_and_all_losses(width):
    progress = Progress(step=50, examples=5_000, seconds=10.0, tokens=70_000, positions=70_000)
    progress.stage_name = "delta_pretraining"
    losses = {"contrastive": 0.8, "masked_language_modeling": 2.0, "image_text_matching": 1.2}
    display = RunDisplay("mono_internvl on a_long_name_of_a_corpus", 0.54, cells(progress, 0.54, losses))
    shown = printed(display, width)
    assert max(map(len, shown.splitlines())) <= width
    for text in ("delta_pretraining", "54%", *(f"{name} {value:.3f}" for name, value in losses.items())):
        assert text in shown


def test_lines_of_a_training_without_a_terminal_name_the_stage(capfd):
    with progress_bar("moma on scenes") as on_step:
        for step, stage in ((1, "words"), (2, "words"), (3, "image")):
            on_step(replace(Progress(step=step, seconds=1.0), stage_name=stage), 0.01 * step, {"a": 1.0, "b": 2.0})
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["moma on scenes, words", "moma on scenes, image"]
    assert all("a 1.000  b 2.000" in line for line in lines)


def test_where_the_headline_saturates_the_next_metric_leads():
    some = comparison(SATURATED)
    assert headline(some)[0] == f"{TASK}/R@1"
    assert next(row.arm.label for row in rows(some)) == "sparc --local-weight 0.5"
    said = comparison_verdict(some)
    assert said.startswith("Text to image R@10 is saturated (clip and sparc --local-weight 0.5 have 100.0 %), so the")
    assert "sparc --local-weight 0.5 leads on text to image R@1" in said
    assert headline(comparison(TELLING))[0] == f"{TASK}/R@10"


def test_ties_are_ties():
    some = comparison([(1.0, 1.0, 0.6)] * 2, ("R@10", "R@1"))
    said = comparison_verdict(some)
    assert "clip and sparc --local-weight 0.5 tie on text to image R@10" in said
    assert "leads" not in said
    assert not any(row.leads for row in rows(some))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("words", [(), ("list",), ("show", "sparc"), ("corpora",), ("doctor",), ("train", "--help")])
def test_commands_fit(polymodal, width, words):
    done = polymodal(*words, COLUMNS=str(width))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > width] == []


@pytest.mark.parametrize("width", [60, 80])
def test_no_word_of_a_list_is_broken(polymodal, width):
    words = set(polymodal("list", COLUMNS="200").stdout.split())
    assert {word for word in polymodal("list", COLUMNS=str(width)).stdout.split() if word not in words} <= {
        "family", "modalities", "year", "claim", "idea", "·", "recipe",
    }  # fmt: skip
