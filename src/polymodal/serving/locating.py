"""Where in a picture is what a text means? Boxes, and the picture with them drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image as PILImage
from PIL import ImageDraw

from polymodal.errors import UnreadableExample, UserError, unusable
from polymodal.evaluation.referring import SURE
from polymodal.modalities import Image
from polymodal.modalities.image import to_rgb
from polymodal.training.run import Run, answers
from polymodal.types import CanLocate

COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080")
SIDE = 480  # least side in pixels of a picture that boxes are drawn in


class Located(NamedTuple):
    """box: left, top, right, bottom in pixels of the picture. sure: from 0 to 1."""

    text: str
    box: tuple[int, int, int, int]
    sure: float


def locate(run: Run, path: str, texts: Sequence[str], branch: str = "") -> tuple[PILImage.Image, list[Located]]:
    """The picture, and for each text the boxes that the run is surer of than not; of a single query, its only one.

    branch: one of the ways that the method has to find boxes; the first, unless it is given.
    Raises UserError for a run that finds no boxes, a branch that it does not have, and a file that is no picture.
    """
    if not isinstance(run.model, CanLocate):
        raise UserError(f"The run '{run.name}' cannot find boxes; a method that can is simvg.")
    try:
        picture = to_rgb(Image().decode(path))
        columns: dict[str, list[Any]] = {"image": [picture] * len(texts), "text": list(texts)}
        (found,) = answers(run.model, run.processor, "locate", columns, len(texts))
    except UnreadableExample as error:
        raise unusable(error) from error
    branch = branch or next(iter(found))
    if branch not in found:
        raise UserError(f"The run '{run.name}' has no branch '{branch}'; it has {', '.join(found)}.")
    sides = torch.tensor([picture.width, picture.height] * 2)
    located = []
    for text, boxes, sure in zip(texts, *found[branch], strict=True):
        chosen = sure > SURE if run.model.queries > 1 else torch.ones_like(sure, dtype=torch.bool)
        for box, score in zip((boxes * sides)[chosen].round().int().tolist(), sure[chosen].tolist(), strict=True):
            located.append(Located(text, tuple(box), score))
    return picture, located


def drawn(picture: PILImage.Image, located: Sequence[Located]) -> PILImage.Image:
    """The picture, enlarged where it is small, with every box and its text in the colour of the text."""
    factor = max(1, -(-SIDE // min(picture.size)))
    shown = picture.resize((picture.width * factor, picture.height * factor), PILImage.Resampling.LANCZOS)
    pen = ImageDraw.Draw(shown)
    texts = list(dict.fromkeys(one.text for one in located))
    for one in located:
        colour = COLOURS[texts.index(one.text) % len(COLOURS)]
        left, top, right, bottom = (edge * factor for edge in one.box)
        pen.rectangle((left, top, max(right, left + 1), max(bottom, top + 1)), outline=colour, width=3)
        room = shown.width - pen.textlength(one.text, font_size=14) - 4  # to the left of a text that ends at the edge
        corner = (max(min(left + 4, room), 3), top + 3)
        label = pen.textbbox(corner, one.text, font_size=14)
        pen.rectangle((label[0] - 3, label[1] - 2, label[2] + 3, label[3] + 2), fill=colour)
        pen.text(corner, one.text, "white", font_size=14)
    return shown
