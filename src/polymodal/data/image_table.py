"""Images, table rows and, where it is to be learned, a label to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import ColumnsProcessor, ImageColumn, LabelColumn, TableColumn, load_columns


class ImageTableProcessor(ColumnsProcessor):
    """Reads examples as `{"image": uint8 array, "table": TableRow, "label": number}`, the last only with a label."""

    def __init__(self, image: ImageColumn, table: TableColumn, label: LabelColumn | None = None):
        super().__init__(image=image, table=table, **({"label": label} if label else {}))
        self.image = image
        self.table = table
        self.label = label

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        image_size: int,
        with_label: bool,
        colors: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> ImageTableProcessor:
        """colours: mean and spread that an image tower was trained with, in place of the corpus's."""
        label = LabelColumn.fit(corpus) if with_label else None
        return cls(ImageColumn.fit(corpus, image_size, colors), TableColumn.fit(corpus), label)

    @classmethod
    def load(cls, directory: Path) -> ImageTableProcessor:
        """The one that `save` wrote."""
        return cls(**load_columns(directory, image=ImageColumn, table=TableColumn, label=LabelColumn))  # type: ignore[arg-type]
