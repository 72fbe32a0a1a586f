"""Web page (Gradio): search, zero-shot classification, and training curves; mounted beside the server's routes.

Its requests use the same queue and limits as those of the server.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import pyarrow as pa
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from PIL import Image as PILImage

from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.layers.decoding import Decoding
from polymodal.serving.filter_syntax import MAX_CHARACTERS
from polymodal.serving.http_errors import CLIENT_ERRORS, error_response
from polymodal.serving.limits import check_lengths
from polymodal.serving.page_guard import PAGE
from polymodal.serving.service import Service
from polymodal.serving.vqa import answer_about

log = logging.getLogger("polymodal.server")

# Uploads and images of results are deleted at this age, checked at this interval, and when the server stops; seconds.
MAX_FILE_AGE, DELETE_EVERY = 600, 60
# As many columns as fit, also on phones.
STYLE = ".grid-container { grid-template-columns: repeat(auto-fill, minmax(105px, 1fr)) !important; }"


class _Page(gr.Blocks):
    """Accepts files that visitors uploaded, and no others.

    Gradio rejects server paths instead of uploads, and marks no file as public, only in pages started by its own
    `launch`; this one is mounted. It also fetches URLs instead of uploads.
    """

    def __init__(self, title: str):
        super().__init__(title=title, analytics_enabled=False, delete_cache=(DELETE_EVERY, MAX_FILE_AGE))

    def mark_as_launched(self) -> None:
        self.has_launched = self.is_running = True

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Raise gradio's Error, which it does not log."""
        if not _uploads(inputs):
            raise _sentence("A file has to be uploaded.")
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:  # of any kind: components expect what their own page sends
            raise _sentence("The page cannot read what was sent.", error) from error


def mount_page(app: FastAPI, services: Sequence[Service], api_key: str | None) -> None:
    """Mount the page at /page. With an API key, it is the password of the user `polymodal`."""
    page, login = build_page(services), ("polymodal", api_key) if api_key else None
    largest = services[0].limits.body_bytes
    gr.mount_gradio_app(app, page, PAGE, auth=login, max_file_size=largest, css=STYLE, footer_links=[])
    page.mark_as_launched()


def build_page(services: Sequence[Service]) -> _Page:
    """Build the page. services: the served run first; others are shown beside it."""
    first, index = services[0], any(service.index for service in services)
    with _Page(title=f"polymodal: {first.run.name}") as page:
        gr.Markdown(f"# {' beside '.join(service.run.name for service in services)}")
        if index:
            with gr.Tab("Search"):
                _search_tab(services)
        if {"image", "text"} <= set(first.columns):
            with gr.Tab("Classes"):
                _classes_tab(first)
        if isinstance(first.run.model, CanGenerateText | CanClassifyAnswers) and _takes_image(first):
            with gr.Tab("Ask"):
                _ask_tab(services)
        with gr.Tab("Training"):
            _training_tab(services)
    return page


def _search_tab(services: Sequence[Service]) -> None:
    searched, columns = [service for service in services if service.index is not None], services[0].columns
    with gr.Row():
        words = gr.Textbox(label="Words", placeholder="a red fruit", scale=3, autofocus=True, elem_id="words")
        button = gr.Button("Search", variant="primary", scale=1, min_width=100)
    with gr.Accordion("An image or a sound in place of words, conditions", open=False, elem_id="more"):
        image = gr.File(label="Image", height=110, visible="image" in columns, elem_id="image")
        sound = gr.File(label="Sound", height=110, visible="sound" in columns, elem_id="sound")
        with gr.Row():
            where = gr.Textbox(label="Condition", placeholder=_example(searched[0]), max_length=MAX_CHARACTERS)
            count = gr.Slider(1, 48, value=12, step=1, label="How many")
        hybrid = gr.Checkbox(label="Also look for the words in the captions")
    galleries = []
    with gr.Row():
        for service in searched:
            galleries.append(
                gr.Gallery(label=service.run.name, columns=4, height="auto", object_fit="contain", min_width=300)
            )

    async def search(
        words: str | None, image: str | None, sound: str | None, where: str | None, count: int, hybrid: bool
    ) -> Any:
        given = {"text": (words or "").strip() or None, "image": image, "sound": sound}
        values = {name: value for name, value in given.items() if value is not None}
        if len(values) != 1:
            raise _sentence("Give words, or an image, or a sound: one of them.")
        (name,) = values
        value = values[name] if name == "text" else Path(values[name]).read_bytes()
        found = []
        condition, also_words = (where or "").strip() or None, hybrid and name == "text"
        for service in searched:
            with _sentences():
                hits = await service.found(name, value, int(count), condition, also_words)
            found.append([(hit.image or _blank(), f"{hit.similarity:.3f}  {hit.caption or hit.key}") for hit in hits])
        return found[0] if len(found) == 1 else found

    inputs = [words, image, sound, where, count, hybrid]
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
            image = gr.File(label="Image", height=110, elem_id="classified")
            labels = gr.Textbox(label="Labels, one a line", lines=4, placeholder="fruit\nanimal", elem_id="labels")
            template = gr.Textbox(label="What is said of a label", value="{}")
            button = gr.Button("Classify", variant="primary")
        likely = gr.Label(label="How likely each is")

    async def classify(image: str | None, labels: str | None, template: str) -> dict[str, float]:
        names = [line.strip() for line in (labels or "").splitlines() if line.strip()]
        if image is None or not names:
            raise _sentence("Give an image, and at least one label.")
        with _sentences():
            (found,) = await service.likely("image", [Path(image).read_bytes()], names, template)
        return found

    button.click(classify, [image, labels, template], likely, api_visibility="private")


