"""Files that are made to harm: what decoders may open, run and allocate is bounded whatever a header says."""

import ast
import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage
from scipy.signal import resample_poly

import polymodal as pm
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UnreadableExample
from polymodal.modalities import Audio, Image, Mask, Video
from polymodal.modalities import audio as sounds
from polymodal.modalities import video as clips
from polymodal.modalities.image import IMAGE_FORMATS, encoded, open_image, to_rgb

SOURCE = Path(pm.__file__).parent
RED = PILImage.new("RGB", (20, 20), (200, 30, 30))


def postscript(marker: Path) -> bytes:
    """An EPS image whose program writes a file."""
    return f"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
({marker}) (w) file dup (was here) writestring closefile
showpage
%%EOF
""".encode()


def wav(rate: int, channels: int = 1, samples: int = 16) -> bytes:
    """PCM of 16 bits: 44 bytes of header, then the samples."""
    data = b"\x10\x00" * samples * channels
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels & 0xFFFFFFFF, 2 * channels, 16)
    chunks = b"WAVE" + b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of an attribute of this name in the package."""
    found = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                found.append((file.relative_to(SOURCE).as_posix(), node))
    return found


def test_an_eps_image_is_refused_by_name_and_its_program_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    for decode in (Image().decode, open_image, Mask().decode):
        with pytest.raises(UnreadableExample, match="is EPS, which is not read; the formats that are read are PNG"):
            to_rgb(decode(postscript(marker)))
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["parquet", "shards", "paths"])
def test_an_eps_image_of_a_training_set_is_skipped_and_named(kind, tmp_path):
    marker = tmp_path / "marker"
    files = [encoded(PILImage.new("RGB", (20, 20), (place * 9, 30, 30))) for place in range(24)]
    files[3] = postscript(marker)
    captions = [f"caption {place}" for place in range(24)]
    if kind == "paths":
        for place, file in enumerate(files):
            (tmp_path / f"{place}.png").write_bytes(file)
        images = pa.array([f"{place}.png" for place in range(24)])
    else:
        images = pa.array(files, pa.binary())
    split = pa.array(["train"] * 24)
    table = pa.table({"image": images, "text": captions, "split": split})
    pq.write_table(table, tmp_path / "pairs.parquet")
    open_corpus = pm.corpora.from_shards if kind == "shards" else pm.corpora.from_path
    corpus = open_corpus(str(tmp_path / "pairs.parquet"))

    reader = Reader(
        corpus,
        Processor.fit([corpus], {"image": ImageColumn(16), "text": TextColumn(LearnedTokenizer(300, 16))}),
        memory=0,
    )
    rows, _ = reader.read_all(np.arange(len(corpus)))
    assert len(rows) == 23
    assert "EPS" in str(reader.skipped)
    assert not marker.exists()


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_listed_format_is_read(kind):
    file = encoded(RED, "BMP" if kind == "DIB" else kind)
    image = to_rgb(Image().decode(file[14:] if kind == "DIB" else file))
    assert image.size[0] in (16, 20)  # an ICO has sizes of its own
    assert np.abs(np.asarray(image)[8, 8].astype(int) - (200, 30, 30)).max() < 12


def test_an_image_of_a_phone_is_read():
    buffer = io.BytesIO()
    RED.save(buffer, format="MPO", save_all=True, append_images=[RED])
    assert Image().decode(buffer.getvalue()).format == "MPO"


def test_pillow_opens_files_in_one_place_alone():
    """`Image.open` of Pillow, under whichever name: what is opened elsewhere would know EPS."""
    opening = {"av", "gzip", "os", "pa", "tarfile", "zipfile", "wave", "webbrowser"}
    found = []
    for file, call in calls("open"):
        owner = call.func.value
        if isinstance(owner, ast.Name) and "image" in owner.id.lower() and owner.id not in opening:
            found.append((file, {word.arg for word in call.keywords}))
        if isinstance(owner, ast.Attribute) and owner.attr == "Image":
            found.append((file, {word.arg for word in call.keywords}))
    assert found == [("modalities/image.py", {"formats"})]
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
                assert "open" not in {name.name for name in node.names}, file
    assert not [file for name in ("imread", "load_image") for file, _ in calls(name)]


def test_sample_rates_that_no_recording_has_are_refused():
    for rate in (1, 999, 999_983, 49_999_991):
        with pytest.raises(UnreadableExample, match=f"sample rate of {rate:,} Hz"):
            Audio().decode(wav(rate))
    with pytest.raises(UnreadableExample, match="channels"):
        Audio().decode(wav(16_000, channels=500))


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_common_rates_are_resampled_with_the_exact_ratio(rate):
    waveform = np.random.default_rng(0).standard_normal(2_000).astype(np.float32)
    divisor = np.gcd(rate, 16_000)
    expected = resample_poly(waveform, 16_000 // divisor, rate // divisor).astype(np.float32)
    assert np.array_equal(sounds.resampled(waveform, rate, 16_000), expected)


@pytest.mark.parametrize("rate", [1_009, 15_991, 65_537, 767_957])
def test_rates_without_common_factors_take_little_memory(rate):
    """All of them primes; the tone keeps its frequency."""
    seconds = np.arange(rate) / rate
    waveform = np.sin(2 * np.pi * 200 * seconds).astype(np.float32)
    tracemalloc.start()
    found = sounds.resampled(waveform, rate, 16_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000
    assert abs(len(found) - 16_000) <= 2
    assert np.abs(np.fft.rfft(found)).argmax() == 200


def test_channels_are_averaged_as_they_are_read():
    """32 channels of 20 seconds would be 20 MB at once."""
    file = wav(8_000, channels=32, samples=160_000)
    Audio(8_000).decode(wav(8_000))
    tracemalloc.start()
    waveform = Audio(8_000).decode(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(waveform) == 160_000
    assert np.allclose(waveform, 16 / 2**15)
    assert peak < 8_000_000


def test_a_playlist_is_no_video(tmp_path):
    """Containers that name other files or addresses are not opened."""
    (tmp_path / "clip.mp4").write_bytes(clips.encode(np.zeros((4, 16, 16, 3), np.uint8), 8))
    lists = {
        "list.ffconcat": f"ffconcat version 1.0\nfile {tmp_path}/clip.mp4\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/clip.mp4\n#EXT-X-ENDLIST\n",
    }
    assert len(Video(2).decode(str(tmp_path / "clip.mp4")).frames) == 2
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        for value in (text.encode(), str(tmp_path / name)):
            with pytest.raises(UnreadableExample):
                Video(2).decode(value)


def test_frames_over_the_limit_are_not_decoded(monkeypatch):
    clip = clips.encode(np.zeros((4, 64, 64, 3), np.uint8), 8)
    monkeypatch.setattr(clips, "FRAME_PIXELS", 64 * 64)
    assert Video(2).decode(clip).frames.shape == (2, 64, 64, 3)
    monkeypatch.setattr(clips, "FRAME_PIXELS", 64 * 64 - 1)
    with pytest.raises(UnreadableExample, match="64 x 64 pixels"):
        Video(2).decode(clip)
