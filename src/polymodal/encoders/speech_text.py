"""Speech and characters to tokens in one Conformer; text enters above the blocks that are speech's own (SLAM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.layers.conformer import Conformer
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens


@dataclass(frozen=True)
class SpeechTextEncoderConfig:
    """The one tower of speech and text."""

    num_mel_bins: PositiveInt = 80
    """Mel bins of a frame of 10 ms."""
    width: PositiveInt = 64
    """Channels of every token."""
    speech_depth: NonNegativeInt = 1
    """Blocks that see speech only."""
    shared_depth: NonNegativeInt = 2
    """Blocks above them, which see speech and text."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    conv_kernel_size: PositiveInt = 5
    """Places that a convolution sees; odd."""
    vocab_size: PositiveInt = 4096
    """Characters that are known, the most frequent ones of the corpus."""
    context_length: PositiveInt = 200
    """Longest text in characters, with start and end mark; longer ones are cut."""

    def build(self, vocab_size: int) -> SpeechTextEncoder:
        """vocab_size: entries of the tokenizer."""
        return SpeechTextEncoder(self, vocab_size)


class EncodedSpeech(NamedTuple):
    """Speech on its way, a vector every 40 ms. features: of its frames. own, shared: after its own and all blocks."""

    features: Float[Tensor, "batch moments width"]
    own: Float[Tensor, "batch moments width"]
    shared: Float[Tensor, "batch moments width"]
    lengths: Int[Tensor, " batch"]


def num_output_frames(frames: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """How many vectors so many frames make: a quarter, rounded up."""
    return (frames + 3) // 4


class SpeechTextEncoder(nn.Module):
    """Two strided convolutions over frames, blocks of speech's own, blocks of both, and vectors of characters."""

    def __init__(self, config: SpeechTextEncoderConfig, vocab_size: int):
        super().__init__()
        width = config.width
        self.config = config
        self.first = nn.Conv1d(config.num_mel_bins, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.mask_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.own = Conformer(width, config.speech_depth, config.num_heads, config.conv_kernel_size)
        self.character = nn.Embedding(vocab_size + 1, width)  # the last one stands for hidden characters
        self.norm_text = nn.LayerNorm(width)
        self.shared = Conformer(width, config.shared_depth, config.num_heads, config.conv_kernel_size)

    def extract_features(self, mel: Padded) -> Padded:
        """mel: standardized frames [batch, frames, bins]. What stands after a sound's length has no influence."""
        x = (mel.values * mel.mask[..., None]).transpose(1, 2)
        half = Padded(F.gelu(self.first(x)).transpose(1, 2), (mel.lengths + 1) // 2)
        x = (half.values * half.mask[..., None]).transpose(1, 2)
        return Padded(self.project(F.gelu(self.second(x)).transpose(1, 2)), num_output_frames(mel.lengths))

    def encode_speech(self, mel: Padded, mask: Bool[Tensor, "batch moments"] | None = None) -> EncodedSpeech:
        """mask: moments whose features are not seen."""
        found = self.extract_features(mel)
        x = found.values
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_embedding.to(x.dtype), x)
        own = self.own(x, found.mask)
        return EncodedSpeech(found.values, own, self.shared(own, found.mask), found.lengths)

    def embed_text(self, text: Tokens, mask: Bool[Tensor, "batch length"] | None = None) -> Padded:
        """Vectors of characters, with which text enters the shared blocks. mask: characters that keep their place."""
        ids = text.ids if mask is None else text.ids.masked_fill(mask, self.character.num_embeddings - 1)
        return Padded(self.norm_text(self.character(ids)), text.lengths)

    def encode_text(self, text: Tokens, mask: Bool[Tensor, "batch length"] | None = None) -> Padded:
        """Characters after the shared blocks."""
        entered = self.embed_text(text, mask)
        return Padded(self.shared(entered.values, entered.mask), text.lengths)

    def encode_pair(self, speech: Padded, text: Padded) -> tuple[Float[Tensor, "n width"], Float[Tensor, "m width"]]:
        """Both of each example in one sequence through the shared blocks: what comes out at speech, and at text.

        speech: after its own blocks; text: as `embed_text` gives it. The results are without padding.
        """
        (row, place), (text_row, text_place) = (part.mask.nonzero().unbind(1) for part in (speech, text))
        text_place = text_place + speech.lengths[text_row]
        lengths = speech.lengths + text.lengths
        joined = speech.values.new_zeros(len(lengths), int(lengths.max()), speech.values.shape[2])
        joined = joined.index_put((row, place), speech.values[row, place])
        joined = joined.index_put((text_row, text_place), text.values[text.mask])
        x = self.shared(joined, Padded(joined, lengths).mask)
        return x[row, place], x[text_row, text_place]
