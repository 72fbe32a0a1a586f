"""TIP: self-supervised pre-training on images and incomplete tables.

The table encoder represents a missing cell by a learned token, to which no other token attends; the token itself
attends to the row, so that it can be filled in. Pre-training contrasts images with table rows, classifies matching
pairs with hard negatives, and reconstructs masked cells from the image and the visible cells. Masked and really missing
cells have the same token, so that fine-tuned models degrade little when cells are missing (section 3 of the paper).

Terms: ITC = losses.itc, ITM = losses.itm, MTR (masked tabular reconstruction) = losses.mtr, tabular encoder =
TIP.encode_table, ensemble of linear heads = models.feature_classifier.FeatureClassifier.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.table import TableColumn
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.table import IncompleteTableEncoder, TableEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.cross_attention import CrossAttentionTransformer
from polymodal.layers.masked_table_head import MaskedTableHead
from polymodal.layers.projection_head import ProjectionHead
from polymodal.modalities.image_augmentation import STRONG, ImageAugmentation
from polymodal.modalities.table import TableRows, drop_values_at_random_rate, sample_columns
from polymodal.models.feature_classifier import FeatureClassifier
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.objectives.masked_modeling import masked_table_loss
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import ADAM
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="tip",
    title="TIP: Tabular-Image Pre-training for Multimodal Classification with Incomplete Data",
    year=2024,
    arxiv="2407.07582",
    modalities=("image", "table"),
    code="siyi-wind/TIP@9258cc25678141addfe0cd879853d58cf88ecbc7",
)


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
    """Image encoder, tabular encoder, and a multimodal encoder in which the table's tokens attend to the image."""

    def __init__(self, recipe: Recipe, table: TableColumn):
        super().__init__()
        width, image_width = recipe.table.width, recipe.image.width
        self.recipe = recipe
        self.image_encoder = recipe.image.build()
        modes = table.modes if recipe.missing_strategy == "mean" else None
        self.table_encoder = IncompleteTableEncoder(recipe.table, len(table.numeric), table.levels, modes)
        self.image_projection = ProjectionHead.without_norm(image_width, recipe.embed_dim)
        self.table_projection = ProjectionHead.without_norm(width, recipe.embed_dim)
        self.image_proj = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width))
        self.multimodal_encoder = CrossAttentionTransformer(width, recipe.fusion_depth, recipe.table.num_heads)
        self.itm_head = nn.Linear(width, 2)
        self.cell_head = MaskedTableHead(width, table.levels)

    def encode_image(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch patches width"], Float[Tensor, "batch image_width"]]:
        """Return patches as the multimodal encoder reads them, and the pooled vector."""
        patches, pooled = self.image_encoder(image)
        return self.image_proj(patches), pooled

    def encode_table(self, rows: TableRows, fill: bool = True) -> Float[Tensor, "batch cells width"]:
        """Return the CLS token and one token per cell, numeric columns first, before they attend to the image."""
        cells, pooled = self.table_encoder(self.table_encoder.fill_missing(rows) if fill else rows)
        return torch.cat([pooled[:, None], cells], dim=1)

    @whole_batch
    def losses(self, batch: TablePairBatch) -> dict[str, Tensor]:
        """Return itc, itm and mtr, a third each (equation 4)."""
        patches, pooled = self.encode_image(batch["image"])
        tokens = self.encode_table(batch["corrupted"])
        image, table = self.image_projection(pooled), self.table_projection(tokens[:, 0])
        similarity = image @ table.T / self.recipe.temperature
        losses = {"itc": info_nce(image, table, similarity.new_tensor(1 / self.recipe.temperature))}
        # Hard negatives by the softmax of similarities; equal rows are no negatives of each other. Rows are the texts.
        pairs = sample_itm_pairs(similarity.detach(), batch["table"].identity())
        fused = self.multimodal_encoder(tokens[pairs.text], patches[pairs.image])
        losses["itm"] = itm_loss(self.itm_head(fused[:, 0]), pairs)
        if self.recipe.use_mtr:
            masked = self.encode_table(batch["table"].mask(batch["masked_cells"]), fill=False)
            cells: tuple[Tensor, Tensor] = self.cell_head(self.multimodal_encoder(masked, patches)[:, 1:])
            losses["mtr"] = masked_table_loss(*cells, batch["table"], self.cell_head.offsets, batch["masked_cells"])
        return {name: loss / len(losses) for name, loss in losses.items()}

    def features(self, batch: ImageTableBatch) -> dict[str, Tensor]:
        """Return the pooled image, the CLS token of the table encoder, and that of the multimodal encoder."""
        patches, pooled = self.encode_image(batch["image"])
        tokens = self.encode_table(batch["table"])
        features = {"image": pooled, "table": tokens[:, 0], "joint": self.multimodal_encoder(tokens, patches)[:, 0]}
        return {name: features[name] for name in self.recipe.classifier_features}

    def impute(self, batch: ImageTableBatch) -> tuple[Float[Tensor, "batch numeric"], list[Tensor]]:
        """Return numbers for all cells, and logits of each categorical column's own values."""
        tokens = self.encode_table(batch["table"])
        return self.cell_head.impute(self.multimodal_encoder(tokens, self.encode_image(batch["image"])[0])[:, 1:])

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return L2-normalized embeddings of the modalities in the batch."""
        embeddings = {}
        if "image" in batch:
            embeddings["image"] = self.image_projection(self.image_encoder.pooled(batch["image"]))
        if "table" in batch:
            embeddings["table"] = self.table_projection(self.encode_table(batch["table"])[:, 0])
        return embeddings


class TIPClassifier(TIP, FeatureClassifier):
    """TIP with a linear head on each feature; fine-tuning trains all weights (section 3.4)."""

    def __init__(self, recipe: Recipe, table: TableColumn, classes: int):
        super().__init__(recipe, table)
        widths = {"image": recipe.image.width, "table": recipe.table.width, "joint": recipe.table.width}
        self.add_classifiers({name: widths[name] for name in recipe.classifier_features}, classes)


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    image: ImageEncoderConfig = ImageEncoderConfig(image_size=48)
    table: TableEncoderConfig = TableEncoderConfig()
    fusion_depth: NonNegativeInt = 2
    """Blocks of the multimodal encoder, in which table tokens attend to the image."""
    embed_dim: PositiveInt = 64
    """Dimensions of the projections for ITC."""
    temperature: PositiveFloat = 0.1
    """Temperature of ITC; fixed (section 4.1)."""
    corruption_rate: UnitInterval = 0.3
    """Fraction of a row's cells that ITC and ITM resample from their columns (SCARF), rounded down."""
    mask_ratio: UnitInterval = 0.5
    """Fraction of a row's cells that MTR masks, rounded."""
    use_mtr: bool = True
    """Whether masked cells are reconstructed; without, only ITC and ITM remain."""
    missing_strategy: Literal["token", "mean"] = "token"
    """Input for missing cells: the learned token with its attention mask, or the column's mean or mode."""
    classifier_features: tuple[Literal["image", "table", "joint"], ...] = ("image", "table", "joint")
    """Features with a linear head, whose logits are averaged; image and table are late fusion by concatenation."""
    finetune_fraction: UnitInterval = 0.3
    """Fraction of the budget for fine-tuning all weights on the corpus's label; 0 pre-trains only."""
    finetune_lr_scale: NonNegativeFloat = 1.0
    """Learning rate of fine-tuning, relative to pre-training."""
    finetune_missing_rates: tuple[UnitInterval, ...] = (0.0, 0.3, 0.5, 0.7, 0.9)
    """Fractions of missing cells in fine-tuning, one of them per example, each equally often."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.5, 1.0), hflip_prob=0.5)
    augmentation_rate: UnitInterval = 0.95
    """Fraction of images that are augmented (released code)."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"embed_dim": 128},
        "base": {"embed_dim": 128, "fusion_depth": 3, "batch_size": 256},
    }
    tuning_factors: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.5, 2)}

    def stages(self) -> tuple[Stage, ...]:
        tuned: dict[str, Any] = {"batch": "labelled_batch", "losses": "classification_losses"}
        last = Stage("fine-tuning", self.finetune_fraction, lr_scale=self.finetune_lr_scale, **tuned)
        return Stage("pre-training", 1 - self.finetune_fraction), last

    def columns(self) -> Declared:
        image = ImageColumn.of(self.image.image_size, self.image.image_mean_std)
        label = {"label": LabelColumn()} if self.finetune_fraction > 0 else {}
        return {"image": image, "table": TableColumn(), **label}

    def build(self, processor: Processor) -> TIP:
        if not (self.classifier_features and self.finetune_missing_rates):
            raise UserError("--classifier-features and --finetune-missing-rates take one value or more.")
        if "label" not in processor.columns:
            return TIP(self, processor.table)
        return TIPClassifier(self, processor.table, len(processor.label.names))

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> TablePairBatch:
        """Return an augmented image, the row, the row with resampled cells, and the cells to reconstruct."""
        images, rows = ([example[name] for example in examples] for name in ("image", "table"))
        table = processor.table(rows)
        corrupted = processor.table.corrupted(table, self.corruption_rate, example_rng)
        masked = sample_columns(table, round(self.mask_ratio * table.missing.shape[1]), example_rng)
        image = processor.image.augmented(images, self.augmentation, example_rng, rate=self.augmentation_rate)
        return {"image": image, "table": table, "corrupted": corrupted, "masked_cells": masked}

    def labelled_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> LabelledBatch:
        """Return an augmented image, a row with missing cells, and the label."""
        images, rows, labels = ([example[name] for example in examples] for name in ("image", "table", "label"))
        table = drop_values_at_random_rate(processor.table(rows), self.finetune_missing_rates, example_rng)
        image = processor.image.augmented(images, self.augmentation, example_rng, rate=self.augmentation_rate)
        return {"image": image, "table": table, "label": processor.label(labels)}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        image = ImageEncoderConfig(patch_size=16, width=16, depth=1, num_heads=2)
        table = TableEncoderConfig(width=16, depth=1, num_heads=2)
        return cls(image=image, table=table, fusion_depth=1, embed_dim=16, batch_size=4)

    @classmethod
    def paper(cls) -> Recipe:
        """Return the DVM cars preset (section 4.1, released config_dvm_TIP.yaml), with ViT-S/16 in place of ResNet-50.

        Weight decay is decoupled, and applied in fine-tuning, too. Color jitter is 40 % with hue, not 80 % without, and
        comes after the crop, as blur does.
        """
        return cls(
            image=ImageEncoderConfig(image_size=128, patch_size=16, width=384, depth=12, num_heads=6, pool_type="cls"),
            table=TableEncoderConfig(width=512, depth=4, num_heads=8),
            fusion_depth=4,
            embed_dim=128,
            batch_size=256,
            finetune_lr_scale=1 / 3,  # 1e-4
            optimizer=replace(ADAM, learning_rate=3e-4, weight_decay=1.5e-6, lr_scheduler="cosine", warmup_ratio=0.02),
            augmentation=STRONG,
        )
