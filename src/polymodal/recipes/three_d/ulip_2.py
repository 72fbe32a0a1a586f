"""ULIP-2: a 3-D point-cloud encoder aligned with a frozen CLIP, using generated captions of rendered views.

Names of 3-D shapes are scarce and say little. Here a captioner describes rendered views, CLIP ranks what it wrote
(`polymodal caption`), and a point cloud is brought near one view at a time and the captions of that same view: the
views together say what no single one can. Only the point encoder, its projection and a temperature learn (section 3.2
of ULIP-2; equation 1 of ULIP). Where no pretrained CLIP is at hand, the two towers learn from images and texts first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, DecayRate, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.registry import load_corpus
from polymodal.curation.captions import some_views
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.points import PointsColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.columns.views import ViewCaptionsColumn, ViewsColumn
from polymodal.data.instructions import choice
from polymodal.data.processor import Declared, Optional, Processor, SharedColumn, Sparse
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.points import PointEncoder, PointEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.logit_scale import LogitScale
from polymodal.modalities import Points, ViewCaptions
from polymodal.modalities.image_augmentation import augment, may_flip
from polymodal.modalities.padding import Padded
from polymodal.modalities.points import any_points, augment_points
from polymodal.modalities.text import Tokens, text_ids
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders._base import SMALL_IMAGE, DualEncoder, DualEncoderRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="ulip-2",
    title="ULIP-2: Towards Scalable Multimodal Pre-training for 3D Understanding",
    year=2023,
    arxiv="2305.08275",
    modalities=("points", "image", "text"),
    parameters={"point_encoder.*": 32.5e6},  # section 4.5: the default size of the 3D encoder
)

TextSource = Literal["captions", "names", "category"]


class TextBatch(TypedDict):
    """text: equally many texts of each object, object by object. group: id that objects with equal texts share."""

    text: Tokens
    group: Float[Tensor, " batch"]


class ViewTextBatch(TextBatch):
    image: Float[Tensor, "batch 3 size size"]


class PointsBatch(ViewTextBatch):
    points: Float[Tensor, "batch points 6"]


class ULIP2(DualEncoder):
    """The towers of CLIP, and a point encoder with a linear projection into their space."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.point_encoder = PointEncoder(recipe.points)
        width = recipe.points.pooled_width
        self.point_projection = nn.Linear(width, recipe.embed_dim, bias=False)
        nn.init.normal_(self.point_projection.weight, std=recipe.embed_dim**-0.5)
        self.point_logit_scale = LogitScale()

    def encode_points(self, points: Float[Tensor, "batch points channels"]) -> Float[Tensor, "batch dim"]:
        """L2-normalised vectors of point clouds."""
        return F.normalize(self.point_projection(self.point_encoder.pooled(points)), dim=-1)

    def embed_views(self, views: Padded) -> Float[Tensor, "batch dim"]:
        """The mean over the images of each thing, normalised again."""
        vectors = self.encode_image(views.values[views.mask])
        thing = torch.arange(len(views), device=vectors.device).repeat_interleave(views.lengths)
        return F.normalize(vectors.new_zeros(len(views), vectors.shape[1]).index_add(0, thing, vectors), dim=-1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        vectors = super().embed(batch)
        if "points" in batch:
            vectors["points"] = self.encode_points(batch["points"])
        if "views" in batch:
            vectors["views"] = self.embed_views(batch["views"])
        return vectors

    def encode(self, batch: ViewTextBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """One vector a thing of each modality; several texts of one are averaged."""
        vectors = self.embed(batch)
        own = vectors["text"].unflatten(0, (len(batch["image"]), -1))
        return vectors | {"text": F.normalize(own.mean(1), dim=-1), "group": batch["group"]}

    @two_halves("encode", "tower_contrastive_losses")
    def tower_losses(self, batch: ViewTextBatch) -> dict[str, Tensor]:
        """Of images and texts without points."""
        return self.tower_contrastive_losses(self.encode(batch))

    def tower_contrastive_losses(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"contrastive": info_nce(vectors["image"], vectors["text"], self.logit_scale(), labels=vectors["group"])}

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """points_text and points_image."""
        image, text, group = encoded["image"], encoded["text"], encoded["group"]
        points, scale = encoded["points"], self.point_logit_scale()
        return {
            "points_text": info_nce(points, text, scale, labels=group),
            "points_image": info_nce(points, image, scale),
        }


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    image: ImageEncoderConfig = dataclasses.replace(SMALL_IMAGE, image_size=64)
    word_dropout: UnitInterval = 0.0
    """Probability with which a word is left out while the towers train."""
    points: PointEncoderConfig = PointEncoderConfig()
    batch_size: AtLeastTwo = 64
    num_points: PositiveInt = 1024
    """Points of a cloud."""
    text_source: TextSource = "captions"
    """What a cloud is compared with: captions of a view, the thing's name, or the name of its category (ULIP)."""
    num_captions: PositiveInt = 1
    """Captions of a view, the best ones, whose vectors are averaged."""
    num_views: NonNegativeInt = 0
    """Views of a thing that are used, evenly chosen; 0 is all."""
    point_dropout: DecayRate = 0.875
    """Largest share of points that the first one replaces while training."""
    clip_fraction: UnitInterval = 0.5
    """Share of the budget that trains the two towers first; 0 with --init, which brings them."""
    clip_corpus: str = ""
    """Built-in corpus whose images and texts the towers learn from; by default the run's own views and names."""

    def stages(self) -> tuple[Stage, ...]:
        images = partial(load_corpus, self.clip_corpus) if self.clip_corpus else None
        of_towers = ("image_*", "text_*", "logit_scale.*")
        return (
            Stage("towers", self.clip_fraction, of_towers, corpus=images, batch="image_batch", losses="tower_losses"),
            Stage("points", 1 - self.clip_fraction, ("point_*",)),
        )

    def cacheable_encoders(self) -> tuple[str, ...]:
        return ("image_encoder", "text_encoder")

    def columns(self) -> Declared:
        return {
            "points": Sparse(PointsColumn(self.num_points)),
            "views": Sparse(ViewsColumn.of(self.image.image_size, self.image.image_mean_std)),
            "text": Sparse(TextColumn(self.text)),
            "captions": Sparse(ViewCaptionsColumn()),
            "label": Optional(Sparse(LabelColumn())),
            "image": SharedColumn("views", "images"),
        }

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """The corpus and that of the encoders. Raises UserError for a corpus without what clouds are compared with."""
        if self.clip_fraction < 1:
            corpus.column_with(Points)
            if self.text_source == "captions" and not corpus.has_modality(ViewCaptions):
                raise UserError(
                    f"The corpus '{corpus.name}' has no captions of views; write some with polymodal caption, or take "
                    "--text-source names."
                )
            if self.text_source == "category" and corpus.label is None:
                raise UserError(f"The corpus '{corpus.name}' has no categories; take --text-source names.")
        return [corpus, *([load_corpus(self.clip_corpus)] if self.clip_corpus else [])]

    def build(self, processor: Processor) -> ULIP2:
        return ULIP2(self, processor.tokenizer.vocab_size)

    def image_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> ViewTextBatch:
        """One augmented image of each thing and one of its texts."""
        generators = example_rng.generators
        texts = self.sample_captions(examples, processor.text, example_rng)
        shown = [e["views"][rng.integers(len(e["views"]))] for e, rng in zip(examples, generators, strict=True)]
        flip = may_flip([example["text"] for example in examples])
        pixels = augment(processor.views.pixels(shown), self.augmentation, example_rng, flip)
        return {**_texts([[text] for text in texts], processor), "image": processor.views.normalize(pixels)}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PointsBatch:
        """A cloud of each thing, one of its views, and what is said of that view, or of the thing."""
        generators = example_rng.generators
        chosen = [self._seen(e, processor, rng) for e, rng in zip(examples, generators, strict=True)]
        views = [example["views"][view] for example, (view, _) in zip(examples, chosen, strict=True)]
        clouds = [any_points(e["points"], self.num_points, r) for e, r in zip(examples, generators, strict=True)]
        points = augment_points(
            torch.from_numpy(np.stack(clouds)), example_rng, (0.8, 1.25), 0.1, tilt=0.06, dropout=self.point_dropout
        )
        texts = _texts([texts for _, texts in chosen], processor)
        return {**texts, "points": points, "image": processor.views.images(views)}

    def _seen(self, example: Example, processor: Processor, rng: np.random.Generator) -> tuple[int, list[str]]:
        """A view at random, and as many texts as every thing has."""
        views = some_views(len(example["views"]), self.num_views)
        if self.text_source == "captions":
            described = sorted({caption.view for caption in example["captions"]})
            view = choice([view for view in views if view in described] or described, rng)
            own = [caption.text for caption in example["captions"] if caption.view == view][: self.num_captions]
            return view, [own[number % len(own)] for number in range(self.num_captions)]
        if self.text_source == "category":
            assert processor.label is not None
            return choice(views, rng), [processor.label.names[example["label"]].lower()]
        names = processor.text.text.in_main_language(example["text"])
        return choice(views, rng), [choice(names, rng).text]

    @classmethod
    def tiny(cls) -> Recipe:
        return dataclasses.replace(
            super().tiny(),
            points=PointEncoderConfig(num_groups=8, group_size=4, width=16, depth=1, num_heads=2),
            num_points=64,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """Point-BERT of 18 blocks beside OpenCLIP ViT-bigG/14 (released configuration), whose MLPs are wider."""
        return cls(
            image=ImageEncoderConfig(
                image_size=224, patch_size=14, width=1664, depth=48, num_heads=16, pool_type="cls"
            ),
            text=TextEncoderConfig(
                49408, context_length=77, width=1280, depth=32, num_heads=20, causal=True, pool_type="eos"
            ),
            points=PointEncoderConfig(
                num_groups=512,
                group_size=32,
                width=384,
                depth=18,
                num_heads=6,
                encoder_dims=256,
                drop_path_rate=0.1,
                pool_type="cls_max",
            ),
            embed_dim=1280,
            num_points=8192,
            clip_fraction=0.0,
            batch_size=512,
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_ratio=1 / 250, max_grad_norm=0.0),
        )


def _texts(texts: Sequence[list[str]], processor: Processor) -> TextBatch:
    """All texts, and a number for each thing that those with the same texts share, which are no negatives."""
    flat = [text for own in texts for text in own]
    return {"text": processor.text(flat), "group": text_ids(["\n".join(own) for own in texts])}
