"""Pictures from a run that generates, and a sheet of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from polymodal.errors import UserError, unknown
from polymodal.training.run import Run, evaluating, to_device
from polymodal.types import CanGenerate

SIDE, MARGIN = 64, 4  # of a picture of the sheet


def generate_pictures(run: Run, labels: Sequence[str], count: int, steps: int, seed: int = 0) -> list[list[Any]]:
    """`count` pictures (Pillow) of each label. labels: of the run's classes; none means all of them.

    Raises UserError when the run cannot generate, or for a label that it does not know.
    """
    if not isinstance(run.model, CanGenerate):
        raise UserError(f"The run '{run.name}' cannot generate: its method has no `generate`.")
    if count < 1 or steps < 1:
        raise UserError("--count and --steps are at least 1.")
    processor: Any = run.processor
    names = list(processor.label.names)
    for label in labels:
        if label not in names:
            raise unknown("label of this run", label, names)
    numbers = [names.index(label) for label in labels or names]
    device = next(run.model.parameters()).device
    batch = to_device(processor(label=[number for number in numbers for _ in range(count)]), device)
    with evaluating(run.model):
        made = run.model.generate(batch, steps, torch.Generator().manual_seed(seed)).cpu()
    pixels = (processor.image.shown(made) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    pictures = [PILImage.fromarray(picture) for picture in pixels]
    return [pictures[first : first + count] for first in range(0, len(pictures), count)]


def sheet(rows: Sequence[Sequence[PILImage.Image]], titles: Sequence[str]) -> PILImage.Image:
    """A line for each label, with its name at the left."""
    font = ImageFont.load_default(size=14)
    left = MARGIN + max(round(font.getlength(title)) for title in titles) + 2 * MARGIN
    step = SIDE + MARGIN
    page = PILImage.new("RGB", (left + step * len(rows[0]), MARGIN + step * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for line, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = MARGIN + line * step
        draw.text((MARGIN, top + SIDE / 2), title, fill="#222222", font=font, anchor="lm")
        for place, picture in enumerate(row):
            page.paste(picture.resize((SIDE, SIDE), PILImage.Resampling.NEAREST), (left + place * step, top))
    return page
