"""Every task with a plot writes an image of test examples and answers, here of untrained methods."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import synthetic
from polymodal import recipes
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.regions import EntityRegionsColumn
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation import tasks, write_plots
from polymodal.evaluation.panels import CORRECT, WRONG, Panels, image_panel, retrieval_panels, text_panel
from polymodal.evaluation.task import TaskInputs
from polymodal.training.run import Run

NAMES = [name for name in recipes.entries() if hasattr(recipes.find(name), "build")]
PLOTTED = [name for name, task in tasks.entries().items() if task.plot is not None]
Inputs = Callable[[str], TaskInputs]


@pytest.fixture(scope="module")
def inputs_of(corpus: Corpus) -> Iterator[Inputs]:
    """The untrained method of a recipe by name."""

    def fitted(column: EntityRegionsColumn, corpora: Any, columns: Any) -> EntityRegionsColumn:
        return dataclasses.replace(column, entities=list(synthetic.OBJECTS))

    @functools.cache
    def of(name: str) -> TaskInputs:
        torch.manual_seed(0)
        recipe: Any = recipes.find(name).tiny()
        if hasattr(recipe, "use_pem"):
            recipe = dataclasses.replace(recipe, use_pem=True)
        data = synthetic.corpus_for(name, corpus)
        processor = fit_processor(recipe, data)
        return TaskInputs(recipe.build(processor).eval(), processor, Reader(data, processor), recipe)

    with pytest.MonkeyPatch.context() as now:
        now.setattr(EntityRegionsColumn, "fit", fitted)  # those of a corpus need WordNet, a download
        yield of


def pixels_of(path: Path) -> np.ndarray:
    with PILImage.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", PLOTTED)
def test_a_task_plots_examples_and_answers(name: str, inputs_of: Inputs, tmp_path: Path) -> None:
    task = tasks.entries()[name]
    assert task.plot is not None
    inputs = next(inputs for inputs in map(inputs_of, NAMES) if task.applies_to(inputs))
    panels = task.plot(inputs)
    assert len(panels.rows) > 0
    assert all(row for row in panels.rows)
    panels.save(tmp_path / "plot.png")
    pixels = pixels_of(tmp_path / "plot.png")
    assert (pixels < 128).any(axis=2).mean() > 0.005, "it shows something"
    assert (tmp_path / "plot.png").stat().st_size < 100_000


def test_a_run_writes_an_image_for_each_of_its_tasks(inputs_of: Inputs, corpus: Corpus, tmp_path: Path) -> None:
    inputs = inputs_of("clip")
    run = Run(inputs.recipe, inputs.method, inputs.processor, {})
    written = write_plots(run, corpus, tmp_path / "plots")
    assert [path.stem for path in written] == [
        name for name, task in tasks.entries().items() if task.applies_to(inputs) and task.plot
    ]
    assert all(path.is_file() for path in written)


def test_relevant_items_have_green_frames_and_come_in_the_order_of_similarity() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [float("nan"), 0.2, 0.3]])
    relevant = [np.array([2]), np.array([2])]
    order: list[int] = []

    def item(number: int, title: str, right: bool) -> Any:
        order.append(number)
        return image_panel(torch.zeros(3, 4, 4), title, right)

    panels = retrieval_panels([text_panel(["a"]), text_panel(["b"])], similarity, relevant, item, "title")
    assert order == [1, 2, 0, 2, 1, 0]
    assert [panel.correct for panel in panels.rows[0]] == [None, False, True, False]
    assert [panel.title for panel in panels.rows[1][1:]] == ["rank 1", "rank 2", "rank 3"]


def test_text_is_drawn_in_its_color_and_dollars_are_no_mathematics(tmp_path: Path) -> None:
    Panels([[text_panel([("costs $5 or $6", "#ff0000")], "a $ title $")]]).save(tmp_path / "text.png")
    red, green, _ = pixels_of(tmp_path / "text.png").reshape(-1, 3).astype(int).T
    assert ((red > 200) & (green < 80)).sum() > 20


def test_verdicts_keep_their_colors_among_many_others(tmp_path: Path) -> None:
    colorful = image_panel(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))
    Panels([[colorful, text_panel([("correct answer", CORRECT), ("wrong answer", WRONG)] * 3)]]).save(
        tmp_path / "text.png"
    )
    text = pixels_of(tmp_path / "text.png")[:, 150:].reshape(-1, 3).astype(int)
    for color in (CORRECT, WRONG):
        rgb = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (abs(text - rgb).max(axis=1) < 8).sum() > 10
