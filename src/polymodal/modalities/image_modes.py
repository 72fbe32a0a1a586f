"""Conversion of images of any mode to upright RGB: EXIF orientation, bit depths, transparency and color spaces.

An image is turned and mirrored as its EXIF orientation says, once. Transparent images are composited on white. Images
of more than 8 bits keep their highest 8, as Pillow's RGB images of 16 bits do:

- 16-bit gray covers 0 to 65,535, signed 0 to 32,767, and TIFF of 12 bits 0 to 4,095;
- 32-bit integers cover 0 to 255 where no value is larger, else 0 to 65,535 where none is larger, else their type;
- floats cover 0 to 1 where no value is larger, else 0 to 255, else 0 to 65,535; larger ones, NaN and infinity are
  rejected;
- values below 0 are black, and a TIFF that stores white as 0 is inverted.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import ExifTags, ImageCms, ImageFile, ImageOps
from PIL import Image as PILImage

from polymodal.errors import UnreadableExample

TURNED = (2, 3, 4, 5, 6, 7, 8)  # EXIF orientations other than upright
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, SIGNED = 0, 2  # a photometric interpretation, and a sample format


def is_turned(image: PILImage.Image) -> bool:
    """Return whether a file's EXIF orientation is still to be applied.

    Pillow turns TIFF by itself when it decodes them. An image made in memory is taken as it is: transposing a Pillow
    image keeps the EXIF data of its file.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format != "TIFF":
        with suppress(Exception):  # damaged EXIF data; the image may be whole
            return image.getexif().get(ExifTags.Base.Orientation) in TURNED
    return False


def upright(image: PILImage.Image) -> PILImage.Image:
    """Apply the EXIF orientation. An image that is upright is returned as it is, not yet decoded."""
    return ImageOps.exif_transpose(image) if is_turned(image) else image


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """Convert any mode to upright RGB, compositing on white.

    Raises UnreadableExample for a truncated file, and for values out of range.
    """
    try:
        image = upright(image)
        image.load()
        return _rgb(image)
    except UnreadableExample:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error for damaged files
        raise UnreadableExample(f"the image is damaged: {error}") from error


def _rgb(image: PILImage.Image) -> PILImage.Image:
    transparent = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        gray = _eight_bits(values, image)
        if isinstance(transparent, int):
            gray = np.where(values == transparent, np.uint8(255), gray)
        return PILImage.fromarray(gray).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = (ImageCms.ImageCmsProfile(ImageCms.createProfile(space)) for space in ("LAB", "sRGB"))
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None
        return converted
    if image.has_transparency_data:
        if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:  # of 16 bits
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = PILImage.alpha_composite(PILImage.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(values: Shaped[np.ndarray, "height width"], image: PILImage.Image) -> UInt8[np.ndarray, "height width"]:
    """Scale gray values of more than 8 bits to 0-255 by the ranges that the module names."""
    tags = getattr(image, "tag_v2", {})
    (bits, *_), (sample_format, *_) = tags.get(BITS_PER_SAMPLE, (32,)), tags.get(SAMPLE_FORMAT, (SIGNED,))
    if image.mode == "F":
        gray = (values.astype(np.float64) * (255 / _top(values))).round()
    elif image.mode.startswith("I;16"):
        gray = values.astype(np.float64) * (256 / 2 ** min(bits, 16))
    elif image.format in ("PNG", "PPM"):  # unsigned, of 16 bits
        gray = values / 256
    elif bits == 16:
        gray = values / 128
    else:
        values = values if sample_format == SIGNED else values.view(np.uint32)
        largest = int(values.max())
        gray = values / (1 if largest <= 255 else 256 if largest <= 65535 else 2 ** (23 + (sample_format != SIGNED)))
    gray = gray.clip(0, 255).astype(np.uint8)
    return 255 - gray if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else gray


def _top(values: Float[np.ndarray, "height width"]) -> float:
    """Return the value that stands for white in an image of floats. Raises UnreadableExample without one."""
    largest = float(values.max())
    if not np.isfinite(values).all():
        raise UnreadableExample("the image has values that are NaN or infinite")
    if largest > 65535:
        raise UnreadableExample(f"the image has values up to {largest:g}; floats are read from 0 to 1, 255 or 65,535")
    return next(top for top in (1, 255, 65535) if largest <= top)
