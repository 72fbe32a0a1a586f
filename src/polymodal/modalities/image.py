"""Images: RGB uint8 arrays, height x width x 3, values 0-255; on the device float tensors in [-1, 1].

Images are upright: turned and mirrored as their EXIF orientation says, so boxes and masks are in pixels of the upright
image, as annotation tools show it. Transparent images are composited on white; `image_modes` says how other depths and
modes become 8 bits of RGB. Of animated files and of several pages, the first is read. An image of more than
`PIXEL_LIMIT` pixels is rejected before it is decoded.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F

from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities.image_modes import to_rgb, upright
from polymodal.modalities.modality import read_file
from polymodal.modalities.padding import mask_of, pad

PIXEL_LIMIT = 100_000_000
# Accepted formats, by Pillow's names; JPEG includes MPO, which phones write. Others are unsafe: for EPS, Pillow runs
# Ghostscript, which reads and writes files.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "ICO", "JPEG2000")
# Usual ends of file names of these formats. A file without one is read all the same: its content decides.
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".ico", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx"),
)
# Marks of a PNG with EXIF or XMP data, which Pillow decodes pixels to look for, as they may stand behind them.
PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class Image:
    """Column of images: encoded bytes, `{"bytes", "path"}` records as `datasets` stores them, or paths.

    root: folder of relative paths. Decoded images are upright.
    """

    root: Path | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: Any, min_side: int = 0) -> PILImage.Image:
        """Open the image, upright, not yet converted or resized. Raises UnreadableExample with the reason.

        min_side: see `open_image`.
        """
        if isinstance(value, PILImage.Image):
            return upright(value)
        if isinstance(value, np.ndarray):
            return from_pixels(value)
        file = read_file(value, self.root, "image")
        if file is None:
            raise UnreadableExample("there is no image")
        if not isinstance(file, bytes | bytearray | memoryview):
            raise UnreadableExample(
                f"an image is a path, bytes, a Pillow image or an array of uint8, not {type(file).__name__}"
            )
        return open_image(bytes(file), min_side)

    def describe(self, value: PILImage.Image) -> str:
        return f"{value.width} x {value.height} px"

    def plot(self, value: PILImage.Image, axes: Any) -> None:
        shown = to_rgb(value)
        axes.imshow(shown, interpolation="nearest" if max(shown.size) < 100 else "antialiased")
        axes.axis("off")


@dataclass(frozen=True)
class Images:
    """Column of lists of images of the same thing, such as views of a 3-D model. See Image."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.binary())

    def decode(self, value: list[bytes]) -> list[PILImage.Image]:
        """Open the images. Raises UnreadableExample when one cannot be decoded."""
        return [Image().decode(image) for image in value]

    def describe(self, value: list[PILImage.Image]) -> str:
        return f"{len(value)} of {Image().describe(value[0])}"

    def plot(self, value: list[PILImage.Image], axes: Any) -> None:
        """Plot at most twelve images in rows of four."""
        side = 128
        tiles = [np.asarray(to_rgb(image).resize((side, side))) for image in value[:12]]
        tiles += [np.full((side, side, 3), 255, np.uint8)] * (-len(tiles) % min(4, len(tiles)))
        across = min(4, len(tiles))
        lines = [np.concatenate(tiles[start : start + across], axis=1) for start in range(0, len(tiles), across)]
        axes.imshow(np.concatenate(lines))
        axes.axis("off")


def from_pixels(pixels: np.ndarray) -> PILImage.Image:
    """Make an image of an array, height x width (x 1, 3 or 4) of uint8. Raises UnreadableExample for others."""
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    fits = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in (3, 4))
    if not fits or flat.dtype != np.uint8 or not flat.size:
        shape = " x ".join(map(str, pixels.shape))
        raise UnreadableExample(
            f"an image array is height x width x 3 of uint8 with values 0-255, not {shape} of {pixels.dtype}"
        )
    return PILImage.fromarray(np.ascontiguousarray(flat))


