"""TIP: self-supervised pre-training on images and incomplete tables.

The table encoder puts one learned token where a value is missing and hides it from all other tokens by a mask with an
open diagonal, so that the token itself can be filled in from what is there. Three losses: images and rows are
contrasted, matched with hard negatives, and hidden cells are reconstructed from the image and the visible cells. The
same token stands for cells that are hidden in training and cells that are really missing (section 3 of the paper).

Terms: ITC = losses.itc, ITM = losses.itm, MTR (masked tabular reconstruction) = losses.mtr.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.table import TableColumn
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.table import FeatureTokenizer, TableEncoderConfig
from polymodal.layers.cross_attention import CrossAttentionTransformer
from polymodal.layers.projection_head import ProjectionHead
from polymodal.layers.transformer import Packing, Transformer
from polymodal.modalities.image_augmentation import ImageAugmentation, augment
from polymodal.modalities.table import TableRows, replace_cells, sample_columns
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.reduction import global_mean
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="tip",
    title="TIP: Tabular-Image Pre-training for Multimodal Classification with Incomplete Data",
    year=2024,
    arxiv="2407.07582",
    modalities=("image", "table"),
)


class IncompleteTableEncoder(Encoder):
    """One token a column and a class token; what is missing sees the rest, and is seen by nobody (section 3.1)."""

    def __init__(self, config: TableEncoderConfig, numeric: int, categories: Sequence[int]):
        super().__init__()
        self.feature_tokenizer = FeatureTokenizer(config.width, numeric, categories)
        self.class_token = nn.Parameter(config.width**-0.5 * torch.randn(config.width))
        self.norm_pre = nn.LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)

    def forward(self, rows: TableRows) -> tuple[Float[Tensor, "batch columns width"], Float[Tensor, "batch width"]]:
        x = torch.cat([self.class_token.expand(len(rows), 1, -1), self.feature_tokenizer(rows)], dim=1)
        hidden = F.pad(rows.missing, (1, 0))[:, None, :] & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        bias = torch.zeros(hidden.shape, device=x.device).masked_fill(hidden, -math.inf)[:, None]
        packing = dataclasses.replace(Packing.of(x.new_ones(x.shape[:2], dtype=torch.bool)), bias=bias)
        x = self.transformer(self.norm_pre(x).flatten(0, 1), packing).view_as(x)
        return x[:, 1:], x[:, 0]


def reconstruction_loss(
    numbers: Float[Tensor, "batch numeric"],
    categories: Float[Tensor, "batch categorical values"],
    rows: TableRows,
    starts: Sequence[int],
    masked: Bool[Tensor, "batch columns"],
) -> Float[Tensor, ""]:
    """Half the mean squared error of hidden numbers and half the mean cross-entropy of hidden categories.

    categories: logits of the values of all columns together, of which column c's begin at starts[c]. rows: what the
    cells really hold; those without a value do not count. Without a hidden cell, the loss is 0.
    """
    wanted_numbers, wanted_categories = (masked & ~rows.missing).split([numbers.shape[1], len(starts)], dim=1)
    squares = (numbers - rows.numbers.nan_to_num(0.0)).square()[wanted_numbers]
    error = global_mean(squares.sum(), len(squares))
    codes = rows.categories + torch.tensor(starts, dtype=torch.long, device=masked.device)
    return (error + masked_cross_entropy(categories[wanted_categories], codes[wanted_categories])) / 2


class ImageTableBatch(TypedDict):
    image: Float[Tensor, "batch 3 size size"]
    table: TableRows


class TablePairBatch(ImageTableBatch):
    """corrupted: rows with resampled cells, for ITC and ITM. masked_cells: True for cells to reconstruct (MTR)."""

    corrupted: TableRows
    masked_cells: Bool[Tensor, "batch cells"]


class LabelledBatch(ImageTableBatch):
    label: Int[Tensor, " batch"]


class TIP(nn.Module):
    """An image tower, a table tower for incomplete rows, and a fusion in which cells read the image."""

    modes: Tensor

    def __init__(self, recipe: Recipe, table: TableColumn):
        super().__init__()
        width = recipe.table.width
        self.recipe = recipe
        self.levels = table.levels
        self.image_encoder = recipe.image.build()
        self.table_encoder = IncompleteTableEncoder(recipe.table, len(table.numeric), self.levels)
        self.image_projection = ProjectionHead([recipe.image.width, recipe.image.width, recipe.embed_dim])
        self.table_projection = ProjectionHead([width, width, recipe.embed_dim])
        self.to_fusion = nn.Sequential(nn.Linear(recipe.image.width, width), nn.LayerNorm(width))
        self.fusion = CrossAttentionTransformer(width, recipe.fusion_depth, recipe.table.num_heads)
        self.matching = nn.Linear(width, 2)
        self.number = nn.Linear(width, 1)
        self.category = nn.Linear(width, max(sum(self.levels), 1))  # a table may have numbers only
        self.register_buffer("modes", torch.tensor(table.modes, dtype=torch.long), persistent=False)

    @property
    def starts(self) -> list[int]:
        """Where each category column's values begin among those of all columns."""
        return [sum(self.levels[:column]) for column in range(len(self.levels))]

    def encode_image(self, image: Float[Tensor, "batch 3 size size"]) -> tuple[Tensor, Tensor]:
        """Patches as the fusion reads them, and the pooled vector."""
        patches, pooled = self.image_encoder(image)
        return self.to_fusion(patches), pooled

    def fuse(
        self, rows: TableRows, patches: Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch cells width"]:
        """The class token and one token a cell, after they have read the image."""
        cells, pooled = self.table_encoder(rows)
        return self.fusion(torch.cat([pooled[:, None], cells], dim=1), patches)

    @whole_batch
    def losses(self, batch: TablePairBatch) -> dict[str, Tensor]:
        """A third each: contrast, matching, reconstruction."""
        patches, pooled = self.encode_image(batch["image"])
        cells, row = self.table_encoder(self.given(batch["corrupted"]))
        image, table = self._project(pooled, row)
        similarity = image @ table.T / self.recipe.temperature
        losses = {"itc": info_nce(image, table, similarity.new_tensor(1 / self.recipe.temperature))}
        pairs = sample_itm_pairs(similarity.detach())
        tokens = torch.cat([row[:, None], cells], dim=1)
        fused = self.fusion(tokens[pairs.text], patches[pairs.image])  # rows of the table in the place of texts
        losses["itm"] = itm_loss(self.matching(fused[:, 0]), pairs)
        if self.recipe.use_mtr:
            filled = self.fuse(batch["table"].mask(batch["masked_cells"]), patches)
            guesses = self._cells(filled)
            losses["mtr"] = reconstruction_loss(*guesses, batch["table"], self.starts, batch["masked_cells"])
        return {name: loss / len(losses) for name, loss in losses.items()}

    def _project(self, image: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image_projection(image), dim=-1), F.normalize(self.table_projection(table), dim=-1)

    def _cells(self, fused: Float[Tensor, "batch cells width"]) -> tuple[Tensor, Tensor]:
        numeric = fused.shape[1] - 1 - len(self.levels)
        return self.number(fused[:, 1 : 1 + numeric]).squeeze(-1), self.category(fused[:, 1 + numeric :])

    def given(self, rows: TableRows) -> TableRows:
        """Rows to use: what is missing is left to the token, or filled with the column's mean or mode."""
        if self.recipe.missing_strategy == "token":
            return rows
        usual = TableRows(torch.zeros_like(rows.numbers), self.modes.expand_as(rows.categories))
        return replace_cells(rows, rows.missing, usual)

    def features(self, batch: ImageTableBatch) -> dict[str, Tensor]:
        """The pooled image, the row's class token before it has read the image, and after."""
        patches, pooled = self.encode_image(batch["image"])
        rows = self.given(batch["table"])
        return {"image": pooled, "table": self.table_encoder(rows)[1], "joint": self.fuse(rows, patches)[:, 0]}

    def impute(
        self, batch: ImageTableBatch
    ) -> tuple[Float[Tensor, "batch numeric"], list[Float[Tensor, "batch values"]]]:
        """What each cell may hold: numbers, and logits of each category column's own values."""
        fused = self.fuse(self.given(batch["table"]), self.encode_image(batch["image"])[0])
        numbers, categories = self._cells(fused)
        own = zip(self.starts, self.levels, strict=True)
        return numbers, [categories[:, column, a : a + n] for column, (a, n) in enumerate(own)]

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalised vectors of the modalities that the batch has."""
        vectors = {}
        if "image" in batch:
            vectors["image"] = F.normalize(self.image_projection(self.image_encoder.pooled(batch["image"])), dim=-1)
        if "table" in batch:
            pooled = self.table_encoder.pooled(self.given(batch["table"]))
            vectors["table"] = F.normalize(self.table_projection(pooled), dim=-1)
        return vectors


class TIPClassifier(TIP):
    """With a linear head for each feature; fine-tuning trains them, and all below them (section 3.4)."""

    def __init__(self, recipe: Recipe, table: TableColumn, classes: int):
        super().__init__(recipe, table)
        sizes = {"image": recipe.image.width, "table": recipe.table.width, "joint": recipe.table.width}
        self.heads = nn.ModuleDict({name: nn.Linear(size, classes) for name, size in sizes.items()})

    def classification_losses(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Of rows with missing cells and the corpus's label."""
        return {"classification": F.cross_entropy(self.classify(batch), batch["label"])}

    def classify(self, batch: ImageTableBatch) -> Float[Tensor, "batch classes"]:
        """The mean of the logits of three linear heads, one a feature."""
        features = self.features(batch)
        return torch.stack([head(features[name]) for name, head in self.heads.items()]).mean(0)


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    image: ImageEncoderConfig = ImageEncoderConfig(image_size=48)
    table: TableEncoderConfig = TableEncoderConfig()
    fusion_depth: NonNegativeInt = 2
    """Blocks in which cells read the image."""
    embed_dim: PositiveInt = 64
    """Dimensions in which images and rows are contrasted."""
    temperature: PositiveFloat = 0.1
    """Of the contrast; fixed (section 4.1)."""
    corruption_rate: UnitInterval = 0.3
    """Share of a row's cells that are drawn anew for contrast and matching (SCARF)."""
    mask_ratio: UnitInterval = 0.5
    """Share of a row's cells that are hidden and reconstructed."""
    use_mtr: bool = True
    """Whether hidden cells are reconstructed; without, only contrast and matching remain."""
    missing_strategy: Literal["token", "mean"] = "token"
    """What stands for a missing cell in use: the token that nobody reads, or the column's mean or mode."""
    finetune_fraction: UnitInterval = 0.3
    """Share of the budget that learns the corpus's label with all weights; 0 pre-trains only."""
    finetune_missing_rates: tuple[UnitInterval, ...] = (0.0, 0.3, 0.5, 0.7, 0.9)
    """Shares of missing cells that examples of the fine-tuning have, each equally often."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.5, 1.0), hflip_prob=0.5)
    augmentation_rate: UnitInterval = 0.95
    """Fraction of images that are augmented (released code)."""

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("pre-training", 1 - self.finetune_fraction),
            Stage("fine-tuning", self.finetune_fraction, batch="labelled_batch", losses="classification_losses"),
        )

    def columns(self) -> Declared:
        image = ImageColumn.of(self.image.image_size, self.image.image_mean_std)
        label = {"label": LabelColumn()} if self.finetune_fraction > 0 else {}
        return {"image": image, "table": TableColumn(), **label}

    def build(self, processor: Processor) -> TIP:
        if "label" not in processor.columns:
            return TIP(self, processor.table)
        return TIPClassifier(self, processor.table, len(processor.label.names))

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> TablePairBatch:
        """An augmented image; the row, the row with some cells drawn anew, and which cells to reconstruct."""
        table = processor.table([example["table"] for example in examples])
        anew = replace_cells(
            table, sample_columns(table, self.corruption_rate, example_rng), processor.table.random_rows(example_rng)
        )
        hidden = sample_columns(table, self.mask_ratio, example_rng)
        return {
            "image": self._view(examples, processor, example_rng),
            "table": table,
            "corrupted": anew,
            "masked_cells": hidden,
        }

    def labelled_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> LabelledBatch:
        """An augmented image, a row with missing cells, and the label."""
        batch = processor(table=[e["table"] for e in examples], label=[e["label"] for e in examples])
        shares = torch.tensor(self.finetune_missing_rates)
        share = shares[(example_rng.uniform() * len(shares)).long()]
        gone = torch.stack([example_rng.uniform() < share for _ in range(batch["table"].missing.shape[1])], dim=1)
        image = self._view(examples, processor, example_rng)
        return {"image": image, "table": batch["table"].mask(gone), "label": batch["label"]}

    def _view(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> Tensor:
        plain = processor.image.pixels([example["image"] for example in examples])
        changed = augment(plain, self.augmentation, example_rng)
        unchanged = example_rng.uniform() < 1 - self.augmentation_rate
        return processor.image.normalize(torch.where(unchanged[:, None, None, None], plain, changed))

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            image=ImageEncoderConfig(patch_size=16, width=16, depth=1, num_heads=2),
            table=TableEncoderConfig(width=16, depth=1, num_heads=2),
            fusion_depth=1,
            embed_dim=16,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """The DVM cars pre-training (section 4.1 and released configuration), with ViT-S/16 in place of ResNet-50."""
        return cls(
            image=ImageEncoderConfig(image_size=128, patch_size=16, width=384, depth=12, num_heads=6),
            table=TableEncoderConfig(width=512, depth=4, num_heads=8),
            fusion_depth=4,
            embed_dim=128,
            batch_size=256,
            optimizer=OptimizerConfig(
                learning_rate=3e-4, weight_decay=1.5e-6, betas=(0.9, 0.999), warmup_ratio=10 / 500
            ),
            augmentation=ImageAugmentation(
                scale=(0.08, 1.0), hflip_prob=0.5, color_jitter_prob=0.8, grayscale_prob=0.2, blur_prob=0.5
            ),
        )
