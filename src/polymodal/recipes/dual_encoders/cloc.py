"""CLOC: CLIP with a region-text contrastive loss, through a Prompter that turns image tokens into region embeddings.

CLIP compares whole images with captions, so that its patches know little of what is where. CLOC learns from boxes with
phrases besides: a light Prompter, one transformer layer with one head, gets a box and the tokens of the image, and its
embedding must be found among the phrases of all regions of the batch, without those that say nearly the same. With a
phrase as prompt, the same Prompter has to predict its box. As the Prompter is weak, the encoder must learn to be
promptable; RoI pooling in its place (`--pooling roi`) asks less of it (section 3.4). `curation/vesl.py` is the paper's
pipeline of captions with boxes (VESL): phrases of captions, found in images by an open-vocabulary detector.

f_I and f_T are image_encoder and text_encoder with their projections.

Terms: L_CLIP = losses.clip, L_CLOC = losses.cloc, L_grounding = losses.grounding, Prompter = layers.prompter.Prompter,
conflict filter = text_filter, lambda = CLOC.contrastive_losses, VESL = curation.vesl.

Differs from the paper in: images are stretched to a square, not padded, and may be flipped with their boxes; texts are
not lowercased; with `--pooling roi`, box regression still trains a Prompter, unless `--grounding-weight 0`. The mean of
all outputs of the Prompter (appendix B.1) has few that depend on the prompt, so that small runs learn what an image
shows long before what a box shows; `--prompter-pool-type prompt`, our own, averages the outputs at the prompt alone,
with a box as one token, the mean of the sinusoids of its corners, and with the positions of image tokens once more.
VESL's phrases have no determiner, and are found by a lexicon and a list of generic words of our own, not a trained
part-of-speech tagger; it has no command: `polymodal.curation.vesl.write_regions(corpus, folder, OWLv2Detector(name))`
from Python. Ferret and LLaVA on the encoder are left out, as `mono_internvl` has no place for another one. The conflict
filter has a shortcut in small runs: texts that grow alike early in training are no negatives; `--text-threshold 0.99`
leaves out equal phrases alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NotRequired

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.regions import RegionPhrasesColumn, check_phrases
from polymodal.data.processor import Declared, Processor, SharedColumn, Sparse
from polymodal.data.regions import flip_boxes, sample_regions
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import clip
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather
from polymodal.layers.projection_head import LinearProjection, ProjectionHead
from polymodal.layers.prompter import Prompter, PrompterPoolType
from polymodal.layers.roi_align import roi_align
from polymodal.modalities.image_augmentation import NONE, ImageAugmentation, may_flip
from polymodal.modalities.text import Caption, Tokens
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.reduction import global_mean
from polymodal.objectives.region_contrastive import region_text_contrastive
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe, ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Batch, Example, Paper

paper = Paper(
    slug="cloc",
    title="Contrastive Localized Language-Image Pre-Training",
    year=2024,
    arxiv="2410.02746",
    modalities=("image", "text", "regions"),
)
ROI_POINTS = 7  # sampled along each side of a box, as many as the cells of Faster R-CNN's RoI pooling


class RegionBatch(ImageTextBatch):
    """Up to M regions of each image: boxes (xyxy as fractions), their phrases one after the other, 1 for real ones."""

    box: NotRequired[Float[Tensor, "batch regions 4"]]
    phrase: NotRequired[Tokens]
    is_region: NotRequired[Float[Tensor, "batch regions"]]


class CLOC(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.recipe, width = recipe, recipe.image.width
        grounds, learns = recipe.region_weight * recipe.grounding_weight > 0, recipe.region_weight > 0
        self.num_queries = int(grounds)
        if learns and (grounds or recipe.pooling == "prompter"):
            grid = recipe.image.image_size // recipe.image.patch_size
            self.prompter = Prompter(width, recipe.embed_dim, grid, recipe.prompter_pool_type)
        if learns:
            self.region_projection = LinearProjection(width, recipe.embed_dim)
        if grounds:
            self.box_head = ProjectionHead([width, width, 4], norm=None, activation="gelu", bias=True)

    def embed_regions(
        self, tokens: Float[Tensor, "batch patches width"], boxes: Float[Tensor, "batch regions 4"]
    ) -> Float[Tensor, "batch regions dim"]:
        """L2-normalized embeddings of boxes of each image."""
        if self.recipe.region_weight and self.recipe.pooling == "prompter":
            pooled = self.prompter(self.prompter.box_prompts(boxes), tokens)
        else:
            side = round(tokens.shape[1] ** 0.5)
            image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
            features = roi_align(tokens.unflatten(1, (side, side)), boxes.flatten(0, 1), image, 1, ROI_POINTS)
            pooled = features[:, 0, 0].unflatten(0, boxes.shape[:2])
        # Plain CLIP, which learns from no region, has only the projection of images.
        projection = self.region_projection if self.recipe.region_weight else self.image_projection
        return F.normalize(projection(pooled), dim=-1)

    def encode(self, batch: RegionBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """The embeddings of images, captions, regions and phrases, and the errors of boxes predicted from phrases."""
        tokens, pooled = self.image_encoder(batch["image"])  # once, for all prompts
        encoded = {"image": F.normalize(self.image_projection(pooled), dim=-1), "text": self.encode_text(batch["text"])}
        if "box" not in batch:
            return encoded
        phrase = self.encode_text(batch["phrase"]).unflatten(0, batch["box"].shape[:2])
        encoded |= {"phrase": phrase, "is_region": batch["is_region"]}
        encoded["region"] = self.embed_regions(tokens, batch["box"])
        if self.num_queries:
            predicted = self.box_head(self.prompter(self.prompter.text_prompts(phrase), tokens))
            encoded["error"] = (predicted - batch["box"]).square().mean(-1)
        return encoded

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """clip: InfoNCE of the pairs. cloc, grounding: of regions, times lambda (table A)."""
        losses = {"clip": info_nce(encoded["image"], encoded["text"], self.logit_scale())}
        if "region" not in encoded:
            return losses
        mask = encoded["is_region"].detach() > 0
        weight = self.recipe.region_weight * all_gather(mask.any(1).float()).mean()  # lambda: of images with regions
        regions, phrases = encoded["region"].flatten(0, 1), encoded["phrase"].flatten(0, 1)
        threshold = self.recipe.text_threshold if self.recipe.text_filter else None
        cloc = region_text_contrastive(regions, phrases, self.logit_scale(), mask.flatten(), threshold)
        losses["cloc"] = weight * cloc
        if "error" in encoded:
            grounding = global_mean(encoded["error"].masked_fill(~mask, 0.0).sum(), mask.sum())
            losses["grounding"] = weight * self.recipe.grounding_weight * grounding
        return losses

    @two_halves("encode", "contrastive_losses")
    def losses(self, batch: RegionBatch) -> dict[str, Tensor]:  # type: ignore[override]
        return self.contrastive_losses(self.encode(batch))

    def encode_regions(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """L2-normalized embeddings of a box of each image, in the space of the texts."""
        return self.embed_regions(self.image_encoder(batch["image"])[0], batch["box"][:, None])[:, 0]

    def predict_boxes(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the box of each text in its image, with a score of 1: there is one, and it has no confidence.

        Raises UserError for a method that was trained without grounding.
        """
        if not self.num_queries:
            raise UserError("This run predicts no boxes: it was trained without --grounding-weight or --region-weight.")
        prompts = self.prompter.text_prompts(self.encode_text(batch["text"])[:, None])
        corners = self.box_head(self.prompter(prompts, self.image_encoder(batch["image"])[0])).clamp(0, 1)
        boxes = corners.unflatten(-1, (2, 2)).sort(dim=-2).values.flatten(-2)  # regression may exchange corners
        return {"prompter": (boxes, torch.ones_like(boxes[..., 0]))}


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    image: ImageEncoderConfig = ImageEncoderConfig(96, 12, 64, depth=2, pos_embed="sine")
    text: TextEncoderConfig = TextEncoderConfig(width=64, depth=1)
    embed_dim: PositiveInt = 64
    """Dimensions of the embedding space."""
    augmentation: ImageAugmentation = NONE
    hflip_prob: UnitInterval = 0.5
    """Probability with which an image is flipped with its boxes, where no text says left or right; 0 in the paper."""
    word_dropout: UnitInterval = 0.0
    """Probability with which a word of a caption is left out while training."""
    regions_per_image: PositiveInt = 4
    """M: regions of an image in a step, sampled at random (section 3.2)."""
    pooling: Literal["prompter", "roi"] = "prompter"
    """What makes a region of image tokens: the Prompter, or RoI pooling, the paper's ablation."""
    prompter_pool_type: PrompterPoolType = "avg"
    """Outputs of the Prompter that are averaged: avg, all, as in the paper, or prompt, those at the prompt alone, with
    which small runs learn boxes sooner."""
    region_weight: NonNegativeFloat = 1.0
    """Factor of lambda, which is the fraction of images with regions; 0 is CLIP."""
    grounding_weight: NonNegativeFloat = 1.0
    """Weight of the box regression beside the contrast of regions; 0 leaves it out, an ablation of the paper."""
    text_filter: bool = True
    """Whether a phrase is no negative of a region whose own phrase is similar (the conflict filter)."""
    text_threshold: UnitInterval = 0.9
    """Cosine of phrases above which the filter takes them for the same (section 3.4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentation != NONE:
            raise UserError("Boxes follow no random crop: cloc takes no --augmentation, only --hflip-prob.")
        if self.region_weight and self.image.width % 4:
            raise UserError(
                f"Prompts are sines and cosines of corners: --image.width {self.image.width} is to be a multiple of 4."
            )

    def columns(self) -> Declared:
        """The whole image, stretched, so that boxes as fractions stay what they are; rows may lack regions."""
        image = dataclasses.replace(ImageColumn.of(self.image.image_size, self.image.image_mean_std), stretch=True)
        regions: Declared = {"regions": Sparse(RegionPhrasesColumn()), "box": SharedColumn("regions")}
        return {**super().columns(), "image": image, **regions}

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError: there is no usable region to learn from."""
        if self.region_weight:
            check_phrases(corpus, "cloc learns from boxes with phrases beside captions; clip needs captions alone")
        return [corpus]

    def build(self, processor: Processor) -> CLOC:
        return CLOC(self, processor.tokenizer.vocab_size)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> RegionBatch:
        """Whole images, one of their captions, and up to M of their regions."""
        named = [[Caption(region.phrase) for region in example.get("regions") or []] for example in examples]
        texts = [[*example["text"], *phrases] for example, phrases in zip(examples, named, strict=True)]
        flip = (example_rng.uniform() < self.hflip_prob) & may_flip(texts)
        pixels = processor.image.pixels([example["image"] for example in examples])
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        captions = self.sample_captions(examples, processor.text, example_rng)
        batch: RegionBatch = {"image": processor.image.normalize(pixels), "text": processor.text(captions)}
        if not self.region_weight:
            return batch
        sampled = sample_regions(examples, self.regions_per_image, example_rng)
        phrase = processor.text(sampled.phrases)
        return {**batch, "box": flip_boxes(sampled.boxes, flip), "phrase": phrase, "is_region": sampled.mask}

    @classmethod
    def paper(cls) -> Recipe:
        """CLIP ViT-B/16 with T5's vocabulary (table A): 439,087 steps of 32,768 images; regions are of 300 million."""
        towers, warmup = clip("ViT-B/16"), 2000 / 439_087
        return cls(
            image=towers.image,
            text=dataclasses.replace(towers.text, vocab_size=32_000),
            embed_dim=towers.embed_dim,
            hflip_prob=0.0,
            batch_size=32768,
            optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.2, betas=(0.9, 0.98), warmup_ratio=warmup),
        )
