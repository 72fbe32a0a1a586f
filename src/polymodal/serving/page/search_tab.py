"""Search tab: the examples of each index that are most similar to a text, an image or a sound."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr
import pyarrow as pa

from polymodal.errors import UserError
from polymodal.serving.filter_syntax import MAX_CHARACTERS
from polymodal.serving.index import Hit
from polymodal.serving.page.errors import alert, with_errors
from polymodal.serving.page.html import image_tag, titled
from polymodal.serving.page.tab import PageTab
from polymodal.serving.service import Service


def _build(services: Sequence[Service]) -> None:
    columns = {column for service in services for column in service.columns}
    files = [name for name in ("image", "sound") if name in columns]
    with gr.Row():
        words = gr.Textbox(label="Words", placeholder="What to look for", scale=3, autofocus=True, elem_id="words")
        button = gr.Button("Search", variant="primary", scale=1, min_width=100)
    more = [f"{' or '.join(files)} in place of words"] if files else []
    with gr.Accordion(", ".join([*more, "condition, number of results"]).capitalize(), open=False, elem_id="more"):
        image = gr.File(label="Image", height=110, visible="image" in files, elem_id="image")
        sound = gr.File(label="Sound", height=110, visible="sound" in files, elem_id="sound")
        with gr.Row():
            where = gr.Textbox(label="Condition", placeholder=_example(services[0]), max_length=MAX_CHARACTERS)
            count = gr.Slider(1, 48, value=12, step=1, label="Number of results (k)")
        hybrid = gr.Checkbox(label="Also look for the words in the captions")
    problem = alert()
    with gr.Row():
        results = [gr.HTML(elem_classes="answers", min_width=300, js_on_load=None) for _ in services]

    async def search(
        words: str | None, image: str | None, sound: str | None, where: str | None, count: int, hybrid: bool
    ) -> list[str]:
        given = {"text": (words or "").strip() or None, "image": image, "sound": sound}
        values = {name: value for name, value in given.items() if value is not None}
        if len(values) != 1:
            raise UserError("Give words, or an image, or a sound: one of them.")
        ((name, value),) = values.items()
        query = value if name == "text" else Path(value).read_bytes()
        condition, match_words = (where or "").strip() or None, hybrid and name == "text"
        pages = []
        for service in services:
            hits = await service.found(name, query, int(count), condition, match_words)
            pages.append(titled(service.run.name, _cards(hits), len(services) > 1))
        return pages

    gr.on(
        [button.click, words.submit],
        with_errors(search, [""] * len(services)),
        [words, image, sound, where, count, hybrid],
        [*results, problem],
        api_visibility="private",
    )


def _cards(hits: Sequence[Hit]) -> str:
    if not hits:
        return "<p>No example fits.</p>"
    return f'<div class="hits">{"".join(map(_card, hits))}</div>'


def _card(hit: Hit) -> str:
    image = image_tag(hit.thumbnail, "jpeg", hit.caption or hit.key) if hit.thumbnail else ""
    caption = f"<b>{hit.similarity:.3f}</b> {escape(hit.caption)}<small>{escape(hit.key)}</small>"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _example(service: Service) -> str:
    columns = service.index.columns if service.index is not None else {}
    strings = [name for name, kind in columns.items() if pa.types.is_string(kind)]
    return f"such as {strings[-1]} = '...'; there are {', '.join(columns)}" if strings else ""


tab = PageTab("Search", lambda services: [service for service in services if service.index is not None], _build)
