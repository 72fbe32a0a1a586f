"""Activity CLIP: a low-data ladder, from training on few labels from scratch to transfer of contrastive pre-training.

The paper recognizes the activity in a photograph (285 images of MSCOCO, three classes) by networks from scratch, with
regularization, by a pretrained ViT, and by CLIP, of which the fine-tuned multimodal one is best. It has no algorithm of
its own: the rungs are options of one recipe, which pre-trains two small towers on captions of examples without a label
and then adapts on `num_labels` labels, as many of each class. M1 compares images with prompts of the classes; M2 also
reads the caption of the image, which often says the activity, so that it is another task with scores of its own name.

No code and no full text of the paper could be read: sizes, rates, prompts and the form of M1 and M2 are choices of this
package. Differs from it in: images are drawn; one split by groups of near-duplicates, not folds; no random turns among
the augmentations; no unlabelled photographs (`stamps`) in pre-training. Early stopping is `--early-stop N`, by the
accuracy on validation labels; B2 is `--image.depth 0`, a CNN of three convolutions; B1 and B2 take
`--adaptation-augmentation.scale 1 1` and no flip, jitter, dropout or weight decay. A pretrained ViT (T1) is
`--vision hf:NAME --pretraining given`, a pretrained CLIP `--init hf:NAME --pretraining-fraction 0`.

Terms: B1 = FeedForward, B2 and B3 (scratch, regularised) = ImageClassifier, T1 = ImageClassifier.category_losses, T2a
(zero-shot) and M1 = PromptClassifier.classify, T2b (linear) and T2c (fine-tuned) = CLIPClassifier.classify, M2 =
MultimodalClassifier.classify_with_captions, stage A = Recipe.pretraining_stage, stage B = Recipe.adaptation_stage, N
labels = data.few_shot.few_shot_rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveFloat, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.text import ShuffledTextColumn, TextColumn
from polymodal.data.few_shot import FewShotOrder, rows_with_label
from polymodal.data.processor import Declared, Processor, Sparse
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import clip
from polymodal.errors import UserError
from polymodal.evaluation.classification import prompt_ensemble
from polymodal.evaluation.prompt_templates import checked_templates, prompts_of
from polymodal.layers.projection_head import ProjectionHead
from polymodal.modalities import Text
from polymodal.modalities.image_augmentation import ImageAugmentation, augment
from polymodal.modalities.text import Caption, Tokens
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe
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


class LabelledBatch(TypedDict, total=False):
    """text: only for M2."""

    image: Float[Tensor, "batch 3 size size"]
    text: Tokens
    label: Int[Tensor, " batch"]


class FeedForward(Encoder):
    """B1: two hidden layers on flattened pixels; the pooled vector is also the only token."""

    def __init__(self, image_size: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * image_size**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )

    def forward(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch 1 width"], Float[Tensor, "batch width"]]:
        pooled = self.mlp(image)
        return pooled[:, None], pooled


class Adapted(nn.Module):
    """What all rungs share: cross-entropy of the label, by which validation also selects."""

    validation_task = "label_classification"

    def classification_losses(self, batch: LabelledBatch) -> dict[str, Tensor]:
        return {"classification": F.cross_entropy(self.class_logits(batch), batch["label"])}

    def class_logits(self, batch: LabelledBatch) -> Float[Tensor, "batch classes"]:
        raise NotImplementedError


class ImageClassifier(Adapted):
    """B1 to B3 and T1: an image tower without text, and a linear head."""

    def __init__(self, recipe: Recipe, classes: int, categories: int = 0):
        super().__init__()
        self.recipe = recipe
        self.image_encoder = recipe.image_tower()
        self.head = nn.Sequential(nn.Dropout(recipe.head_dropout), nn.Linear(recipe.image.width, classes))
        self.category_head = nn.Linear(recipe.image.width, categories) if categories else None

    def from_scratch(self) -> None:
        """Forget what the tower began with, such as the weights of `--init`."""
        self.image_encoder.load_state_dict(self.recipe.image_tower().state_dict())

    def losses(self, batch: LabelledBatch) -> dict[str, Tensor]:
        return self.category_losses(batch) if self.category_head is not None else self.classification_losses(batch)

    def category_losses(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """category: cross-entropy of `pretraining_column`."""
        assert self.category_head is not None
        return {
            "category": F.cross_entropy(self.category_head(self.image_encoder.pooled(batch["image"])), batch["label"])
        }

    def class_logits(self, batch: LabelledBatch) -> Float[Tensor, "batch classes"]:
        return self.head(self.image_encoder.pooled(batch["image"]))

    classify = class_logits


class CLIPTowers(DualEncoder):
    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: symmetric InfoNCE of the pairs."""
        return {"contrastive": info_nce(encoded["image"], encoded["text"], self.logit_scale())}


