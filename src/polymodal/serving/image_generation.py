"""Image generation by a run, and a sheet of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from polymodal.data.columns.label import label_of
from polymodal.errors import UserError, unknown
from polymodal.evaluation.tasks.image_generation import CanGenerateImages, is_unconditional
from polymodal.training.run import Run, evaluating, to_device

SIDE, MARGIN = 64, 4  # pixels per image of the sheet


def generate_images(run: Run, words: Sequence[str], count: int, steps: int, seed: int = 0) -> list[list[Any]]:
    """Generate `count` images (Pillow) per class name or, if the run is text-conditional, per prompt.

    Words say nothing to an unconditional run. Raises UserError when the run does not generate images, or for an unknown
    class.
    """
    if not isinstance(run.model, CanGenerateImages):
        raise UserError(f"The run '{run.name}' cannot generate: its method has no `generate`.")
    if count < 1 or steps < 1:
        raise UserError("--count and --steps are at least 1.")
    processor: Any = run.processor
    label = label_of(processor)
    names = list(label.names) if label is not None else []
    unconditional = is_unconditional(run.model)
    device = next(run.model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    rows = []
    with evaluating(run.model):
        for word in words:
            if unconditional:
                batch = {"num_images": torch.tensor(count)}
            elif word in names:
                batch = processor(label=[names.index(word)] * count)
            elif getattr(processor, "text", True) is None:
                raise unknown("label of this run", word, names)
            else:
                batch = processor(text=[word] * count)
            made = run.model.generate_images(to_device(batch, device), steps, generator).cpu()
            pixels = (processor.image.shown(made) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            rows.append([PILImage.fromarray(image) for image in pixels])
    return rows


def known_classes(run: Run) -> list[str]:
    """Return the classes that a run can generate; one without a name of an unconditional run.

    Raises UserError when there are none.
    """
    label = label_of(run.processor)
    if isinstance(run.model, CanGenerateImages) and is_unconditional(run.model):
        return [""]
    if not isinstance(run.model, CanGenerateImages) or label is None:
        raise UserError(f"Say what '{run.name}' is to generate, in words.")
    return list(label.names)


def image_sheet(rows: Sequence[Sequence[PILImage.Image]], titles: Sequence[str]) -> PILImage.Image:
    """Arrange images in a sheet, one row per label."""
    font = ImageFont.load_default(size=14)
    left = MARGIN + max(round(font.getlength(title)) for title in titles) + 2 * MARGIN
    step = SIDE + MARGIN
    page = PILImage.new("RGB", (left + step * len(rows[0]), MARGIN + step * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for line, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = MARGIN + line * step
        draw.text((MARGIN, top + SIDE / 2), title, fill="#222222", font=font, anchor="lm")
        for place, image in enumerate(row):
            page.paste(image.resize((SIDE, SIDE), PILImage.Resampling.NEAREST), (left + place * step, top))
    return page
