"""Every task file declares what a task must, and the page of tasks says what the files say."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation import tasks
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.evaluate import evaluate, validation
from polymodal.evaluation.statistics import Score, headlines
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.units import number
from polymodal.recipes.dual_encoders import clip
from polymodal.reproduce.page import TASK_PLOTS, tasks_page
from polymodal.training.run import Run

TASKS = tasks.entries()


def test_tasks_are_the_files_of_the_folder_in_their_order():
    files = {file.stem for file in Path(tasks.__file__).parent.glob("[!_]*.py")}
    assert set(TASKS) == files
    orders = [task.order for task in TASKS.values()]
    assert orders == sorted(set(orders)), "no two tasks have the same position"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_declares_what_it_asks_and_what_it_measures(name):
    task = TASKS[name]
    protocols = getattr(task.capability, "__args__", (task.capability,))
    assert all(getattr(protocol, "_is_protocol", False) for protocol in protocols)
    asked = {method for protocol in protocols for method, _ in inspect.getmembers(protocol, inspect.isfunction)}
    assert set(task.forward_methods) - {"embed"} <= asked
    assert not isinstance(nn.Identity(), task.capability)
    assert all(kind.__module__.startswith("polymodal.modalities") for kinds in task.requires for kind in kinds)
    assert task.metrics
    assert task.headline
    for pattern in task.headline:
        split = "" if pattern.startswith(("test_", "items/")) else "test/"
        assert task.described([Score(split + pattern.replace("*", "x"), np.ones(2))])[0].headline is not None
    assert not task.hint or "RUN" in task.hint


def test_every_score_of_a_method_has_the_unit_and_direction_of_its_task(small_emoji):
    recipe = clip.Recipe()
    processor = fit_processor(recipe, small_emoji)
    model = recipe.build(processor).eval()
    run = Run(recipe, model, processor, {"runtime": {"cache_features": False}})
    inputs = TaskInputs(model, processor, Reader(small_emoji, processor), recipe)
    scored = [(task, score) for task in TASKS.values() if task.applies_to(inputs) for score in task.score(inputs)]
    assert all(task.kind_of(score.name).higher_is_better == score.higher_is_better for task, score in scored)
    scores = evaluate(run, small_emoji)
    assert [score.name for score in scores] == [score.name for _, score in scored]
    units = {score.name.rpartition("/")[2]: score.unit for score in scores}
    assert (units["R@10"], units["median_rank"]) == ("percent", "rank")
    assert headlines(scores)[0].name == "test/text_to_image/R@10"
    again = Score.from_json(scores[0].to_json())
    assert (again.unit, again.headline) == (scores[0].unit, scores[0].headline)
    (rank,) = (one for name, one in validation(small_emoji)(model, processor).items() if name.endswith("median_rank"))
    assert (rank.unit, rank.higher_is_better) == ("rank", False)


def test_a_metric_that_a_task_does_not_declare_is_an_error():
    with pytest.raises(StopIteration):
        TASKS["referring"].kind_of("test/referring/token/unheard_of")


def test_headlines_fit_whole_names_and_validation_as_well():
    task = TASKS["label_classification"]
    names = [
        "test/linear_probe_kind/AUC",
        "test/linear_probe_kind/random_values_50%/AUC",
        "validation/classify_kind/AUC",
    ]
    described = task.described([Score(name, np.ones(2)) for name in names])
    assert [score.headline is None for score in described] == [False, True, False]
    assert headlines(described)[0].name == names[2]


def test_values_are_shown_in_their_units():
    assert number("percent", 0.253) == "25.3 %"
    assert (number("rank", 12), number("distance", 0.0314), number("bits per byte", 12.34)) == ("12.0", "0.031", "12.3")
    assert dataclasses.replace(Score("a/b", np.ones(3)), unit="rank").shown()[0] == "1.0"


def test_a_capability_is_having_the_method():
    class Method(nn.Module):
        def embed(self, batch):
            return {}

    assert isinstance(Method(), CanEmbed)
    assert not isinstance(nn.Linear(1, 1), CanEmbed)


def test_the_page_of_tasks_is_up_to_date():
    page = Path(__file__).parents[1] / "docs" / "tasks.md"
    assert page.read_text(encoding="utf-8") == tasks_page(page.parent / TASK_PLOTS), "run `make pages`"


def test_the_page_of_tasks_shows_small_plots():
    plots = Path(__file__).parents[1] / "docs" / TASK_PLOTS
    shown = {plot.stem: plot.stat().st_size for plot in plots.glob("*.png")}
    assert shown.keys() >= {"cross_modal_retrieval", "referring", "answer_classification", "entity_extraction"}
    assert shown.keys() <= {name for name, task in TASKS.items() if task.plot is not None}
    assert max(shown.values()) < 100_000
