"""The rendered views of the models of `furniture` as single images, with names, and what is seen in each of them.

An image's English captions are the model's name, its category, and a description of this very view: its outline, its
colours, name and category, such as "wide brown and grey scissors, miscellaneous". Splits are those of the models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.furniture import NAMES, VIEWS, furniture, prompts
from polymodal.modalities import Category, Image, Modality
from polymodal.modalities.image import to_rgb
from polymodal.modalities.text import stored_texts

ELONGATED = 1.5  # ratio of sides from which an outline is wide or tall
SECOND_COLOR = 0.25  # share of the surface from which a second colour is named
HUES = ((15, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (260, "blue"), (310, "purple"), (345, "pink"))

about = About(
    name="furniture_views",
    description="9,840 rendered views of 3-D furniture, names in 20 languages and descriptions of what is seen",
    license="by catalogue: CC0, CC-BY-3.0, CC-BY-3.0-USA (column `licence` of the corpus 'furniture')",
    source="composed from the corpus 'furniture'",
    modalities=("image", "text", "category"),
    composed="views are rendered, descriptions are composed",
)


def furniture_views() -> Corpus:
    """Open the corpus, preparing it and `furniture` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": NAMES,
        "category": Category(),
    }
    return open_prepared(about, columns, _rows, label="category", prompts=prompts)


def _rows(prepare: Preparation) -> Iterator[Row]:
    models = furniture()
    return prepare.track(view_rows(models), "Describing views", VIEWS * len(models))


def view_rows(models: Corpus) -> Iterator[Row]:
    """Yield a row per view of each model, with key, split and captions. models: as in `furniture`."""
    split_of = {int(row): split for split, rows in models.splits.items() for row in rows}
    for row in range(len(models)):
        model, stored = models[row], models.raw(row, "views")
        names, category = model["captions"], models.raw(row, "category")
        english = next(caption.text for caption in names if caption.language == "en")
        for view, image in enumerate(model["views"]):
            said = category.lower(), describe_view(np.asarray(to_rgb(image)), english, category)
            yield {
                "key": f"{models.key(row)}/{view}",
                "split": split_of[row],
                "image": stored[view],
                "captions": [*(caption._asdict() for caption in names), *stored_texts(*said)],
                "category": category,
            }


def describe_view(pixels: UInt8[np.ndarray, "height width 3"], name: str, category: str) -> str:
    """Describe an object on a white background: outline, one or two colors, name and category."""
    thing: np.ndarray = np.any(pixels < 250, axis=2)
    words = [outline(thing), " and ".join(named_colors(pixels[thing])), name.lower()]
    return f"{' '.join(word for word in words if word)}, {category.lower()}"


def outline(thing: Bool[np.ndarray, "height width"]) -> str:
    """Return wide, tall, or '' for neither. thing: mask of the object."""
    rows, columns = (np.flatnonzero(thing.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return ""
    ratio = (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1)
    return "wide" if ratio > ELONGATED else "tall" if ratio < 1 / ELONGATED else ""


def named_colors(pixels: UInt8[np.ndarray, "pixels 3"]) -> list[str]:
    """Return the most frequent of eleven basic color names (Berlin and Kay 1969), and the second if frequent enough."""
    if not len(pixels):
        return []
    names, counts = np.unique(_color_names(pixels / 255), return_counts=True)
    first, *rest = np.argsort(-counts, kind="stable")
    return [
        str(names[first]),
        *(str(names[color]) for color in rest[:1] if counts[color] >= SECOND_COLOR * len(pixels)),
    ]


def _color_names(values: Float[np.ndarray, "pixels 3"]) -> np.ndarray[Any, np.dtype[np.str_]]:
    largest, spread = values.max(axis=1), np.ptp(values, axis=1)
    saturation = spread / np.maximum(largest, 1e-9)
    red, green, blue = values.T
    sector = np.select(
        [largest == red, largest == green],
        [(green - blue) / np.maximum(spread, 1e-9), 2 + (blue - red) / np.maximum(spread, 1e-9)],
        4 + (red - green) / np.maximum(spread, 1e-9),
    )
    hue = (60 * sector) % 360
    named = np.array([*(name for _, name in HUES), "red"])[np.searchsorted([end for end, _ in HUES], hue, "right")]
    conditions: Mapping[str, np.ndarray] = {
        "black": largest < 0.2,
        "white": (saturation < 0.15) & (largest > 0.85),
        "grey": saturation < 0.15,
        "brown": ((named == "orange") | (named == "red") & (saturation < 0.6)) & (largest < 0.7),
    }
    return np.select(list(conditions.values()), list(conditions), named)
