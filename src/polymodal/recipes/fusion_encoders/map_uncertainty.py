"""MAP: image-text pre-training in which tokens are Gaussians, whose variance says how many things they may mean.

A caption fits many images and a word many regions, which points cannot say. A probability distribution encoder turns
tokens into diagonal Gaussians by self-attention, so that variances depend on context, and pre-training losses are on
distributions: contrast of [CLS] by 2-Wasserstein distance before fusion (D-VLC), masked language modeling and matching
on samples after it (D-MLM, D-ITM). A margin of the entropy keeps variances from collapse (section 3).

Terms: PDE = layers.probability_distribution_encoder.ProbabilityDistributionEncoder, D-VLC = losses.contrastive, D-MLM =
losses.mlm, D-ITM = losses.itm, L_reg = losses.margin, W2 = objectives.wasserstein.squared_wasserstein2, co-attention =
models.fusion_encoder.FusionEncoder, re-ranking = MAP.itm_logits.

Differs from the paper in: encoders start from random weights, unless `--vision hf:openai/clip-vit-base-patch16` and
`--text-encoder hf:roberta-base` are given; log sigma is within -10 and 5, and the temperature, learned as a logarithm,
at least 0.01 (released: no bounds); the similarity is without its constant 4; negatives of D-VLC are of all processes
(released: of one GPU); false images are of the batch, each with probability 0.5 (released: of the corpus, exactly
half); equal captions are positives of D-VLC and no false pairs; padding has no part in the margin (released: it has);
attention weights have dropout in PDEs alone; single tokens are masked, as in effect by the released collator, which
joins words by BERT's ## alone; one stage fine-tunes for retrieval by D-VLC and D-ITM (released: cross-entropy over 15
false texts) and answers, of which a question has one, at the image size, augmentation and relative learning rates of
pre-training (released: 384 px, RandAugment, PDEs 10 to 40, answers 50 times those of encoders); ITM ranks all pairs of
`matching` (released: the 128 nearest), by logits averaged over the mean and samples of a fixed seed; vectors of an
index are on a sphere, nearly in the order of W2. NLVR2 and SNLI-VE are left out: no corpus has their form. Steps of the
claims, and the sigma that decides, were chosen on the validation split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.questions import AnswersColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.masked_input import mask_texts
from polymodal.data.processor import Declared, Processor, SharedColumn, Sparse
from polymodal.data.video_text import sample_questions
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.pretrained_text import mask_token_id
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather_with_grad
from polymodal.modalities.image_augmentation import NONE, ImageAugmentation
from polymodal.models.fusion_encoder import FusionEncoderConfig
from polymodal.models.probabilistic_fusion import (
    FIRST,
    Fused,
    NoisyMaskedText,
    NoisyPairsBatch,
    NoisyQuestion,
    ProbabilisticFusion,
    TokenKind,
    sample_noisy_pairs,
)
from polymodal.objectives.answers import binary_answer_loss
from polymodal.objectives.image_text_matching import sample_false_images
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.wasserstein import entropy_margin_loss, wasserstein_info_nce
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="map-uncertainty",
    title="MAP: Multimodal Uncertainty-Aware Vision-Language Pre-training Model",
    year=2022,
    arxiv="2210.05335",
    modalities=("image", "text"),
    code="IIGROUP/MAP@853ce8ebcdaa026c4243342a8334b274eb56229c",
    # Of the released modules: four PDEs; co-attention of six layers in both streams, with projections and types.
    parameters={"*_pde.*": 49_603_584, "fusion.*": 114_604_032},
)

ENCODERS = ("image_encoder.*", "text_encoder.*")
SHARED = ("fusion.*", "*_pde.*", "*_pooler.*", "logit_scale.*", "itm_head.*")


class MAP(ProbabilisticFusion):
    """The encoders, PDEs and heads with the losses."""

    def __init__(self, recipe: Recipe, vocab_size: int, num_answers: int):
        kinds = recipe.samples, recipe.tokens, recipe.sequence_attention, recipe.temperature
        super().__init__(recipe.image, recipe.text, recipe.fusion, vocab_size, num_answers, *kinds)
        self.recipe, self.margin = recipe, recipe.entropy_margin * recipe.fusion.width

    @whole_batch
    def losses(self, batch: NoisyMaskedText) -> dict[str, Tensor]:
        """D-VLC, D-ITM, D-MLM, and the margin of the entropy: here of all tokens, in matching and answers of [CLS]."""
        patches, text, mask = self.image_tokens(batch["image"]), batch["text"], batch["masked_tokens"]
        losses = self.pair_losses(batch, patches)
        words, pixels = self.fuse(self.text_tokens(batch["mlm_text"]), text, patches)
        logits = self.mlm_logits(words, mask, batch["seed"])
        losses["mlm"] = masked_cross_entropy(logits.flatten(0, 1), text.ids[mask].repeat(len(logits)))
        margins = entropy_margin_loss(words, self.margin, text.mask), entropy_margin_loss(pixels, self.margin)
        return self._with_margin(losses, *margins)

    @whole_batch
    def finetuning_losses(self, batch: NoisyQuestion) -> dict[str, Tensor]:
        """D-VLC and D-ITM, and the binary cross-entropy summed over answers, where the corpus has questions."""
        patches = self.image_tokens(batch["image"])
        losses = self.pair_losses(batch, patches)
        if "question" not in batch:
            return losses
        fused = self.fuse(self.text_tokens(batch["question"]), batch["question"], patches, 1)
        logits = self.answer_head(self.pooled_copies(fused, batch["seed"]))
        losses["vqa"] = binary_answer_loss(logits, batch["answer"])
        return self._with_margin(losses, *self._first_margins(fused))

    def pair_losses(self, batch: NoisyPairsBatch, patches: Float[Tensor, "batch patches width"]) -> dict[str, Tensor]:
        """D-VLC, D-ITM and the margin of the latter. patches: of the image encoder."""
        text, group = batch["text"], batch["group"]
        words, scale = self.text_tokens(text), self.recipe.distance_scale * self.logit_scale()
        of_image, of_text = self.contrasted("image", patches), self.contrasted("text", words, text.mask)
        losses = {"contrastive": wasserstein_info_nce(of_image, of_text, scale, group)}
        images, is_false = sample_false_images(group, batch["uniform"])
        fused = self.fuse(words, text, all_gather_with_grad(patches)[images], 1)
        logits = self.itm_head(self.pooled_copies(fused, batch["seed"]))
        losses["itm"] = F.cross_entropy(logits.flatten(0, 1), (~is_false).long().repeat(len(logits)))
        return self._with_margin(losses, *self._first_margins(fused))

    def _first_margins(self, fused: Fused) -> list[Tensor]:
        return [entropy_margin_loss(tokens.select(FIRST), self.margin) for tokens in fused]

    def _with_margin(self, losses: dict[str, Tensor], *of_streams: Tensor) -> dict[str, Tensor]:
        """Add the margin of both streams to that of the losses so far; none with equal sigmas, which learn nothing."""
        if self.kind != "gaussians":
            return losses
        margin = self.recipe.margin_weight * torch.stack(of_streams).mean()
        return losses | {"margin": losses["margin"] + margin if "margin" in losses else margin}


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 64
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    image: ImageEncoderConfig = ImageEncoderConfig(stem=(32, 64, 128), width=128, depth=0, pool_type="max")
    text: TextEncoderConfig = TextEncoderConfig(2000, 32, 64, 1, 4, pool_type="cls")
    fusion: FusionEncoderConfig = FusionEncoderConfig("co_attention", 64, 1)
    tokens: TokenKind = "gaussians"
    """Gaussians; points, which are their means; or points of twice the width in D-VLC, as many numbers as Gaussians."""
    sequence_attention: bool = True
    """Whether a PDE attends to the other tokens; without, it is an MLP of each token."""
    samples: NonNegativeInt = 5
    """Samples of a Gaussian that D-MLM, D-ITM and answers see, besides its mean (K)."""
    distance_scale: PositiveFloat = 0.06
    """Factor of the squared 2-Wasserstein distance before the temperature: 1 / 200 at width 768, 0.06 at 64."""
    temperature: PositiveFloat = 0.07
    """Temperature of D-VLC at the start; it is learned."""
    entropy_margin: NonNegativeFloat = 300 / 768
    """Margin of the entropy of a token, in nats per dimension (300 at width 768)."""
    margin_weight: NonNegativeFloat = 0.01
    """Weight of the margin of the entropy; 0: off."""
    mlm_probability: UnitInterval = 0.3
    """Fraction of a text's tokens that D-MLM predicts; 0.15 in the paper, whose texts are longer."""
    head_lr_scale: NonNegativeFloat = 1.0
    """Factor of the learning rate of all but the encoders (5 in the released configuration)."""
    finetune_fraction: UnitInterval = 0.25
    """Fraction of the budget at the end that fine-tunes D-VLC, D-ITM and answers; 0 pre-trains only."""
    finetune_lr_scale: NonNegativeFloat = 1.0
    """Factor of the learning rate in fine-tuning."""
    num_answers: PositiveInt = 1500
    """Number of answers: the most frequent ones of the training questions (3129 in VQAv2)."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.6, 1.0))

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"fusion": FusionEncoderConfig("co_attention", 192, 3), "distance_scale": 0.02},
        "base": {"fusion": FusionEncoderConfig("co_attention", 384, 6, num_heads=6), "distance_scale": 0.01},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fusion.fusion != "co_attention":
            raise UserError("Both streams have Gaussians: leave out --fusion.fusion, which is co_attention.")

    def stages(self) -> tuple[Stage, ...]:
        last, heads, tuned = self.finetune_fraction, (*SHARED, "mlm_*"), (*SHARED, "answer_head.*")
        scales = [dict.fromkeys(names, self.head_lr_scale) for names in (heads, tuned)]
        finetuning: dict[str, Any] = {"batch": "finetuning_batch", "losses": "finetuning_losses"}
        return (
            Stage("pre-training", 1 - last, ENCODERS + heads, lr_scales=scales[0]),
            Stage("fine-tuning", last, ENCODERS + tuned, {}, self.finetune_lr_scale, scales[1], **finetuning),
        )

    def columns(self) -> Declared:
        return {
            "image": ImageColumn.of(self.image.image_size, self.image.image_mean_std),
            "text": TextColumn(self.text),
            "questions": Sparse(AnswersColumn(self.num_answers if self.finetune_fraction else 0)),
            "question": SharedColumn("text"),
            "answer": SharedColumn("questions"),
        }

    def build(self, processor: Processor) -> MAP:
        return MAP(self, processor.text.tokenizer.vocab_size, len(processor.answers))

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> NoisyMaskedText:
        """Augmented images, a caption of each, and that with masked tokens (BERT's 80/10/10)."""
        batch = sample_noisy_pairs(examples, processor, self.augmentation, example_rng)
        vocabulary = mask_token_id(processor.text.tokenizer), example_rng, 1, processor.text.tokenizer.vocab_size
        return {**batch, **mask_texts(batch["text"], self.mlm_probability, *vocabulary)}

    def finetuning_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> NoisyQuestion:
        """Pairs, and a question about each image with its answer, where the corpus has questions."""
        pairs = sample_noisy_pairs(examples, processor, self.augmentation, example_rng)
        return {**pairs, **sample_questions(examples, processor, example_rng)}

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            batch_size=4,
            image=ImageEncoderConfig(32, 16, 16, 1, 2, pool_type="cls"),
            text=TextEncoderConfig(300, 24, 16, 1, 2, pool_type="cls"),
            fusion=FusionEncoderConfig("co_attention", 16, 1, num_heads=2),
            samples=2,
            num_answers=16,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """Released configuration: CLIP's ViT-B/16 and RoBERTa-base, 20,000 steps on COCO and VG."""
        return cls(
            image=ImageEncoderConfig(288, 16, 768, 12, 12, pool_type="cls"),
            text=TextEncoderConfig(50_265, 50, 768, 12, 12, pool_type="cls", dropout=0.1),
            fusion=FusionEncoderConfig("co_attention", 768, 6, num_heads=12, norm="post", dropout=0.1),
            distance_scale=1 / 200,
            mlm_probability=0.15,
            head_lr_scale=5.0,
            finetune_lr_scale=0.5,
            num_answers=3129,
            augmentation=NONE,
            batch_size=4096,
            optimizer=OptimizerConfig(1e-5, 0.01, (0.9, 0.98), 1e-8, "linear", warmup_ratio=0.1, max_grad_norm=0.0),
        )
