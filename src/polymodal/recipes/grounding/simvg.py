"""SimVG: visual grounding with image-text fusion in a pre-trained encoder and a light head on an object token.

Patches, words and one object token go through one transformer, which has learned from captions before. Two branches
then find boxes: a decoder whose queries are made of the words, and an MLP on the object token alone, which is
fast. They learn together; the surer the decoder is of boxes that are right, the more the token learns from it and the
less from the truth (dynamic weight-balance distillation, section 3.3).

Terms: token branch = losses.token_branch, decoder branch = losses.decoder_branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.data.columns.expressions import CaptionsOrExpressionsColumn, ExpressionsColumn, ReferringExpression
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.instructions import choice
from polymodal.data.masks import mask_spans
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.detection import BoxHead, DETRDecoder, kaiming_init_
from polymodal.layers.distributed import all_gather
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.positions import sine_positions, sine_positions_2d
from polymodal.modalities.boxes import PaddedBoxes, cxcywh_to_xyxy, intersection_over_union
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.detection import OBJECT, detection_loss, hungarian_match
from polymodal.objectives.masked_modeling import masked_lm_loss
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="simvg",
    title="SimVG: A Simple Framework for Visual Grounding with Decoupled Multi-modal Fusion",
    year=2024,
    arxiv="2409.17531",
    modalities=("image", "text", "boxes"),
)

DetectedBoxes = tuple[
    Float[Tensor, "*shape 2"], Float[Tensor, "*shape 4"]
]  # logits of object and none; centre, width, height


@torch.no_grad()
def distillation_targets(
    logits: Float[Tensor, "batch queries 2"], boxes: Float[Tensor, "batch queries 4"], targets: PaddedBoxes
) -> tuple[PaddedBoxes, Float[Tensor, ""]]:
    """The teacher's own boxes for the objects that there are, and how good they are: from 0 to 1 (section 3.3).

    How good: the mean over all objects of the batch that have a query of its score times the IoU of its box; 0 without
    any.
    """
    example, query, target = hungarian_match(logits, boxes, targets)
    own = boxes[example, query]
    overlap, _ = intersection_over_union(cxcywh_to_xyxy(own), cxcywh_to_xyxy(targets.boxes[example, target]))
    good = overlap * logits.softmax(-1)[example, query, OBJECT]
    counts = torch.bincount(example, minlength=len(targets))
    taken = torch.zeros_like(targets.boxes)
    taken[example, torch.arange(len(example), device=example.device) - (counts.cumsum(0) - counts)[example]] = own
    total, pairs = all_gather(torch.stack([good.sum(), good.new_tensor(float(len(good)))])[None]).sum(0)
    return PaddedBoxes(taken, counts), total / pairs.clamp(min=1)


class TextGuidedQueries(nn.Module):
    """Learned queries that read the words, plus the largest value of each channel over them (section 3.2)."""

    def __init__(self, dim: int, num_queries: int, num_heads: int, dropout: float = 0.1):
        super().__init__()
        self.learned = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.decoder = DETRDecoder(dim, 2, num_heads, 2 * dim, dropout)

    def forward(
        self, words: Float[Tensor, "batch length dim"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch queries dim"]:
        """mask: False for padding."""
        most = words.masked_fill(~mask[..., None], -math.inf).amax(1, keepdim=True)
        places = sine_positions(words.shape[1], words.shape[2], words)
        learned = self.learned.expand(len(words), -1, -1)
        return self.decoder(learned, words, places, ~mask)[-1] + most + learned


class ImageWithTextBatch(TypedDict):
    image: Float[Tensor, "batch 3 size size"]
    text: Tokens


class CaptionBatch(ImageWithTextBatch):
    """mlm_targets: True for tokens to predict. masked_tokens: those of them that are masked."""

    mlm_targets: Bool[Tensor, "batch length"]
    masked_tokens: Bool[Tensor, "batch length"]


class GroundingBatch(ImageWithTextBatch):
    """text: referring expressions. expressions: the boxes of the objects that each refers to."""

    expressions: PaddedBoxes


class SimVG(nn.Module):
    """The encoder, what it learns from captions with, and the two branches."""

    places: Tensor

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        width, dim = recipe.encoder.width, recipe.embed_dim
        self.recipe = recipe
        self.num_queries = recipe.num_queries
        self.encoder = recipe.encoder.build(vocabulary)
        self.mlm_head = MaskedLMHead(width, vocabulary)
        self.image_projection = nn.Linear(width, dim, bias=False)
        self.text_projection = nn.Linear(width, dim, bias=False)
        self.logit_scale = LogitScale()
        self.memory, self.words, self.object = (nn.Linear(width, dim) for _ in range(3))
        heads, hidden, dropout = recipe.decoder_attention_heads, recipe.decoder_ffn_dim, recipe.dropout
        self.guided = TextGuidedQueries(dim, recipe.num_queries, heads, dropout)
        self.decoder = DETRDecoder(dim, recipe.decoder_layers, heads, hidden, dropout)
        self.decoder_head = BoxHead(dim)
        self.token = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())
        kaiming_init_(self.token)
        self.token_head = BoxHead(dim)
        self.register_buffer("places", sine_positions_2d(recipe.encoder.grid, dim, 2 * math.pi), persistent=False)

    @whole_batch  # the quality of the teacher is that of all its boxes
    def losses(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Of the boxes that expressions mean, by both branches."""
        targets, distillation = batch["expressions"], self.recipe.distill_type
        o, memory = self.fused(batch["image"], batch["text"])
        found, box = self.token_head(self.token(o))
        truth = 2 * detection_loss(found, box, targets)
        if distillation == "none":
            return {"token_branch": truth}
        logits, boxes = self.decoder_head(self.decoder(o, memory, self.places))
        teacher, quality = distillation_targets(logits[-1], boxes[-1], targets)
        weight = quality if distillation == "dynamic" else 0.5
        layers = zip(logits, boxes, strict=True)
        return {
            "decoder_branch": torch.stack([detection_loss(*layer, targets=targets) for layer in layers]).sum(),
            "token_branch": (1 - weight) * truth,
            "distillation": weight * detection_loss(found, box, teacher),
        }

    def fused(
        self, image: Float[Tensor, "batch 3 size size"], text: Tokens
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch patches dim"]]:
        """Object queries, which hold the object token and the words, and the patches that the decoder reads."""
        token, patches, words = self.encoder(image, text, self.recipe.fusion == "encoder")
        return self.object(token)[:, None] + self.guided(self.words(words), text.mask), self.memory(patches)

    def predict_boxes(
        self, batch: ImageWithTextBatch
    ) -> dict[str, tuple[Float[Tensor, "batch queries 4"], Float[Tensor, "batch queries"]]]:
        """Corners, and the probability that they are of an object, by both branches."""
        o, memory = self.fused(batch["image"], batch["text"])
        found: dict[str, DetectedBoxes] = {"token": self.token_head(self.token(o))}
        if self.recipe.distill_type != "none":
            found["decoder"] = self.decoder_head(self.decoder(o, memory, self.places)[-1])
        return {
            branch: (cxcywh_to_xyxy(boxes).clamp(0, 1), logits.softmax(-1)[..., OBJECT])
            for branch, (logits, boxes) in found.items()
        }

    @whole_batch
    def caption_losses(self, batch: CaptionBatch) -> dict[str, Tensor]:
        """Whose caption is it, told without fusion; and what the words asked for are, told with it if there is any."""
        image, text = batch["image"], batch["text"]
        mlm_targets, masked_tokens = batch["mlm_targets"], batch["masked_tokens"]
        _, patches, read = self.encoder(image, text, joint=False)
        mean = Padded(read, text.lengths).mean()
        seen = self.image_projection(patches.mean(1))  # of patches, so that each of them tells what it shows
        pair = (F.normalize(seen, dim=-1), F.normalize(self.text_projection(mean), dim=-1))
        _, _, fused = self.encoder(image, text, self.recipe.fusion == "encoder", masked_tokens)
        return {
            "itc": info_nce(*pair, self.logit_scale()),
            "mlm": masked_lm_loss(self.mlm_head, fused, self.encoder.word.weight, text.ids, mlm_targets),
        }


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 64
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    encoder: MultiwayEncoderConfig = MultiwayEncoderConfig()
    embed_dim: PositiveInt = 64
    """Channels of the branches; a multiple of 4."""
    num_queries: PositiveInt = 1
    """Boxes an expression may have: 1 for a single object, more for several or none (generalised grounding)."""
    decoder_layers: PositiveInt = 3
    """Blocks of the decoder branch."""
    decoder_attention_heads: PositiveInt = 4
    """Attention heads of the branches."""
    decoder_ffn_dim: PositiveInt = 128
    """Channels of the MLPs of the decoder branch."""
    dropout: DecayRate = 0.0
    """Of the branches."""
    fusion: Literal["encoder", "head"] = "encoder"
    """Where image and words meet: in all blocks of the encoder, or only in the queries and the decoder."""
    distill_type: Literal["dynamic", "fixed", "none"] = "dynamic"
    """What the token branch learns from: the truth and the decoder, weighted by the decoder's quality or half and half;
    or the truth alone, without a decoder."""
    mlm_probability: UnitInterval = 0.5
    """Share of a caption's words that are asked for (BEiT-3, section 2.2)."""
    keep_prob: UnitInterval = 0.2
    """Share of the words asked for that stay in sight, or what is read of such would be left to chance (BERT)."""
    itc_weight: NonNegativeFloat = 0.1
    """Weight of telling whose caption it is, beside naming hidden words."""
    caption_fraction: UnitInterval = 0.4
    """Share of the budget that learns from captions."""
    encoder_lr_scale: NonNegativeFloat = 1.0
    """Factor of the encoder's learning rate after captions; 0.1 in the paper, whose encoder is pretrained."""
    decoder_warmup_fraction: UnitInterval = 0.0
    """Share of the budget that trains the decoder branch alone, before both learn (two-stage variant)."""

    def __post_init__(self) -> None:
        if self.distill_type == "none" and self.decoder_warmup_fraction:
            raise UserError("--decoder-warmup-fraction asks for a decoder, and there is none with --distill-type none.")

    def stages(self) -> tuple[Stage, ...]:
        alone, slower = {"token_branch": 0.0, "distillation": 0.0}, {"encoder.*": self.encoder_lr_scale}
        return (
            Stage(
                "captions",
                self.caption_fraction,
                loss_weights={"itc": self.itc_weight},
                batch="caption_batch",
                losses="caption_losses",
            ),
            Stage("decoder", self.decoder_warmup_fraction, loss_weights=alone, lr_scales=slower),
            Stage("grounding", 1 - self.caption_fraction - self.decoder_warmup_fraction, lr_scales=slower),
        )

    def columns(self) -> Declared:
        tokenizer = LearnedTokenizer(self.encoder.vocab_size, self.encoder.context_length)
        return {
            "image": ImageColumn(self.encoder.image_size, stretch=True),
            "text": CaptionsOrExpressionsColumn(tokenizer),
            "expressions": ExpressionsColumn(),
        }

    def build(self, processor: Processor) -> SimVG:
        return SimVG(self, processor.text.tokenizer.vocab_size)

    def caption_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> CaptionBatch:
        """Images, captions, which tokens are asked for, and which of them are hidden."""
        captions = [
            processor.text.sample_caption(e["text"], rng)
            for e, rng in zip(examples, example_rng.generators, strict=True)
        ]
        batch: ImageWithTextBatch = processor(image=[example["image"] for example in examples], text=captions)
        lengths = (batch["text"].lengths - 2).tolist()
        asked = mask_spans(lengths, self.mlm_probability, example_rng, mean_length=1.0)
        shown = np.stack([rng.random(asked.shape[1]) for rng in example_rng.generators]) < self.keep_prob
        hidden = asked & ~torch.from_numpy(shown)
        return {**batch, "mlm_targets": F.pad(asked, (1, 1)), "masked_tokens": F.pad(hidden, (1, 1))}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> GroundingBatch:
        """Images, an expression about each, and the boxes that it means."""
        chosen = [self._drawn(e["expressions"], rng) for e, rng in zip(examples, example_rng.generators, strict=True)]
        images, texts = [example["image"] for example in examples], [one.text for one in chosen]
        return processor(image=images, text=texts, expressions=[one.boxes for one in chosen])

    def _drawn(self, expressions: list[ReferringExpression], rng: np.random.Generator) -> ReferringExpression:
        """Of a single object where only one can be found."""
        fitting = [one for one in expressions if self.num_queries > 1 or len(one.boxes) == 1] or expressions
        return choice(fitting, rng)

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            encoder=MultiwayEncoderConfig(
                image_size=32, patch_size=16, vocab_size=300, context_length=24, width=16, depth=1, num_heads=2
            ),
            embed_dim=16,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            decoder_warmup_fraction=0.3,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/32 on the RefCOCO family (released configuration); Adam's amsgrad and the steps down are left out."""
        return cls(
            encoder=MultiwayEncoderConfig(
                image_size=640,
                patch_size=32,
                vocab_size=64_010,
                context_length=20,
                width=768,
                depth=12,
                num_heads=12,
                drop_path_rate=0.1,
            ),
            embed_dim=256,
            encoder_lr_scale=0.1,
            decoder_attention_heads=8,
            decoder_ffn_dim=2048,
            dropout=0.1,
            batch_size=32,
            optimizer=OptimizerConfig(
                weight_decay=0.0, learning_rate=5e-4, betas=(0.9, 0.98), warmup_ratio=0.1, max_grad_norm=0.15
            ),
        )
