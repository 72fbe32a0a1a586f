"""Visual grounding of texts (referring expressions, phrases): boxes, and the image with boxes drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image as PILImage
from PIL import ImageDraw

from polymodal.errors import UnreadableExample, UserError, unusable
from polymodal.evaluation.tasks.referring import SCORE_THRESHOLD, CanDetect
from polymodal.modalities import Image
from polymodal.modalities.image import to_rgb
from polymodal.serving.missing_capability import lacks
from polymodal.training.run import Run, answers

COLORS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080")
SIDE = 480  # minimum side in pixels of the image with boxes


class GroundedBox(NamedTuple):
    """Predicted box: left, top, right, bottom in pixels. sure: confidence from 0 to 1."""

    text: str
    box: tuple[int, int, int, int]
    sure: float


def ground(
    run: Run, shown: str | PILImage.Image, texts: Sequence[str], branch: str = ""
) -> tuple[PILImage.Image, list[GroundedBox]]:
    """Return the image, and the boxes of each text with a confidence above 0.5; with a single query, its only box.

    shown: a path or a Pillow image. branch: prediction branch of the method; by default the first. Raises UserError for
    a run that does not predict boxes, an unknown branch, and an unreadable image.
    """
    if not isinstance(run.model, CanDetect):
        raise lacks(run, "predict boxes", "predict_boxes")
    try:
        image = to_rgb(Image().decode(shown))
        columns: dict[str, list[Any]] = {"image": [image] * len(texts), "text": list(texts)}
        (found,) = answers(run.model, run.processor, "predict_boxes", columns, len(texts))
    except UnreadableExample as error:
        raise unusable(error) from error
    branch = branch or next(iter(found))
    if branch not in found:
        raise UserError(f"The run '{run.name}' has no branch '{branch}'; it has {', '.join(found)}.")
    sides = torch.tensor([image.width, image.height] * 2)
    located = []
    for text, boxes, sure in zip(texts, *found[branch], strict=True):
        chosen = sure > SCORE_THRESHOLD if run.model.num_queries > 1 else torch.ones_like(sure, dtype=torch.bool)
        for box, score in zip((boxes * sides)[chosen].round().int().tolist(), sure[chosen].tolist(), strict=True):
            located.append(GroundedBox(text, tuple(box), score))
    return image, located


def draw_grounded_boxes(image: PILImage.Image, located: Sequence[GroundedBox]) -> PILImage.Image:
    """Draw boxes and texts, one color per text, into the image, enlarged if it is small."""
    factor = max(1, -(-SIDE // min(image.size)))
    shown = image.resize((image.width * factor, image.height * factor), PILImage.Resampling.LANCZOS)
    pen = ImageDraw.Draw(shown)
    texts = list(dict.fromkeys(one.text for one in located))
    for one in located:
        color = COLORS[texts.index(one.text) % len(COLORS)]
        left, top, right, bottom = (edge * factor for edge in one.box)
        pen.rectangle((left, top, max(right, left + 1), max(bottom, top + 1)), outline=color, width=3)
        room = shown.width - pen.textlength(one.text, font_size=14) - 4  # to the left of a text that ends at the edge
        corner = (max(min(left + 4, room), 3), top + 3)
        label = pen.textbbox(corner, one.text, font_size=14)
        pen.rectangle((label[0] - 3, label[1] - 2, label[2] + 3, label[3] + 2), fill=color)
        pen.text(corner, one.text, "white", font_size=14)
    return shown
