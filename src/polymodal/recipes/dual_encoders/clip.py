"""CLIP: contrastive pre-training of an image and a text encoder, with a softmax over all pairs of the batch.

Both encoders are trained from scratch with a symmetric cross-entropy over the cosine similarities of all pairs of the
batch, with a learned temperature (figure 3 of the paper), which is bounded after every step (section 2.5). Blocks have
GELU; the released weights were trained with its approximation QuickGELU, with which `--init` reads them.

Figure 3's W_i, W_t and t are image_projection, text_projection and logit_scale of `models.dual_encoder`.

Terms: symmetric loss of figure 3 = CLIP.contrastive_losses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polymodal.data.processor import Processor
from polymodal.encoders.presets import clip
from polymodal.modalities.image_augmentation import ImageAugmentation
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
    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: symmetric InfoNCE of the pairs."""
        return {"contrastive": info_nce(encoded["image"], encoded["text"], self.logit_scale())}


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    def build(self, processor: Processor) -> CLIP:
        return CLIP(self, processor.tokenizer.vocab_size)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/32 (tables 18 to 20 of the paper): 151,277,313 parameters, 32 epochs of 400 million pairs."""
        return cls(
            **clip("ViT-B/32")._asdict(),
            # A random square crop is the only augmentation (section 2.4); its area here is that of open_clip.
            augmentation=ImageAugmentation(scale=(0.9, 1.0)),
            word_dropout=0.0,
            batch_size=32768,
            optimizer=OptimizerConfig(
                learning_rate=5e-4,
                weight_decay=0.2,
                betas=(0.9, 0.98),
                eps=1e-6,
                warmup_ratio=2000 / 390_625,
                max_grad_norm=0.0,
            ),
        )
