"""SPARC: CLIP with a fine-grained loss, contrasting each token with its group of patches within a pair.

Beside CLIP's global loss, every caption token groups the patches that are most similar to it (sparse weights, section
2.2: min-max over patches, threshold 1/P, linear normalization) and must recognize its group among the groups of the
other tokens of the same caption. No token is compared with another pair's patches: the loss costs as much as one more
layer, and grows linearly with the batch. Start and end tokens are masked in it, as padding is; the paper masks padding
only. The paper trains all from random weights. Where the projections come from a dual encoder without h_v
(`--init hf:NAME`, or a run of another recipe), h_v gets a residual connection and begins as the identity
(`residual_head`), so that training starts at the embeddings of that model.

The paper's f_v and f_t are image_encoder and text_encoder, h_v is image_head, g_v and g_t are image_projection and
text_projection.

Terms: a (alignment weights) = grouping_weights, c (language-grouped vision embeddings) = local_loss,
L_g = losses.global, L_f = losses.local.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, UnitInterval
from polymodal.data.processor import Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import vit
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities.image_augmentation import NONE
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders._base import (
    SMALL_IMAGE,
    SMALL_TEXT,
    DualEncoder,
    DualEncoderRecipe,
    ImageTextBatch,
)
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Paper

paper = Paper(
    slug="sparc",
    title="Improving fine-grained understanding in image-text pre-training",
    year=2024,
    arxiv="2401.09865",
    modalities=("image", "text"),
)

Grouping = Literal["sparse", "no_threshold", "softmax"]


def grouping_weights(
    tokens: Float[Tensor, "batch length dim"], patches: Float[Tensor, "batch patches dim"], grouping: Grouping
) -> Float[Tensor, "batch length patches"]:
    """How much each token takes of each patch; rows sum to one (section 2.2, equations 2 to 4).

    tokens, patches: not normalized, since norms matter to the grouping. sparse: the paper's; no_threshold: without the
    cut at 1/P; softmax: of the similarities (the paper's ablations). A token that is equally similar to all patches
    takes the same of each.
    """
    similarity = tokens @ patches.transpose(1, 2)
    if grouping == "softmax":
        return similarity.softmax(-1)
    low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
    spread = high - low
    weights = torch.where(spread > 0, (similarity - low) / spread.clamp(min=1e-12), torch.ones_like(similarity))
    if grouping == "sparse":
        weights = weights * (weights >= 1 / patches.shape[1])
    return weights / weights.sum(-1, keepdim=True)


def local_loss(
    tokens: Float[Tensor, "batch length dim"],
    patches: Float[Tensor, "batch patches dim"],
    mask: Bool[Tensor, "batch length"],
    scale: Float[Tensor, ""],
    grouping: Grouping = "sparse",
) -> Float[Tensor, " batch"]:
    """Each pair's symmetric cross-entropy between its tokens and their groups of patches (section 2.2, equation 5).

    mask: True for the tokens that count. A caption with one such token, or none, has a loss of zero.
    """
    groups = F.normalize(grouping_weights(tokens, patches, grouping) @ patches, dim=-1)
    logits = scale * groups @ F.normalize(tokens, dim=-1).transpose(1, 2)
    absent = ~mask
    by_group = logits.masked_fill(absent[:, None, :], torch.finfo(logits.dtype).min).log_softmax(-1)
    by_token = logits.masked_fill(absent[:, :, None], torch.finfo(logits.dtype).min).log_softmax(-2)
    matching = (by_group + by_token).diagonal(dim1=1, dim2=2)
    return -0.5 * matching.masked_fill(absent, 0).sum(1) / mask.sum(1).clamp(min=1)


class SPARC(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.recipe = recipe
        width = recipe.image.width
        # h_v, which lets patches and the whole image encode another granularity (section 2.1).
        self.image_head = nn.Sequential(nn.Linear(width, width), nn.GELU())
        if recipe.residual_head:
            for parameter in self.image_head.parameters():
                nn.init.zeros_(parameter)  # GELU(0) = 0: x + h_v(x) begins as the identity

    def project_image(self, feature: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch dim"]:
        """L2-normalized g_v(h_v(feature)), of a patch or of the mean of the patches."""
        head = self.image_head(feature)
        return F.normalize(self.image_projection(feature + head if self.recipe.residual_head else head), dim=-1)

    def encode_modality(self, name: str, value: Any) -> Float[Tensor, "batch dim"]:
        """L2-normalized embeddings; those of images are g_v(h_v(mean of the patches))."""
        if name != "image":
            return super().encode_modality(name, value)
        return self.project_image(self.image_encoder.pooled(value))

    def encode_patches(self, image: Any) -> Float[Tensor, "batch patches dim"]:
        """L2-normalized embeddings of patches, g_v(h_v(patch)), for zero-shot segmentation (section 4.4)."""
        return self.project_image(self.image_encoder(image)[0])

    def encode(self, batch: ImageTextBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """The embeddings of images and captions, and each pair's own local loss."""
        patches, image = self.image_encoder(batch["image"])
        packed, packing, text = self.text_encoder(batch["text"])
        encoded = {
            "image": self.project_image(image),
            "text": F.normalize(self.text_projection(text), dim=-1),
        }
        if self.recipe.local_weight:
            # The local loss has no h_v (section 2.2), and the temperature of the global loss.
            tokens = packing.pad(self.text_projection(packed))
            patches, mask = self.image_projection(patches), batch["text"].content_mask
            encoded["local"] = local_loss(tokens, patches, mask, self.logit_scale(), self.recipe.grouping)
        return encoded

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """global: InfoNCE of the pairs; local: tokens against patches in each pair. Both with their weights."""
        losses = {"global": self.recipe.global_weight * info_nce(encoded["image"], encoded["text"], self.logit_scale())}
        if "local" in encoded:
            losses["local"] = self.recipe.local_weight * encoded["local"].mean()
        return losses


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    image: ImageEncoderConfig = dataclasses.replace(SMALL_IMAGE, depth=1, pool_type="avg")
    text: TextEncoderConfig = dataclasses.replace(SMALL_TEXT, depth=1)  # tokens know their context
    word_dropout: UnitInterval = 0.0
    """Probability with which a word of a caption is left out while training."""
    global_weight: NonNegativeFloat = 0.5
    """Weight of the global loss (section 2.3)."""
    local_weight: NonNegativeFloat = 0.5
    """Weight of the local loss; swept over 0.5, 1, 5 and 10 in the paper; 0 is CLIP."""
    grouping: Grouping = "sparse"
    """How tokens group patches: the paper's way, or one of its ablations (section 4.6)."""
    residual_head: bool = False
    """Whether h_v is x + GELU(W x + b), which begins as the identity; set by --init where no h_v is taken over."""

    def with_pretrained(self, name: str) -> Recipe:
        """This recipe with the towers and the space of a pretrained dual encoder, which has no h_v."""
        return dataclasses.replace(super().with_pretrained(name), residual_head=True)

    def starting_from(self, source: Any) -> Recipe:
        """This recipe with the h_v of the run that it starts from; for a run of another recipe, which has none, it
        begins as the identity."""
        if not isinstance(source, DualEncoderRecipe):
            return self
        return dataclasses.replace(self, residual_head=getattr(source, "residual_head", True))

    def build(self, processor: Processor) -> SPARC:
        return SPARC(self, processor.tokenizer.vocab_size)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/16 (section 4.1 and appendix D); learning rate and weight decay are of those swept; 200,000 steps."""
        return cls(
            image=vit("B", 16, pooling="avg"),
            text=TextEncoderConfig(32000, context_length=57, width=768, depth=12, num_heads=12),
            embed_dim=512,
            augmentation=NONE,
            batch_size=16348,
            optimizer=OptimizerConfig(learning_rate=9e-4, weight_decay=0.1, warmup_ratio=2500 / 200_000),
        )
