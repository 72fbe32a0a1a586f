"""Shared Conformer for speech and characters; text enters above the speech-only blocks (SLAM, mSLAM)."""

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
    """Configuration of the speech-text encoder."""

    num_mel_bins: PositiveInt = 80
    """Mel bins per frame of 10 ms."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    speech_depth: NonNegativeInt = 1
    """Number of speech-only Conformer blocks."""
    shared_depth: NonNegativeInt = 2
    """Number of Conformer blocks shared by speech and text."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    conv_kernel_size: PositiveInt = 5
    """Kernel size of the depthwise convolutions; odd."""
    vocab_size: PositiveInt = 4096
    """Maximum vocabulary size: the most frequent characters of the corpus."""
    context_length: PositiveInt = 200
    """Maximum text length in characters, including start and end token; longer texts are truncated."""

    def build(self, vocab_size: int) -> SpeechTextEncoder:
        """Build the encoder. vocab_size: entries of the tokenizer."""
        return SpeechTextEncoder(self, vocab_size)


class EncodedSpeech(NamedTuple):
    """Encoded speech, one vector per 40 ms.

    features: of the convolutions. contrastive, multimodal: after the speech-only (contrastive) block and after both.
    """

    features: Float[Tensor, "batch frames width"]
    contrastive: Float[Tensor, "batch frames width"]
    multimodal: Float[Tensor, "batch frames width"]
    lengths: Int[Tensor, " batch"]


def num_output_frames(frames: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the number of output vectors: a quarter of the frames, rounded up."""
    return (frames + 3) // 4


class SpeechTextEncoder(nn.Module):
    """Speech-text encoder: convolutional subsampling by 4, speech-only blocks, shared blocks, character embeddings."""

    def __init__(self, config: SpeechTextEncoderConfig, vocab_size: int):
        super().__init__()
        width = config.width
        self.config = config
        self.first = nn.Conv1d(config.num_mel_bins, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.mask_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.contrastive_block = Conformer(width, config.speech_depth, config.num_heads, config.conv_kernel_size)
        self.character = nn.Embedding(vocab_size + 1, width)  # the last entry is the mask token
        self.norm_text = nn.LayerNorm(width)
        self.multimodal_block = Conformer(width, config.shared_depth, config.num_heads, config.conv_kernel_size)

    def extract_features(self, mel: Padded) -> Padded:
        """Subsample log-mel frames. mel: standardized [batch, frames, bins]; padding has no influence."""
        x = (mel.values * mel.mask[..., None]).transpose(1, 2)
        # Two convolutions of stride 2: one vector per 4 frames (40 ms); padding is zeroed before each.
        half = Padded(F.gelu(self.first(x)).transpose(1, 2), (mel.lengths + 1) // 2)
        x = (half.values * half.mask[..., None]).transpose(1, 2)
        return Padded(self.project(F.gelu(self.second(x)).transpose(1, 2)), num_output_frames(mel.lengths))

    def encode_speech(self, mel: Padded, mask: Bool[Tensor, "batch frames"] | None = None) -> EncodedSpeech:
        """Encode speech. mask: positions whose features are replaced by the mask embedding."""
        features = self.extract_features(mel)
        x = features.values
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_embedding.to(x.dtype), x)
        context = self.contrastive_block(x, features.mask)
        return EncodedSpeech(features.values, context, self.multimodal_block(context, features.mask), features.lengths)

    def embed_text(self, text: Tokens, mask: Bool[Tensor, "batch length"] | None = None) -> Padded:
        """Embed characters, the input of the shared blocks. mask: characters replaced by the mask token."""
        ids = text.ids if mask is None else text.ids.masked_fill(mask, self.character.num_embeddings - 1)
        return Padded(self.norm_text(self.character(ids)), text.lengths)

    def encode_text(self, text: Tokens, mask: Bool[Tensor, "batch length"] | None = None) -> Padded:
        """Encode characters by the shared blocks."""
        embedded = self.embed_text(text, mask)
        return Padded(self.multimodal_block(embedded.values, embedded.mask), text.lengths)

    def encode_pair(self, speech: Padded, text: Padded) -> tuple[Float[Tensor, "n width"], Float[Tensor, "m width"]]:
        """Encode speech and text of each example as one concatenated sequence (for TLM); return both parts.

        speech: after its own blocks; text: of `embed_text`. The results are without padding.
        """
        (row, position), (text_row, text_position) = (padded.mask.nonzero().unbind(1) for padded in (speech, text))
        text_position = text_position + speech.lengths[text_row]
        lengths = speech.lengths + text.lengths
        # Concatenate speech and text of each example without padding in between.
        joined = speech.values.new_zeros(len(lengths), int(lengths.max()), speech.values.shape[2])
        joined = joined.index_put((row, position), speech.values[row, position])
        joined = joined.index_put((text_row, text_position), text.values[text.mask])
        x = self.multimodal_block(joined, Padded(joined, lengths).mask)
        return x[row, position], x[text_row, text_position]