def open_image(file: bytes, min_side: int = 0) -> PILImage.Image:
    """Open an encoded image, upright. Pixels are decoded only if the EXIF orientation turns or mirrors it.

    min_side: if not 0, a JPEG file may be decoded at a reduced scale whose sides are at least this long, which is
    several times faster. Raises UnreadableExample as `open_header` does, and for a damaged file that is turned.
    """
    image = open_header(file)
    if min_side:
        image.draft("RGB", (min_side, min_side))
    if image.format == "PNG" and not any(mark in file for mark in PNG_METADATA):
        return image
    try:
        return upright(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error for damaged files
        raise UnreadableExample(f"the image is damaged: {error}") from error


def open_header(file: bytes) -> PILImage.Image:
    """Open an encoded image of one of `IMAGE_FORMATS` as it is stored, without decoding pixels or turning it: the only
    place where Pillow opens a file.

    Raises UnreadableExample for other formats, and for more than `PIXEL_LIMIT` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
            image = PILImage.open(io.BytesIO(file), formats=IMAGE_FORMATS)
    except PILImage.DecompressionBombError as error:
        raise UnreadableExample(f"the image is over the limit of {PIXEL_LIMIT:,} pixels") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        format_name, accepted = format_of(file), ", ".join(IMAGE_FORMATS)
        other = format_name is not None and format_name not in IMAGE_FORMATS
        reason = f"is {format_name}, which is not read" if other else "is in no format that Pillow reads"
        raise UnreadableExample(f"the image {reason}; the formats that are read are {accepted}") from error
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise UnreadableExample(f"the image has {width} x {height} pixels, over the limit of {PIXEL_LIMIT:,} pixels")
    if image.format == "PNG" and image.mode == "L" and isinstance(image.info.get("transparency"), int):
        depth = file[24]  # Pillow scales gray of 2 and 4 bits to 8, but not the level that is transparent
        image.info["transparency"] *= 255 // (2**depth - 1)
    return image


def is_image(start: bytes) -> bool:
    """Return whether a file is an image of an accepted format, by its first 16 bytes or more."""
    return format_of(start) in IMAGE_FORMATS


def has_image_suffix(path: str) -> bool:
    """Return whether a path or URL ends like an image; the query of a URL does not count."""
    return path.partition("?")[0].lower().endswith(IMAGE_SUFFIXES)


def format_of(file: Any) -> str | None:
    """Return Pillow's name of a file's format by its first bytes. Nothing is decoded."""
    if not isinstance(file, bytes):
        return None
    PILImage.init()
    for name in sorted(PILImage.OPEN, key=lambda name: name not in IMAGE_FORMATS):
        accepts = PILImage.OPEN[name][1]
        if accepts is not None:
            with suppress(IndexError, struct.error):  # fewer bytes than it looks at
                if accepts(file[:16]) is True:
                    return name
    return None


def encoded(image: PILImage.Image, container: str = "PNG", **options: Any) -> bytes:
    """Encode an image to a file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, format=container, **options)
    return buffer.getvalue()


def to_square(image: PILImage.Image, size: int, stretch: bool = False) -> np.ndarray:
    """Resize the shorter side to `size` (bicubic) and center-crop, as CLIP does; uint8, size x size x 3.

    stretch: resize both sides to `size` instead, as for pages of text. Large JPEG files are decoded at a reduced scale
    of at least twice `size`, which is several times faster.
    """
    image.draft("RGB", (2 * size, 2 * size))
    pixels = np.asarray(to_rgb(image))
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    part = pixels if stretch else pixels[top : top + side, left : left + side]
    return _resized(part, size, size)