class CLIPClassifier(Adapted, CLIPTowers):
    """T2b and T2c: a linear head on the pooled vector of CLIP's image tower, which is frozen or trained."""

    def __init__(self, recipe: Recipe, vocabulary: int, classes: int):
        super().__init__(recipe, vocabulary)
        self.head = nn.Sequential(nn.Dropout(recipe.head_dropout), nn.Linear(recipe.image.width, classes))

    def class_logits(self, batch: LabelledBatch) -> Float[Tensor, "batch classes"]:
        return self.head(self.image_encoder.pooled(batch["image"]))

    classify = class_logits


class PromptClassifier(Adapted, CLIPTowers):
    """T2a and M1: s cos(f_img(x), f_txt(prompt_c)); no text of an example is read."""

    prompt_ids: Tensor
    prompt_lengths: Tensor

    def __init__(self, recipe: Recipe, vocabulary: int, prompts: Tokens):
        super().__init__(recipe, vocabulary)
        self.per_class, self.special_tokens = len(recipe.templates), prompts.special_tokens
        self.register_buffer("prompt_ids", prompts.ids, persistent=False)
        self.register_buffer("prompt_lengths", prompts.lengths, persistent=False)

    def class_logits(self, batch: LabelledBatch) -> Float[Tensor, "batch classes"]:
        prompts = self.encode_text(Tokens(self.prompt_ids, self.prompt_lengths, self.special_tokens))
        return self.logits(self.encode_image(batch["image"]), prompt_ensemble(prompts.split(self.per_class)))

    classify = class_logits


class MultimodalClassifier(Adapted, CLIPTowers):
    """M2: z = [f_img(x) ; f_txt(caption of x)] -> MLP."""

    validation_task = "caption_classification"

    def __init__(self, recipe: Recipe, vocabulary: int, classes: Sequence[str]):
        super().__init__(recipe, vocabulary)
        sizes = [2 * recipe.embed_dim, recipe.embed_dim, len(classes)]
        self.head = ProjectionHead(sizes, norm=None, activation="relu", bias=True)
        self.masked_words = masked_words(classes, recipe.masked_words)

    def class_logits(self, batch: LabelledBatch) -> Float[Tensor, "batch classes"]:
        return self.head(torch.cat([self.encode_image(batch["image"]), self.encode_text(batch["text"])], 1))

    classify_with_captions = class_logits

    def caption_of(self, captions: Sequence[Caption]) -> str:
        """The first caption, without words that name a class."""
        return without_these(captions[0].text, self.masked_words)


def masked_words(classes: Sequence[str], further: Sequence[str]) -> frozenset[str]:
    """Words of the names of classes, and further ones, in lower case."""
    return frozenset(re.findall(r"\w+", " ".join([*classes, *further]).replace("_", " ").lower()))


