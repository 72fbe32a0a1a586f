"""What the recipes of this family share: the towers, their projections, and a batch of one view a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import TextColumn
from polymodal.data.image_text import ImageTextProcessor
from polymodal.draws import Draws
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.published import read_configuration
from polymodal.encoders.published_image import PublishedImageConfig
from polymodal.encoders.published_text import PublishedTextConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities.image_augmentation import NONE, WEAK, ImageAugmentation, augment, may_flip
from polymodal.modalities.text import Tokens
from polymodal.modalities.text_augmentation import without_words
from polymodal.ranges import Count, NotNegative, Positive, Several, Share
from polymodal.training.gradients import Comparison
from polymodal.training.optimiser import Optimisation
from polymodal.types import Batch, Example

# What learns most of `emoji` in half a minute on two cores; a transformer block on top gained nothing there.
SMALL_IMAGE = ImageEncoderConfig(stem=(32, 64, 128), width=128, depth=0, pooling="max")
SMALL_TEXT = TextEncoderConfig(width=128)
LARGEST_SCALE = 100.0  # CLIP, section 2.5: keeps the logits from growing without bound


class DualEncoder(Comparison, nn.Module):
    """An image tower and a text tower with linear projections into one space. Subclasses add `compare` or `losses`."""

    def __init__(self, recipe: DualEncoderRecipe, vocabulary: int):
        super().__init__()
        self.image_encoder = recipe.image.build()
        self.text_encoder = recipe.text.build(vocabulary)
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
        return F.normalize(self.image_projection(self.image_encoder.pooled(image)), dim=-1)

    def embed_text(self, text: Tokens) -> Float[Tensor, "batch dim"]:
        """L2-normalised caption vectors."""
        return F.normalize(self.text_projection(self.text_encoder.pooled(text)), dim=-1)

    def embed_patches(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches dim"]:
        """L2-normalised vectors of all patches, in the space of the captions."""
        return F.normalize(self.image_projection(self.image_encoder(image)[0]), dim=-1)

    @torch.no_grad()
    def take_published(self, weights: Mapping[str, Tensor]) -> None:
        """Projections, temperature and bias of a published dual encoder, which CLIP and SigLIP name alike.

        SigLIP compares its towers' vectors as they are: without a published projection it is the identity.
        """
        for projection, name in (
            (self.image_projection, "visual_projection"),
            (self.text_projection, "text_projection"),
        ):
            if (published := weights.get(f"{name}.weight")) is not None:
                projection.weight.copy_(published)
            else:
                nn.init.eye_(projection.weight)
        for name, own in (("logit_scale", self.log_scale), ("logit_bias", getattr(self, "bias", None))):
            if own is not None and name in weights:
                own.copy_(weights[name].reshape(()))

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

    batch_size: Several = 96
    """Examples in a step, over all processes; each is told from the others."""
    learning_rate: NotNegative = 2e-3
    """Peak learning rate."""
    image: ImageEncoderConfig = SMALL_IMAGE
    text: TextEncoderConfig = SMALL_TEXT
    dim: Count = 128
    """Dimensions of the embedding space."""
    scale: Positive = 1 / 0.07
    """Inverse temperature at the start; it is learned (CLIP, section 2.5)."""
    augmentation: ImageAugmentation = WEAK
    word_dropout: Share = 0.3
    """Probability with which a word of a caption is left out while training (Iyyer et al. 2015, section 3.1)."""

    def with_published(self, name: str) -> DualEncoderRecipe:
        """This recipe with the towers and the space of a published dual encoder. Raises UserError when it is none."""
        whole = read_configuration(name)
        if not (hasattr(whole, "vision_config") and hasattr(whole, "text_config")):
            raise UserError(f"'{name}' ({whole.model_type}) is no dual encoder; give it to --vision or --text.")
        image, text = PublishedImageConfig.read(name), PublishedTextConfig.read(name)
        return dataclasses.replace(self, image=image, text=text, dim=getattr(whole, "projection_dim", image.width))

    def unaugmented(self) -> tuple[str, ...]:
        return ("text_encoder", "image_encoder") if self.augmentation == NONE else ("text_encoder",)

    def processor(self, corpus: Corpus) -> ImageTextProcessor:
        """The towers' picture size, colours and tokenizer; what they do not bring is learned on the training split."""
        return ImageTextProcessor.fit(corpus, self.image.size, self.text.tokenizer, self.image.colours)

    def load_processor(self, directory: Path) -> ImageTextProcessor:
        return ImageTextProcessor.load(directory, self.text.load_tokenizer(directory))

    def training_batch(self, examples: list[Example], processor: ImageTextProcessor, draws: Draws) -> Batch:
        """One augmented view of each picture and one of its captions."""
        pixels = processor.pixels([example["image"] for example in examples])
        pixels = augment(pixels, self.augmentation, draws, may_flip([example["text"] for example in examples]))
        captions = self.drawn_captions(examples, processor, draws)
        return {"image": processor.normalise(pixels), "text": processor.tokenizer(captions)}

    def drawn_captions(
        self, examples: list[Example], processor: ImageTextProcessor | TextColumn, draws: Draws
    ) -> list[str]:
        """One of the captions of each, without some of its words."""
        each = zip(examples, draws.generators, strict=True)
        return [without_words(processor.draw(example["text"], rng), self.word_dropout, rng) for example, rng in each]
