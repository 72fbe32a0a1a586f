"""Page layout with word boxes, for composed documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from polymodal.modalities.document import BOX_SCALE, NO_LINK, OTHER
from polymodal.modalities.image import encoded

FAMILIES = {  # those that come with matplotlib, so that a page looks the same on every machine
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "times": ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
}
INK, RULE = (30, 30, 36), (120, 120, 128)


@lru_cache(maxsize=256)
def font_of(family: str, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", FAMILIES[family][bold]), size)


@dataclass(frozen=True)
class Style:
    """Font of a document. size: pixels of the body text."""

    family: str
    size: int
    paper: tuple[int, int, int]
    accent: tuple[int, int, int]

    @classmethod
    def sample(cls, rng: np.random.Generator, smallest: int = 13, largest: int = 17) -> Style:
        white, yellow = 255 - int(rng.integers(10)), int(rng.integers(10))
        red, green, blue = (int(value) for value in rng.integers(10, 130, 3))
        size = int(rng.integers(smallest, largest + 1))
        return cls(str(rng.choice(list(FAMILIES))), size, (white, white, white - yellow), (red, green, blue))

    def font(self, scale: float = 1.0, bold: bool = False) -> ImageFont.FreeTypeFont:
        return font_of(self.family, round(self.size * scale), bold)

    @property
    def line(self) -> int:
        """Line height in pixels."""
        return round(1.45 * self.size)


class Written(NamedTuple):
    """Result of writing: the segment id, and the y coordinate below it."""

    segment: int
    bottom: int


class Page:
    """Page image with its words in writing order."""

    def __init__(self, width: int, height: int, style: Style):
        self.style = style
        self.image = PILImage.new("RGB", (width, height), style.paper)
        self.drawing = ImageDraw.Draw(self.image)
        self.words: list[tuple[str, tuple[float, float, float, float], str, int, int]] = []
        self.segments = 0

    def write(
        self,
        text: str,
        x: int,
        y: int,
        *,
        field: str = OTHER,
        link: int = NO_LINK,
        width: int | None = None,
        right: bool = False,
        scale: float = 1.0,
        bold: bool = False,
        ink: tuple[int, int, int] = INK,
    ) -> Written:
        """Write a segment, word by word.

        x: left edge, or right edge with `right`. width: line width in pixels. link: segment of the key that this is the
        value of.
        """
        font, step = self.style.font(scale, bold), round(scale * self.style.line)
        space = font.getlength(" ")
        lines: list[list[tuple[str, float]]] = [[]]
        for word in text.split():
            long = font.getlength(word)
            taken = sum(other + space for _, other in lines[-1])
            if width is not None and lines[-1] and taken + long > width:
                lines.append([])
            lines[-1].append((word, long))
        number, self.segments = self.segments, self.segments + 1
        for line in lines:
            place = x - (sum(long + space for _, long in line) - space if right else 0)
            for word, long in line:
                left, top, far, bottom = font.getbbox(word)
                self.drawing.text((place, y), word, font=font, fill=ink)
                self.words.append((word, (place + left, y + top, place + far, y + bottom), field, number, link))
                place += long + space
            y += step
        return Written(number, y)

    def rule(self, left: int, y: int, right: int) -> None:
        """Draw a thin horizontal line."""
        self.drawing.line((left, y, right, y), fill=RULE, width=1)

    def cut(self, bottom: int) -> None:
        """Crop the page to the height of its content."""
        self.image = self.image.crop((0, 0, self.image.width, min(bottom, self.image.height)))

    @property
    def full(self) -> bool:
        """Whether anything was written below the lower edge."""
        return any(box[3] > self.image.height for _, box, *_ in self.words)

    def stored(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the columns `image` (with scanner noise and JPEG compression) and `words`."""
        pixels = np.asarray(self.image, dtype=np.float32)
        grain = rng.normal(0, rng.uniform(0, 5), pixels.shape[:2])[..., None]
        image = PILImage.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
        return {
            "image": encoded(image, "JPEG", quality=int(rng.integers(60, 92))),
            "words": [
                stored_word(word, box, self.image.size, field, segment, link)
                for word, box, field, segment, link in self.words
            ],
        }


def stored_word(
    text: str,
    box: tuple[float, float, float, float],
    size: tuple[float, float],
    field: str,
    segment: int,
    link: int = NO_LINK,
) -> dict[str, Any]:
    """Return a word as stored in the column. box and size in the same unit; the box is clipped to the page."""
    scaled = [round(BOX_SCALE * box_edges / size[side % 2]) for side, box_edges in enumerate(box)]
    inside = [min(max(box_edges, 0), BOX_SCALE) for box_edges in scaled]
    return {"text": text, "box": inside, "field": field, "segment": segment, "link": link}
