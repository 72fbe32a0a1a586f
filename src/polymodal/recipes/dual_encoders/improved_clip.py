"""Improved CLIP: CLIP with strong image and text augmentation, label smoothing and a separate projection head.

The paper ("CLIP-rocket") asks whether gains of CLIP with an added non-contrastive loss come from the loss or from the
recipe. Beside the plain pair there are K strongly augmented views of image and caption, compared only with each other
through a separate projector: L = (L_plain + K L_strong) / (1 + K). The four added losses that it studies are the option
`ssl_loss`; with `num_strong_views=0` the recipe is CLIP.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.data.processor import Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather_with_grad
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.momentum_encoder import MomentumEncoder
from polymodal.layers.projection_head import ProjectionHead
from polymodal.modalities.image_augmentation import STRONG, ImageAugmentation, augment, may_flip
from polymodal.modalities.text_augmentation import TextAugmentation, augment_text
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.non_contrastive import barlow_twins, negative_cosine_similarity, sinkhorn, swav_loss
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
)

SSLLoss = Literal["none", "siamlip", "byolip", "barlip", "swalip"]
"""SimSiam, BYOL, Barlow Twins and SwAV with image and caption as the two views."""


class ImprovedCLIP(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.recipe = recipe
        widths = {"image": recipe.image.width, "text": recipe.text.width}
        if recipe.num_strong_views and recipe.separate_projectors:
            hidden = recipe.projector_hidden_dim
            self.strong = nn.ModuleDict(
                {m: ProjectionHead([w, hidden, hidden, recipe.embed_dim]) for m, w in widths.items()}
            )
            self.strong_logit_scale = LogitScale(1 / 0.1)
        if recipe.ssl_loss in ("siamlip", "byolip", "barlip"):
            hidden, out, barlow = recipe.ssl_hidden_dim, recipe.ssl_output_dim, recipe.ssl_loss == "barlip"
            self.added = nn.ModuleDict(
                {m: ProjectionHead([w, hidden, hidden, out], last_norm=barlow) for m, w in widths.items()}
            )
            if not barlow:
                self.predictor = nn.ModuleDict({m: ProjectionHead([out, out // 2, out]) for m in widths})
        if recipe.ssl_loss == "byolip":
            students: dict[str, nn.Module] = {"image_encoder": self.image_encoder, "text_encoder": self.text_encoder}
            students |= {"image_projector": self.added["image"], "text_projector": self.added["text"]}
            self.teacher = MomentumEncoder(students, buffers="keep")

    def after_step(self, fraction: float) -> None:
        """Move the teacher (BYOL, section 3.1)."""
        if self.recipe.ssl_loss == "byolip":
            self.teacher.update(self.recipe.ema_momentum)

    @whole_batch
    def losses(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """contrastive: plain and strong pairs; and the added loss, if any, with its weight."""
        images, texts, views = batch["image"], batch["text"], 1 + self.recipe.num_strong_views
        features = {"image": self.image_encoder.pooled(images), "text": self.text_encoder.pooled(texts)}
        plain = {name: feature.chunk(views)[0] for name, feature in features.items()}
        strong = {name: feature.chunk(views)[1:] for name, feature in features.items()}
        image = F.normalize(self.image_projection(plain["image"]), dim=-1)
        text = F.normalize(self.text_projection(plain["text"]), dim=-1)
        contrastive = info_nce(image, text, self.logit_scale())
        if views > 1:
            strong_images = [self._strong("image", feature) for feature in strong["image"]]
            captions = [self._strong("text", feature) for feature in strong["text"]]
            pairs = list(itertools.product(strong_images, captions))
            smoothing = self.recipe.label_smoothing
            local = torch.stack([info_nce(a, b, self._strong_scale, smoothing) for a, b in pairs]).mean()
            contrastive = (contrastive + (views - 1) * local) / views
        losses = {"contrastive": contrastive}
        if self.recipe.ssl_loss == "swalip":
            losses["swalip"] = self.recipe.ssl_loss_weight * self._swapped_assignments(strong_images, captions)
        elif self.recipe.ssl_loss != "none":
            losses[self.recipe.ssl_loss] = self.recipe.ssl_loss_weight * self._ssl_loss(features, batch, views)
        return losses

    def _strong(self, modality: str, feature: Tensor) -> Float[Tensor, "batch dim"]:
        own = self.recipe.separate_projectors
        shared = {"image": self.image_projection, "text": self.text_projection}
        return F.normalize((self.strong if own else shared)[modality](feature), dim=-1)

    @property
    def _strong_scale(self) -> Float[Tensor, ""]:
        return self.strong_logit_scale() if self.recipe.separate_projectors else self.logit_scale()

    def _ssl_loss(self, features: dict[str, Tensor], batch: ImageTextBatch, views: int) -> Tensor:
        """The mean over the plain pair and all pairs of strong views."""
        images, texts = (self.added[name](features[name]).chunk(views) for name in ("image", "text"))
        pairs = [(0, 0), *itertools.product(range(1, views), repeat=2)]
        if self.recipe.ssl_loss == "barlip":
            return 0.025 * torch.stack([barlow_twins(images[i], texts[j]) for i, j in pairs]).mean()
        image_targets, text_targets = images, texts
        if self.recipe.ssl_loss == "byolip":
            with self.teacher.momentum_forward():
                image = self.teacher["image_projector"](self.teacher["image_encoder"].pooled(batch["image"]))
                text = self.teacher["text_projector"](self.teacher["text_encoder"].pooled(batch["text"]))
            image_targets, text_targets = image.chunk(views), text.chunk(views)
        predict_text, predict_image = self.predictor["image"], self.predictor["text"]
        terms = [
            (
                negative_cosine_similarity(predict_text(images[i]), text_targets[j])
                + negative_cosine_similarity(predict_image(texts[j]), image_targets[i])
            )
            / 2
            for i, j in pairs
        ]
        return torch.stack(terms).mean()

    def _swapped_assignments(self, images: list[Tensor], captions: list[Tensor]) -> Tensor:
        """Each pair of views predicts the balanced assignment of the other views of the same examples.

        An assignment is balanced over the whole batch, so that every process looks at all of it.
        """
        images, captions = ([all_gather_with_grad(view) for view in views] for views in (images, captions))
        count, terms = len(images), []
        for i, j in itertools.product(range(count), repeat=2):
            target = (images[count - 1 - i] @ captions[count - 1 - j].T).detach()
            logits = self._strong_scale * images[i] @ captions[j].T
            terms.append(swav_loss(logits, sinkhorn(target)) + swav_loss(logits.T, sinkhorn(target.T)))
        return torch.stack(terms).mean()


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    num_strong_views: NonNegativeInt = 2
    """K: strongly augmented views of each image and caption; 0 is plain CLIP."""
    strong_augmentation: ImageAugmentation = STRONG
    text_augmentation: TextAugmentation = TextAugmentation()
    label_smoothing: UnitInterval = 0.1
    """Share of the target spread over the batch, in the loss of the strong views only."""
    separate_projectors: bool = True
    """Whether strong views have a projector and a temperature of their own."""
    projector_hidden_dim: PositiveInt = 512
    """Hidden width of that projector (4096 in the paper)."""
    ssl_loss: SSLLoss = "none"
    """A non-contrastive loss beside the contrastive one."""
    ssl_loss_weight: NonNegativeFloat = 1.0
    """Its weight (0.2 for swalip in the paper, 1 for the others)."""
    ssl_hidden_dim: PositiveInt = 512
    """Hidden width of its projector (2048; 3000 for barlip)."""
    ssl_output_dim: PositiveInt = 128
    """Its output dimensions (128; 8192 for barlip)."""
    ema_momentum: UnitInterval = 0.99
    """Decay of byolip's teacher."""

    def __post_init__(self) -> None:
        if self.ssl_loss == "swalip" and (self.label_smoothing or self.num_strong_views < 2):
            raise UserError("swalip needs --label-smoothing 0 and at least two --num-strong-views.")

    def build(self, processor: Processor) -> ImprovedCLIP:
        return ImprovedCLIP(self, processor.tokenizer.vocab_size)

    def cacheable_encoders(self) -> tuple[str, ...]:
        return super().cacheable_encoders() if not self.num_strong_views else ()

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> ImageTextBatch:
        """The plain view and caption of each example first, then K strong ones, one after the other along the batch."""
        pixels = processor.image.pixels([example["image"] for example in examples])
        each = list(zip(examples, example_rng.generators, strict=True))
        flip = may_flip([example["text"] for example in examples])
        views = [augment(pixels, self.augmentation, example_rng, flip)]
        texts = self.sample_captions(examples, processor.text, example_rng)
        for _ in range(self.num_strong_views):
            views.append(augment(pixels, self.strong_augmentation, example_rng, flip))
            texts += [
                augment_text(processor.text.sample_caption(e["text"], rng), self.text_augmentation, rng)
                for e, rng in each
            ]
        return {"image": processor.image.normalize(torch.cat(views)), "text": processor.text(texts)}

    @classmethod
    def tiny(cls) -> Recipe:
        return dataclasses.replace(super().tiny(), projector_hidden_dim=16, ssl_hidden_dim=16, ssl_output_dim=16)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/16 on CC12M (released code)."""
        return cls(
            image=ImageEncoderConfig(image_size=224, patch_size=16, width=768, depth=12, num_heads=12, pool_type="cls"),
            text=TextEncoderConfig(
                49408, context_length=77, width=512, depth=12, num_heads=8, causal=True, pool_type="eos", dropout=0.05
            ),
            embed_dim=256,
            batch_size=4096,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            projector_hidden_dim=4096,
            ssl_hidden_dim=2048,
        )
