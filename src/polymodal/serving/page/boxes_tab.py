"""Boxes tab: visual grounding of texts in an image, by every run that predicts boxes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image as PILImage

from polymodal.errors import UserError
from polymodal.evaluation.tasks.referring import CanDetect
from polymodal.modalities.image import encoded
from polymodal.serving.grounding import GroundedBox, draw_grounded_boxes, ground
from polymodal.serving.limits import check_texts
from polymodal.serving.page.errors import alert, with_errors
from polymodal.serving.page.html import fitted, image_tag, titled
from polymodal.serving.page.tab import PageTab
from polymodal.serving.service import Service

SIDE = 1024  # maximum side in pixels of the image with boxes


def _runs(services: Sequence[Service]) -> list[Service]:
    return [service for service in services if isinstance(service.run.model, CanDetect)]


def _build(services: Sequence[Service]) -> None:
    with gr.Row():
        with gr.Column(scale=1):
            image = gr.File(label="Image", height=110, elem_id="grounded")
            texts = gr.Textbox(label="What to find", info="One text a line", lines=3, elem_id="texts")
            button = gr.Button("Find", variant="primary", elem_id="find")
        with gr.Column(scale=2):
            problem = alert()
            results = [gr.HTML(elem_classes="answers boxes", js_on_load=None) for _ in services]

    async def find(image: str | None, texts: str | None) -> list[str]:
        queries = [line.strip() for line in (texts or "").splitlines() if line.strip()]
        if image is None or not queries:
            raise UserError("Give an image, and say what to find in it.")
        file = Path(image).read_bytes()
        answers = [await _grounded(service, file, queries) for service in services]
        several = len(services) > 1
        return [titled(service.run.name, one, several) for service, one in zip(services, answers, strict=True)]

    button.click(with_errors(find, [""] * len(services)), [image, texts], [*results, problem], api_visibility="private")


async def _grounded(service: Service, file: bytes, texts: list[str]) -> str:
    ends = service.ends
    check_texts(texts, service.limits, service.limits.items)
    async with service.decoder.decoded({"image": [file]}, ends) as given:
        (image,) = given["image"]
        return await service.call(lambda: _shown(*ground(service.run, image, texts)), ends)


def _shown(image: PILImage.Image, boxes: Sequence[GroundedBox]) -> str:
    """Return the image with its boxes, and a table of them in pixels of the image."""
    small = fitted(image, SIDE)
    factor = small.width / image.width
    scaled = [GroundedBox(one.text, _scaled(one.box, factor), one.sure) for one in boxes]
    drawn = image_tag(encoded(draw_grounded_boxes(small, scaled), "JPEG"), "jpeg", "image with boxes", "sheet")
    rows = "".join(
        f"<tr><td>{escape(one.text)}</td><td>{', '.join(map(str, one.box))}</td><td>{one.sure:.2f}</td></tr>"
        for one in boxes
    )
    head = "<tr><th>text</th><th>left, top, right, bottom</th><th>confidence</th></tr>"
    return drawn + (f"<table>{head}{rows}</table>" if boxes else "<p>Nothing of this was found.</p>")


def _scaled(box: tuple[int, int, int, int], factor: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(edge * factor) for edge in box)
    return left, top, right, bottom


tab = PageTab("Boxes", _runs, _build)
