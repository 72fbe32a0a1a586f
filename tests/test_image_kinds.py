"""Images of every orientation, depth and mode that Pillow reads, as cameras, scanners and microscopes write them."""

import asyncio
import io
import struct
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, ImageCms, ImageOps
from PIL import Image as PILImage

import polymodal as pm
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.regions import RegionsColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image
from polymodal.modalities.image import IMAGE_SUFFIXES, has_image_suffix, is_image, open_header, to_rgb, to_square
from polymodal.serving.limits import Limits
from polymodal.serving.request_decoder import RequestDecoder

LEVELS = (0, 60, 100, 128, 200, 255)
# Four quarters of different colors in a frame that is no square, so that each orientation looks different.
SCENE = PILImage.fromarray(
    np.kron(
        np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8), np.ones((24, 32, 1), np.uint8)
    )
)
KINDS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {"quality": 95}}


def file_of(image: PILImage.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def turned(kind: str, orientation: int, **options) -> bytes:
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return file_of(SCENE, kind, exif=exif, **KINDS[kind], **options)


def gray(image: PILImage.Image) -> list[int]:
    pixels = np.asarray(to_rgb(image))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def reread(values: np.ndarray, kind: str) -> list[int]:
    return gray(Image().decode(file_of(PILImage.fromarray(values), kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(kind, orientation, tmp_path):
    file = turned(kind, orientation)
    expected = np.asarray(ImageOps.exif_transpose(PILImage.open(io.BytesIO(file))).convert("RGB"))
    (tmp_path / "photo").write_bytes(file)
    for value in (file, str(tmp_path / "photo"), {"bytes": file, "path": None}, PILImage.open(io.BytesIO(file))):
        image = Image().decode(value)
        assert image.size == expected.shape[1::-1] == ((48, 64) if orientation > 4 else (64, 48))
        assert np.array_equal(to_rgb(image), expected)
        assert np.array_equal(to_rgb(to_rgb(image)), expected)
    assert np.array_equal(to_square(Image().decode(file), 32, stretch=True), to_square(to_rgb(image), 32, stretch=True))


def test_the_reduced_scale_of_a_large_photograph_is_upright():
    photo = SCENE.resize((1280, 960))
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = file_of(photo, "JPEG", exif=exif)
    assert Image().decode(file).size == (960, 1280)
    assert Image().decode(file, min_side=64).size == (120, 160)
    whole = to_square(Image().decode(file), 32).astype(int)
    (fast,) = ImageColumn(32, (0.0,) * 3, (1.0,) * 3)([file])
    assert np.abs(fast.permute(1, 2, 0).numpy() * 255 - whole).mean() < 3


def test_an_image_that_was_turned_in_memory_is_not_turned_again():
    file = turned("JPEG", 6)
    by_hand = PILImage.open(io.BytesIO(file)).transpose(PILImage.Transpose.ROTATE_270)
    assert by_hand.getexif()[ExifTags.Base.Orientation] == 6
    assert np.array_equal(to_rgb(Image().decode(by_hand)), to_rgb(Image().decode(file)))


def test_xmp_tells_the_orientation_too():
    mark = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = file_of(SCENE, "JPEG", xmp=mark)
    assert Image().decode(file).size == (48, 64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"])
def test_damaged_exif_does_not_make_an_image_unreadable(exif):
    assert Image().decode(file_of(SCENE, "JPEG", exif=exif)).size == SCENE.size


def test_a_damaged_turned_image_says_so():
    file = turned("PNG", 6)
    with pytest.raises(UnreadableExample, match="damaged"):
        to_rgb(Image().decode(file[: len(file) - 60]))


def test_boxes_are_in_pixels_of_the_upright_image(tmp_path):
    """The red quarter of a stored image lies at the top right of the upright one."""
    rows = [{"name": "red", "box": [24, 0, 48, 32]}]
    table = {"image": pa.array([turned("JPEG", 6)] * 3, pa.binary()), "caption": ["a", "b", "c"], "objects": [rows] * 3}
    pq.write_table(pa.table(table), tmp_path / "boxes.parquet")
    corpus = pm.corpora.from_path(tmp_path / "boxes.parquet")
    (region,) = RegionsColumn().load(corpus, 0)
    left, top, right, bottom = (edge / 1000 for edge in region.box)
    assert (left, right) == (0.5, 1.0)
    image = to_rgb(corpus.value(0, "image"))
    middle = (round((left + right) / 2 * image.width), round((top + bottom) / 2 * image.height))
    assert image.getpixel(middle)[0] > 240
    assert max(image.getpixel(middle)[1:]) < 12


def test_images_of_requests_are_upright_and_their_memory_is_granted_first():
    async def decoded() -> list[PILImage.Image]:
        async with RequestDecoder(Limits()).decoded({"image": [turned("JPEG", 6)]}, time.monotonic() + 10) as columns:
            return columns["image"]

    (image,) = asyncio.run(decoded())
    assert image.size == (48, 64)
    assert open_header(turned("JPEG", 6)).size == (64, 48)  # as stored: nothing is decoded for it


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_gray_of_16_bits_keeps_its_levels(kind):
    values = np.array([LEVELS] * 3, np.uint16) * 257
    assert reread(values, kind) == list(LEVELS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("scale", [1, 257])
@pytest.mark.filterwarnings("ignore:Saving I mode images as PNG is deprecated")
def test_gray_of_32_bits_keeps_its_levels(kind, scale):
    if kind == "PNG" and scale == 1:
        return  # Pillow writes PNG of 16 bits, whose range is known
    assert reread(np.array([LEVELS] * 3, np.int32) * scale, kind) == list(LEVELS)


def test_integers_that_fill_32_bits_keep_their_levels():
    for dtype, unit in ((np.int32, 2**23), (np.uint32, 2**24)):
        file = tiff(np.array([LEVELS], dtype) * dtype(unit))
        assert gray(Image().decode(file)) == list(LEVELS)


def test_signed_integers_of_16_bits_are_black_below_0():
    assert gray(Image().decode(tiff(np.array([[-9, 0, 100 * 128, 32767]], np.int16)))) == [0, 0, 100, 255]


def test_big_endian_gray():
    file = tiff((np.array([LEVELS], np.uint16) * 257).astype(">u2"))
    assert file[:2] == b"MM"
    assert PILImage.open(io.BytesIO(file)).mode == "I;16B"
    assert gray(Image().decode(file)) == list(LEVELS)


def test_tiff_that_stores_white_as_0():
    assert gray(Image().decode(tiff(np.array([LEVELS], np.uint16) * 257, photometric=0))) == [
        255 - level for level in LEVELS
    ]


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_floats_from_0_to_1_255_or_65535(top):
    values = np.array([LEVELS], np.float32) / 255 * top
    found = gray(PILImage.fromarray(values))
    assert found == reread(values, "TIFF")
    assert np.abs(np.array(found) - LEVELS).max() <= 1


def test_floats_that_are_no_gray_levels_are_rejected():
    for value, reason in ((np.nan, "NaN"), (np.inf, "infinite"), (1e6, "up to 1e")):
        with pytest.raises(UnreadableExample, match=reason):
            reread(np.array([[0, value]], np.float32), "TIFF")
    assert reread(np.array([[-0.5, 1]], np.float32), "TIFF") == [0, 255]


def test_transparent_gray_of_16_bits_is_white():
    """A PNG names the gray level that is transparent."""
    buffer = io.BytesIO()
    PILImage.fromarray(np.array([[100 * 257, 200 * 257]], np.uint16)).save(buffer, "PNG", transparency=100 * 257)
    image = Image().decode(buffer.getvalue())
    assert image.info["transparency"] == 100 * 257
    assert gray(image) == [255, 200]


@pytest.mark.parametrize(
    ("depth", "row", "level"), [(1, b"\x40", 0), (2, b"\x60", 1), (4, b"\x3f", 3), (8, b"\x03\xff", 3)]
)
def test_transparent_gray_of_few_bits_is_white(depth, row, level):
    """Written by the PNG specification: two pixels, the first of the level that is transparent, no other white."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0), b"tRNS": struct.pack(">H", level)}
    parts |= {b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts.items())
    image = Image().decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert gray(image)[0] == 255
    assert gray(image)[1] == (170 if depth == 2 else 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGBa", "La", "L", "RGB"])
def test_transparent_pixels_become_white(mode):
    half = PILImage.fromarray(np.array([[[90, 90, 90, 0], [90, 90, 90, 255]]], np.uint8))
    if mode in ("L", "RGB"):
        image = PILImage.new(mode, (2, 1), "gray")
        image.putpixel((0, 0), 7 if mode == "L" else (7, 7, 7))
        image = Image().decode(file_of(image, "PNG", transparency=7 if mode == "L" else (7, 7, 7)))
        assert gray(image) == [255, 128]
        return
    if mode in ("P", "PA"):
        image = half.quantize(4)
        image = image if mode == "P" else image.convert("PA")
    else:
        image = half.convert("LA").convert(mode) if mode == "La" else half.convert(mode)
    assert image.mode == mode
    assert gray(image) == [255, 90]


def test_cmyk_ycbcr_hsv_and_1_bit_are_converted_as_pillow_does():
    for mode in ("CMYK", "YCbCr", "HSV", "1"):
        image = SCENE.convert(mode)
        assert np.array_equal(to_rgb(image), image.convert("RGB"))
    file = file_of(SCENE.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(to_rgb(Image().decode(file)), int) - np.asarray(SCENE)).max() < 30


def test_lab_is_converted_by_its_profile():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(SCENE, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    found = to_rgb(Image().decode(file_of(lab, "TIFF")))
    assert np.abs(np.asarray(found, int) - np.asarray(SCENE)).max() < 30


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation_is_read(kind):
    frames = [PILImage.new("RGB", (16, 16), color) for color in ((250, 0, 0), (0, 0, 250), (0, 250, 0))]
    file = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert PILImage.open(io.BytesIO(file)).n_frames == 3
    assert np.abs(np.asarray(to_rgb(Image().decode(file)), int) - (250, 0, 0)).max() < 8


def test_content_decides_what_is_an_image(tmp_path):
    for suffix in (".jfif", ".jpe", ".avif", ".jp2", ".png?w=3", ".JPG", ""):
        kind = {".avif": "AVIF", ".jp2": "JPEG2000"}.get(suffix, "JPEG")
        (tmp_path / f"photo{suffix}").write_bytes(file_of(SCENE, kind))
        assert to_rgb(Image(tmp_path).decode(f"photo{suffix}")).size == SCENE.size
        assert has_image_suffix(f"photo{suffix}") == bool(suffix)
        assert is_image((tmp_path / f"photo{suffix}").read_bytes()[:16])
    assert {".jfif", ".jpe", ".avif", ".jp2"} < set(IMAGE_SUFFIXES)
    for other in (b"", b"col\n1\n", b"%PDF-1.7 ........", b"RIFF\0\0\0\0WAVEfmt ", b"%!PS-Adobe-3.0 EPSF-3.0"):
        assert not is_image(other)


def tiff(values: np.ndarray, photometric: int = 1) -> bytes:
    """Write one strip of gray by the TIFF 6.0 specification, in the byte order and number type of the values."""
    big = values.dtype.byteorder == ">"
    order = ">" if big else "<"
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    entries = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 4, height), (279, 4, values.nbytes), (339, 3, kind)]
    directory = b"".join(
        np.array([tag, form], f"{order}u2").tobytes()
        + np.array([1], f"{order}u4").tobytes()
        + (np.array([value, 0], f"{order}u2") if form == 3 else np.array([value], f"{order}u4")).tobytes()
        for tag, form, value in sorted(entries)
    )
    data = values.tobytes() + b"\0" * (values.nbytes % 2)
    head = (b"MM" if big else b"II") + np.array([42], f"{order}u2").tobytes()
    count = np.array([len(entries)], f"{order}u2").tobytes()
    return head + np.array([8 + len(data)], f"{order}u4").tobytes() + data + count + directory + b"\0" * 4
