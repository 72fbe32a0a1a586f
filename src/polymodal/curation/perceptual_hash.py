"""Perceptual hashes of images, by which copies that were resized, re-encoded or mirrored are recognized.

The hash is pHash (Zauner 2010) as the library imagehash computes it: the signs, against their median, of the 8 x 8
lowest frequencies of a cosine transform of the image at 32 x 32 gray pixels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image as PILImage
from PIL import ImageOps

SIDE, HIGHEST = 8, 4  # of the hash, and sides of the image in sides of the hash
BITS = SIDE**2


def perceptual_hash(image: PILImage.Image) -> Bool[np.ndarray, " bits"]:
    """Return 64 bits, row by row of the frequencies."""
    from scipy.fft import dctn

    side = SIDE * HIGHEST
    gray = np.asarray(image.convert("L").resize((side, side), PILImage.Resampling.LANCZOS), dtype=float)
    low = dctn(gray)[:SIDE, :SIDE]
    return (low > np.median(low)).reshape(-1)


def both_hashes(image: PILImage.Image) -> Bool[np.ndarray, "2 bits"]:
    """Return the hash of an image, and of its mirror image."""
    return np.stack([perceptual_hash(image), perceptual_hash(ImageOps.mirror(image))])


def first_copies(hashes: Bool[np.ndarray, "images 2 bits"], max_distance: int) -> Int[np.ndarray, " images"]:
    """Return for each image the first one that it is a copy of, or -1; a copy is never the first one of another.

    Copies differ in at most `max_distance` bits, as they are or mirrored.
    """
    signs = np.where(hashes, 1.0, -1.0).astype(np.float32)
    copies, firsts = np.full(len(hashes), -1, dtype=np.int64), list[int]()
    of_firsts = np.empty((len(hashes), BITS), dtype=np.float32)
    for place in range(len(hashes)):
        # Of signs, the scalar product is the number of equal bits minus that of different ones.
        distances = (BITS - of_firsts[: len(firsts)] @ signs[place].T) / 2
        near = (distances <= max_distance).any(axis=1)
        if near.any():
            copies[place] = firsts[int(near.argmax())]
        else:
            of_firsts[len(firsts)] = signs[place, 0]
            firsts.append(place)
    return copies
