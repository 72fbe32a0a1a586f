"""ULIP-2: a 3-D point-cloud encoder aligned with a frozen CLIP, using generated captions of rendered views.

Texts of 3-D shapes are scarce and say little. Here a captioner describes rendered views, CLIP ranks its captions
(`polymodal caption`), and a step aligns a point cloud with one view, sampled at random, and with captions of that view.
Only the point encoder, its projection and a temperature are trained (ULIP-2, section 3.2; ULIP, equation 1). The
frozen CLIP comes from `--init`; without one, its two encoders are trained in a first stage. Differs from the paper:
views are not cropped at random, so that their vectors can be cached; there are no depth views; FPS starts at the
farthest point; and objects with equal texts are no negatives of each other.

Terms: L_P2I = losses.points_image, L_P2T = losses.points_text, InfoNCE = info_nce, f_P = point_encoder, W =
point_projection of models.point_alignment.PointAlignment, FPS = farthest_point_sampling, mini-PointNet = first_conv and
second_conv.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
from jaxtyping import Float
from torch import Tensor
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
from polymodal.encoders.points import PointEncoderConfig, load_point_bert
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities import Points, ViewCaptions
from polymodal.modalities.points import augment_points
from polymodal.modalities.text import Tokens, text_ids
from polymodal.models.point_alignment import PointAlignment
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders._base import SMALL_IMAGE, DualEncoder, DualEncoderRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="ulip-2",
    title="ULIP-2: Towards Scalable Multimodal Pre-training for 3D Understanding",
    year=2023,
    arxiv="2305.08275",
    modalities=("points", "image", "text"),
    code="salesforce/ULIP@f194ddbfc1219ee1030e866b8be62d77539a3642",
    parameters={"point_encoder.*": 32.5e6},  # section 4.5: the default size of the 3D encoder
)


class ViewTextBatch(TypedDict):
    """text: equally many texts per object, object by object. group: id that objects with equal texts share."""

    text: Tokens
    group: Float[Tensor, " batch"]
    image: Float[Tensor, "batch 3 size size"]


class PointsBatch(ViewTextBatch):
    points: Float[Tensor, "batch points 6"]


class ULIP2(PointAlignment, DualEncoder):
    """The towers of CLIP, and a point encoder with a linear projection into their space."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.add_points(recipe.points, recipe.embed_dim)

    def encode(self, batch: ViewTextBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """One vector per object and modality; the vectors of an object's texts are averaged and normalized again."""
        vectors = self.embed(batch)
        texts = vectors["text"].unflatten(0, (len(batch["image"]), -1))
        return vectors | {"text": F.normalize(texts.mean(1), dim=-1), "group": batch["group"]}

    @two_halves("encode", "tower_contrastive_losses")
    def tower_losses(self, batch: ViewTextBatch) -> dict[str, Tensor]:
        """Image-text loss of the first stage."""
        return self.tower_contrastive_losses(self.encode(batch))

    def tower_contrastive_losses(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"contrastive": info_nce(vectors["image"], vectors["text"], self.logit_scale(), labels=vectors["group"])}

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """L_P2T and L_P2I, each the mean of both directions (ULIP, equation 1); objects with equal texts are no
        negatives of each other."""
        points, scale = encoded["points"], self.point_logit_scale()
        return {
            "points_text": info_nce(points, encoded["text"], scale, labels=encoded["group"]),
            "points_image": info_nce(points, encoded["image"], scale),
        }


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    image: ImageEncoderConfig = dataclasses.replace(SMALL_IMAGE, image_size=64)
    word_dropout: UnitInterval = 0.0
    """Probability with which a word is dropped in the first stage."""
    points: PointEncoderConfig = PointEncoderConfig()
    batch_size: AtLeastTwo = 64
    num_points: PositiveInt = 1024
    """Number of points per cloud."""
    point_weights: str = ""
    """Point-BERT weights that the point encoder starts from, as in ULIP: a checkpoint (.pt or .safetensors), a folder,
    or a name on the hub; empty: random weights, as in ULIP-2."""
    text_source: Literal["captions", "names", "category"] = "captions"
    """Texts that a cloud is aligned with: captions of a view, names of the object, or the category's name (ULIP)."""
    num_captions: PositiveInt = 1
    """Captions per view whose vectors are averaged, the best ones (top-k)."""
    num_views: NonNegativeInt = 0
    """Views per object that are used, evenly spaced; 0: all."""
    point_dropout: DecayRate = 0.875
    """Maximum fraction of points replaced by the first point in training (ULIP, released code)."""
    clip_fraction: UnitInterval = 0.5
    """Fraction of the budget that trains the image and text encoder first; 0 with --init, which loads them."""
    clip_corpus: str = ""
    """Built-in corpus with images and texts for the first stage; by default the run's own views and names."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"embed_dim": 256, "num_points": 2048},
        "base": {"embed_dim": 512, "num_points": 8192},
    }

    def stages(self) -> tuple[Stage, ...]:
        images = partial(load_corpus, self.clip_corpus) if self.clip_corpus else None
        towers = ("image_*", "text_*", "logit_scale.*")
        load = partial(load_point_bert, self.point_weights, "point_encoder") if self.point_weights else None
        return (
            Stage("towers", self.clip_fraction, towers, corpus=images, batch="image_batch", losses="tower_losses"),
            Stage("points", 1 - self.clip_fraction, ("point_*",), on_start=load),
        )

    def missing_init(self) -> str:
        if self.clip_fraction:
            return ""
        return "With --clip-fraction 0 both encoders are not trained: load them with --init, a run of clip or hf:NAME."

    def with_pretrained(self, name: str) -> Recipe:
        """Return the recipe with the frozen encoders of a pretrained CLIP."""
        return dataclasses.replace(super().with_pretrained(name), clip_fraction=0.0)

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
        """Return the corpora of both stages. Raises UserError for a corpus without the texts of `text_source`."""
        if self.clip_fraction < 1:
            corpus.column_with(Points)
            if self.text_source == "captions":
                remedy = "write some with polymodal caption, or take --text-source names"
                corpus.require(ViewCaptions, "captions of views", remedy)
            if self.text_source == "category" and corpus.label is None:
                raise UserError(f"The corpus '{corpus.name}' has no categories; take --text-source names.{corpus.hint}")
        return [corpus, *([load_corpus(self.clip_corpus)] if self.clip_corpus else [])]

    def build(self, processor: Processor) -> ULIP2:
        return ULIP2(self, processor.tokenizer.vocab_size)

    def image_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> ViewTextBatch:
        """One augmented view per object and one of its texts."""
        texts = self.sample_captions(examples, processor.text, example_rng)
        views = processor.views.sample([example["views"] for example in examples], example_rng)
        captions = [example["text"] for example in examples]
        image = processor.views.augmented(views, self.augmentation, example_rng, captions)
        return {"text": processor.text(texts), "group": text_ids(texts), "image": image}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PointsBatch:
        """An augmented point cloud per object, one of its views, and texts of that view or of the object."""
        each = zip(examples, example_rng.generators, strict=True)
        chosen = [self._sampled(example, processor, rng) for example, rng in each]
        views = [example["views"][view] for example, (view, _) in zip(examples, chosen, strict=True)]
        points = processor.points.sample([example["points"] for example in examples], example_rng)
        points = augment_points(  # ULIP, released code
            points, example_rng, (0.8, 1.25), 0.1, rotate_perturbation=0.06, dropout=self.point_dropout, isotropic=True
        )
        return {
            "text": processor.text([text for _, texts in chosen for text in texts]),
            "group": text_ids(["\n".join(texts) for _, texts in chosen]),
            "image": processor.views.images(views),
            "points": points,
        }

    def _sampled(self, example: Example, processor: Processor, rng: np.random.Generator) -> tuple[int, list[str]]:
        """Sample a view, and return it with as many texts as every object has."""
        views = some_views(len(example["views"]), self.num_views)
        if self.text_source == "captions":
            return processor.captions.sample(example["captions"], views, self.num_captions, rng)
        if self.text_source == "category":
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
        """ULIP-2: Point-BERT on 10,000 colored points, OpenCLIP ViT-bigG/14 (whose MLPs are wider).

        The optimizer is that of ULIP's released code: 250 epochs of 8 x 64 objects.
        """
        return cls(
            image=ImageEncoderConfig(224, 14, width=1664, depth=48, num_heads=16, pool_type="cls"),
            text=TextEncoderConfig(49408, 77, width=1280, depth=32, num_heads=20, causal=True, pool_type="eos"),
            points=PointEncoderConfig.point_bert(depth=18, channels=6),
            embed_dim=1280,
            num_points=10_000,
            clip_fraction=0.0,
            batch_size=512,
            optimizer=OptimizerConfig(3e-3, eps=1e-8, warmup_ratio=1 / 250, min_lr_ratio=1 / 300, max_grad_norm=0.0),
        )
