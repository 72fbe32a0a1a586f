"""Examples tab: test examples with the answers of the run, for capabilities that have no tab of their own."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from functools import partial
from html import escape

import gradio as gr

from polymodal.corpora.registry import reopen
from polymodal.errors import UserError
from polymodal.evaluation import tasks
from polymodal.evaluation.evaluate import applicable_tasks, inputs_of
from polymodal.serving.page.errors import alert, with_errors
from polymodal.serving.page.html import image_tag, titled
from polymodal.serving.page.tab import PageTab
from polymodal.serving.service import Service
from polymodal.training.run import Run

SECONDS = 300  # maximum time of the plots of a run; they are made once


def _runs(services: Sequence[Service]) -> list[Service]:
    plotted = [task.capability for task in tasks.entries().values() if task.plot is not None]
    return [one for one in services if any(isinstance(one.run.model, capability) for capability in plotted)]


def _build(services: Sequence[Service]) -> None:
    button = gr.Button("Show test examples", variant="primary", elem_id="show")
    problem = alert()
    with gr.Row():
        results = [gr.HTML(elem_classes="answers examples", min_width=300, js_on_load=None) for _ in services]
    made: dict[int, str] = {}

    async def show() -> list[str]:
        for place, service in enumerate(services):
            if place not in made:
                made[place] = await service.call(partial(_plots, service.run), time.monotonic() + SECONDS)
        several = len(services) > 1
        return [titled(service.run.name, made[place], several) for place, service in enumerate(services)]

    button.click(with_errors(show, [""] * len(services)), None, [*results, problem], api_visibility="private")


def _plots(run: Run) -> str:
    """Return the plots of all tasks. Raises UserError where the corpus is not there, or no task has a plot."""
    inputs, shown = inputs_of(run, reopen(run.record["corpus"])), []
    names = {id(task): name.replace("_", " ") for name, task in tasks.entries().items()}
    for task in applicable_tasks(inputs):
        if task.plot is not None and inputs.test_splits:
            file = io.BytesIO()
            task.plot(inputs).save(file)
            name = names[id(task)].capitalize()
            shown.append(f"<h2>{escape(name)}</h2>{image_tag(file.getvalue(), 'png', name, 'sheet')}")
    if not shown:
        raise UserError(f"The corpus of '{run.name}' has no test examples that can be shown.")
    return "".join(shown)


tab = PageTab("Examples", _runs, _build)
