"""VATT: one transformer for video, audio and text, and two embedding spaces (Akbari et al. 2021, arXiv 2104.11178).

Each modality has its own tokens and position embeddings; the blocks are shared (the modality-agnostic VATT-MA). Video
is compared with audio in one space, and with text in a second one, to which the first is projected. The released model
also has a layer between tokens and blocks and one behind the blocks for each modality, batch norm in the heads, and
word embeddings of word2vec, which are frozen; here they are learned.
"""

from __future__ import annotations

import math
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.encoders.video import VideoEncoderConfig
from polymodal.layers.transformer import Packing, Transformer, mean_pool
from polymodal.modalities.image import patchify
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.objectives.multi_positive import mil_nce
from polymodal.types import Batch


class TripletBatch(TypedDict):
    """Triplets. text: `num_texts` of each video, one after the other. has_sound, has_text: False where it is missing;
    absent where all have it. misaligned: True where text or audio was exchanged."""

    video: Float[Tensor, "batch frames 3 size size"]
    sound: Padded
    text: Tokens
    has_sound: NotRequired[Bool[Tensor, " batch"]]
    has_text: NotRequired[Bool[Tensor, " batch"]]
    misaligned: NotRequired[Bool[Tensor, " batch"]]


class VATTModel(nn.Module):
    """Video, audio and text in one transformer."""

    def __init__(
        self,
        config: VideoEncoderConfig,
        vocab_size: int,
        max_text_tokens: int,
        audio_patch_size: int,
        max_audio_tokens: int,
        embed_dim: int,
        text_dim: int,
        word_dim: int | None = None,
        temporal_patch_size: int = 1,
        patch_drop_rate: float = 0.0,
        temperature: float = 0.07,
        dropout: float = 0.0,
    ):
        """Build the model.

        config: frames and patches of a clip; width, depth, heads and pooling of the shared transformer.
        audio_patch_size: values of a token of audio. embed_dim, text_dim: of the space of video and audio, and of that
        of video and text. word_dim: of word embeddings, which are then projected; by default the width.
        temporal_patch_size: frames of a token of video. patch_drop_rate: fraction of video and audio tokens that
        training drops (DropToken).
        """
        super().__init__()
        width, std = config.width, config.width**-0.5
        self.config, self.temporal_patch_size, self.text_dim = config, temporal_patch_size, text_dim
        self.patch_drop_rate, self.temperature = patch_drop_rate, temperature
        self.video_patch = nn.Linear(3 * temporal_patch_size * config.patch_size**2, width)
        steps = math.ceil(config.frames / temporal_patch_size)
        # Position embeddings of a video: of time, row and column, which are added up.
        self.video_time = nn.Parameter(std * torch.randn(steps, 1, 1, width))
        self.video_row = nn.Parameter(std * torch.randn(config.grid, 1, width))
        self.video_column = nn.Parameter(std * torch.randn(config.grid, width))
        self.audio_patch = nn.Linear(audio_patch_size, width)
        self.audio_position = nn.Parameter(std * torch.randn(max_audio_tokens, width))
        self.word_embedding = nn.Embedding(vocab_size, word_dim or width)
        nn.init.normal_(self.word_embedding.weight, std=std)
        self.word_projection = nn.Identity() if word_dim is None else nn.Linear(word_dim, width)
        self.text_position = nn.Parameter(std * torch.randn(max_text_tokens, width))
        modalities = ("video", "audio", "text") if config.pool_type == "cls" else ()
        self.agg_tokens = nn.ParameterDict({name: std * torch.randn(width) for name in modalities})
        self.norm_pre = nn.LayerNorm(width)
        self.backbone = Transformer(width, config.depth, config.num_heads, dropout=dropout)
        self.norm_post = nn.LayerNorm(width)
        # Heads of the released code (FACHead): v -> va has two layers, va -> vt one after a ReLU, the others one.
        self.video_to_va = nn.Sequential(nn.Linear(width, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))
        self.audio_to_va = nn.Linear(width, embed_dim)
        self.va_to_vt = nn.Sequential(nn.ReLU(), nn.Linear(embed_dim, text_dim))
        self.text_to_vt = nn.Linear(width, text_dim)

    def encode_video(self, video: Float[Tensor, "batch frames 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Return embeddings in the space of video and audio, not normalized."""
        batch, frames = video.shape[:2]
        size, side = self.temporal_patch_size, self.config.grid
        steps = math.ceil(frames / size)
        video = video[:, torch.arange(steps * size).clamp(max=frames - 1)]  # the last frame fills the last token
        patches = patchify(video.flatten(0, 1), self.config.patch_size).unflatten(0, (batch, steps, size))
        tokens = self.video_patch(patches.transpose(2, 3).flatten(3)).unflatten(2, (side, side))
        tokens = (tokens + self.video_time[:steps] + self.video_row + self.video_column).flatten(1, 3)
        lengths = torch.full((batch,), tokens.shape[1], device=tokens.device)
        return self.video_to_va(self._shared(Padded(tokens, lengths), "video"))

    def encode_audio(self, audio: Padded) -> Float[Tensor, "batch dim"]:
        """Return embeddings in the space of video and audio, not normalized; longer audio is truncated."""
        frames = self.audio_patch.in_features // audio.values.shape[2]
        max_frames = frames * len(self.audio_position)
        values = (audio.values * audio.mask[..., None])[:, :max_frames]
        values = F.pad(values, (0, 0, 0, -values.shape[1] % frames))
        tokens = self.audio_patch(values.unflatten(1, (-1, frames)).flatten(2))
        lengths = (audio.lengths.clamp(max=max_frames) + frames - 1) // frames
        return self.audio_to_va(self._shared(Padded(tokens + self.audio_position[: tokens.shape[1]], lengths), "audio"))

    def encode_text(self, text: Tokens) -> Float[Tensor, "batch dim"]:
        """Return embeddings in the space of video and text, not normalized."""
        tokens = self.word_projection(self.word_embedding(text.ids)) + self.text_position[: text.ids.shape[1]]
        return self.text_to_vt(self._shared(Padded(tokens, text.lengths), "text"))

    def _shared(self, tokens: Padded, modality: str) -> Float[Tensor, "batch width"]:
        """Return the pooled output of the shared transformer: the AGG token's, or the mean over tokens."""
        if self.training and self.patch_drop_rate and modality != "text":
            tokens = drop_tokens(tokens, self.patch_drop_rate)
        agg = len(self.agg_tokens) > 0
        if agg:
            first = self.agg_tokens[modality].expand(len(tokens), 1, -1)
            tokens = Padded(torch.cat([first, tokens.values], 1), tokens.lengths + 1)
        packing = Packing.of(tokens.mask)
        packed = self.norm_post(self.backbone(self.norm_pre(packing.pack(tokens.values)), packing))
        return packing.pad(packed)[:, 0] if agg else mean_pool(packed, packing)

    def encode(self, batch: TripletBatch) -> dict[str, Tensor]:
        """Return the features of each triplet, not normalized. `video`, in its space with audio, has both losses."""
        video = self.encode_video(batch["video"])
        ones = torch.ones(len(video), device=video.device)
        return {
            "video": video,
            "audio": self.encode_audio(batch["sound"]),
            "text": self.encode_text(batch["text"]).unflatten(0, (len(video), -1)),
            "has_audio": batch["has_sound"].to(ones) if "has_sound" in batch else ones,
            "has_text": batch["has_text"].to(ones) if "has_text" in batch else ones,
        }

    def contrastive_losses(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return NCE of video and audio, and MIL-NCE of video and its texts (VATT, section 3.4).

        features: `video` and `audio` in their space, `text` (batch, texts of a video, dim) in its own, not normalized;
        `has_audio` and `has_text`, 0 for examples without.
        """
        va, scale = features["video"], 1 / self.temperature
        video, audio = F.normalize(va, dim=-1), F.normalize(features["audio"], dim=-1)
        video_for_text, text = F.normalize(self.va_to_vt(va), dim=-1), F.normalize(features["text"], dim=-1)
        return {
            "video_audio": mil_nce(video, audio[:, None], scale, _given(features, "audio")),
            "video_text": mil_nce(video_for_text, text, scale, _given(features, "text")),
        }

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return L2-normalized vectors of both spaces side by side; audio is 0 in that of text, and text in that of
        audio."""
        vectors = {}
        if "video" in batch:
            va = self.encode_video(batch["video"])
            both = [F.normalize(va, dim=1), F.normalize(self.va_to_vt(va), dim=1)]
            vectors["video"] = torch.cat(both, dim=1) / math.sqrt(2)
        if "sound" in batch:
            vectors["sound"] = F.pad(F.normalize(self.encode_audio(batch["sound"]), dim=1), (0, self.text_dim))
        if "text" in batch:
            text = F.normalize(self.encode_text(batch["text"]), dim=1)
            vectors["text"] = F.pad(text, (self.audio_to_va.out_features, 0))
        return vectors


def _given(features: dict[str, Tensor], modality: str) -> Bool[Tensor, " batch"]:
    return features[f"has_{modality}"].detach() > 0


def drop_tokens(tokens: Padded, rate: float) -> Padded:
    """Keep a random subset of the tokens of each sequence (DropToken, VATT, section 3.1.1), in their order.

    rate: fraction to drop; at least one token is kept.
    """
    lengths = (tokens.lengths * (1 - rate)).long().clamp(min=1)
    noise = torch.rand(tokens.values.shape[:2], device=tokens.values.device).masked_fill(~tokens.mask, 2.0)
    rank = noise.argsort(1).argsort(1)
    # Kept tokens first, in their order.
    order = (rank >= lengths[:, None]).long().sort(dim=1, stable=True).indices[:, : int(lengths.max())]
    return Padded(tokens.values.gather(1, order[..., None].expand(-1, -1, tokens.values.shape[2])), lengths)
