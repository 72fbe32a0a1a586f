"""Clips as phones, screen recorders and cameras write them: turned, mirrored, of changing size and rate, cut off."""

import io
from fractions import Fraction

import numpy as np
import pytest

from polymodal.data.columns.video import VideoColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Video
from polymodal.modalities.audio import encoded
from polymodal.modalities.cut_off import cut_off_video
from polymodal.modalities.video import encode, sample_evenly, sample_times

av = pytest.importorskip("av")

QUARTERS = np.array([[[240, 20, 20], [20, 240, 20]], [[20, 20, 240], [240, 240, 20]]], np.uint8)
FRAME = QUARTERS.repeat(32, axis=0).repeat(48, axis=1)  # 64 x 96
ONE = 1 << 16
# What each matrix (a, b, c, d) of the track header does to the stored frame: a pixel is shown at (ax + cy, bx + dy).
SHOWN = {
    (1, 0, 0, 1): FRAME,
    (0, 1, -1, 0): np.rot90(FRAME, -1),
    (-1, 0, 0, -1): np.rot90(FRAME, 2),
    (0, -1, 1, 0): np.rot90(FRAME, 1),
    (-1, 0, 0, 1): np.fliplr(FRAME),
    (1, 0, 0, -1): np.flipud(FRAME),
    (0, 1, 1, 0): FRAME.swapaxes(0, 1),
    (0, -1, -1, 0): np.rot90(FRAME, 2).swapaxes(0, 1),
}