def tile_grid(width: int, height: int, size: int, most: int) -> tuple[int, int]:
    """Return the number of columns and rows of tiles of `size` px: at most `most` tiles, of the nearest aspect ratio.

    Dynamic tiling of InternVL 1.5 (Chen et al. 2024, section 3.3, released code): of two grids with the same aspect
    ratio, the larger one is used if the image has more than half of its pixels.
    """
    grids = [(across, down) for across in range(1, most + 1) for down in range(1, most // across + 1)]
    best, smallest = (1, 1), float("inf")
    for across, down in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - across / down)
        large_enough = width * height > 0.5 * size**2 * across * down
        if difference < smallest or (difference == smallest and large_enough):
            best, smallest = (across, down), difference
    return best


def tiles(pixels: np.ndarray, size: int, most: int) -> np.ndarray:
    """Cut an image into tiles in row-major order, followed by a thumbnail if there are several; uint8.

    pixels: height x width x 3. The image is resized to its grid (`tile_grid`).
    """
    height, width, _ = pixels.shape
    across, down = tile_grid(width, height, size, most)
    stretched = _resized(pixels, down * size, across * size)
    cut = stretched.reshape(down, size, across, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    return cut if len(cut) == 1 else np.concatenate([cut, _resized(pixels, size, size)[None]])


def to_patch_grid(image: PILImage.Image, patch: int, most: int) -> np.ndarray:
    """Resize an image to whole patches, at most `most`, preserving its aspect ratio (NaViT, Dehghani et al. 2023).

    Images are never upscaled. uint8, rows * patch x columns * patch x 3.
    """
    pixels = np.asarray(to_rgb(image))
    height, width, _ = pixels.shape
    scale = min(1.0, math.sqrt(most * patch**2 / (height * width)))
    rows = min(max(int(height * scale / patch), 1), most)
    columns = min(max(int(width * scale / patch), 1), most // rows)
    return _resized(pixels, rows * patch, columns * patch)


@dataclass(frozen=True)
class PatchedImages:
    """Batch of images of several shapes as padded sequences of patches in row-major order.

    values: normalized pixels, ordered as by `patchify`. row, column: position of a patch in its grid, from 0.
    """

    values: Float[Tensor, "batch length values"]
    row: Int[Tensor, "batch length"]
    column: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]

    @classmethod
    def of(cls, images: Sequence[Float[Tensor, "3 _ _"]], patch: int) -> PatchedImages:
        """Collate images. images: normalized pixels, whose sides are multiples of the patch size."""
        shapes = [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
        values = pad([patchify(image[None], patch)[0] for image in images])
        rows = pad([torch.arange(rows).repeat_interleave(columns) for rows, columns in shapes])
        columns = pad([torch.arange(columns).repeat(rows) for rows, columns in shapes])
        return cls(values.values, rows.values, columns.values, values.lengths)

    @property
    def mask(self) -> Bool[Tensor, "batch length"]:
        """True for real patches."""
        return mask_of(self.lengths, self.row.shape[1])

    def to(self, device: torch.device | str) -> PatchedImages:
        return PatchedImages(*(tensor.to(device) for tensor in (self.values, self.row, self.column, self.lengths)))

    def __len__(self) -> int:
        return len(self.lengths)


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels if pixels.flags.writeable else pixels.copy()  # torch.from_numpy needs a writable array
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    # Several times faster than Pillow, with equal results up to rounding.
    return F.interpolate(planes[None], (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def check_tiles(patch: int, size: int) -> None:
    """Raise UserError when square patches do not tile a square image."""
    if size % patch:
        raise UserError(f"Patches of {patch} px do not tile an image of {size} px.")


def patchify(image: Float[Tensor, "batch channels height width"], patch: int) -> Float[Tensor, "batch patches values"]:
    """Cut into square patches in row-major order; values of a patch are ordered channel, row, column."""
    batch, channels, height, width = image.shape
    x = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch**2)


def unpatchify(patches: Float[Tensor, "batch patches values"], patch: int) -> Float[Tensor, "batch channels size size"]:
    """Invert `patchify` for a square image."""
    grid = math.isqrt(patches.shape[1])
    x = patches.unflatten(2, (-1, patch, patch)).unflatten(1, (grid, grid))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
