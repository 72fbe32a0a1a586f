"""Pictures and captions to tensors, for every recipe that needs the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora import Corpus
from polymodal.modalities import Image, Text
from polymodal.modalities.image import to_square
from polymodal.modalities.text import Caption, TextTokenizer
from polymodal.types import Batch, Example


class ImageTextProcessor:
    """Reads examples as `{"image": uint8 array, "text": captions}` and makes batches of them without augmentation."""

    def __init__(self, image_size: int, tokenizer: TextTokenizer, language_shares: dict[str, float] | None = None):
        self.image_size = image_size
        self.tokenizer = tokenizer
        self.text = Text(language_shares or {})

    @classmethod
    def fit(cls, corpus: Corpus, image_size: int, vocabulary: int, context: int) -> ImageTextProcessor:
        """Learn the vocabulary on the captions of the training split."""
        column = corpus.column_of(Text)
        modality = corpus.columns[column]
        assert isinstance(modality, Text)
        rows = corpus.table.column(column).take(corpus.rows("train")).to_pylist()
        texts = [text.lower() for row in rows for text in _texts(row)]
        return cls(image_size, TextTokenizer.train(texts, vocabulary, context), dict(modality.language_shares))

    def read(self, corpus: Corpus, row: int) -> Example:
        """One example, decoded and resized. Raises UnreadableExample."""
        picture = corpus.value(row, corpus.column_of(Image))
        return {
            "image": to_square(picture, self.image_size),
            "text": corpus.value(row, corpus.column_of(Text)),
        }

    def draw(self, captions: list[Caption], rng: np.random.Generator) -> str:
        """One caption at random, languages by the corpus's shares."""
        return self.text.draw(captions, rng)

    def __call__(self, **columns: list[Any]) -> Batch:
        """image: arrays from `read`, Pillow pictures, paths or encoded bytes. text: strings."""
        batch: Batch = {}
        if "image" in columns:
            batch["image"] = normalise(self.pixels(columns["image"]))
        if "text" in columns:
            batch["text"] = self.tokenizer(columns["text"])
        return batch

    def pixels(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """Values on the scale 0-1."""
        arrays = [image if isinstance(image, np.ndarray) else self._open(image) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255

    def _open(self, image: PILImage.Image | Path | str | bytes) -> np.ndarray:
        return to_square(Image().decode(str(image) if isinstance(image, Path) else image), self.image_size)

    def save(self, directory: Path) -> None:
        self.tokenizer.save(directory / "tokenizer.json")
        settings = {
            "image_size": self.image_size,
            "context": self.tokenizer.context_length,
            "language_shares": dict(self.text.language_shares),
        }
        (directory / "processor.json").write_text(json.dumps(settings, indent=2))

    @classmethod
    def load(cls, directory: Path) -> ImageTextProcessor:
        settings = json.loads((directory / "processor.json").read_text())
        tokenizer = TextTokenizer.load(directory / "tokenizer.json", settings["context"])
        return cls(settings["image_size"], tokenizer, settings["language_shares"])


def normalise(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
    """Scale 0-1 to scale -1-1, as SigLIP and AIMv2 do; no data set's statistics are built in."""
    return pixels * 2 - 1


def _texts(value: Any) -> list[str]:
    """The strings of a stored caption value, whichever of the three forms it has."""
    records = value if isinstance(value, list) else [value]
    texts = [record["text"] if isinstance(record, dict) else record for record in records]
    return [text for text in texts if text]
