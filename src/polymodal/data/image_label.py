"""Pictures and their class to tensors."""

from __future__ import annotations

from pathlib import Path

from polymodal.corpora import Corpus
from polymodal.data.columns import ColumnsProcessor, ImageColumn, LabelColumn, load_columns


class ImageLabelProcessor(ColumnsProcessor):
    """Reads examples as `{"image": uint8 array, "label": number}`."""

    def __init__(self, image: ImageColumn, label: LabelColumn):
        super().__init__(image=image, label=label)
        self.image = image
        self.label = label

    @classmethod
    def fit(cls, corpus: Corpus, image_size: int) -> ImageLabelProcessor:
        """Raises UserError when the corpus has no label."""
        return cls(ImageColumn.fit(corpus, image_size), LabelColumn.fit(corpus))

    @classmethod
    def load(cls, directory: Path) -> ImageLabelProcessor:
        """The one that `save` wrote."""
        return cls(**load_columns(directory, image=ImageColumn, label=LabelColumn))  # type: ignore[arg-type]
