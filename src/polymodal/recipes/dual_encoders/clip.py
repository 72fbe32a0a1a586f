"""CLIP: contrastive pre-training of an image and a text encoder, with a softmax over all pairs of the batch.

Both towers are trained from scratch with a symmetric cross-entropy over the cosine similarities of all pairs of the
batch, with a learned temperature (figure 3 of the paper; temperature and clipping in section 2.5).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polymodal.data.processor import Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Paper

paper = Paper(
    slug="clip",
    title="Learning Transferable Visual Models From Natural Language Supervision",
    year=2021,
    arxiv="2103.00020",
    modalities=("image", "text"),
    parameters={"*": 151_277_313},  # the released ViT-B/32
)


class CLIP(DualEncoder):
    def contrastive_losses(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: symmetric InfoNCE of the pairs."""
        return {"contrastive": info_nce(vectors["image"], vectors["text"], self.logit_scale())}


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    def build(self, processor: Processor) -> CLIP:
        return CLIP(self, processor.tokenizer.vocab_size)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/32 (tables 18 to 20 of the paper)."""
        return cls(
            image=ImageEncoderConfig(image_size=224, patch_size=32, width=768, depth=12, num_heads=12, pool_type="cls"),
            text=TextEncoderConfig(
                49408, context_length=77, width=512, depth=12, num_heads=8, causal=True, pool_type="eos"
            ),
            embed_dim=512,
            word_dropout=0.0,
            batch_size=32768,
            optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.2, warmup_ratio=2000 / 390_000),
        )
