"""UniQA: one vision-language pre-training for quality and aesthetics of images, and scores from ordered prompts.

A dual encoder is trained on images with texts about their quality and their aesthetics, which a language model wrote
for their scores, and on comments of users, of which those are kept that are long and similar to the generated text
(AR + IR). It is then frozen: a residual adapter on the image vector and the softmax over the prompts "bad image" to
"perfect image" give the score, the expectation of learned levels, which is trained by few labelled images.

Differs from the paper and the released code in: no language model is called: texts are those of a column of
descriptions, else made of the scores by templates (prompt for a language model: data.rated_texts.instruction);
relevance is the cosine of TF-IDF vectors, or of a pretrained text encoder with --relevance-encoder; a text of an image
with comments is its description or a comment, each with probability 1/2, where the released code lists the image twice;
pre-training crops images, too, where the released code resizes them to 224 px; no ResNet-50, the paper's default; all
scores have adapters of their own on one encoder, in one run, whose checkpoint holds the frozen encoders; the adapter's
stage has batch size and optimizer of pre-training (AdamW and a cosine; released: Adam with L2 at a constant rate, and
without it for the adapter), with another learning rate; images are loaded as squares; one split, not the median of ten.
Few labels are those of the adapter: texts made of scores are of all training images, in the paper of other data sets.

Terms: generated text = data.rated_texts.texts_of_score, purification (AR and IR) = data.rated_texts.purified, unified
pre-training = Recipe.stages, multi-cue adapter = models.score_adapters.ScoreAdapters, score levels =
layers.expected_score.ExpectedScore, prompt ensemble = data.rated_texts.PROMPT_GROUPS, zero-shot =
UniQA.zero_shot_scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.rated_texts import CommentsColumn, CommentSelection, RatedTextColumn
from polymodal.data.columns.scores import ScoresColumn
from polymodal.data.processor import Declared, Optional, Processor
from polymodal.data.rated_texts import PROMPT_GROUPS, QUALITY_LEVELS
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import clip
from polymodal.encoders.text_similarity import text_similarity
from polymodal.errors import UserError
from polymodal.modalities.image_augmentation import center_crop, random_crop
from polymodal.modalities.text import Tokens, text_ids
from polymodal.modalities.text_augmentation import without_words
from polymodal.models.dual_encoder import TokenEmbeddings
from polymodal.models.score_adapters import PromptedScorer, RatedBatch
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.multi_positive import multi_positive_info_nce
from polymodal.recipes.dual_encoders._base import DualEncoder, ImageTextBatch, TwoTowerRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="uniqa",
    title="UniQA: Unified Vision-Language Pre-training for Image Quality and Aesthetic Assessment",
    year=2024,
    arxiv="2406.01069",
    modalities=("image", "text"),
    code="zht8506/UniQA@964145990ca45c57822f5cd5e033587d580be6be",
    parameters={"* !adapters.*": 149_620_737},  # CLIP ViT-B/16, of the released weights
)


class RatedTextBatch(ImageTextBatch):
    """text_ids: equal for equal texts."""

    text_ids: Float[Tensor, " batch"]


class UniQA(PromptedScorer, DualEncoder):
    """adapters: for each score, the residual adapter and the levels of the prompts."""

    def __init__(self, recipe: Recipe, prompts: Tokens, vocabulary: int, scores: Sequence[str]):
        super().__init__(recipe, vocabulary)
        self.recipe = recipe
        self.add_adapters(prompts, scores, len(QUALITY_LEVELS), recipe.image.image_size, recipe.num_crops)

    def encode_modality(self, name: str, value: Any) -> Float[Tensor, "batch dim"]:
        """Encode a modality; of images that are larger than a crop, the center."""
        size = self.recipe.image.image_size
        return super().encode_modality(name, center_crop(value, size) if name == "image" else value)

    def encode_tokens(self, name: str, value: Any) -> TokenEmbeddings:
        """Encode a modality with its tokens; images are resized, so that patches are those of the whole image."""
        if name == "image":
            value = F.interpolate(value, (self.recipe.image.image_size,) * 2, mode="bilinear", antialias=True)
        return super().encode_tokens(name, value)

    def encode(self, batch: RatedTextBatch) -> dict[str, Tensor]:  # type: ignore[override]
        return {**self.embed(batch), "text_ids": batch["text_ids"]}

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: symmetric InfoNCE; equal texts of the batch are positives of each other, or negatives."""
        image, text, scale = encoded["image"], encoded["text"], self.logit_scale()
        if not self.recipe.equal_texts_match:
            return {"contrastive": info_nce(image, text, scale)}
        # Ids have no gradient, which gradient caching would look for.
        return {"contrastive": multi_positive_info_nce(image, text, encoded["text_ids"].detach(), scale)}

    @two_halves("encode", "contrastive_losses")
    def losses(self, batch: RatedTextBatch) -> dict[str, Tensor]:  # type: ignore[override]
        return self.contrastive_losses(self.encode(batch))