def with_matrix(file: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Write a display matrix into the track header of an MP4 (ISO/IEC 14496-12, 8.3.2)."""
    place = file.index(b"tkhd") + 44
    matrix = np.array([a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30], ">i4").tobytes()
    return file[:place] + matrix + file[place + 36 :]


def changing(container: str, codec: str, frames: list[np.ndarray], times: list[int]) -> bytes:
    """Encode frames of any sizes at the given times in ms."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "mjpeg":
            for pixels, time in zip(frames, times, strict=True):
                encoder = av.CodecContext.create("mjpeg", "w")
                encoder.height, encoder.width = pixels.shape[:2]
                encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 1000)
                for packet in encoder.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    packet.stream, packet.pts, packet.dts = stream, time, time
                    packet.time_base = Fraction(1, 1000)
                    output.mux(packet)
        else:
            for pixels, time in zip(frames, times, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("matrix", SHOWN)
def test_display_matrices_are_applied(matrix, tmp_path):
    file = with_matrix(encode(np.stack([FRAME] * 6), 8), *matrix)
    expected = SHOWN[matrix]
    (tmp_path / "clip.mp4").write_bytes(file)
    for value in (file, str(tmp_path / "clip.mp4"), {"bytes": file, "path": None}):
        clip = Video(4).decode(value)
        assert clip.frames.shape == (4, *expected.shape)
        assert np.abs(clip.frames.astype(int) - expected).mean() < 6
    with av.open(io.BytesIO(file)) as container:
        frame = next(container.decode(video=0))
        if np.linalg.det(np.array(matrix).reshape(2, 2)) > 0:  # PyAV tells rotations, not flips
            by_pyav = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            assert np.array_equal(clip.frames[0], by_pyav)


def test_frames_whose_size_changes_are_scaled_to_the_first():
    small, large = FRAME, FRAME.repeat(2, axis=0).repeat(2, axis=1)
    file = changing("matroska", "mjpeg", [small] * 4 + [large] * 4, [40 * place for place in range(8)])
    clip = Video(8).decode(file)
    assert clip.frames.shape == (8, 64, 96, 3)
    assert np.abs(clip.frames.astype(int) - FRAME).mean() < 8
    assert VideoColumn(4, 32)([file]).shape == (1, 4, 3, 32, 32)


def test_a_varying_frame_rate_is_sampled_by_time():
    """Ten frames in the first 0.9 s, then a still of 9 seconds: most of the clip shows it."""
    levels = np.linspace(20, 230, 11).astype(np.uint8)
    frames = [np.full((64, 64, 3), level, np.uint8) for level in levels]
    times = [90 * place for place in range(10)] + [10_000]
    clip = Video(4).decode(changing("matroska", "mpeg4", frames, times))
    found = clip.frames.reshape(4, -1).mean(1)
    assert np.abs(found[1:] - levels[9]).max() < 10
    assert clip.seconds == pytest.approx((0.81,) * 4, abs=0.002)


@pytest.mark.parametrize(("count", "wanted"), [(5, 8), (8, 8), (24, 16), (97, 12), (16, 1)])
def test_a_constant_frame_rate_is_sampled_at_the_centers_of_segments(count, wanted):
    times = [3 * place + 7 for place in range(count)]
    assert sample_times(times, times[-1] + 3, wanted) == [times[index] for index in sample_evenly(count, wanted)]


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_containers_give_the_same_frames(container):
    levels = np.linspace(20, 230, 24).astype(np.uint8)
    frames = [np.full((64, 64, 3), level, np.uint8) for level in levels]
    clip = Video(6).decode(changing(container, "mpeg4", frames, [40 * place for place in range(24)]))
    assert np.abs(clip.frames.reshape(6, -1).mean(1) - levels[sample_evenly(24, 6)]).max() < 10


def test_an_undecodable_clip_says_so_in_a_sentence(tmp_path):
    whole = encode(np.stack([FRAME] * 6), 8)
    (tmp_path / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    for value, reason in (
        (whole[: len(whole) // 2], "the video cannot be decoded: Invalid data"),
        (b"no clip", "the video cannot be decoded: Invalid data"),
        (b"", "the video cannot be decoded"),
        ({"bytes": None, "path": "missing.mp4"}, "missing.mp4 cannot be decoded: No such file"),
        ("broken.mp4", "broken.mp4 cannot be decoded: Invalid data"),
        ("missing.mp4", "missing.mp4 cannot be decoded: No such file"),
        (sound(), "no video"),
    ):
        with pytest.raises(UnreadableExample, match=reason) as caught:
            Video(4, root=tmp_path).decode(value)
        assert "Errno" not in str(caught.value)


def sound() -> bytes:
    return encoded(np.zeros(1600, np.float32), 16_000, "OGG")


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "h264"), ("mov", "h264"), ("matroska", "h264"), ("webm", "vp9"), ("avi", "mpeg4")]
)
@pytest.mark.parametrize("as_path", [False, True])
def test_half_a_clip_is_rejected(container, codec, as_path, tmp_path):
    frames = [np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8) for number in range(24)]
    whole = changing(container, codec, frames, [number * 40 for number in range(24)])

    def given(file):
        (tmp_path / "clip").write_bytes(file)
        return str(tmp_path / "clip") if as_path else file

    assert len(Video(4).decode(given(whole)).frames) == 4
    with pytest.raises(UnreadableExample, match=r"cut off: its header promises|cannot be decoded"):
        Video(4).decode(given(whole[: len(whole) // 2]))


def test_a_clip_whose_container_says_no_size_is_read():
    # A live recording: Matroska whose Segment has an unknown size.
    frames = [np.full((32, 32, 3), 10 * number, np.uint8) for number in range(12)]
    file = bytearray(changing("matroska", "mpeg4", frames, [number * 40 for number in range(12)]))
    place = file.index(bytes.fromhex("18538067")) + 4
    assert file[place] == 1  # a size of 8 bytes
    file[place : place + 8] = b"\x01" + b"\xff" * 7
    assert len(Video(2).decode(bytes(file)).frames) == 2


def test_what_a_camera_appends_to_an_mp4_is_no_cut(tmp_path):
    boxes = b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x01\x00mdat" + bytes(248)
    own = b"\x7f\x01\x02\x03\x9c\x00\x81\xff" + bytes(72)  # such as the trailer of cameras of 360 degrees
    assert cut_off_video(io.BytesIO(boxes + own)) == ""
    assert cut_off_video(io.BytesIO(boxes[:-100])) != ""
