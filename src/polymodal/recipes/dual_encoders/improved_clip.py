"""Improved CLIP: CLIP with strong image and text augmentation, label smoothing and a separate projection head.

The paper ("CLIP-rocket") asks whether gains of CLIP with an added non-contrastive loss come from the loss or from the
recipe. Beside the weakly augmented (global) pair there are K strongly augmented (local) views of image and caption,
compared only with each other through separate projectors. The four added losses that it studies are the option
`ssl_loss`; with `num_strong_views=0` the recipe is CLIP. Of the released code, SwALIP with prototypes, drop path and
convolutional image encoders are left out; its dropout is on the input of blocks, here on the output of their branches.
Its stop words are the longer list of NLTK, and its vision transformer has no norm before the blocks.

The released code's z come from image_projection and text_projection, h from local_projectors, v from ssl_projectors
and p from ssl_predictors; the losses are in `objectives/multi_view.py`.

Terms: CL2L loss = losses.contrastive, SiamLIP = losses.siamlip, BYOLIP = losses.byolip, BarLIP = losses.barlip,
SwALIP = losses.swalip.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NotRequired

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.data.augmented_captions import augmented_captions
from polymodal.data.processor import Processor
from polymodal.encoders.encoder import each_view, pooled_views
from polymodal.encoders.presets import clip
from polymodal.errors import UserError
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.momentum_encoder import MomentumEncoder
from polymodal.layers.projection_head import projection_heads
from polymodal.modalities.image_augmentation import STRONG, ImageAugmentation
from polymodal.modalities.text import Tokens
from polymodal.modalities.text_augmentation import TextAugmentation, without_stop_words
from polymodal.objectives.multi_view import Views, barlip_loss, cl2l_loss, siamlip_loss, swalip_loss
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe, ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper

paper = Paper(
    slug="improved-clip-baselines",
    title="Improved baselines for vision-language pre-training",
    year=2023,
    arxiv="2305.08675",
    modalities=("image", "text"),
    code="facebookresearch/clip-rocket@ebd9e5863caec05e7a76719a1fb52e9cbaf59562",
)

SSLLoss = Literal["none", "siamlip", "byolip", "barlip", "swalip"]


class MultiViewBatch(ImageTextBatch):
    """The global views, and K local ones of all pairs, one after the other; these are left out if K is 0."""

    local_image: NotRequired[Float[Tensor, "views 3 size size"]]
    local_text: NotRequired[Tokens]


class ImprovedCLIP(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.recipe = recipe
        widths = {"image": recipe.image.width, "text": recipe.text.width}
        if recipe.num_strong_views and recipe.separate_projectors:
            sizes = [recipe.projector_hidden_dim] * 2 + [recipe.embed_dim]
            self.local_projectors = projection_heads(widths, sizes, bias=True)
            self.local_logit_scale = LogitScale(1 / 0.1)
        mlp_dim, out = recipe.ssl_hidden_dim, recipe.ssl_output_dim
        if recipe.ssl_loss == "barlip":
            self.ssl_projectors = projection_heads(widths, [mlp_dim, mlp_dim, out], last_norm=True)
        elif recipe.ssl_loss in ("siamlip", "byolip"):
            self.ssl_projectors = projection_heads(widths, [mlp_dim, out], last_norm=True, last_norm_affine=False)
            self.ssl_predictors = projection_heads(dict.fromkeys(widths, out), [mlp_dim, out], bias=True)
        if recipe.ssl_loss == "byolip":
            online: dict[str, nn.Module] = {"image_encoder": self.image_encoder, "text_encoder": self.text_encoder}
            online |= {f"{m}_projector": self.ssl_projectors[m] for m in widths}
            # Batch norms of the teacher use the statistics of its own batches.
            self.teacher = MomentumEncoder(online, buffers="keep", train_mode=True)

    def after_step(self, fraction: float) -> None:
        """Move the teacher (BYOLIP)."""
        if self.recipe.ssl_loss == "byolip":
            self.teacher.update(self.recipe.ema_momentum)

    def _parts(self, name: str) -> tuple[Any, nn.Module]:
        """The encoder of a modality, and the projector that is evaluated, z or h."""
        encoder, projection = super()._parts(name)
        return encoder, projection if self.recipe.eval_projector == "z" else self._local_projector(name)

    def logits(self, a: Float[Tensor, "rows dim"], b: Float[Tensor, "columns dim"]) -> Float[Tensor, "rows columns"]:
        """Similarities, scaled by the temperature of the projector that is evaluated."""
        return super().logits(a, b) if self.recipe.eval_projector == "z" else self._local_scale * a @ b.T

    def missing_export(self) -> str:
        """Why embeddings of this method cannot be exported; empty if they can."""
        if self.recipe.eval_projector == "z":
            return ""
        return "Embeddings of the local projector cannot be exported so far: train with --eval-projector z."

    @whole_batch
    def losses(self, batch: MultiViewBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """contrastive: the CL2L loss; and the added loss, if any, with its weight."""
        recipe = self.recipe
        images = pooled_views(self.image_encoder, batch["image"], batch.get("local_image"))
        texts = pooled_views(self.text_encoder, batch["text"], batch.get("local_text"))
        z_image = F.normalize(self.image_projection(images[0]), dim=-1)
        z_text = F.normalize(self.text_projection(texts[0]), dim=-1)
        h = ([self._local("image", view) for view in images[1:]], [self._local("text", view) for view in texts[1:]])
        contrastive = cl2l_loss((z_image, z_text), h, self.logit_scale(), self._local_scale, recipe.label_smoothing)
        losses = {"contrastive": contrastive * (2 if recipe.loss_avg_or_sum == "sum" else 1)}
        if recipe.ssl_loss == "swalip":
            losses["swalip"] = recipe.ssl_loss_weight * swalip_loss(h, self._local_scale)
        elif recipe.ssl_loss != "none":
            losses[recipe.ssl_loss] = recipe.ssl_loss_weight * self._ssl_loss(images, texts, batch)
        return losses

    def _local_projector(self, modality: str) -> nn.Module:
        return self.local_projectors[modality] if self._separate else super()._parts(modality)[1]

    def _local(self, modality: str, feature: Tensor) -> Float[Tensor, "batch dim"]:
        return F.normalize(self._local_projector(modality)(feature), dim=-1)

    @property
    def _separate(self) -> bool:
        return self.recipe.num_strong_views > 0 and self.recipe.separate_projectors

    @property
    def _local_scale(self) -> Float[Tensor, ""]:
        return self.local_logit_scale() if self._separate else self.logit_scale()

    def _ssl_loss(self, images: Views, texts: Views, batch: MultiViewBatch) -> Tensor:
        # Batch norms see one view at a time.
        v = each_view(self.ssl_projectors["image"], images), each_view(self.ssl_projectors["text"], texts)
        if self.recipe.ssl_loss == "barlip":
            return barlip_loss(v)
        p = each_view(self.ssl_predictors["image"], v[0]), each_view(self.ssl_predictors["text"], v[1])
        if self.recipe.ssl_loss == "byolip":
            with self.teacher.momentum_forward():
                images = pooled_views(self.teacher["image_encoder"], batch["image"], batch.get("local_image"))
                texts = pooled_views(self.teacher["text_encoder"], batch["text"], batch.get("local_text"))
                v = each_view(self.teacher["image_projector"], images), each_view(self.teacher["text_projector"], texts)
        return siamlip_loss(p, v)


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    num_strong_views: NonNegativeInt = 2
    """K: strongly augmented (local) views of each image and caption; 0 is plain CLIP."""
    strong_augmentation: ImageAugmentation = STRONG
    text_augmentation: TextAugmentation = TextAugmentation()
    weak_stop_words: UnitInterval = 0.0
    """Probability of removing the stop words of the global caption (0.8 in the released code)."""
    label_smoothing: UnitInterval = 0.1
    """Fraction of the target spread over the batch, in the loss of the local views only."""
    separate_projectors: bool = True
    """Whether local views have a projector and a temperature of their own."""
    loss_avg_or_sum: Literal["avg", "sum"] = "avg"
    """Whether the contrastive loss is the mean of both directions, or their sum."""
    projector_hidden_dim: PositiveInt = 512
    """Hidden width of that projector (4096 in the paper)."""
    ssl_loss: SSLLoss = "none"
    """A non-contrastive loss beside the contrastive one: SimSiam, BYOL, Barlow Twins or SwAV of image and caption."""
    ssl_loss_weight: NonNegativeFloat = 1.0
    """Its weight (0.2 for swalip in the released code, 1 for the others)."""
    ssl_hidden_dim: PositiveInt = 512
    """Hidden width of its projector and predictor (2048; 3000 for barlip)."""
    ssl_output_dim: PositiveInt = 128
    """Its output dimensions (128; 8192 for barlip)."""
    ema_momentum: UnitInterval = 0.99
    """Decay of byolip's teacher."""
    eval_projector: Literal["z", "h"] = "z"
    """Projector of the embeddings that a run gives: of the global views (z), or of the local ones (h)."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": DualEncoderRecipe.size_fields["small"] | {"batch_size": 96},
        "base": DualEncoderRecipe.size_fields["base"]
        | {"embed_dim": 256, "batch_size": 96, "projector_hidden_dim": 2048, "ssl_hidden_dim": 2048},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ssl_loss == "swalip" and (self.label_smoothing or self.num_strong_views < 2):
            raise UserError("swalip needs --label-smoothing 0 and at least two --num-strong-views.")
        if self.eval_projector == "h" and not (self.num_strong_views and self.separate_projectors):
            raise UserError("--eval-projector h needs --num-strong-views and --separate-projectors.")

    def build(self, processor: Processor) -> ImprovedCLIP:
        return ImprovedCLIP(self, processor.tokenizer.vocab_size)

    def cacheable_encoders(self) -> tuple[str, ...]:
        return super().cacheable_encoders() if not self.num_strong_views else ()

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> MultiViewBatch:
        """image, text: the global views; local_image, local_text: K local ones, one after the other along the batch."""
        images, captions = ([example[name] for example in examples] for name in ("image", "text"))
        strong = [self.strong_augmentation] * self.num_strong_views
        image, *local_images = processor.image.views(images, [self.augmentation, *strong], example_rng, captions)
        texts = self.sample_captions(examples, processor.text, example_rng)
        if self.weak_stop_words:
            pairs = zip(texts, example_rng.generators, strict=True)
            texts = [without_stop_words(text, self.weak_stop_words, rng) for text, rng in pairs]
        batch: MultiViewBatch = {"image": image, "text": processor.text(texts)}
        if local_images:
            count, words = self.num_strong_views, self.text_augmentation
            batch["local_image"] = torch.cat(local_images)
            batch["local_text"] = processor.text(augmented_captions(examples, processor, words, example_rng, count))
        return batch

    @classmethod
    def tiny(cls) -> Recipe:
        return dataclasses.replace(super().tiny(), projector_hidden_dim=16, ssl_hidden_dim=16, ssl_output_dim=16)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/16 on YFCC15M (repro_exps.txt, main.py and models.py of the released code), 32 epochs."""
        towers = clip("ViT-B/16")
        return cls(
            image=towers.image,
            text=towers.text,
            embed_dim=256,
            augmentation=ImageAugmentation(scale=(0.5, 1.0)),
            text_augmentation=TextAugmentation(synonym_weight=0.4),
            word_dropout=0.0,
            weak_stop_words=0.8,
            loss_avg_or_sum="sum",
            batch_size=4096,
            optimizer=OptimizerConfig(
                learning_rate=3e-3, eps=1e-8, min_lr_ratio=1e-5 / 3e-3, warmup_ratio=1 / 32, max_grad_norm=0.0
            ),
            projector_hidden_dim=4096,
            ssl_hidden_dim=2048,
        )
