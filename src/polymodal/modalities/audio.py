"""Audio: mono float32 waveforms in [-1, 1] at a fixed sampling rate, and log-mel spectrograms.

Samples of any depth, integers or floats, any number of channels (averaged) and any rate are read as soundfile reads
them. Recordings with NaN or infinite samples are rejected, and those that are cut off as far as their format says so
(`cut_off`); of other formats, the samples that are there are read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from polymodal.errors import UnreadableExample
from polymodal.modalities.cut_off import cut_off_sound, with_end_of_stream
from polymodal.modalities.modality import read_file

RATES = (1_000, 768_000)  # minimum and maximum sampling rate of a file in Hz; a header may claim any
MAX_CHANNELS = 64
MAX_FACTOR = 20_000  # of up- or downsampling; the filter has 20 taps per factor


@dataclass(frozen=True)
class Audio:
    """Column of sounds (WAV, FLAC, Ogg Vorbis, MP3 ...): encoded bytes, paths, or `{"bytes", "path"}` records.

    rate: sampling rate of decoded waveforms in Hz. longest: maximum length in seconds; the rest is cut. root: folder
    of relative paths.
    """

    rate: int = 16_000
    longest: float = 30.0
    root: Path | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: Any) -> Float[np.ndarray, " samples"]:
        """Decode to a mono waveform (mean of channels).

        Raises UnreadableExample for sound that is undecodable or empty, has NaN or infinite samples, or is cut off as
        far as its format says so.
        """
        import soundfile  # loads a shared library

        file = read_file(value, self.root, "sound")
        _check_whole(file)
        try:
            ended = with_end_of_stream(file) if isinstance(file, bytes) else file
            with soundfile.SoundFile(io.BytesIO(ended)) as opened:
                rate = opened.samplerate
                _check_header(rate, opened.channels)
                blocks = list(_mono_blocks(opened, int(self.longest * rate)))
        except UnreadableExample:
            raise
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise undecodable(error) from error
        if not blocks:
            raise UnreadableExample("the sound holds no samples")
        mono = finite(np.concatenate(blocks))
        return mono if rate == self.rate else resampled(mono, rate, self.rate)

    def describe(self, value: np.ndarray) -> str:
        return f"{len(value) / self.rate:.1f} s at {self.rate / 1000:g} kHz"

    def plot(self, value: np.ndarray, axes: Any) -> None:
        """Plot the log-mel spectrogram with the waveform above it."""
        mel = log_mel(torch.from_numpy(value)[None], self.rate)[0]
        seconds = len(value) / self.rate
        axes.imshow(mel.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, 1))
        steps = np.linspace(0, len(value) - 1, min(len(value), 2000)).astype(int)
        peak = max(float(np.abs(value).max()), 1e-4)
        axes.plot(steps / self.rate, 1.18 + 0.15 * value[steps] / peak, linewidth=0.4, color="#1f77b4")
        axes.set(ylim=(0, 1.35), yticks=[], xlim=(0, seconds))
        axes.tick_params(labelsize=6)
        axes.set_xlabel("seconds", fontsize=6)


class Recording(NamedTuple):
    """Recording of a spoken text. language: BCP 47 code."""

    language: str
    waveform: Float[np.ndarray, " samples"]


@dataclass(frozen=True)
class Recordings:
    """Column of lists of encoded recordings with their language, such as one caption spoken in several. See Audio."""

    audio: Audio = field(default_factory=Audio)

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"language": pa.string(), "sound": pa.binary()}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Recording]:
        return [Recording(record["language"], self.audio.decode(record["sound"])) for record in value]

    def describe(self, value: list[Recording]) -> str:
        seconds = sum(len(recording.waveform) for recording in value) / self.audio.rate
        return f"{seconds:.1f} s in {', '.join(recording.language for recording in value)}"

    def plot(self, value: list[Recording], axes: Any) -> None:
        """Plot the first recording."""
        self.audio.plot(value[0].waveform, axes)
        axes.set_title(f"spoken, {value[0].language} (of {len(value)})", fontsize=6)


def undecodable(error: Exception) -> UnreadableExample:
    """The error for a sound that soundfile cannot decode."""
    return UnreadableExample(f"the sound cannot be decoded: {getattr(error, 'error_string', error)}")


def finite(waveform: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Return the waveform. Raises UnreadableExample for NaN or infinite samples, as librosa does."""
    wrong = len(waveform) - int(np.isfinite(waveform).sum())
    if wrong:
        raise UnreadableExample(f"the sound has {wrong:,} of {len(waveform):,} samples that are NaN or infinite")
    return waveform