@dataclass(frozen=True)
class Recipe(TwoTowerRecipe):
    image: ImageEncoderConfig = ImageEncoderConfig(image_size=48, stem=(24, 48, 96), width=128, depth=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    word_dropout: UnitInterval = 0.0
    """Probability with which a word of a text is left out while training."""
    load_size: PositiveInt = 96
    """Side in pixels to which images are resized before crops of `image.image_size` are cut out of them."""
    hflip_prob: UnitInterval = 0.5
    """Probability of a horizontal flip."""
    num_crops: PositiveInt = 10
    """Crops at random places whose scores are averaged at test time."""
    text_columns: tuple[str, ...] = ()
    """Columns with descriptions; by default `description`, else the first text column, else made of the scores."""
    comments: CommentSelection = "purified"
    """Comments (column `comments`) that are learned from: the best by AR + IR, as many at random, or none."""
    num_comments: PositiveInt = 4
    """Comments that are kept of each image."""
    relevance_encoder: str = ""
    """Pretrained text encoder (hf:NAME) whose cosines give the rank AR, as CLIP's in the paper; empty: TF-IDF."""
    score_columns: tuple[str, ...] = ()
    """Numeric columns with mean opinion scores; by default all."""
    lower_is_better: tuple[str, ...] = ()
    """Scores of which less is better."""
    pretraining_scores: tuple[str, ...] = ()
    """Pre-train on images with one of these scores; by default on all images."""
    equal_texts_match: bool = True
    """Whether equal texts of a batch are positives of each other's images; negatives in the released code."""
    num_labels: NonNegativeInt = 0
    """Labelled training images of each score that the adapter is trained on; 0: all."""
    adapter_fraction: UnitInterval = 0.3
    """Fraction of the budget for the adapter; 0: pre-training alone, 1: on encoders of --init."""
    adapter_lr_scale: PositiveFloat = 0.2
    """Learning rate of the adapter, relative to pre-training."""
    prompt_ensemble: bool = False
    """Whether prompts of blur, noise and low quality are averaged with those of the level."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": TwoTowerRecipe.size_fields["small"] | {"load_size": 128},
        "base": TwoTowerRecipe.size_fields["base"] | {"load_size": 288},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_size < self.image.image_size:
            raise UserError(f"Crops are of {self.image.image_size} px; take a --load-size of at least as many.")

    @property
    def prompts(self) -> list[str]:
        """The prompts of all groups, in ascending order in each."""
        return [prompt for group in PROMPT_GROUPS[: None if self.prompt_ensemble else 1] for prompt in group]

    def build(self, processor: Processor) -> UniQA:
        return UniQA(self, processor.text(self.prompts), processor.tokenizer.vocab_size, processor.scores.names)

    def stages(self) -> tuple[Stage, ...]:
        adapter = Stage("adapter", self.adapter_fraction, ("adapters.*",), lr_scale=self.adapter_lr_scale)
        encoders = ("image_*", "text_*", "logit_scale*")
        return (
            Stage("unified pre-training", 1 - self.adapter_fraction, encoders, rows="pretraining_rows"),
            replace(adapter, rows="labelled_rows", batch="rated_batch", losses="score_losses"),
        )

    def pretraining_rows(self, corpus: Corpus, processor: Processor) -> np.ndarray:
        """Return the training rows with one of the `pretraining_scores`, or with any where texts are made of them."""
        names = self.pretraining_scores or (() if processor.text.names else processor.scores.names)
        return processor.scores.rows_with(corpus, "train", names)

    def labelled_rows(self, corpus: Corpus, processor: Processor) -> np.ndarray:
        """Return the labelled training rows of all scores, again and again until they fill a batch."""
        rows = np.unique(np.concatenate(list(processor.scores.labelled_rows(corpus).values())))
        return np.tile(rows, -(-self.batch_size // len(rows)))

    def columns(self) -> Declared:
        similarity = partial(text_similarity, self.relevance_encoder) if self.relevance_encoder else None
        return {
            "image": ImageColumn.of(self.load_size, self.image.image_mean_std),
            "scores": ScoresColumn(self.score_columns, self.lower_is_better, self.num_labels),
            "text": RatedTextColumn(self.text, self.text_columns, self.prompts),
            "comments": Optional(CommentsColumn(self.comments, self.num_comments, similarity)),
        }

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> RatedTextBatch:
        """A crop of each image, and its description or one of its comments."""
        image, text, rngs = self._crops(examples, processor, example_rng), processor.text, example_rng.generators
        sampled = zip(examples, rngs, strict=True)
        texts = [text.sample_text(one["text"], one.get("comments", ()), rng) for one, rng in sampled]
        shortened = [without_words(one, self.word_dropout, rng) for one, rng in zip(texts, rngs, strict=True)]
        return {"image": image, "text": text(shortened), "text_ids": text_ids(texts)}

    def rated_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> RatedBatch:
        """A crop of each image, with its scores."""
        scores = processor.scores([example["scores"] for example in examples])
        return {"image": self._crops(examples, processor, example_rng), "scores": scores}

    def _crops(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> Tensor:
        pixels = processor.image.pixels([example["image"] for example in examples])
        return processor.image.normalize(random_crop(pixels, self.image.image_size, self.hflip_prob, example_rng))

    @classmethod
    def tiny(cls) -> Recipe:
        return replace(super().tiny(), load_size=40, num_crops=2, adapter_fraction=0.5, prompt_ensemble=True)

    @classmethod
    def paper(cls) -> Recipe:
        """5 epochs of pre-training, 50 of the adapter (KonIQ: 20) in batches of 8 (train_clip, options/train)."""
        return cls(
            **clip("ViT-B/16")._asdict(),
            load_size=384,
            equal_texts_match=False,
            batch_size=196,
            adapter_lr_scale=40.0,  # 2e-4
            optimizer=OptimizerConfig(5e-6, 0.2, (0.9, 0.98), eps=1e-6, warmup_ratio=0.0, max_grad_norm=0.0),
        )
