"""SigLIP: every picture-caption pair of the batch is a yes-or-no question of its own.

The softmax of CLIP is replaced by a sigmoid for each pair, with a learned temperature and a learned bias (algorithm 1
of the paper), so a pair's loss does not depend on the other pairs of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polymodal.data.image_text import ImageTextProcessor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.objectives.contrastive import sigmoid_loss
from polymodal.ranges import Positive
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe
from polymodal.types import Paper

paper = Paper(
    slug="siglip",
    title="Sigmoid Loss for Language Image Pre-Training",
    year=2023,
    arxiv="2303.15343",
    modalities=("image", "text"),
)


class SigLIP(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.bias = nn.Parameter(torch.tensor(recipe.bias))

    def compare(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """sigmoid: binary cross-entropy of all pairs."""
        return {"sigmoid": sigmoid_loss(vectors["image"], vectors["text"], self.scale, self.bias)}


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    scale: Positive = 10.0
    """Inverse temperature at the start (section 3.2: exp(t') = 10)."""
    bias: float = -5.0
    """Bias at the start: about the log-odds of a match, -log(batch); -10 in the paper (section 3.2), for 32,768."""

    def build(self, processor: ImageTextProcessor) -> SigLIP:
        return SigLIP(self, processor.tokenizer.vocabulary)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/16 at 224 px, batch 32,768 (sections 4.2 and 4.6)."""
        return cls(
            image=ImageEncoderConfig(size=224, patch=16, width=768, depth=12, heads=12),
            text=TextEncoderConfig(32000, context=64, width=768, depth=12, heads=12, pooling="end"),
            dim=768,
            batch_size=32768,
            learning_rate=1e-3,
            weight_decay=1e-4,
            betas=(0.9, 0.95),
            bias=-10.0,
        )
