"""Gradient harmonization: conflicting gradients of two contrastive losses as a sign of misaligned triplets.

Video, audio and text go through one transformer (VATT). Where audio or text do not belong to the video, the gradients
of the two losses by the shared weights tend to conflict. Then they are projected off each other, triplets whose
gradients conflict most are skipped, more of them as training proceeds, or both. Any recipe with two or more losses can
do so by its `gradient_transform`.

Differs from the paper in: audio is a log-mel spectrogram, not raw samples; the heads have no batch norm; word
embeddings are learned from random weights (VATT's released code: frozen word2vec); both losses are added up, where that
code has their mean, which Adam does not tell apart; a head of the comparison, which is no part of the shared weights,
learns from the triplets that are kept among themselves. The curriculum's thresholds, -0.3 to 0, could not be checked,
as the paper has no public code.

Terms: VATT = models.vatt.VATTModel, gradient realignment = training.gradient_harmonization.project_conflicting,
curriculum = training.gradient_harmonization.GradientHarmonizer, NCE and MIL-NCE = objectives.multi_positive.mil_nce,
DropToken = models.vatt.drop_tokens, FAC head = VATTModel.va_to_vt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from polymodal.constraints import AtLeastTwo, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.audio import AudioColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.columns.video import VideoColumn
from polymodal.data.pools import rotated
from polymodal.data.processor import Declared, Processor, Sparse
from polymodal.data.video_text import sample_texts
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.modalities.image_augmentation import ImageAugmentation, may_flip
from polymodal.models.vatt import TripletBatch, VATTModel
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import GradCacheMethod
from polymodal.training.gradient_harmonization import GradientHarmonizer
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe, around
from polymodal.types import Example, Paper

paper = Paper(
    slug="gradient-harmonization",
    title="Scaling multimodal pre-training via cross-modality gradient harmonization",
    year=2022,
    arxiv="2211.02077",
    modalities=("video", "audio", "text"),
)


class VATT(VATTModel, GradCacheMethod):
    """VATT with losses in two halves, so that gradients can be compared by example."""


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 64
    gradient_harmonization: Literal["none", "realign", "curriculum", "both", "random"] = "none"
    """Project conflicting gradients (realign, algorithm 1), skip triplets whose gradients conflict most (curriculum,
    algorithm 2), or both; random skips as many triplets as the curriculum, sampled at random."""
    gradient_granularity: Literal["group", "feature"] = "group"
    """What is compared: gradients of shared parameters by each group of triplets, or gradients of each triplet's video
    feature."""
    gradient_group_size: NonNegativeInt = 4
    """Triplets of a group, which divide the batch of a process; 1 is a single triplet, 0 takes the micro-batches."""
    gradient_parameters: tuple[str, ...] = ("backbone.*",)
    """Shell patterns of the names of the shared parameters whose gradients are compared and projected."""
    video: VideoEncoderConfig = VideoEncoderConfig(frames=3, image_size=48)
    """Frames and patches of a clip; width, depth, heads and pooling (cls: AGG token) of the one transformer."""
    temporal_patch_size: PositiveInt = 1
    """Frames of a video token (voxel)."""
    patch_drop_rate: UnitInterval = 0.0
    """Fraction of video and audio tokens that training drops (DropToken)."""
    dropout: UnitInterval = 0.0
    """Dropout of the transformer (0.1 in VATT's released code)."""
    text: TextEncoderConfig = TextEncoderConfig(vocab_size=2000, context_length=48)
    """Vocabulary and maximum length of texts."""
    word_dim: PositiveInt | None = None
    """Dimensions of word embeddings, which are projected to the width; None: the width."""
    num_texts: PositiveInt = 1
    """Texts of each video that are a bag of positives (MIL-NCE)."""
    num_mel_bins: PositiveInt = 80
    """Mel bins of a spectrogram."""
    audio_patch_frames: PositiveInt = 10
    """Spectrogram frames of 10 ms per audio token."""
    max_audio_tokens: PositiveInt = 20
    """Maximum number of audio tokens."""
    embed_dim: PositiveInt = 64
    """Dimensions of the space of video and audio."""
    text_dim: PositiveInt = 64
    """Dimensions of the space of video and text, to which the first is projected."""
    temperature: PositiveFloat = 0.07
    """Temperature of both losses."""
    mismatch_rate: UnitInterval = 0.0
    """Fraction of triplets whose text, or as often whose audio, is another example's, to measure what that does."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.6, 1.0), hflip_prob=0.5)

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"embed_dim": 128, "text_dim": 128},
        "base": {"embed_dim": 512, "text_dim": 256, "max_audio_tokens": 32},
    }

    def gradient_transform(self) -> GradientHarmonizer | None:
        if self.gradient_harmonization == "none":
            return None
        group = 0 if self.gradient_granularity == "feature" else self.gradient_group_size
        return GradientHarmonizer(
            self.gradient_harmonization,
            group,
            self.gradient_granularity,
            self.gradient_parameters,
            "misaligned" if self.mismatch_rate else "",
        )

    def tuning_grid(self) -> dict[str, tuple[float, ...]]:
        """Return learning rates and values of the temperature around the recipe's own."""
        return self._learning_rates() | {"temperature": around(self.temperature, 0.5, 2)}

    def columns(self) -> Declared:
        longest = self.audio_patch_frames * self.max_audio_tokens / 100
        return {
            "video": VideoColumn(self.video.frames, self.video.image_size),
            "sound": Sparse(AudioColumn(self.num_mel_bins, max_audio_seconds=longest)),
            "text": Sparse(TextColumn(self.text)),
        }

    def build(self, processor: Processor) -> VATT:
        return VATT(
            self.video,
            processor.tokenizer.vocab_size,
            self.text.context_length,
            self.audio_patch_frames * self.num_mel_bins,
            self.max_audio_tokens,
            self.embed_dim,
            self.text_dim,
            self.word_dim,
            self.temporal_patch_size,
            self.patch_drop_rate,
            self.temperature,
            self.dropout,
        )

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> TripletBatch:
        """Sample frames of each clip, augmented alike, its audio and some of its texts; misalign some triplets."""
        uniform = example_rng.uniform()
        texts = rotated(uniform < self.mismatch_rate / 2)
        sounds = rotated(uniform >= 1 - self.mismatch_rate / 2)
        captions = [example.get("text", []) for example in examples]
        clips = [example["video"] for example in examples]
        sampled = sample_texts(captions, processor, example_rng, self.num_texts)
        silence = np.zeros((1, self.num_mel_bins), np.float32)  # of examples without audio, which no loss sees
        batch: TripletBatch = {
            "video": processor.video.changed(clips, self.augmentation, example_rng, may_flip(captions)),
            "sound": processor.sound([examples[n].get("sound", silence) for n in sounds]),
            "text": processor.text([text for n in texts for text in sampled[n]]),
        }
        if any("sound" not in example for example in examples):
            batch["has_sound"] = torch.tensor(["sound" in examples[n] for n in sounds])
        if not all(captions):
            batch["has_text"] = torch.tensor([bool(captions[n]) for n in texts])
        if self.mismatch_rate:
            batch["misaligned"] = torch.tensor([(texts[n], sounds[n]) != (n, n) for n in range(len(examples))])
        return batch

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
        """Return VATT-MA-Medium (155M parameters without words) on HowTo100M and AudioSet, in groups of one core.

        Values are those of the released configs of VATT (UniTMedium, FACBridge, AsymmetricNCE, Pretrain). The released
        model reads 128 raw samples at 48 kHz per audio token; here 3.2 s of audio are 32 tokens. Warmup of 10k steps,
        as in the paper, is 5k in the released config.
        """
        return cls(
            video=VideoEncoderConfig(
                frames=32, image_size=224, patch_size=16, width=1024, depth=12, num_heads=16, pool_type="cls"
            ),
            temporal_patch_size=4,
            patch_drop_rate=0.5,
            dropout=0.1,
            text=TextEncoderConfig(65_536, context_length=16),
            word_dim=300,
            num_texts=5,
            max_audio_tokens=32,
            embed_dim=512,
            text_dim=256,
            temperature=0.07,
            gradient_harmonization="both",
            gradient_group_size=8,  # 2048 triplets on 256 cores
            batch_size=2048,
            optimizer=OptimizerConfig(
                learning_rate=1e-4,
                min_lr_ratio=0.5,
                warmup_ratio=10_000 / 500_000,
                weight_decay=0.0,
                betas=(0.9, 0.999),
                eps=1e-7,
                max_grad_norm=0.0,
            ),
        )
