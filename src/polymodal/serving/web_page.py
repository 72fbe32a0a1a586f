"""A page to click in: search, classes of one's own, and how the run was trained. It stands beside the server's answers.

Its questions go through the same queue and the same limits as those of the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import pyarrow as pa
from PIL import Image as PILImage

from polymodal.serving.filters import MAX_CHARACTERS
from polymodal.serving.server import REFUSED, Service, refusal

# As many pictures beside each other as there is room for, on a telephone, too.
STYLE = ".grid-container { grid-template-columns: repeat(auto-fill, minmax(105px, 1fr)) !important; }"


def build_page(services: Sequence[Service]) -> gr.Blocks:
    """services: the run that is served first; another one answers beside it."""
    first, index = services[0], any(service.index for service in services)
    with gr.Blocks(title=f"polymodal: {first.run.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {' beside '.join(service.run.name for service in services)}")
        if index:
            with gr.Tab("Search"):
                _search_tab(services)
        if {"image", "text"} <= set(_columns(first)):
            with gr.Tab("Classes"):
                _classes_tab(first)
        with gr.Tab("Training"):
            _training_tab(services)
    return page


def _columns(service: Service) -> tuple[str, ...]:
    return tuple(getattr(service.run.processor, "columns", ("text", "image")))


def _search_tab(services: Sequence[Service]) -> None:
    asked, columns = [service for service in services if service.index is not None], _columns(services[0])
    with gr.Row():
        words = gr.Textbox(label="Words", placeholder="a red fruit", scale=3, autofocus=True, elem_id="words")
        button = gr.Button("Search", variant="primary", scale=1, min_width=100)
    with gr.Accordion("A picture or a sound in place of words, conditions", open=False, elem_id="more"):
        picture = gr.File(label="Picture", height=110, visible="image" in columns, elem_id="picture")
        sound = gr.File(label="Sound", height=110, visible="sound" in columns, elem_id="sound")
        with gr.Row():
            where = gr.Textbox(label="Condition", placeholder=_example(asked[0]), max_length=MAX_CHARACTERS)
            count = gr.Slider(1, 48, value=12, step=1, label="How many")
        hybrid = gr.Checkbox(label="Also look for the words in the captions")
    galleries = []
    with gr.Row():
        for service in asked:
            galleries.append(
                gr.Gallery(label=service.run.name, columns=4, height="auto", object_fit="contain", min_width=300)
            )

    async def search(
        words: str | None, picture: str | None, sound: str | None, where: str | None, count: int, hybrid: bool
    ) -> Any:
        given = {"text": (words or "").strip() or None, "image": picture, "sound": sound}
        values = {name: value for name, value in given.items() if value is not None}
        if len(values) != 1:
            raise gr.Error("Give words, or a picture, or a sound: one of them.")
        (name,) = values
        value = values[name] if name == "text" else Path(values[name]).read_bytes()
        found = []
        condition, also_words = (where or "").strip() or None, hybrid and name == "text"
        for service in asked:
            with _sentences():
                hits = await service.found(name, value, int(count), condition, also_words)
            found.append([(hit.picture or _blank(), f"{hit.similarity:.3f}  {hit.caption or hit.key}") for hit in hits])
        return found[0] if len(found) == 1 else found

    inputs = [words, picture, sound, where, count, hybrid]
    gr.on([button.click, words.submit], search, inputs, galleries, api_visibility="private")


def _example(service: Service) -> str:
    columns = service.index.columns if service.index is not None else {}
    strings = [name for name, kind in columns.items() if pa.types.is_string(kind)]
    return f"such as {strings[-1]} = '...'; there are {', '.join(columns)}" if strings else ""


def _blank() -> PILImage.Image:
    return PILImage.new("RGB", (64, 64), "#dddddd")


def _classes_tab(service: Service) -> None:
    with gr.Row():
        with gr.Column():
            picture = gr.File(label="Picture", height=110, elem_id="classified")
            labels = gr.Textbox(label="Labels, one a line", lines=4, placeholder="fruit\nanimal", elem_id="labels")
            template = gr.Textbox(label="What is said of a label", value="{}")
            button = gr.Button("Classify", variant="primary")
        likely = gr.Label(label="How likely each is")

    async def classify(picture: str | None, labels: str | None, template: str) -> dict[str, float]:
        names = [line.strip() for line in (labels or "").splitlines() if line.strip()]
        if picture is None or not names:
            raise gr.Error("Give a picture, and at least one label.")
        with _sentences():
            (found,) = await service.likely("image", [Path(picture).read_bytes()], names, template)
        return found

    button.click(classify, [picture, labels, template], likely, api_visibility="private")


def _training_tab(services: Sequence[Service]) -> None:
    losses, figures = [], []
    for service in services:
        for entry in service.run.history:
            where = {"run": service.run.name, "step": entry["step"]}
            losses += [where | {"value": value, "name": name} for name, value in entry.get("losses", {}).items()]
            figures += [where | {"value": value, "name": name} for name, value in entry.get("validation", {}).items()]
        cost = service.run.record
        gr.Markdown(
            f"**{service.run.name}**: `{cost['recipe']['name']}`, {cost['budget']}, seed {cost['seed']}; "
            f"data: {', '.join(f'{name} {value}' for name, value in cost['corpus'].items() if value)}"
        )
    _plot(losses, "Losses in training")
    _plot([one for one in figures if one["name"].endswith(("R@10", "accuracy"))], "On the validation split")


def _plot(values: list[dict[str, Any]], title: str) -> None:
    """values: run, step, name and value; a line each run and name."""
    if values:
        frame = pd.DataFrame(values)
        if frame["run"].nunique() > 1:
            frame["name"] = frame["run"] + " " + frame["name"]
        gr.LinePlot(frame, x="step", y="value", color="name", title=title, height=280)


@contextmanager
def _sentences() -> Iterator[None]:
    """What a user can put right is shown as a sentence."""
    try:
        yield
    except REFUSED as error:
        raise gr.Error(refusal(error).message) from error