def _takes_image(service: Service) -> bool:
    return "image" in getattr(service.run.processor, "columns", ())


def _ask_tab(services: Sequence[Service]) -> None:
    """Visual question answering, and captioning without a question, by every run of the page that answers."""
    answering = [one for one in services if isinstance(one.run.model, CanGenerateText | CanClassifyAnswers)]
    with gr.Row():
        with gr.Column():
            image = gr.File(label="Image", height=110, elem_id="asked")
            question = gr.Textbox(label="Question (empty: a caption)", elem_id="question")
            button = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Column():
            answers = [gr.Textbox(label=f"Answer of {one.run.name}", elem_classes="answer") for one in answering]

    async def ask(image: str | None, question: str | None) -> Any:
        if image is None:
            raise _sentence("Give an image.")
        answers = []
        for service in answering:
            with _sentences():
                check_lengths([question or ""], service.limits)
                answers.append(await _answer(service, Path(image).read_bytes(), (question or "").strip()))
        return answers[0] if len(answers) == 1 else answers

    gr.on([button.click, question.submit], ask, [image, question], answers, api_visibility="private")


async def _answer(service: Service, image: bytes, question: str) -> str:
    ends = service.ends
    async with service.decoder.decoded({"image": [image]}, ends) as given:
        images = given["image"]
        (text,) = await service.call(lambda: answer_about(service.run, images, question, Decoding()), ends)
    return str(text)


def _training_tab(services: Sequence[Service]) -> None:
    losses, metrics = [], []
    for service in services:
        for entry in service.run.history:
            where = {"run": service.run.name, "step": entry["step"]}
            losses += [where | {"value": value, "name": name} for name, value in entry.get("losses", {}).items()]
            metrics += [where | {"value": value, "name": name} for name, value in entry.get("validation", {}).items()]
        cost = service.run.record
        gr.Markdown(
            f"**{service.run.name}**: `{cost['recipe']['name']}`, {cost['budget']}, seed {cost['seed']}; "
            f"data: {', '.join(f'{name} {value}' for name, value in cost['corpus'].items() if value)}"
        )
    _plot(losses, "Losses in training")
    _plot([one for one in metrics if one["name"].endswith(("R@10", "accuracy", "acc@0.5"))], "On the validation split")


def _plot(values: list[dict[str, Any]], title: str) -> None:
    """Plot values: run, step, name and value; one line per run and name."""
    if values:
        frame = pd.DataFrame(values)
        if frame["run"].nunique() > 1:
            frame["name"] = frame["run"] + " " + frame["name"]
        gr.LinePlot(frame, x="step", y="value", color="name", title=title, height=280)


@contextmanager
def _sentences() -> Iterator[None]:
    """Show user errors as a sentence."""
    try:
        yield
    except CLIENT_ERRORS as error:
        raise _sentence(error_response(error).message, error) from error


def _sentence(said: str, error: Exception | None = None) -> gr.Error:
    """Return the error that a visitor reads; it is one line in the log, without traceback."""
    reason = f" ({type(error).__name__})" if error is not None else ""
    log.warning("page: %s%s", ascii(said[:500])[1:-1], reason)
    return gr.Error(said, print_exception=False)


def _uploads(values: Any) -> bool:
    """Return whether all submitted files are in the upload folder."""
    if isinstance(values, dict):
        path = values.get("path")
        return (not isinstance(path, str) or _uploaded(path)) and all(map(_uploads, values.values()))
    return not isinstance(values, list) or all(map(_uploads, values))


def _uploaded(path: str) -> bool:
    try:
        return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, ValueError):
        return False
