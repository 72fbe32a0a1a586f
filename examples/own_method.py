"""A method of your own in one file: CLIP with a uniformity loss on the image embeddings.

polymodal compare clip examples/own_method.py --corpus emoji --budget 25s --out compared
python examples/own_method.py [STEPS]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

import polymodal as pm
from polymodal.constraints import NonNegativeFloat
from polymodal.data.processor import Processor
from polymodal.recipes.dual_encoders import clip
from polymodal.types import Batch


def uniformity(embeddings: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of all pairs (Wang and Isola 2020, equation 2); lower is more uniform."""
    return F.pdist(embeddings).square().mul(-2).exp().mean().log()


class UniformCLIP(clip.CLIP):
    """CLIP with one more loss. `embed`, which it inherits, is what retrieval, search and the server use."""

    def __init__(self, recipe: Recipe, vocab_size: int):
        super().__init__(recipe, vocab_size)
        self.uniformity_weight = recipe.uniformity_weight

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted losses; the trainer sums them and logs each by its name."""
        loss = uniformity(self.encode_image(batch["image"]))
        return super().losses(batch) | {"uniformity": self.uniformity_weight * loss}


@dataclass(frozen=True)
class Recipe(clip.Recipe):
    """Every field is a flag of the command line: --uniformity-weight 0.2."""

    uniformity_weight: NonNegativeFloat = 0.1
    """Weight of the uniformity loss; 0 is CLIP."""

    def build(self, processor: Processor) -> UniformCLIP:
        return UniformCLIP(self, processor.tokenizer.vocab_size)


if __name__ == "__main__":
    corpus = pm.corpora.emoji()
    run = pm.train(Recipe(), corpus, pm.Budget(steps=int(sys.argv[1]) if sys.argv[1:] else 300))
    for score in pm.evaluate(run, corpus):
        if score.name.endswith("R@10"):
            print(score.name, score.estimate(), "chance", f"{score.chance:.3f}")
