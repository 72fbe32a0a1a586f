"""What the recipes of this family share: the towers, their projections, and a batch of one view a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.image_text import ImageTextProcessor
from polymodal.draws import Draws
from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.encoders.text import TextEncoder, TextEncoderConfig
from polymodal.modalities.image_augmentation import WEAK, ImageAugmentation, augment
from polymodal.modalities.text import Tokens
from polymodal.training.gradients import Comparison
from polymodal.training.optimiser import Optimisation
from polymodal.types import Batch, Example

LARGEST_SCALE = 100.0  # CLIP, section 2.5: keeps the logits from growing without bound


class DualEncoder(Comparison, nn.Module):
    """An image tower and a text tower with linear projections into one space. Subclasses add `compare` or `losses`."""

    def __init__(self, recipe: DualEncoderRecipe, vocabulary: int):
        super().__init__()
        self.image_encoder = ImageEncoder(recipe.image)
        self.text_encoder = TextEncoder(recipe.text, vocabulary)
        self.image_projection = nn.Linear(recipe.image.width, recipe.dim, bias=False)
        self.text_projection = nn.Linear(recipe.text.width, recipe.dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=recipe.image.width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=recipe.text.width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(recipe.scale)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The inverse temperature, learned, at most 100."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def embed_image(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """L2-normalised picture vectors."""
        return F.normalize(self.image_projection(self.image_encoder(image)[1]), dim=-1)

    def embed_text(self, text: Tokens) -> Float[Tensor, "batch dim"]:
        """L2-normalised caption vectors."""
        return F.normalize(self.text_projection(self.text_encoder(text)[2]), dim=-1)

    def embed_patches(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches dim"]:
        """L2-normalised vectors of all patches, in the space of the captions."""
        return F.normalize(self.image_projection(self.image_encoder(image)[0]), dim=-1)

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """What is compared: the vectors of pictures and captions."""
        return self.embed(batch)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalised vectors of the modalities that the batch has."""
        vectors = {}
        if "image" in batch:
            vectors["image"] = self.embed_image(batch["image"])
        if "text" in batch:
            vectors["text"] = self.embed_text(batch["text"])
        return vectors


@dataclass(frozen=True)
class DualEncoderRecipe(Optimisation):
    """Hyper-parameters of the family. The defaults train in a minute on two cores; `paper()` has the published ones."""

    image: ImageEncoderConfig = ImageEncoderConfig()
    text: TextEncoderConfig = TextEncoderConfig()
    dim: int = 128
    """Dimensions of the embedding space."""
    scale: float = 1 / 0.07
    """Inverse temperature at the start; it is learned (CLIP, section 2.5)."""
    augmentation: ImageAugmentation = WEAK

    def processor(self, corpus: Corpus) -> ImageTextProcessor:
        """A byte-level BPE learned on the training captions, and the picture size."""
        return ImageTextProcessor.fit(corpus, self.image.size, self.text.vocabulary, self.text.context)

    def load_processor(self, directory: Path) -> ImageTextProcessor:
        return ImageTextProcessor.load(directory)

    def training_batch(self, examples: list[Example], processor: ImageTextProcessor, draws: Draws) -> Batch:
        """One augmented view of each picture and one of its captions."""
        pixels = processor.pixels([example["image"] for example in examples])
        pixels = augment(pixels, self.augmentation, draws, may_flip(examples))
        captions = [processor.draw(e["text"], rng) for e, rng in zip(examples, draws.generators, strict=True)]
        return {"image": processor.normalise(pixels), "text": processor.tokenizer(captions)}


def may_flip(examples: list[Example]) -> Bool[Tensor, " batch"]:
    """False where a caption says "left" or "right", which a mirror image would turn into a lie."""
    words = (set(" ".join(caption.text for caption in example["text"]).lower().split()) for example in examples)
    return torch.tensor([not found & {"left", "right"} for found in words])
