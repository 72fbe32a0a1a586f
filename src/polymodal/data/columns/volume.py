"""Volumes (3-D scans) of one size, standardized by contrast."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Volume
from polymodal.modalities.volume import Scan
from polymodal.rng import ExampleRNG

SAMPLE = 64  # training scans that mean and standard deviation are computed of
MIN_STD = 1e-6


@dataclass(frozen=True)
class VolumeAugmentation:
    """Random changes of a volume while training."""

    scale: UnitInterval = 0.1
    """Largest relative change of all intensities, up or down."""
    shift: UnitInterval = 0.1
    """Largest addition to all intensities, up or down, in standard deviations."""
    intensity_prob: UnitInterval = 0.9
    """Probability of each of the two."""
    rotate_prob: UnitInterval = 0.0
    """Probability of a rotation by 90, 180 or 270 degrees in the plane of the first two axes, which need equal sides;
    it contradicts texts that name a side."""


@dataclass(frozen=True)
class VolumeColumn(BaseColumn):
    """Scans, cropped and padded around their center to `size`; a missing contrast is 0.

    contrasts: their names, in the corpus. mean, std: of each contrast's voxels over the training rows.
    """

    reads = (Volume,)
    size: Sequence[int]
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    contrasts: Sequence[str] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> VolumeColumn:
        """Raises UserError when no training scan can be read."""
        corpus = corpora[0]
        column = corpus.column_with(Volume)
        modality = corpus.columns[column]
        assert isinstance(modality, Volume)
        count = len(modality.contrasts)
        totals, counts = np.zeros((2, count)), np.zeros(count)
        for row in corpus.sample("train", SAMPLE).tolist():
            with contextlib.suppress(UnreadableExample):  # the loader counts and names them
                scan = corpus.value(row, column)
                voxels = cropped(scan.voxels, self.size).astype(np.float64)
                totals += scan.present * np.stack([voxels.sum((1, 2, 3)), np.square(voxels).sum((1, 2, 3))])
                counts += scan.present * voxels[0].size
        if not counts.any():
            raise UserError(f"No scan of the training split of '{corpus.name}' can be read.{corpus.hint}")
        mean, square = totals / np.maximum(counts, 1)
        std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=MIN_STD)
        return dataclasses.replace(self, mean=mean.tolist(), std=std.tolist(), contrasts=list(modality.contrasts))

    def load(self, corpus: Corpus, row: int) -> Scan:
        column = corpus.column_with(Volume)
        return self.prepared(corpus.value(row, column))

    def prepared(self, scan: Scan) -> Scan:
        """Crop and pad. Raises UnreadableExample for voxels that are no finite numbers, or other contrasts."""
        if len(scan.present) != len(self.contrasts):
            raise UnreadableExample(f"the scan has {len(scan.present)} contrasts, not {len(self.contrasts)}")
        if not np.isfinite(scan.voxels).all():
            raise UnreadableExample("there are voxels that are no finite numbers")
        return Scan(cropped(scan.voxels, self.size), scan.present)

    def __call__(self, scans: list[Any]) -> Float[Tensor, "batch contrasts deep high wide"]:
        """scans: `Scan`, arrays of contrasts x depth x height x width, or paths of .npy or NIfTI files with one of
        their contrasts."""
        opened = [scan if isinstance(scan, Scan) else self._open(scan) for scan in scans]
        voxels = torch.from_numpy(np.stack([self.prepared(scan).voxels for scan in opened])).float()
        present = torch.from_numpy(np.stack([scan.present for scan in opened]))
        mean, std = (torch.tensor(values)[:, None, None, None] for values in (self.mean, self.std))
        return (voxels - mean) / std * present[:, :, None, None, None]

    def augmented(
        self, scans: list[Any], augmentation: VolumeAugmentation, example_rng: ExampleRNG
    ) -> Float[Tensor, "batch contrasts deep high wide"]:
        """Collate scans with random intensities and rotations."""
        voxels = self(scans)
        there = voxels.flatten(2).any(2)[:, :, None, None, None]
        factor, added = (
            torch.where(example_rng.uniform() < augmentation.intensity_prob, size * example_rng.uniform(-1, 1), 0.0)
            for size in (augmentation.scale, augmentation.shift)
        )
        voxels = there * (voxels * (1 + factor[:, None, None, None, None]) + added[:, None, None, None, None])
        if augmentation.rotate_prob:
            rotated, turns = example_rng.uniform() < augmentation.rotate_prob, example_rng.uniform(1, 4).long()
            turned = [
                torch.rot90(one, int(turn) if turn_it else 0, (1, 2))
                for one, turn_it, turn in zip(voxels, rotated, turns, strict=True)
            ]
            voxels = torch.stack(turned)
        return voxels

    def _open(self, scan: Any) -> Scan:
        if isinstance(scan, str | Path):
            array = np.load(scan, allow_pickle=False) if str(scan).endswith(".npy") else _nifti(Path(scan))
        else:
            array = np.asarray(scan)
        array = array[None] if array.ndim == 3 else array
        return Scan(array.astype(np.float32), np.ones(len(array), dtype=bool))


def _nifti(path: Path) -> np.ndarray:
    from polymodal.corpora.formats.nifti import read_scan

    return read_scan(path)


def cropped(
    voxels: Float[np.ndarray, "contrasts deep high wide"], size: Sequence[int]
) -> Float[np.ndarray, "contrasts depth height width"]:
    """Crop and pad with the smallest value around the center."""
    background = voxels.min() if voxels.size else 0
    for axis, side in enumerate(size, start=1):
        excess = voxels.shape[axis] - side
        if excess > 0:
            start = excess // 2
            voxels = np.take(voxels, range(start, start + side), axis)
        elif excess < 0:
            before = -excess // 2
            pads = [(0, 0)] * voxels.ndim
            pads[axis] = (before, -excess - before)
            voxels = np.pad(voxels, pads, constant_values=background)
    return voxels
