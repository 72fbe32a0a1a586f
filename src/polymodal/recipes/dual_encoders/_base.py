"""What the recipes of this family share: the dual encoder of images and captions, and a batch of one view an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from polymodal.constraints import AtLeastTwo, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.pretrained import read_configuration
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.encoders.pretrained_text import PretrainedTextConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.logit_scale import CLIP_INIT, CLIP_MAX
from polymodal.modalities.image_augmentation import NONE, WEAK, ImageAugmentation
from polymodal.modalities.text_augmentation import without_words
from polymodal.models.dual_encoder import DualEncoderConfig, DualEncoderModel, ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example

# What learns most of `emoji` in half a minute on two cores; a transformer block on top gained nothing there.
SMALL_IMAGE = ImageEncoderConfig(stem=(32, 64, 128), width=128, depth=0, pool_type="max")
SMALL_TEXT = TextEncoderConfig(width=128)


class DualEncoder(DualEncoderModel):
    """`models.dual_encoder` for images and captions, with linear projections; it trains with GradCache.

    Subclasses have `contrastive_losses` of their own, and `encode` or `losses` where they compare more than pairs.
    """

    image_encoder: Encoder
    text_encoder: Encoder
    image_projection: nn.Linear
    text_projection: nn.Linear

    def __init__(
        self,
        recipe: TwoTowerRecipe,
        vocabulary: int,
        logit_scale_max: float | None = CLIP_MAX,
        logit_bias_init: float | None = None,
    ):
        encoders = {"image": recipe.image.build(), "text": recipe.text.build(vocabulary)}
        space = DualEncoderConfig(
            recipe.embed_dim,
            logit_scale_init=recipe.logit_scale_init,
            logit_scale_max=logit_scale_max,
            logit_bias_init=logit_bias_init,
        )
        super().__init__(encoders, space)

    @two_halves("encode", "contrastive_losses")
    def losses(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        return super().losses(batch)

    def missing_export(self) -> str:
        """Why embeddings of this method cannot be exported; empty if they can."""
        return ""

    @torch.no_grad()
    def load_pretrained_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Projections, temperature and bias of a pretrained dual encoder, which CLIP and SigLIP name alike.

        SigLIP compares its towers' vectors as they are: without a pretrained projection it is the identity.
        """
        for projection, name in (
            (self.image_projection, "visual_projection"),
            (self.text_projection, "text_projection"),
        ):
            if (pretrained := weights.get(f"{name}.weight")) is not None:
                projection.weight.copy_(pretrained)
            else:
                nn.init.eye_(projection.weight)
        for name, own in (("logit_scale", self.logit_scale.logit_scale), ("logit_bias", self.logit_bias)):
            if own is not None and name in weights:
                own.copy_(weights[name].reshape(()))


AnyRecipe = TypeVar("AnyRecipe", bound="TwoTowerRecipe")


@dataclass(frozen=True)
class TwoTowerRecipe(TrainingRecipe):
    """Hyper-parameters of two encoders and their space, for recipes that make batches in a way of their own."""

    batch_size: AtLeastTwo = 96
    """Examples in a step, over all processes; each is told from the others."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    image: ImageEncoderConfig = SMALL_IMAGE
    text: TextEncoderConfig = SMALL_TEXT
    embed_dim: PositiveInt = 128
    """Dimensions of the embedding space."""
    logit_scale_init: PositiveFloat = CLIP_INIT
    """Inverse temperature at the start; it is learned (CLIP, section 2.5)."""
    word_dropout: UnitInterval = 0.3
    """Probability with which a word of a caption is left out while training (Iyyer et al. 2015, section 3.1)."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"embed_dim": 256, "batch_size": 128, "optimizer": OptimizerConfig(learning_rate=3.3e-4)},
        "base": {"embed_dim": 512, "batch_size": 256, "optimizer": OptimizerConfig(learning_rate=1.7e-4)},
    }
    """Learning rates are a quarter of what the width would give: with blocks, the defaults' learn nothing
    (`benchmarks/size_sweep.py`)."""
    tuning_factors: ClassVar[dict[str, tuple[float, ...]]] = {"logit_scale_init": (2,)}

    @classmethod
    def tiny(cls: type[AnyRecipe]) -> AnyRecipe:
        """Return the smallest preset, for tests."""
        return cls(
            image=ImageEncoderConfig(patch_size=16, width=16, depth=1, num_heads=2),
            text=TextEncoderConfig(300, context_length=24, width=16, depth=1, num_heads=2),
            embed_dim=16,
            batch_size=4,
        )

    def with_pretrained(self: AnyRecipe, name: str) -> AnyRecipe:
        """This recipe with the towers and the space of a pretrained dual encoder. Raises UserError when it is none."""
        whole = read_configuration(name)
        if not (hasattr(whole, "vision_config") and hasattr(whole, "text_config")):
            raise UserError(f"'{name}' ({whole.model_type}) is no dual encoder; give it to --vision or --text-encoder.")
        image, text = PretrainedImageConfig.read(name), PretrainedTextConfig.read(name)
        return dataclasses.replace(
            self, image=image, text=text, embed_dim=getattr(whole, "projection_dim", image.width)
        )

    def cacheable_encoders(self) -> tuple[str, ...]:
        return ("text_encoder",)

    def columns(self) -> Declared:
        """The encoders' image size, colors and tokenizer; what they do not bring is learned on the training split."""
        image = ImageColumn.of(self.image.image_size, self.image.image_mean_std)
        return {"image": image, "text": TextColumn(self.text)}

    def sample_captions(self, examples: list[Example], text: TextColumn, example_rng: ExampleRNG) -> list[str]:
        """One of the captions of each, without some of its words."""
        captions = text.sample_captions([example["text"] for example in examples], example_rng)
        each = zip(captions, example_rng.generators, strict=True)
        return [without_words(caption, self.word_dropout, rng) for caption, rng in each]


@dataclass(frozen=True)
class DualEncoderRecipe(TwoTowerRecipe):
    """Hyper-parameters of the family. The defaults train in a minute on two cores; `paper()` has the published ones."""

    augmentation: ImageAugmentation = WEAK

    def cacheable_encoders(self) -> tuple[str, ...]:
        return ("text_encoder", "image_encoder") if self.augmentation == NONE else ("text_encoder",)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> ImageTextBatch:
        """One augmented view of each image and one of its captions."""
        images, captions = ([example[name] for example in examples] for name in ("image", "text"))
        image = processor.image.augmented(images, self.augmentation, example_rng, captions)
        return {"image": image, "text": processor.text(self.sample_captions(examples, processor.text, example_rng))}
