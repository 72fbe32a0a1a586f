"""Perceptual hashes: against the library imagehash, and copies within and across concepts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.curation.concepts import CollectedImage, Concept, without_copies
from polymodal.curation.perceptual_hash import both_hashes, first_copies

GOLDEN = Path(__file__).parent / "golden" / "perceptual_hash.npz"


def test_hashes_are_those_of_imagehash() -> None:
    golden = np.load(GOLDEN)
    hashes = np.stack([both_hashes(PILImage.fromarray(golden[f"image{n}"])) for n in range(6)])
    assert np.array_equal(hashes[:, 0], golden["bits"])
    assert np.array_equal(hashes[:, 1], golden["mirrored"])


def test_copies_are_found_resized_compressed_and_mirrored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [PILImage.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 90)) for _ in range(8)]
    images[0].resize((64, 70)).save(tmp_path / "a.jpg", quality=60)
    copies = [PILImage.open(tmp_path / "a.jpg"), ImageOps.mirror(images[1])]
    hashes = np.stack([both_hashes(image) for image in (*images, *copies)])
    assert first_copies(hashes, 6).tolist() == [-1] * 8 + [0, 1]
    by_loop = [
        next((m for m in range(n) if min((hashes[m, 0] != hashes[n, side]).sum() for side in (0, 1)) <= 6), -1)
        for n in range(10)
    ]
    assert first_copies(hashes, 6).tolist() == by_loop
    # In its own concept a copy goes; under another name both stay, and annotators are told.
    names = ["Karnak", *"bcdefgh", "Karnak", "Koshari"]
    kept, gone = without_copies([CollectedImage(n, Concept(name), hashes[n]) for n, name in enumerate(names)], 6)
    assert ([one.row for one in kept], gone) == ([*range(8), 9], ["copy"])
    assert {one.row: one.note for one in kept if one.note} == {
        1: "also collected as: Koshari", 9: "also collected as: b",
    }  # fmt: skip
