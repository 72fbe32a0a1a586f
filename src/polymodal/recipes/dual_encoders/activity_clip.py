"""Activity CLIP: a low-data ladder, from training on few labels from scratch to transfer of contrastive pre-training.

The paper recognizes the activity in a photograph (285 images of MSCOCO, three classes) by networks from scratch, with
regularization, by a pretrained ViT and by CLIP, whose fine-tuned multimodal form is best. Its rungs are options of one
recipe, which pre-trains towers on captions of examples without a label (stage A), and adapts them to N labels, as many
of each class (stage B). M1 compares images with prompts of classes; M2 also reads the caption of the image, which often
says the activity, so that it is another task with scores of its own name.

No code and no full text of the paper could be read: sizes, rates, prompts and the form of M1 and M2 are ours. Differs
from it in: images are drawn; 49 activities in the place of three, which a tower from scratch told apart by layout, and
test images by vendors without labels in the place of folds (both chosen by validation before the claims were run); the
51 validation labels that tune rates come beside the N; no random turns; one corpus in stage A. `--early-stop N` counts
validations of stage B. B2 is `--image.depth 0`, a CNN of three convolutions; for the paper's B1 and B2 set dropout,
weight decay and augmentation to none. A pretrained ViT is `--vision hf:NAME --pretraining given`, a pretrained CLIP
`--init hf:NAME --pretraining-fraction 0`.

Terms: B1 = architecture, scratch (B2) and regularized (B3) = pretraining, ViT (T1) =
_label_classifiers.TowerClassifier, zero-shot (T2a) and M1 = _label_classifiers.PromptClassifier, linear (T2b) and
fine-tuned (T2c) = _label_classifiers.CLIPClassifier, M2 = _label_classifiers.MultimodalClassifier, stage A =
Recipe.pretraining_rows, stage B = Recipe.labelled_rows, N labels = data.few_shot.few_shot_rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveFloat, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.text import ShuffledTextColumn, TextColumn
from polymodal.data.few_shot import FewShotOrder, check_labels, rows_with, rows_with_label
from polymodal.data.processor import Declared, Processor, Sparse
from polymodal.encoders.feed_forward import FeedForwardEncoder
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import clip
from polymodal.errors import UserError
from polymodal.evaluation.prompt_templates import checked_templates, prompts_of
from polymodal.modalities import Image, Text
from polymodal.modalities.image_augmentation import ImageAugmentation, augment
from polymodal.modalities.text_augmentation import without_these_words, words_of
from polymodal.recipes.dual_encoders._base import DualEncoderRecipe
from polymodal.recipes.dual_encoders._label_classifiers import (
    CLIPClassifier,
    FewShotBatch,
    MultimodalClassifier,
    PromptClassifier,
    TowerClassifier,
)
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="activity-clip",
    title="Leveraging Vision-Language Pre-training for Human Activity Recognition in Still Images",
    year=2025,
    arxiv="2506.13458",
    modalities=("image", "text", "label"),
    parameters={"*": 151_277_313},  # the released CLIP ViT-B/32; which CLIP the paper takes could not be read
)


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    image: ImageEncoderConfig = ImageEncoderConfig(48, stem=(32, 64, 128), width=128, depth=1, pool_type="max")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    pretraining: Literal["captions", "shuffled_captions", "labels", "given", "none"] = "captions"
    """Stage A: contrast with captions; with those of other images (a control); a classifier of `pretraining_column`;
    none, but the tower of `--vision` or `--init`; or none, from scratch."""
    adaptation: Literal["zero_shot", "linear", "fine_tuned", "contrastive", "multimodal"] = "fine_tuned"
    """Stage B: none (T2a); a linear head on frozen features (T1a, T2b) or with the tower (B, T1b, T2c); prompts with
    both towers (M1); image and caption of each example (M2), whose scores have a name of their own."""
    architecture: Literal["tower", "feed_forward"] = "tower"
    """Image tower: that of `image`, or two hidden layers on pixels (B1)."""
    pretrain_on: Literal["unlabelled", "all"] = "unlabelled"
    """Rows of stage A. Those with a label would show the classes to zero-shot classification."""
    pretraining_column: str = "category"
    """Column of classes that `--pretraining labels` learns."""
    pretraining_fraction: UnitInterval = 0.7
    """Fraction of the budget for stage A; 0 where towers come from `--init`."""
    num_labels: NonNegativeInt = 0
    """N: labelled training examples, as many of each class, sampled at random by the seed; 0: all."""
    adaptation_lr_scale: PositiveFloat = 1.0
    """Learning rate of the head in stage B, relative to stage A."""
    tower_lr_scale: PositiveFloat = 0.1
    """Learning rate of pretrained towers in stage B, relative to the head's; a tower from scratch learns like it."""
    adaptation_augmentation: ImageAugmentation = ImageAugmentation(hflip_prob=0.5, color_jitter_prob=0.8)
    """Augmentation of labelled images (B3: flip, crop, color)."""
    head_dropout: DecayRate = 0.2
    """Dropout before a linear head."""
    templates: tuple[str, ...] = ("a person who is {}",)
    """Prompts of a class (T2a, M1), whose embeddings are averaged."""
    masked_words: tuple[str, ...] = ()
    """Words that M2's captions are read without, beside those of the names of classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_templates(self.templates or ("",))
        if not self.has_text and self.adaptation not in ("linear", "fine_tuned"):
            raise UserError(f"--adaptation {self.adaptation} needs towers of captions; take --pretraining captions.")
        if self.adaptation == "zero_shot" and not self.pretraining_fraction:
            raise UserError("--adaptation zero_shot trains stage A alone; take --pretraining-fraction above 0.")
        if self.has_text and self.architecture == "feed_forward":
            raise UserError("--architecture feed_forward has no captions; take --pretraining none.")

    @property
    def has_text(self) -> bool:
        return self.pretraining in ("captions", "shuffled_captions")

    def build(self, processor: Processor) -> TowerClassifier | CLIPClassifier | PromptClassifier | MultimodalClassifier:
        classes, dropout = processor.label.names, self.head_dropout
        if not self.has_text:
            feed_forward = partial(FeedForwardEncoder, self.image.image_size, self.image.width)
            tower = self.image.build if self.architecture == "tower" else feed_forward
            categories = len(processor.category.names) if self.pretraining == "labels" else 0
            return TowerClassifier(tower, self.image.width, len(classes), dropout, categories)
        vocabulary = processor.tokenizer.vocab_size
        if self.adaptation == "multimodal":
            return MultimodalClassifier(self, vocabulary, len(classes), words_of([*classes, *self.masked_words]))
        if self.adaptation in ("linear", "fine_tuned"):
            return CLIPClassifier(self, vocabulary, len(classes), dropout)
        prompts = [prompt for name in classes for prompt in prompts_of(name.replace("_", " "), self.templates)]
        return PromptClassifier(self, vocabulary, processor.text(prompts), len(self.templates))

    def stages(self) -> tuple[Stage, ...]:
        towers = ("image_*", "text_*", "logit_scale*")
        first = 0.0 if self.pretraining in ("given", "none") else self.pretraining_fraction
        first = 1.0 if self.adaptation == "zero_shot" else first
        trainable = {"linear": ("head.*",), "fine_tuned": ("image_encoder.*", "head.*"), "contrastive": towers}
        adaptation = Stage(
            "adaptation",
            1 - first,
            trainable.get(self.adaptation, ("image_*", "text_*", "head.*")),
            lr_scale=self.adaptation_lr_scale,
            lr_scales=dict.fromkeys(towers, 1.0 if self.pretraining == "none" else self.tower_lr_scale),
            rows="labelled_rows",
            order="few_labels",
            batch="labelled_batch",
            losses="classification_losses",
            on_start="from_scratch" if self.pretraining == "none" else None,
        )
        if self.has_text:
            return Stage("pre-training", first, towers, rows="pretraining_rows"), adaptation
        by_label = ("image_encoder.*", "category_head.*")
        return Stage("pre-training", first, by_label, rows="pretraining_rows", batch="category_batch"), adaptation

    def cacheable_encoders(self) -> tuple[str, ...]:
        return ("text_encoder",) if self.has_text else ()

    def columns(self) -> Declared:
        image = ImageColumn.of(self.image.image_size, self.image.image_mean_std)
        columns: Declared = {"image": image, "label": LabelColumn(may_lack=True)}
        if self.pretraining == "labels":
            return {**columns, "category": LabelColumn(column=self.pretraining_column, may_lack=True)}
        if not self.has_text:
            return columns
        text = TextColumn(self.text) if self.pretraining == "captions" else ShuffledTextColumn(self.text)
        return {**columns, "text": text if self.adaptation == "multimodal" else Sparse(text)}

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """The corpus. Raises UserError, before anything is trained, for one without rows for a stage."""
        if corpus.label is not None:
            check_labels(corpus)
            first, last = self.stages()
            if first.fraction:
                self.pretraining_rows(corpus, None)
            if last.fraction:
                self.few_labels(corpus.with_splits({**corpus.splits, "train": rows_with_label(corpus)}), None, 0)
        return [corpus]

    def pretraining_rows(self, corpus: Corpus, processor: Processor | None) -> np.ndarray:
        """Return the rows of stage A. Raises UserError where all have a label."""
        columns = [corpus.column_with(Text if self.has_text and corpus.has_modality(Text) else Image)]
        if self.pretraining == "labels":
            LabelColumn(column=self.pretraining_column).fit([corpus], {})  # raises UserError where there is none
            columns.append(self.pretraining_column)
        rows = rows_with(corpus, columns)
        rows = rows if self.pretrain_on == "all" else np.setdiff1d(rows, rows_with_label(corpus))
        if not len(rows):
            raise UserError(
                f"All training examples of '{corpus.name}' with {' and '.join(columns)} have a {corpus.label}, which "
                "pre-training would show; take --pretrain-on all, or --pretraining-fraction 0 with --init."
            )
        return rows

    def labelled_rows(self, corpus: Corpus, processor: Processor) -> np.ndarray:
        """Return the labelled training rows, again and again until they fill a batch."""
        rows = rows_with_label(corpus)
        return np.tile(rows, -(-self.batch_size // len(rows)))

    def few_labels(self, corpus: Corpus, mined: np.ndarray | None, seed: int) -> FewShotOrder:
        """N labelled rows, balanced over classes and sampled by the seed, again and again."""
        rows = np.unique(corpus.rows("train"))
        return FewShotOrder(rows, corpus.raw_values(rows, corpus.label or ""), self.num_labels, seed)

    def category_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> FewShotBatch:
        """An augmented view of each image, and its category (T1)."""
        image = self._augmented(examples, processor, self.augmentation, example_rng)
        return {"image": image, "label": processor.category([example["category"] for example in examples])}

    def labelled_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> FewShotBatch:
        """An augmented view of each image, and its class; for M2 a caption, without words that name a class."""
        image = self._augmented(examples, processor, self.adaptation_augmentation, example_rng)
        label = processor.label([example["label"] for example in examples])
        batch: FewShotBatch = {"image": image, "label": label}
        if self.adaptation == "multimodal":
            words = words_of([*processor.label.names, *self.masked_words])
            captions = self.sample_captions(examples, processor.text, example_rng)
            batch["text"] = processor.text([without_these_words(caption, words) for caption in captions])
        return batch

    def _augmented(
        self, examples: list[Example], processor: Processor, augmentation: ImageAugmentation, example_rng: ExampleRNG
    ) -> Tensor:
        pixels = processor.image.pixels([example["image"] for example in examples])
        return processor.image.normalize(augment(pixels, augmentation, example_rng))

    @classmethod
    def tiny(cls) -> Recipe:
        return replace(super().tiny(), pretrain_on="all", pretraining_fraction=0.5, adaptation="contrastive")

    @classmethod
    def paper(cls) -> Recipe:
        """M1 from CLIP ViT-B/32 on four fifths of 285 images; rates and batch are choices of this package."""
        towers = clip("ViT-B/32")
        return cls(
            **{name: getattr(towers, name) for name in ("image", "text", "embed_dim")},
            adaptation="contrastive",
            pretraining_fraction=0.0,
            num_labels=228,
            batch_size=32,
            tower_lr_scale=0.01,  # 1e-5; the head has 1e-3
        )
