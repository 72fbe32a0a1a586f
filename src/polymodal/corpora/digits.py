"""Handwritten digits of 8 x 8 pixels, which scikit-learn brings along: nothing to fetch, and small models learn them.

The digits were written by 43 people, whom the data do not name; splits are therefore by example.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Image, Modality
from polymodal.modalities.image import encoded

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

about = About(
    name="digits",
    description="1,797 handwritten digits of 8 x 8 pixels",
    license="CC-BY-4.0 (UCI: Optical Recognition of Handwritten Digits)",
    source="scikit-learn",
    modalities=("image", "category"),
)


def digits() -> Corpus:
    """Open the corpus, preparing it once (a second)."""
    columns: dict[str, Modality] = {"image": Image(), "digit": Category(NAMES)}
    return open_prepared(about, columns, _rows, label="digit", prompts=lambda name: (f"the digit {name}",))


def _rows(prepare: Preparation) -> Iterator[Row]:
    from sklearn.datasets import load_digits

    data = load_digits()
    keys = [f"digit {number}" for number in range(len(data.target))]
    split_of = split_groups([NAMES[target] for target in data.target], keys)
    for key, values, target in zip(keys, data.images, data.target, strict=True):
        image = PILImage.fromarray((values / 16 * 255).round().astype(np.uint8))
        yield {"key": key, "split": split_of[key], "image": encoded(image), "digit": NAMES[target]}
