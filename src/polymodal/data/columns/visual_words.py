"""Images whose patches have classes: visual words, in place of the classes of an object detector."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column
from polymodal.data.columns.image import ImageColumn
from polymodal.errors import UnreadableExample

CELLS = 2  # mean colors along a side of a patch, which describe it
MAX_IMAGES = 500


@dataclass(frozen=True)
class VisualWordsColumn(ImageColumn):
    """Square images, and the visual word of each patch (Sivic and Zisserman 2003): its nearest centroid.

    grid: patches along a side. num_words: centroids of k-means. centroids: fitted, the most frequent one first, which
    is the background.
    """

    grid: int = 4
    num_words: int = 64
    centroids: Sequence[Sequence[float]] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> VisualWordsColumn:
        """Cluster patches of training images. Raises what `ImageColumn.fit` raises."""
        column = super().fit(corpora, fitted)
        assert isinstance(column, VisualWordsColumn)
        if self.centroids:
            return column
        images = []
        for row in corpora[0].sample("train", MAX_IMAGES).tolist():
            with contextlib.suppress(UnreadableExample):
                images.append(column.load(corpora[0], row))
        if not images:
            return dataclasses.replace(column, centroids=[[0.0] * (3 * CELLS**2)])
        points = self._descriptors(column(images)).flatten(0, 1).numpy()
        return dataclasses.replace(column, centroids=_centroids(points, self.num_words).tolist())

    def words(self, image: Float[Tensor, "batch 3 size size"]) -> Int[Tensor, "batch patches"]:
        """Return the word of each patch of normalized images, row by row; 0 is the background."""
        return torch.cdist(self._descriptors(image), torch.tensor(self.centroids)).argmin(-1)

    def _descriptors(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches values"]:
        """The mean colors of the cells of each patch."""
        cells = F.adaptive_avg_pool2d(image, self.grid * CELLS)
        return F.unfold(cells, CELLS, stride=CELLS).transpose(1, 2)


def _centroids(points: Float[np.ndarray, "points values"], count: int) -> Float[np.ndarray, "words values"]:
    """The centroids of k-means, the most frequent first."""
    from sklearn.cluster import KMeans  # takes a second to import

    distinct, counts = np.unique(points.round(3), axis=0, return_counts=True)
    clusters = KMeans(min(count, len(distinct)), n_init=1, random_state=0).fit(distinct, sample_weight=counts)
    order = np.argsort(-np.bincount(clusters.labels_, counts, clusters.n_clusters), kind="stable")
    return clusters.cluster_centers_[order].round(4)