def from_array(waveform: Shaped[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Convert a mono waveform of any number type to float32; integers are scaled from their range to [-1, 1].

    Raises UnreadableExample for NaN or infinite samples.
    """
    if np.issubdtype(waveform.dtype, np.integer):
        half = 2.0 ** (8 * waveform.dtype.itemsize - 1)
        waveform = waveform.astype(np.float64) / half - (waveform.dtype.kind == "u")
    return finite(waveform.astype(np.float32))


def _check_whole(file: Any) -> None:
    """Raise UnreadableExample for a sound that ends before its header says so."""
    if isinstance(file, bytes) and (how := cut_off_sound(file)):
        raise UnreadableExample(f"the sound is cut off: {how}")


def _check_header(rate: int, channels: int) -> None:
    """Raise UnreadableExample for an implausible sampling rate or number of channels."""
    lowest, highest = RATES
    if not lowest <= rate <= highest:
        raise UnreadableExample(f"the sound has a sample rate of {rate:,} Hz, not between {lowest:,} and {highest:,}")
    if channels > MAX_CHANNELS:
        raise UnreadableExample(f"the sound has {channels:,} channels, more than {MAX_CHANNELS}")


def _mono_blocks(file: Any, most: int) -> Iterator[Float[np.ndarray, " samples"]]:
    """Yield at most so many samples, averaged over channels, in blocks of a second: header lengths may be wrong."""
    while most > 0:
        samples = file.read(min(most, file.samplerate), dtype="float32", always_2d=True)
        if not len(samples):
            return
        yield samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
        most -= len(samples)


def resampled(waveform: Float[np.ndarray, " samples"], from_rate: int, to_rate: int) -> Float[np.ndarray, " resampled"]:
    """Resample with a band-limited polyphase filter.

    The ratio of the rates is exact where its terms are at most `MAX_FACTOR`, as for all common rates, else the nearest
    such ratio.
    """
    from scipy.signal import resample_poly  # half a second to import

    up, down = _ratio(to_rate, from_rate)
    return resample_poly(waveform, up, down).astype(np.float32)


def _ratio(to_rate: int, from_rate: int) -> tuple[int, int]:
    """Return up- and downsampling factors in lowest terms, each at most `MAX_FACTOR`."""
    if to_rate > from_rate:
        down, up = _ratio(from_rate, to_rate)
        return up, down
    ratio = Fraction(to_rate, from_rate).limit_denominator(MAX_FACTOR)
    return max(ratio.numerator, 1), ratio.denominator


def encoded(waveform: Float[np.ndarray, samples * channels], rate: int, container: str = "FLAC") -> bytes:
    """Encode a waveform to a file in memory, such as FLAC (lossless) or OGG."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=container)
    return buffer.getvalue()


def mel_filters(rate: int, window: int, bins: int) -> Float[Tensor, "frequencies bins"]:
    """Return triangular filters on the HTK mel scale, from 0 Hz to the Nyquist frequency, with peaks of 1."""
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, bins + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, window // 2 + 1)[:, None]
    # Each filter rises to its center frequency and falls to the next one.
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None)).float()


def log_mel(
    waveform: Float[Tensor, "batch samples"], rate: int, bins: int = 80, window: float = 0.025, hop: float = 0.010
) -> Float[Tensor, "batch frames bins"]:
    """Return the natural logarithm of the mel power spectrogram (Hann window), floored at 1e-6.

    window, hop: in seconds. A frame is centered on every hop and depends on the samples of its window alone, so padding
    changes only frames that reach into it.
    """
    size, step = round(window * rate), round(hop * rate)
    length = 1 << (size - 1).bit_length()  # the next power of two
    spectrum = torch.stft(
        waveform,
        length,
        step,
        size,
        torch.hann_window(size, device=waveform.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    # Power spectrogram |STFT|^2, then mel filters.
    power = spectrum.abs().square().transpose(1, 2)
    return (power @ mel_filters(rate, length, bins).to(waveform.device)).clamp(min=1e-6).log()
