"""AIMv2: a vision encoder whose decoder writes the image patch by patch, then the caption, in one causal sequence.

A throw-away decoder reads the encoder's features and predicts every next patch by regression and every next word by
cross-entropy, so that all patches and words give a signal, without negatives or large batches. Prefix attention in the
encoder (a random number of first patches attend to each other, later ones causally) lets it be used without a mask
afterwards. A last stage (LiT) aligns the frozen encoder with a text encoder by InfoNCE, for search and zero-shot use.

Differs from the paper in: positions of the decoder are RoPE (the paper does not say); decoder and text encoder of LiT
share one tokenizer; native resolution is sampled for each image, not for each batch with as many images as fit, so that
micro-batches and processes change nothing, and without crops; weight decay is AdamW's, times the learning rate (0.1 in
place of 1e-4). Left out: tuning at 336 and 448 pixels, LLaVA tuning, detection, and the distilled ViT-L, whose recipe
is unpublished.

Terms: prefix attention = encoders.prefix_image.PrefixImageEncoder, multimodal decoder =
models.multimodal_decoder.MultimodalDecoder, L_img = losses.image, L_text = losses.text, alpha = image_loss_weight,
prefix length M = batch.prefix, attentive probe = layers.attentive_probe.AttentiveProbe, LiT = lit_losses, native
resolution = data.columns.native_image.NativeImageColumn.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.native_image import training_images
from polymodal.data.columns.text import TextColumn
from polymodal.data.pools import in_first_pool
from polymodal.data.processor import Declared, Processor, SharedColumn, Sparse
from polymodal.encoders.prefix_image import PrefixAttention, PrefixImageEncoderConfig, patches_of, sample_prefix
from polymodal.encoders.swiglu_text import SwiGLUTextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.logit_scale import CLIP_INIT
from polymodal.modalities.image import PatchedImages
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import END, Tokens
from polymodal.models.dual_encoder import DualEncoderConfig
from polymodal.models.locked_image_tuning import AttentionPoolHead, ContrastiveEncoder
from polymodal.models.multimodal_decoder import ImageWriter, MultimodalDecoder, MultimodalDecoderConfig
from polymodal.objectives.masked_modeling import masked_patch_loss
from polymodal.objectives.reduction import global_mean, mean_over
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="aimv2",
    title="Multimodal Autoregressive Pre-training of Large Vision Encoders",
    year=2024,
    arxiv="2411.14402",
    modalities=("image", "text"),
    code="apple/ml-aim@bd9e06893f3ad68bda56b34ac2158fda2680b7fc",
    # Of the released code's aimv2_large and aimv2_large_lit; the decoder and its tokenizer are not released.
    parameters={"image_encoder.*": 309_197_824, "lit.* !lit.text_encoder.embedding.*": 89_537_025},
)


class LiTBatch(TypedDict):
    """Pairs of an image and a caption."""

    image: Float[Tensor, "batch 3 size size"] | PatchedImages
    text: Tokens


class AIMv2Batch(LiTBatch):
    """prefix: number of first patches with bidirectional attention. captioned: whether the caption is predicted."""

    prefix: Int[Tensor, " batch"]
    captioned: Bool[Tensor, " batch"]


class AIMv2(ImageWriter):
    """The vision encoder and the multimodal decoder, which writes captions, too."""

    def __init__(self, recipe: Recipe, processor: Processor, **tuning: Any):
        """tuning: further parts, see `ContrastiveEncoder`."""
        patch_dim = 3 * recipe.image.patch_size**2
        decoder = MultimodalDecoder(recipe.decoder, recipe.image.width, patch_dim, processor.tokenizer.vocab_size)
        (end,) = processor.tokenizer.mark_ids(END)
        super().__init__(recipe.image.build(), decoder=decoder, end=end, **tuning)
        self.recipe = recipe

    def loss_counts(self, batch: AIMv2Batch) -> dict[str, Tensor]:
        """Predicted patches and predicted words."""
        text = batch["text"].without_start()
        return {
            "image": self.predicted_patches(batch["image"], batch["prefix"]).sum(),
            "text": (text.mask & batch["captioned"][:, None]).sum(),
        }

    @mean_over("loss_counts")
    def losses(self, batch: AIMv2Batch) -> dict[str, Tensor]:
        """image: squared error of the normalized patches behind the prefix, times alpha. text: nats per word."""
        text, predicted = batch["text"].without_start(), self.predicted_patches(batch["image"], batch["prefix"])
        states = self.decoder(self.image_encoder(batch["image"], batch["prefix"])[0], text)
        losses = {}
        if weight := self.recipe.image_loss_weight:
            # Position i predicts patch i + 1, so that the first patch is never predicted.
            patches = patches_of(batch["image"], self.recipe.image.patch_size).values[:, 1:]
            prediction = self.decoder.pixel_head(states.image[:, :-1])
            losses["image"] = weight * masked_patch_loss(prediction, patches, predicted, self.recipe.norm_pix_loss)
        if weight := self.recipe.text_loss_weight:
            wanted = text.mask & batch["captioned"][:, None]
            logits = self.decoder.text_head(states.text[wanted]).float()
            nats = F.cross_entropy(logits, text.ids[wanted], reduction="sum")
            losses["text"] = weight * global_mean(nats, wanted.sum())
        return losses


class AIMv2LiT(AIMv2, ContrastiveEncoder):
    """AIMv2 with an image head and a text encoder in one space."""


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 32
    """Images of a step, over all processes."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.95), min_lr_ratio=0.01)
    image: PrefixImageEncoderConfig = PrefixImageEncoderConfig()
    decoder: MultimodalDecoderConfig = MultimodalDecoderConfig()
    text: SwiGLUTextEncoderConfig = SwiGLUTextEncoderConfig(
        vocab_size=2000, context_length=48, width=64, depth=2, causal=True, pool_type="eos"
    )
    """Text encoder of LiT; its tokenizer is the decoder's, too."""
    objective: Literal["autoregressive", "contrastive"] = "autoregressive"
    """What trains the vision encoder: AIMv2, or for comparison CLIP's loss through the image head of LiT."""
    image_loss_weight: NonNegativeFloat = 0.4
    """alpha: weight of the patch regression; 0: a captioner."""
    text_loss_weight: NonNegativeFloat = 1.0
    """Weight of the caption loss; 0: patches alone, as in AIM."""
    norm_pix_loss: bool = True
    """Normalize target patches by their own mean and variance (MAE)."""
    attention: PrefixAttention = "prefix"
    """Encoder attention in pre-training: prefixes of random length, all patches (none is predicted), or one patch."""
    caption_fraction: UnitInterval = 1.0
    """Fraction of the images whose captions are predicted; of the others, and of those without, patches alone are."""
    native_area: tuple[NonNegativeInt, NonNegativeInt] = (4, 6)
    """Range of log2 of the patches of an image at native resolution (--image.pos-embed sine); 7 to 12 in the paper."""
    lit_fraction: UnitInterval = 0.25
    """Fraction of the budget for LiT at its end; 0: none; 1: LiT alone, of an encoder from --init."""
    embed_dim: PositiveInt = 64
    """Dimensions of the space of LiT."""
    logit_scale_init: PositiveFloat = CLIP_INIT
    """Inverse temperature of LiT at the start; it is learned."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.4, 1.0), hflip_prob=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image_loss_weight and not self.text_loss_weight:
            raise UserError("Nothing is predicted: set --image-loss-weight or --text-loss-weight above 0.")
        if self.attention == "bidirectional" and not self.text_loss_weight:
            raise UserError("--attention bidirectional predicts no patches; set --text-loss-weight above 0.")
        if self.native_area[0] > self.native_area[1]:
            raise UserError("--native-area is a minimum and then a maximum.")

    def stages(self) -> tuple[Stage, ...]:
        if self.objective == "contrastive":
            return (Stage("pre-training", batch="lit_batch", losses="lit_losses"),)
        return (
            Stage("pre-training", 1 - self.lit_fraction, ("image_encoder.*", "decoder.*")),
            Stage("lit", self.lit_fraction, ("lit.*",), batch="lit_batch", losses="lit_losses"),
        )

    def columns(self) -> Declared:
        image, text = self.image.column(2 ** self.native_area[1]), Sparse(TextColumn(self.text))
        return {"image": image, "text": text, "answer": SharedColumn("text"), "question": SharedColumn("text")}

    def build(self, processor: Processor) -> AIMv2LiT | AIMv2 | ContrastiveEncoder:
        if self.objective == "autoregressive" and not self.lit_fraction:
            return AIMv2(self, processor)
        head = AttentionPoolHead(self.image.width, self.image.num_heads)
        space = DualEncoderConfig(self.embed_dim, logit_scale_init=self.logit_scale_init)
        tuning: dict[str, Any] = {"head": head, "text_encoder": self.text.build(processor.tokenizer.vocab_size)}
        if self.objective == "contrastive" or self.lit_fraction == 1:
            return ContrastiveEncoder(self.image.build(), **tuning, space=space)
        return AIMv2LiT(self, processor, **tuning, space=space)

    def with_pretrained(self, name: str) -> Recipe:
        """This recipe with a released vision encoder. Raises UserError for a model that is no AIMv2."""
        return dataclasses.replace(self, image=PrefixImageEncoderConfig.read(name))

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> AIMv2Batch:
        """Augmented images, lengths of prefixes, and a caption of each where there is one."""
        captions = [example.get("text", []) for example in examples]
        images = training_images(processor.image, examples, self.augmentation, self.native_area, example_rng)
        prefix = sample_prefix(patches_of(images, self.image.patch_size).lengths, self.attention, example_rng)
        captioned = in_first_pool(captions, self.caption_fraction)
        texts = processor.text(processor.text.sample_captions(captions, example_rng, optional=True))
        return {"image": images, "prefix": prefix, "text": texts, "captioned": captioned}

    def lit_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> LiTBatch:
        """Augmented images and a caption of each."""
        if not all("text" in example for example in examples):
            raise UserError("LiT reads pairs, and an image has no caption: leave such out, or set --lit-fraction 0.")
        images = training_images(processor.image, examples, self.augmentation, self.native_area, example_rng)
        texts = processor.text.sample_captions([example["text"] for example in examples], example_rng)
        return {"image": images, "text": processor.text(texts)}

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            image=PrefixImageEncoderConfig(32, 8, width=16, depth=1, num_heads=2, mlp_dim=32),
            decoder=MultimodalDecoderConfig(width=16, depth=1, num_heads=2, mlp_dim=32),
            text=SwiGLUTextEncoderConfig(
                300, 24, width=16, depth=1, num_heads=2, causal=True, pool_type="eos", mlp_dim=32
            ),
            embed_dim=16,
            batch_size=4,
            lit_fraction=0.5,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """AIMv2-L at 224 pixels (table 1, appendix A): 1.5 million steps; LiT after 3 of 15 billion samples."""
        return cls(
            image=PrefixImageEncoderConfig(224, 14, width=1024, depth=24, num_heads=8, mlp_dim=2816),
            decoder=MultimodalDecoderConfig(width=1024, depth=12, num_heads=8, mlp_dim=2816),
            text=SwiGLUTextEncoderConfig(
                32_000, 77, width=768, depth=12, num_heads=6, causal=True, pool_type="eos", mlp_dim=2048
            ),
            embed_dim=768,
            native_area=(7, 12),
            lit_fraction=0.2,
            batch_size=8192,
            # Learning rate 1e-3, its minimum 1e-5, and betas 0.9 and 0.95 are the defaults.
            optimizer=dataclasses.replace(cls.optimizer, weight_decay=0.1, warmup_ratio=12_500 / 1_500_000),
        )
