"""SigLIP: CLIP with a sigmoid loss, a binary classification of every image-text pair of the batch.

The softmax of CLIP is replaced by a sigmoid for each pair, with a learned temperature and a learned bias (algorithm 1
of the paper), so a pair's loss does not depend on the other pairs of the batch. The temperature has no bound. Images
are pooled by attention (MAP head) in `paper()`, as in the released models.

Algorithm 1's t_prime and b are logit_scale and logit_bias of `models.dual_encoder`; the MAP head is
`layers.perceiver_resampler.MAPHead`.

Terms: algorithm 1 = SigLIP.contrastive_losses, MAP head = image.map.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from polymodal.constraints import PositiveFloat
from polymodal.data.processor import Processor
from polymodal.encoders.presets import vit
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities.image_augmentation import NONE
from polymodal.objectives.contrastive import siglip_loss
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Paper

paper = Paper(
    slug="siglip",
    title="Sigmoid Loss for Language Image Pre-Training",
    year=2023,
    arxiv="2303.15343",
    modalities=("image", "text"),
    parameters={"*": 203_155_970},  # the released siglip-base-patch16-224
)


class SigLIP(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary, logit_scale_max=None, logit_bias_init=recipe.logit_bias_init)

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """sigmoid: binary cross-entropy of all pairs."""
        assert self.logit_bias is not None
        return {"sigmoid": siglip_loss(encoded["image"], encoded["text"], self.logit_scale(), self.logit_bias)}


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    logit_scale_init: PositiveFloat = 10.0
    """Inverse temperature at the start (section 3.2: exp(t') = 10)."""
    logit_bias_init: float = -5.0
    """Bias at the start: about the log-odds of a match, -log(batch); -10 in the paper (section 3.2), for 32,768."""

    def build(self, processor: Processor) -> SigLIP:
        return SigLIP(self, processor.tokenizer.vocab_size)

    @classmethod
    def tiny(cls) -> Recipe:
        tiny = super().tiny()
        return dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, pool_type="map"), logit_bias_init=-1.5)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/16 at 224 px, batch 32,768 (sections 4.2 and 4.6); the released model has 203,155,970 parameters.

        The paper's optimizer is Adafactor. Its weight decay of 1e-4 is not multiplied by the learning rate
        (google-research/big_vision, optax.py), so AdamW's is 1e-4 / 1e-3. The released model has no projection of
        images, a bias in that of captions and in the patch embedding, no norm before the blocks, and attends to
        padding: it is read by `--init`.
        """
        return cls(
            image=vit("B", 16, pooling="map"),
            text=TextEncoderConfig(32000, context_length=64, width=768, depth=12, num_heads=12, pool_type="eos"),
            embed_dim=768,
            augmentation=NONE,
            word_dropout=0.0,
            batch_size=32768,
            optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4 / 1e-3, betas=(0.9, 0.95)),
            logit_bias_init=-10.0,
        )
