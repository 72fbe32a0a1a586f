"""Gradient harmonization: conflicting gradients of two contrastive losses as a sign of misaligned triplets.

Video, sound and text go through one transformer (VATT). Video is contrasted with sound in one space, and with text in
another that is made of the first. Where sound or text do not belong to the video, the gradients of the two losses by
the shared weights tend to conflict: then they are projected off each other (`--gradient-harmonization realign`), groups
of triplets whose gradients conflict most are left out, more of them as training goes on (`curriculum`), or both. Any
recipe of two or more losses can do that by its `gradient_transform`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.data.columns.audio import AudioColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.columns.video import VideoColumn
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.transformer import Packing, Transformer, mean_pool
from polymodal.modalities.image import patchify
from polymodal.modalities.image_augmentation import ImageAugmentation, may_flip
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.objectives.contrastive import info_nce
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import GradCacheMethod
from polymodal.training.gradient_harmonization import GradientHarmonizer
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper

paper = Paper(
    slug="gradient-harmonization",
    title="Scaling multimodal pre-training via cross-modality gradient harmonization",
    year=2022,
    arxiv="2211.02077",
    modalities=("video", "audio", "text"),
)


class TripletBatch(TypedDict):
    video: Float[Tensor, "batch frames 3 size size"]
    sound: Padded
    text: Tokens


class VATT(GradCacheMethod, nn.Module):
    """A way in for each modality, one transformer for all, and two spaces, of which the second is made of the first."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        config, width = recipe.video, recipe.video.width
        self.recipe = recipe
        std = width**-0.5
        self.patch = nn.Linear(3 * config.patch_size**2, width)
        self.places = nn.Parameter(std * torch.randn(config.frames, config.grid**2, width))
        self.stretch = nn.Linear(recipe.audio_patch_frames * recipe.num_mel_bins, width)
        self.moments = nn.Parameter(std * torch.randn(recipe.max_audio_tokens, width))
        self.word = nn.Embedding(vocabulary, width)
        self.order = nn.Parameter(std * torch.randn(recipe.text.context_length, width))
        nn.init.normal_(self.word.weight, std=std)
        self.norm_pre = nn.LayerNorm(width)
        self.backbone = Transformer(width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(width)
        self.video_head, self.sound_head = nn.Linear(width, recipe.embed_dim), nn.Linear(width, recipe.embed_dim)
        # Without the paper's batch norm, which would see the few examples of a group.
        self.deeper = nn.Sequential(
            nn.Linear(recipe.embed_dim, recipe.embed_dim), nn.ReLU(), nn.Linear(recipe.embed_dim, recipe.text_dim)
        )
        self.text_head = nn.Linear(width, recipe.text_dim)
        self.sound_logit_scale, self.text_logit_scale = LogitScale(), LogitScale()

    def _through(self, tokens: Padded) -> Float[Tensor, "batch width"]:
        """The mean of the tokens of one modality after the shared transformer."""
        packing = Packing.of(tokens.mask)
        packed = self.backbone(self.norm_pre(packing.pack(tokens.values)), packing)
        return mean_pool(self.norm_post(packed), packing)

    def encode_video(self, video: Float[Tensor, "batch frames 3 size size"]) -> Float[Tensor, "batch dim"]:
        """In the space of video and sound, not yet normalised."""
        patches = self.patch(patchify(video.flatten(0, 1), self.recipe.video.patch_size)).unflatten(0, video.shape[:2])
        tokens = (patches + self.places[: video.shape[1]]).flatten(1, 2)
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        return self.video_head(self._through(Padded(tokens, lengths)))

    def encode_audio(self, sound: Padded) -> Float[Tensor, "batch dim"]:
        """In the space of video and sound, not yet normalised. What is longer than the longest sound is left out."""
        frames, most = self.recipe.audio_patch_frames, self.recipe.max_audio_tokens
        values = (sound.values * sound.mask[..., None])[:, : frames * most]
        values = F.pad(values, (0, 0, 0, -values.shape[1] % frames))
        tokens = self.stretch(values.unflatten(1, (-1, frames)).flatten(2))
        lengths = (sound.lengths.clamp(max=frames * most) + frames - 1) // frames
        return self.sound_head(self._through(Padded(tokens + self.moments[: tokens.shape[1]], lengths)))

    def encode_text(self, text: Tokens) -> Float[Tensor, "batch text_dim"]:
        """In the space of video and text, not yet normalised."""
        tokens = self.word(text.ids) + self.order[: text.ids.shape[1]]
        return self.text_head(self._through(Padded(tokens, text.lengths)))

    def encode(self, batch: TripletBatch) -> dict[str, Tensor]:
        """Video and sound in their space, and video and text in theirs; normalised."""
        seen = self.encode_video(batch["video"])
        vectors = {"video": seen, "sound": self.encode_audio(batch["sound"]), "video_for_text": self.deeper(seen)}
        vectors["text"] = self.encode_text(batch["text"])
        return {name: F.normalize(vector, dim=1) for name, vector in vectors.items()}

    def contrastive_losses(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """video_sound and video_text."""
        return {
            "video_sound": info_nce(vectors["video"], vectors["sound"], self.sound_logit_scale()),
            "video_text": info_nce(vectors["video_for_text"], vectors["text"], self.text_logit_scale()),
        }

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Both spaces side by side: sound has nothing in that of texts, and text nothing in that of sounds."""
        vectors = {}
        if "video" in batch:
            seen = self.encode_video(batch["video"])
            both = [F.normalize(seen, dim=1), F.normalize(self.deeper(seen), dim=1)]
            vectors["video"] = torch.cat(both, dim=1) / math.sqrt(2)
        if "sound" in batch:
            vectors["sound"] = F.pad(F.normalize(self.encode_audio(batch["sound"]), dim=1), (0, self.recipe.text_dim))
        if "text" in batch:
            vectors["text"] = F.pad(F.normalize(self.encode_text(batch["text"]), dim=1), (self.recipe.embed_dim, 0))
        return vectors


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 64
    gradient_harmonization: Literal["none", "realign", "curriculum", "both"] = "none"
    """Project conflicting gradients off each other (algorithm 1), leave out groups of examples whose gradients conflict
    most (algorithm 2), or both."""
    gradient_group_size: NonNegativeInt = 4
    """Examples whose gradients are compared together, and which divide the batch; 0 takes the micro-batches."""
    video: VideoEncoderConfig = VideoEncoderConfig(frames=3, image_size=48)
    """Frames and patches of a clip; width, depth and heads of the one transformer."""
    text: TextEncoderConfig = TextEncoderConfig(vocab_size=2000, context_length=48)
    """Vocabulary and longest text."""
    num_mel_bins: PositiveInt = 80
    """Mel bins of a sound."""
    audio_patch_frames: PositiveInt = 10
    """Frames of 10 ms that make one token of a sound; the paper takes raw samples."""
    max_audio_tokens: PositiveInt = 20
    """Tokens of the longest sound."""
    embed_dim: PositiveInt = 64
    """Dimensions of the space of video and sound."""
    text_dim: PositiveInt = 64
    """Dimensions of the space of video and text, which is made of the first."""
    mismatch_rate: UnitInterval = 0.0
    """Share of triplets whose text, or as often whose sound, is another example's, to measure what that does."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.6, 1.0), hflip_prob=0.5)

    def gradient_transform(self) -> GradientHarmonizer | None:
        kind = self.gradient_harmonization
        return None if kind == "none" else GradientHarmonizer(kind, self.gradient_group_size)

    def columns(self) -> Declared:
        longest = self.audio_patch_frames * self.max_audio_tokens / 100
        return {
            "video": VideoColumn(self.video.frames, self.video.image_size),
            "sound": AudioColumn(self.num_mel_bins, max_audio_seconds=longest),
            "text": TextColumn(self.text),
        }

    def build(self, processor: Processor) -> VATT:
        return VATT(self, processor.tokenizer.vocab_size)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> TripletBatch:
        """Some frames of each clip, changed alike, its sound, and one of its texts; some are another example's."""
        lot = example_rng.uniform().tolist()
        other = [*range(1, len(examples)), 0]
        texts = [other[n] if one < self.mismatch_rate / 2 else n for n, one in enumerate(lot)]
        sounds = [other[n] if one >= 1 - self.mismatch_rate / 2 else n for n, one in enumerate(lot)]
        flip = may_flip([example["text"] for example in examples])
        said = [
            processor.text.sample_caption(e["text"], rng)
            for e, rng in zip(examples, example_rng.generators, strict=True)
        ]
        return {
            "video": processor.video.changed(
                [example["video"] for example in examples], self.augmentation, example_rng, flip
            ),
            "sound": processor.sound([examples[n]["sound"] for n in sounds]),
            "text": processor.text([said[n] for n in texts]),
        }

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            video=VideoEncoderConfig(frames=2, patch_size=16, width=16, depth=1, num_heads=2),
            text=TextEncoderConfig(300, context_length=24),
            num_mel_bins=20,
            max_audio_tokens=6,
            embed_dim=16,
            text_dim=16,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """VATT's modality-agnostic backbone (medium) on HowTo100M and AudioSet, in groups of one core."""
        return cls(
            video=VideoEncoderConfig(frames=32, image_size=224, patch_size=16, width=1024, depth=24, num_heads=16),
            text=TextEncoderConfig(65_536, context_length=16),
            max_audio_tokens=240,
            embed_dim=512,
            text_dim=256,
            gradient_harmonization="both",
            batch_size=2048,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_ratio=10_000 / 500_000),
        )
