"""Sounds of every depth, rate, number of channels and container, and recordings that are cut off or broken."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch

from polymodal.data.columns.audio import AudioColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Audio
from polymodal.modalities.audio import from_array, resampled
from polymodal.modalities.cut_off import cut_off_sound, with_end_of_stream

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def file_of(waveform: np.ndarray, rate: int = RATE, container: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")]
    + [("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("AIFF", "PCM_16"), ("AIFF", "PCM_24"), ("AU", "PCM_16")]
    + [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")],
)
def test_every_depth_and_container_gives_what_soundfile_gives(container, subtype, tmp_path):
    file = file_of(TONE, container=container, subtype=subtype)
    expected, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    assert rate == RATE
    (tmp_path / "tone").write_bytes(file)
    for value in (file, "tone", {"bytes": file, "path": None}, {"bytes": None, "path": "tone"}):
        assert np.allclose(Audio(RATE, root=tmp_path).decode(value), expected, atol=1e-5)
    if subtype not in ("VORBIS", "OPUS", "MPEG_LAYER_III"):
        assert np.abs(expected - TONE).max() < 0.03


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_channels_are_averaged_at_any_rate(channels, rate):
    waves = np.random.default_rng(0).uniform(-0.5, 0.5, (rate, channels)).astype(np.float32)
    found = Audio(RATE).decode(file_of(waves, rate, subtype="FLOAT"))
    assert np.allclose(found, resampled(waves.mean(1), rate, RATE), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_no_numbers_are_rejected_with_their_count(value, subtype):
    broken = TONE.copy()
    broken[[5, 900]] = value
    with pytest.raises(UnreadableExample, match=r"^the sound has 2 of 16,000 samples that are NaN or infinite$"):
        Audio(RATE).decode(file_of(broken, subtype=subtype))
    with pytest.raises(UnreadableExample, match="2 of 16,000"):
        AudioColumn(16)([broken])


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "AIFF", "FLAC", "RF64", "W64", "OGG", "OPUS", "MP3", "ID3"])
def test_half_a_recording_is_rejected(container):
    kinds = {"OPUS": {"container": "OGG", "subtype": "OPUS"}, "MP3": {"subtype": "MPEG_LAYER_III"}}
    kinds["ID3"] = {"container": "MP3", "subtype": "MPEG_LAYER_III"}
    whole = file_of(TONE, **{"container": container, **kinds.get(container, {})})
    if container == "ID3":  # tags of 300 bytes in front
        whole = b"ID3\x04\0\0\0\0\x02\x2c" + b"\0" * 300 + whole
    assert len(Audio(RATE).decode(whole)) == pytest.approx(RATE, rel=0.2)
    with pytest.raises(UnreadableExample, match=r"cut off: its|cannot be decoded"):
        Audio(RATE).decode(whole[: len(whole) // 2])


def ogg_pages(file: bytes) -> list[int]:
    return [place for place in range(len(file)) if file.startswith(b"OggS\0", place)]


def without_end_of_stream(file: bytes) -> bytes:
    """Take the flag off the last page, as the recorder of Android never sets it, with the checksum of RFC 3533."""
    changed, page = bytearray(file), ogg_pages(file)[-1]
    changed[page + 5] &= ~4
    changed[page + 22 : page + 26] = bytes(4)
    checksum = 0
    for byte in changed[page:]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x104C11DB7 if checksum & 0x80000000 else 0)
    changed[page + 22 : page + 26] = checksum.to_bytes(4, "little")
    return bytes(changed)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_whole_ogg_without_the_flag_of_its_end_is_read(subtype):
    whole = file_of(np.tile(TONE, 4), container="OGG", subtype=subtype)
    recorded = without_end_of_stream(whole)
    assert (recorded != whole, with_end_of_stream(recorded)) == (True, whole)
    assert len(Audio(RATE).decode(recorded)) == pytest.approx(4 * RATE, abs=RATE // 10)
    first, second, *_, last = ogg_pages(recorded)
    for end in (len(recorded) - 1, (last + len(recorded)) // 2, last + 20, last + 2, second - 1, second, first + 30):
        with pytest.raises(UnreadableExample, match=r"cut off|cannot be decoded|no samples"):
            Audio(RATE).decode(recorded[:end])


def test_an_ogg_whose_last_packet_goes_on_is_cut_off():
    page = b"OggS\0\0" + bytes(20) + b"\x02\xff\xff" + bytes(510)
    assert "last packet goes on" in cut_off_sound(page)
    assert cut_off_sound(page[:27].replace(b"\x02", b"\x01") + b"\x09" + bytes(9)) == ""


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF - 36])
def test_a_recording_from_a_pipe_promises_nothing(size):
    whole = bytearray(file_of(TONE))
    place = whole.index(b"data")
    whole[4:8] = whole[place + 4 : place + 8] = struct.pack("<I", size)
    assert np.array_equal(Audio(RATE).decode(bytes(whole)), Audio(RATE).decode(file_of(TONE)))


def test_undecodable_sound_says_so_in_a_sentence():
    for value in (b"", b"no sound", None, b"RIFF\0\0\0\0WAVE", b"FORM"):
        with pytest.raises(UnreadableExample, match=r"^the sound ") as caught:
            Audio(RATE).decode(value)
        assert "BytesIO object at" not in str(caught.value)
    with pytest.raises(UnreadableExample, match=r"the sound .*missing.wav cannot be read: No such file"):
        Audio(RATE).decode("missing.wav")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_waveforms_of_integers_are_scaled(dtype):
    half = 2 ** (8 * np.dtype(dtype).itemsize - 1)
    waveform = (TONE.astype(np.float64) * (half - 1) + (half if dtype == np.uint8 else 0)).astype(dtype)
    assert np.abs(from_array(waveform) - TONE).max() < 0.02
    frames = AudioColumn(16)
    assert torch.equal(frames([waveform]).values, frames([from_array(waveform)]).values)