def without_these(caption: str, words: frozenset[str]) -> str:
    return " ".join(word for word in caption.split() if not words & {*re.findall(r"\w+", word.lower())})


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    image: ImageEncoderConfig = ImageEncoderConfig(
        image_size=48, stem=(32, 64, 128), width=128, depth=1, pool_type="max"
    )
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
    """Learning rate of towers in stage B, relative to the head's."""
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
        if self.has_text and self.architecture == "feed_forward":
            raise UserError("--architecture feed_forward has no captions; take --pretraining none.")

    @property
    def has_text(self) -> bool:
        return self.pretraining in ("captions", "shuffled_captions")

    def image_tower(self) -> Encoder:
        """The image tower of a network without text, untrained."""
        is_tower = self.architecture == "tower"
        return self.image.build() if is_tower else FeedForward(self.image.image_size, self.image.width)

    def build(self, processor: Processor) -> nn.Module:
        classes = processor.label.names
        if not self.has_text:
            by_category = self.pretraining == "labels"
            return ImageClassifier(self, len(classes), len(processor.category.names) if by_category else 0)
        vocabulary = processor.tokenizer.vocab_size
        if self.adaptation == "multimodal":
            return MultimodalClassifier(self, vocabulary, classes)
        if self.adaptation in ("linear", "fine_tuned"):
            return CLIPClassifier(self, vocabulary, len(classes))
        prompts = [prompt for name in classes for prompt in prompts_of(name.replace("_", " "), self.templates)]
        return PromptClassifier(self, vocabulary, processor.text(prompts))

    def stages(self) -> tuple[Stage, ...]:
        return self.pretraining_stage(), self.adaptation_stage()

    def pretraining_stage(self) -> Stage:
        if self.pretraining in ("given", "none"):
            return Stage("pre-training", 0.0)
        fraction = 1.0 if self.adaptation == "zero_shot" else self.pretraining_fraction
        if not self.has_text:
            trainable: tuple[str, ...] = ("image_encoder.*", "category_head.*")
            return Stage("pre-training", fraction, trainable, rows="pretraining_rows", batch="category_batch")
        return Stage("pre-training", fraction, ("image_*", "text_*", "logit_scale*"), rows="pretraining_rows")

    def adaptation_stage(self) -> Stage:
        trainable = {
            "linear": ("head.*",),
            "fine_tuned": ("image_encoder.*", "head.*"),
            "contrastive": ("image_*", "text_*", "logit_scale*"),
            "multimodal": ("image_*", "text_*", "head.*"),
        }
        return Stage(
            "adaptation",
            0.0 if self.adaptation == "zero_shot" else 1 - self.pretraining_stage().fraction,
            trainable.get(self.adaptation, ()),
            lr_scale=self.adaptation_lr_scale,
            lr_scales=dict.fromkeys(("image_*", "text_*", "logit_scale*"), self.tower_lr_scale),
            rows="labelled_rows",
            order="few_labels",
            batch="labelled_batch",
            losses="classification_losses",
            on_start="from_scratch" if self.pretraining == "none" else None,
        )

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
        if corpus.label is not None and type(corpus).parts is not Corpus.parts:
            raise UserError(
                f"'{corpus.name}' is read in an order of its own; put all rows into one table.{corpus.hint}"
            )
        if corpus.label is not None and self.adaptation_stage().fraction and not len(rows_with_label(corpus)):
            raise UserError(f"No training example of '{corpus.name}' has a {corpus.label} to adapt to.{corpus.hint}")
        if corpus.label is not None and self.pretraining_stage().fraction:
            self.pretraining_rows(corpus, None)
        return [corpus]

    def pretraining_rows(self, corpus: Corpus, processor: Processor | None) -> np.ndarray:
        """Return the rows of stage A. Raises UserError where all have a label."""
        rows, labelled = corpus.rows("train"), rows_with_label(corpus)
        if self.has_text and corpus.has_modality(Text):
            rows = rows[corpus.has(corpus.column_with(Text))[rows]]
        if self.pretrain_on == "unlabelled":
            rows = np.setdiff1d(rows, labelled)
        if not len(rows):
            raise UserError(
                f"All captioned training examples of '{corpus.name}' have a {corpus.label}, which pre-training would "
                "show; take --pretrain-on all, or --pretraining-fraction 0 with --init."
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

    def category_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> LabelledBatch:
        """An augmented view of each image, and its category (T1)."""
        image = self._augmented(examples, processor, self.augmentation, example_rng)
        return {"image": image, "label": processor.category([example["category"] for example in examples])}

    def labelled_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> LabelledBatch:
        """An augmented view of each image, and its class; for M2 a caption, without words that name a class."""
        image = self._augmented(examples, processor, self.adaptation_augmentation, example_rng)
        batch: LabelledBatch = {"image": image, "label": processor.label([example["label"] for example in examples])}
        if self.adaptation == "multimodal":
            words = masked_words(processor.label.names, self.masked_words)
            captions = self.sample_captions(examples, processor.text, example_rng)
            batch["text"] = processor.text([without_these(caption, words) for caption in captions])
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
            tower_lr_scale=0.01,  # 1e-5
            optimizer=OptimizerConfig(learning_rate=1e-3),
        )
