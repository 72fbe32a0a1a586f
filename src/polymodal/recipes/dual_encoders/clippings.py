"""CLIPPINGS: record linkage by one vector of a record, pooled from CLIP's of its image and of its OCR text.

String matching breaks under OCR errors, and image crops alone know no language. Image and OCR text of a record are
aligned without labels first (InfoNCE); then the weighted mean of both, L2-normalized, is trained with a supervised
contrastive loss (SupCon), so that records of a class are close, with offline hard negatives at the end. A record is
linked to the nearest exemplar, or to none below a similarity; where classes are unknown, records are clustered.

The newspapers' code was read (README and scripts), not that of the Japanese firms. Differs from it in: images are
stretched to a square, not padded; a record without an image or a text is left out; one warm-up and cosine a stage, not
warm restarts; groups of hard negatives are shuffled in every pass, and their classes give other rows each time, where
these are fixed there; thresholds are chosen among heights of the dendrogram, not by 500 trials, and neighbors are exact
(scikit-learn). The deprecated MLP of both vectors, the contrastive loss with margins, stroke n-grams (of Chinese
characters alone) and the DINO baseline are left out. The curriculum from synthetic to hand labels is two runs: one on
`firm_names`, and one with `--init` on the user's records.

The released code's im_wt is image_weight, supcon_temp is temperature, m and k are as there.

Terms: pooled embedding = CLIPPINGS.pool, language-image pretraining = losses.contrastive, SupCon = losses.supcon,
NoReplacementMPerClassSampler = Recipe.m_per_class, offline hard negatives = Recipe.nearest_classes, single linkage
(SLINK) = evaluation.linking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, PositiveFloat, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.class_order import ClassOrder, hard_negative_groups, rows_by_class
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.loader import Reader
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import clip
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities.image_augmentation import NONE, ImageAugmentation
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.multi_positive import supcon_loss
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe, ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.run import embed
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="clippings",
    title="Linking Representations with Multimodal Contrastive Learning",
    year=2023,
    arxiv="2304.03464",
    modalities=("image", "text", "label"),
    code="dell-research-harvard/clippings@16e3cd07f082fa39bbdc85192d3478ab224c2016",
    parameters={"*": 151_277_313},  # CLIP ViT-B/32, from which the released code starts
)
MINED_TOGETHER = 2048  # records whose images are in memory at once
WEIGHTS = tuple(step / 10 for step in range(11))  # of the image, of which one is chosen on validation records


class RecordBatch(ImageTextBatch):
    """Records with the numbers of their classes."""

    label: Int[Tensor, " batch"]


class CLIPPINGS(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.recipe = recipe

    def pool(
        self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], weight: float
    ) -> Float[Tensor, "batch dim"]:
        """One L2-normalized vector of each record. image, text: L2-normalized. weight: of the image, from 0 to 1."""
        return F.normalize(weight * image + (1 - weight) * text, dim=-1)

    def pooling_weights(self) -> Sequence[float]:
        """Weights of the image that may be chosen, first that of training; that one alone if it leaves one out."""
        weight = self.recipe.image_weight
        return (weight,) if weight in (0.0, 1.0) else (weight, *(one for one in WEIGHTS if one != weight))

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: symmetric InfoNCE of the image and the text of a record."""
        return {"contrastive": info_nce(encoded["image"], encoded["text"], self.logit_scale())}

    def encode_records(self, batch: RecordBatch) -> dict[str, Tensor]:
        """Pooled vectors and classes."""
        encoded = self.embed(batch)
        pooled = self.pool(encoded["image"], encoded["text"], self.recipe.image_weight)
        return {"pooled": pooled, "label": batch["label"].float()}

    def supervised_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """supcon: the supervised contrastive loss of pooled vectors."""
        return {"supcon": supcon_loss(encoded["pooled"], encoded["label"].detach(), 1 / self.recipe.temperature)}

    @two_halves("encode_records", "supervised_losses")
    def linking_losses(self, batch: RecordBatch) -> dict[str, Tensor]:
        return self.supervised_losses(self.encode_records(batch))


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    text: TextEncoderConfig = TextEncoderConfig(vocab_size=400, width=128)
    batch_size: AtLeastTwo = 96
    """Records in a step, over all processes; a multiple of `m`."""
    augmentation: ImageAugmentation = ImageAugmentation()
    word_dropout: UnitInterval = 0.0
    """Probability with which a word of a text is left out while training."""
    image_weight: UnitInterval = 0.5
    """im_wt, a: weight of the image in the pooled vector; 1: images alone, 0: texts alone."""
    temperature: PositiveFloat = 0.1
    """Temperature of SupCon (0.05 for hand-labelled Japanese firms)."""
    m: AtLeastTwo = 3
    """Records of each class in a batch; those of a smaller class are repeated."""
    k: AtLeastTwo = 3
    """Nearest neighbors of a record, itself included, whose classes are hard negatives of each other."""
    self_supervised_fraction: UnitInterval = 0.4
    """Fraction of the budget for the alignment of images and texts; 1: no labels are needed."""
    hard_negative_fraction: UnitInterval = 0.3
    """Fraction of the budget, at its end, for batches of hard negatives."""
    supervised_lr_scale: PositiveFloat = 1.0
    """Factor of the learning rate of SupCon (0.001 for newspapers, 0.1 for hand-labelled Japanese firms)."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {  # those of the family, with batches that m divides
        "small": {"embed_dim": 256, "batch_size": 126, "optimizer": OptimizerConfig(learning_rate=3.3e-4)},
        "base": {"embed_dim": 512, "batch_size": 255, "optimizer": OptimizerConfig(learning_rate=1.7e-4)},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_supervised and self.batch_size % self.m:
            raise UserError(f"--batch-size {self.batch_size} is no multiple of --m {self.m}, the records of a class.")
        if self.is_supervised and self.length_bucketing:
            raise UserError("--length-bucketing would part the records of a class; leave it out.")

    @property
    def is_supervised(self) -> bool:
        return self.self_supervised_fraction < 1

    def build(self, processor: Processor) -> CLIPPINGS:
        return CLIPPINGS(self, processor.tokenizer.vocab_size)

    def stages(self) -> tuple[Stage, ...]:
        first, last = self.self_supervised_fraction, self.hard_negative_fraction
        supervised: dict[str, Any] = {
            "batch": "record_batch", "losses": "linking_losses", "lr_scale": self.supervised_lr_scale
        }  # fmt: skip
        return (
            Stage("self-supervised", first),
            Stage("supervised", 1 - first - last if self.is_supervised else 0.0, order="m_per_class", **supervised),
            Stage(
                "hard negatives", last if self.is_supervised else 0.0,
                order="m_per_class", mine="nearest_classes", **supervised,
            ),
        )  # fmt: skip

    def columns(self) -> Declared:
        image = ImageColumn.of(self.image.image_size, self.image.image_mean_std)
        columns = {**super().columns(), "image": dataclasses.replace(image, stretch=True)}
        return columns | ({"label": LabelColumn()} if self.is_supervised else {})

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """The corpus. Raises UserError, before anything is trained, where its classes do not fill a batch."""
        if self.is_supervised and corpus.label is not None:
            self.m_per_class(corpus, None, 0)
        return [corpus]

    def record_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> RecordBatch:
        """An augmented view of each image, its text, and its class."""
        batch = self.training_batch(examples, processor, example_rng)
        return RecordBatch(**batch, label=processor.label([example["label"] for example in examples]))

    def m_per_class(self, corpus: Corpus, groups: np.ndarray | None, seed: int) -> ClassOrder:
        """Rows of training: m of each class, classes at random, or groups of hard negatives."""
        return ClassOrder(rows_by_class(corpus), self.m, self.batch_size, seed, groups)

    def nearest_classes(self, method: CLIPPINGS, reader: Reader) -> np.ndarray:
        """The classes among the k nearest neighbors of each training record."""
        of_row = {int(row): number for number, rows in enumerate(rows_by_class(reader.corpus)) for row in rows}
        rows, pooled = [], []
        for chunk in np.split(every := np.array(sorted(of_row)), range(MINED_TOGETHER, len(every), MINED_TOGETHER)):
            readable, examples = reader.read_all(chunk)
            if not examples:
                continue
            texts = [example["text"][0].text for example in examples]
            vectors = embed(method, reader.processor, image=[example["image"] for example in examples], text=texts)
            pooled.append(method.pool(vectors["image"], vectors["text"], self.image_weight))
            rows += readable.tolist()
        return hard_negative_groups(torch.cat(pooled), np.array([of_row[row] for row in rows]), self.k)

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            image=ImageEncoderConfig(patch_size=16, width=16, depth=1, num_heads=2),
            text=TextEncoderConfig(300, context_length=24, width=16, depth=1, num_heads=2),
            embed_dim=16,
            batch_size=8,
            m=2,
            k=2,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """CLIP ViT-B/32 on newspapers (README and default arguments of the released code): 151,277,313 parameters."""
        return cls(
            **clip("ViT-B/32")._asdict(),
            augmentation=NONE,
            batch_size=153,
            supervised_lr_scale=5e-9 / 5e-6,
            optimizer=OptimizerConfig(
                learning_rate=5e-6, weight_decay=0.001, betas=(0.9, 0.98), eps=1e-6, warmup_ratio=0.0, max_grad_norm=0.0
            ),
        )
