"""FDT: CLIP on finite discrete tokens, sparse combinations of one learned table that images and captions share.

Image patches and caption tokens differ in granularity. Here both attend to the same table of C discrete tokens: every
patch (or word) votes for the rows of the table, the votes are max-pooled over positions, sparsemax makes most weights
exactly 0, and the weighted sum of rows is the embedding, which InfoNCE compares. There is no other loss. `table` is
also a table for each modality (`separate`), or none: CLIP, whose heads are as much wider as the table has parameters.

Differs from the paper in: votes of padding are ignored (`padding_votes="zero"` is the released code, where they are 0);
the sparsemax temperature decays with every step, not once an epoch; patches pass the image encoder's last norm; the
encoders' pooled features, which the released code computes for nothing, are left out; the warm-up begins at 0, not at a
tenth of the peak. DeCLIP with FDT and the VQA probe are left out.

The released code's space_dict is table, its q_map of img_query_model and txt_query_model is image_projection and
text_projection, sd_temperature is temperature, att_func_type is attention and pool_type is vote_pooling.

Terms: FDT = FDT.table, query map = query_map, attention weights of FDT = FDT.concept_weights,
token-to-patch visualization = FDT.concept_votes, L_CLIP = losses.contrastive.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, PositiveFloat, PositiveUnitInterval
from polymodal.data.processor import Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import clip
from polymodal.encoders.text import TextEncoderConfig
from polymodal.layers.logit_scale import CLIP_MAX, LogitScale
from polymodal.layers.sparsemax import sparsemax
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders._base import SMALL_IMAGE, SMALL_TEXT, DualEncoder, DualEncoderRecipe
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Batch, Paper

paper = Paper(
    slug="fdt",
    title="Revisiting Multimodal Representation in Contrastive Learning: From Patch and Token Embeddings to Finite "
    "Discrete Tokens",
    year=2023,
    arxiv="2303.14865",
    modalities=("image", "text"),
    code="yuxiaochen1103/FDT@ccf69830c1ee323bc66744da7dfa022da0bc70b2",
    # Of the released code's model for CC3M, without its unused projections of pooled features and second logit scale.
    parameters={"*": 160_197_377, "table": 8_388_608, "image_projection.*": 658_944, "text_projection.*": 527_360},
)

Attention = Literal["sparsemax", "softmax", "sigmoid"]
VotePooling = Literal["max", "mean", "sum"]
MIN_TEMPERATURE = 0.01  # sd_T_min
CHUNK = 4096  # discrete tokens whose votes are in memory at a time: the maximum over positions is exact in chunks


def query_map(width: int, hidden_dim: int, embed_dim: int) -> nn.Sequential:
    """From the features of patches or words to queries of the table, which itself is not projected."""
    layers = [nn.LayerNorm(width), nn.Linear(width, hidden_dim), nn.GELU(), nn.LayerNorm(hidden_dim)]
    return nn.Sequential(*layers, nn.Linear(hidden_dim, embed_dim))


def pooled_votes(
    queries: Float[Tensor, "batch positions dim"],
    table: Float[Tensor, "concepts dim"],
    mask: Bool[Tensor, "batch positions"],
    pooling: VotePooling = "max",
    padded_to: int | None = None,
) -> Float[Tensor, "batch concepts"]:
    """Scaled inner products of queries and discrete tokens, pooled over the positions of the mask.

    padded_to: positions of the released code, in which those that are padding vote with 0; None: padding has no vote.
    """
    scale, lengths = table.shape[1] ** -0.5, mask.sum(1, keepdim=True)
    if pooling == "max":
        absent = ~mask[..., None]
        chunks = [(queries @ c.T).masked_fill(absent, -math.inf).max(1).values for c in table.split(CHUNK)]
        votes = scale * torch.cat(chunks, dim=1)
        return votes if padded_to is None else torch.where(lengths < padded_to, votes.clamp(min=0), votes)
    # Sum and mean of the votes are the votes of the sum and mean.
    total = queries.masked_fill(~mask[..., None], 0).sum(1)
    return scale * (total / (padded_to or lengths) if pooling == "mean" else total) @ table.T


class CLIPWithMLP(DualEncoder):
    """CLIP with the query map as its projection heads, of pooled features. hidden_dim: width between their layers."""

    def __init__(self, recipe: Recipe, vocabulary: int, hidden_dim: int):
        super().__init__(recipe, vocabulary)
        self.add_module("image_projection", query_map(recipe.image.width, hidden_dim, recipe.embed_dim))
        self.add_module("text_projection", query_map(recipe.text.width, hidden_dim, recipe.embed_dim))
        self.logit_scale = LogitScale(recipe.logit_scale_init, CLIP_MAX, recipe.logit_scale_min)

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: symmetric InfoNCE of the pairs."""
        return {"contrastive": info_nce(encoded["image"], encoded["text"], self.logit_scale())}

    def missing_export(self) -> str:
        return "Embeddings of fdt cannot be exported so far: use `polymodal embed` or `serve`."

    @torch.no_grad()
    def load_pretrained_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The temperature of a pretrained dual encoder; its projections have no counterpart here."""
        if "logit_scale" in weights:
            self.logit_scale.logit_scale.copy_(weights["logit_scale"].reshape(()))


class FDT(CLIPWithMLP):
    temperature: Tensor

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary, recipe.embed_dim)
        self.recipe = recipe
        self.table = nn.Parameter(torch.randn(recipe.num_discrete_tokens, recipe.embed_dim))
        if recipe.table == "separate":
            self.text_table = nn.Parameter(torch.randn(recipe.num_discrete_tokens, recipe.embed_dim))
        self.first_temperature = recipe.temperature or max(recipe.num_discrete_tokens / 16, 32.0)
        self.register_buffer("temperature", torch.tensor(float(self.first_temperature)))

    def after_step(self, fraction: float) -> None:
        """Lower the temperature of the attention, by the fraction of training that is done."""
        decayed = self.first_temperature * self.recipe.temperature_decay**fraction
        self.temperature.fill_(max(decayed, MIN_TEMPERATURE))

    def encode_modality(self, name: str, value: Any) -> Float[Tensor, "batch dim"]:
        """L2-normalized sums of discrete tokens by their weights."""
        return F.normalize(self._weights(name, value) @ self._table(name), dim=-1)

    def encode_patches(self, image: Any) -> Float[Tensor, "batch patches dim"]:
        """L2-normalized sums of the discrete tokens that each patch votes for by itself."""
        votes = self.concept_votes({"image": image})["image"]
        return F.normalize(self._attention(votes) @ self.table, dim=-1)

    def concept_weights(self, batch: Batch) -> dict[str, Float[Tensor, "batch concepts"]]:
        """The weight of every discrete token, by modality; most are 0."""
        return {name: self._weights(name, batch[name]) for name in self.modalities if name in batch}

    def concept_votes(self, batch: Batch) -> dict[str, Float[Tensor, "batch positions concepts"]]:
        """How much each patch and word votes for each discrete token; padding has -inf."""
        votes = {}
        for name in [name for name in self.modalities if name in batch]:
            queries, mask, _ = self.encode_tokens(name, batch[name])
            table = self._table(name)
            votes[name] = (table.shape[1] ** -0.5 * queries @ table.T).masked_fill(~mask[..., None], -math.inf)
        return votes

    def _weights(self, name: str, value: Any) -> Float[Tensor, "batch concepts"]:
        queries, mask, _ = self.encode_tokens(name, value)
        zero = self.recipe.padding_votes == "zero" and name == "text"
        padded_to = self.recipe.text.context_length if zero else None
        return self._attention(pooled_votes(queries, self._table(name), mask, self.recipe.vote_pooling, padded_to))

    def _attention(self, votes: Float[Tensor, "*shape concepts"]) -> Float[Tensor, "*shape concepts"]:
        votes = votes / self.temperature
        if self.recipe.attention == "sparsemax":
            return sparsemax(votes)
        # The released code divides the sum of a sigmoid by the sum of weights, which the L2 norm undoes.
        return votes.softmax(-1) if self.recipe.attention == "softmax" else votes.sigmoid()

    def _table(self, name: str) -> Float[Tensor, "concepts dim"]:
        return self.text_table if name == "text" and self.recipe.table == "separate" else self.table


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    image: ImageEncoderConfig = dataclasses.replace(SMALL_IMAGE, depth=1, pool_type="avg")
    text: TextEncoderConfig = dataclasses.replace(SMALL_TEXT, depth=1)
    table: Literal["shared", "separate", "none"] = "shared"
    """One table of discrete tokens for images and captions, one for each, or none: CLIP with as many parameters."""
    num_discrete_tokens: AtLeastTwo = 512
    """C: rows of the table (16384 in the paper)."""
    temperature: PositiveFloat | None = None
    """Divides the votes before sparsemax; None: C / 16, nearly that of the released code (1000 for 16384), and at least
    32. If it is too low, one token alone is active and its votes have no gradient; if it is too high, all are."""
    temperature_decay: PositiveUnitInterval = 1.0
    """Factor that the temperature has reached at the end of training; 1: constant, as in the released configuration."""
    attention: Attention = "sparsemax"
    """What makes weights of pooled votes; softmax and sigmoid are the paper's ablations."""
    vote_pooling: VotePooling = "max"
    """How the votes of patches, or words, are pooled; mean and sum are the paper's ablations."""
    padding_votes: Literal["ignored", "zero"] = "ignored"
    """Whether padding of captions votes with 0 for every token, as in the released code, which bounds votes below."""
    logit_scale_min: PositiveFloat | None = None
    """Lower bound of the logit scale, held after every step; None: no bound."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": DualEncoderRecipe.size_fields["small"] | {"num_discrete_tokens": 1024},
        "base": DualEncoderRecipe.size_fields["base"] | {"num_discrete_tokens": 4096},
    }

    def build(self, processor: Processor) -> CLIPWithMLP:
        vocabulary = processor.tokenizer.vocab_size
        if self.table != "none":
            return FDT(self, vocabulary)
        # Both heads grow by the number of parameters that the table has.
        a_unit = self.image.width + self.text.width + 2 * self.embed_dim + 6
        return CLIPWithMLP(self, vocabulary, self.embed_dim + round(self.num_discrete_tokens * self.embed_dim / a_unit))

    @classmethod
    def tiny(cls) -> Recipe:
        return dataclasses.replace(super().tiny(), num_discrete_tokens=32, temperature=2.0)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/32 on CC3M (example/clip_fdt/config_cc3m.yaml of the released code), 32 epochs or 86,560 steps."""
        return cls(
            **clip("ViT-B/32")._asdict(),
            num_discrete_tokens=16384,
            temperature=1000.0,
            padding_votes="zero",
            # The released code starts at 1 / 0.07 and bounds the logarithm to at least 3 before the first step.
            logit_scale_init=math.exp(3),
            logit_scale_min=math.exp(3),
            freeze=("image_encoder.patch_embedding.*",),  # freeze_conv1
            # MOCOV2_single
            augmentation=ImageAugmentation((0.2, 1.0), 0.5, color_jitter_prob=0.8, grayscale_prob=0.2, blur_prob=0.5),
            word_dropout=0.0,
            batch_size=1024,
            optimizer=OptimizerConfig(learning_rate=1e-3, eps=1e-8, warmup_ratio=2500 / 86_560, max_grad_norm=0.0),
        )
