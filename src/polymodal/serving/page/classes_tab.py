"""Classes tab: zero-shot classification of an image, by every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.serving.page.errors import alert, with_errors
from polymodal.serving.page.tab import PageTab
from polymodal.serving.service import Service


def _runs(services: Sequence[Service]) -> list[Service]:
    able = [service for service in services if isinstance(service.run.model, CanEmbed)]
    return [service for service in able if {"image", "text"} <= set(service.columns)]


def _build(services: Sequence[Service]) -> None:
    with gr.Row():
        with gr.Column():
            image = gr.File(label="Image", height=110, elem_id="classified")
            labels = gr.Textbox(
                label="Labels",
                info="One a line, or separated by commas",
                lines=4,
                placeholder="cat\ndog",
                elem_id="labels",
            )
            template = gr.Textbox(label="Prompt template", info="{} is replaced by each label", value="{}")
            button = gr.Button("Classify", variant="primary")
        with gr.Column():
            problem = alert()
            likely = [gr.Label(label=service.run.name, elem_classes="classes") for service in services]

    async def classify(image: str | None, labels: str | None, template: str | None) -> list[dict[str, float]]:
        names = label_names(labels or "")
        if image is None or not names:
            raise UserError("Give an image, and at least one label.")
        file, rows = Path(image).read_bytes(), []
        for service in services:
            rows += await service.likely("image", [file], names, template or "{}")
        return rows

    button.click(
        with_errors(classify, [None] * len(services)),
        [image, labels, template],
        [*likely, problem],
        api_visibility="private",
    )


def label_names(text: str) -> list[str]:
    """Return the labels of a text, one a line; those of a single line are separated by commas."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [name.strip() for name in lines[0].split(",") if name.strip()] if len(lines) == 1 else lines


tab = PageTab("Classes", _runs, _build)
