"""SimVG: visual grounding with image-text fusion in a pre-trained encoder and a light head on an object token.

Patches, words and one object token go through one multiway transformer (BEiT-3), which has learned from captions. Two
branches then predict boxes: a DETR decoder, whose queries are made of the words, and a linear layer on the object
token, which is fast. They learn together: the better the decoder's boxes, the more the token branch learns from them
and the less from the ground truth (section 3.3).

Terms: TQG (text-guided query generation) = TextGuidedQueries, DWBD (dynamic weight-balance distillation) =
losses.distillation and losses.token_branch with distill_type="dynamic", decoder branch = losses.decoder_branch.

Differs from the paper in: the encoder learns from the corpus' captions instead of BEiT-3's published weights, which
cannot be loaded, so that the paper's preset starts from a run of its own (`--init`); AdamW without amsgrad; 1-D sine
positions of words, whose frequencies but the first the released code rounds to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import DecayRate, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.expressions import CaptionsOrExpressionsColumn, ExpressionsColumn, check_single_objects
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.detection import BoxHead, DETRDecoder, TextGuidedQueries
from polymodal.layers.positions import SinePositions2D
from polymodal.modalities.boxes import PaddedBoxes
from polymodal.modalities.scale_jitter import jitter_batch
from polymodal.modalities.text import Tokens
from polymodal.models.dual_encoder import ImageTextBatch
from polymodal.models.multiway_pretraining import CaptionBatch, MultiwayPretraining, caption_batch
from polymodal.objectives.detection import Detections, deep_supervision_loss, detection_loss, matched_targets
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
    code="Dmmm1997/SimVG@29df6a45784b8731b73a58efc9401e918aab53e4",
    parameters={"encoder.*": 222e6},  # BEiT-3 base of the released code, in patches of 32
)

Queries = Float[Tensor, "batch queries dim"]
TOKEN_WEIGHT = 2.0  # of the token branch's loss with the ground truth, beside 1 for the other two (released code)


class GroundingBatch(ImageTextBatch):
    """text: referring expressions. expressions: the boxes of the objects that each refers to."""

    expressions: PaddedBoxes


class SimVG(MultiwayPretraining):
    """The encoder with its pre-training heads, and the two branches."""

    def __init__(self, recipe: Recipe, vocab_size: int):
        width, dim = recipe.encoder.width, recipe.embed_dim
        super().__init__(recipe.encoder, vocab_size, dim, joint=recipe.fusion == "encoder")
        self.recipe, self.num_queries = recipe, recipe.num_queries
        self.memory_projection, self.word_projection, self.object_projection = (nn.Linear(width, dim) for _ in range(3))
        heads, dropout = recipe.decoder_attention_heads, recipe.dropout
        self.tqg = TextGuidedQueries(dim, recipe.num_queries, heads, dropout)
        self.decoder = DETRDecoder(dim, recipe.decoder_layers, heads, recipe.decoder_ffn_dim, dropout)
        self.decoder_head, self.token, self.token_head = BoxHead(dim), nn.Linear(dim, dim), BoxHead(dim)
        self.patch_positions = SinePositions2D(recipe.encoder.grid, dim)

    def queries(
        self, image: Float[Tensor, "batch 3 size size"], text: Tokens
    ) -> tuple[Queries, Queries, Float[Tensor, "batch patches dim"]]:
        """Return the queries of the decoder branch, those of the token branch, and the patches as the memory."""
        object_token, patches, words = self.encoder(image, text, self.joint)
        query = self.tqg(self.word_projection(words), text.mask)
        return query, query + self.object_projection(object_token)[:, None], self.memory_projection(patches)

    @whole_batch  # the weight of the distillation is a mean over the batch
    def losses(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Detection losses of both branches, and of the token branch with the decoder's boxes (section 3.3)."""
        targets, distill_type = batch["expressions"], self.recipe.distill_type
        query, object_query, memory = self.queries(batch["image"], batch["text"])
        logits, boxes = self.token_head(self.token(object_query))
        ground_truth = TOKEN_WEIGHT * detection_loss(logits, boxes, targets)
        if distill_type == "none":
            return {"token_branch": ground_truth}
        each_logits, each_boxes = self.decoder_head(self.decoder(query, memory, self.patch_positions()))
        teacher, quality = matched_targets(each_logits[-1], each_boxes[-1], targets)
        weight = quality if distill_type == "dynamic" else 0.5
        return {
            "decoder_branch": deep_supervision_loss(each_logits, each_boxes, targets),
            "token_branch": (1 - weight) * ground_truth,
            "distillation": weight * detection_loss(logits, boxes, teacher),
        }

    def predict_boxes(self, batch: ImageTextBatch) -> dict[str, Detections]:
        """Return xyxy boxes and the probability that they are of an object, by both branches."""
        query, object_query, memory = self.queries(batch["image"], batch["text"])
        predicted = {"token": Detections.of(*self.token_head(self.token(object_query)))}
        if self.recipe.distill_type != "none":
            logits, boxes = self.decoder_head(self.decoder(query, memory, self.patch_positions()))
            predicted["decoder"] = Detections.of(logits[-1], boxes[-1])
        return predicted

    caption_losses = whole_batch(MultiwayPretraining.caption_losses)  # ITC and MLM


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 64
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0)
    encoder: MultiwayEncoderConfig = MultiwayEncoderConfig()
    embed_dim: PositiveInt = 64
    """Channels of the branches; a multiple of 4."""
    num_queries: PositiveInt = 1
    """Maximum boxes of an expression: 1 for a single object, 10 for several or none (generalized grounding)."""
    decoder_layers: PositiveInt = 3
    """Blocks of the decoder branch."""
    decoder_attention_heads: PositiveInt = 4
    """Attention heads of the branches."""
    decoder_ffn_dim: PositiveInt = 128
    """Channels of the MLPs of the decoder branch."""
    dropout: DecayRate = 0.0
    """Dropout probability of the branches."""
    fusion: Literal["encoder", "head"] = "encoder"
    """Where image and words are fused: in all blocks of the encoder, or only in the decoder."""
    distill_type: Literal["dynamic", "fixed", "none"] = "dynamic"
    """What the token branch learns from: ground truth and decoder, weighted by the decoder's quality (DWBD) or half and
    half; or ground truth alone, without a decoder."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Minimum and maximum factor of large-scale jitter of grounding images; crops move places such as "at the left"."""
    mlm_probability: UnitInterval = 0.5
    """Fraction of a caption's tokens that are predicted (BEiT-3, section 2.2)."""
    keep_prob: UnitInterval = 0.2
    """Fraction of the predicted tokens that are not masked, so that the encoder learns to read them (BERT)."""
    itc_weight: NonNegativeFloat = 0.1
    """Weight of the contrastive loss of captions, beside MLM."""
    caption_fraction: UnitInterval = 0.4
    """Fraction of the budget that pre-trains on captions."""
    encoder_lr_scale: NonNegativeFloat = 1.0
    """Factor of the encoder's learning rate after pre-training; 0.1 in the paper, whose encoder is pre-trained."""
    decoder_warmup_fraction: UnitInterval = 0.0
    """Fraction of the budget that trains the decoder branch alone, before both learn (two-stage variant)."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"embed_dim": 128, "decoder_ffn_dim": 512},
        "base": {"embed_dim": 256, "decoder_ffn_dim": 1024, "decoder_attention_heads": 8},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill_type == "none" and self.decoder_warmup_fraction:
            raise UserError("--decoder-warmup-fraction asks for a decoder, and there is none with --distill-type none.")
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise UserError("--scale-jitter is a minimum above 0 and a maximum that is not below it.")

    def stages(self) -> tuple[Stage, ...]:
        captions, warmup = self.caption_fraction, self.decoder_warmup_fraction
        itc = {"itc": self.itc_weight}
        decoder_alone, lr_scales = {"token_branch": 0.0, "distillation": 0.0}, {"encoder.*": self.encoder_lr_scale}
        return (
            Stage("captions", captions, loss_weights=itc, batch="caption_batch", losses="caption_losses"),
            Stage("decoder", warmup, loss_weights=decoder_alone, lr_scales=lr_scales),
            Stage("grounding", 1 - captions - warmup, lr_scales=lr_scales),
        )

    def missing_init(self) -> str:
        if self.caption_fraction or self.encoder_lr_scale >= 1:
            return ""
        return (
            "With --caption-fraction 0 and --encoder-lr-scale below 1 the encoder has learned already, but BEiT-3's "
            "weights cannot be loaded: name a run with --caption-fraction 1 by --init."
        )

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError for one query and a corpus without expressions for one object."""
        if self.num_queries == 1:
            check_single_objects(corpus)
        return [corpus]

    def columns(self) -> Declared:
        tokenizer = LearnedTokenizer(self.encoder.vocab_size, self.encoder.context_length)
        image, text = ImageColumn(self.encoder.image_size, stretch=True), CaptionsOrExpressionsColumn(tokenizer)
        return {"image": image, "text": text, "expressions": ExpressionsColumn()}

    def build(self, processor: Processor) -> SimVG:
        return SimVG(self, processor.text.tokenizer.vocab_size)

    def caption_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> CaptionBatch:
        """Images, a caption of each, and the caption masked."""
        return caption_batch(examples, processor, example_rng, self.mlm_probability, self.keep_prob)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> GroundingBatch:
        """Images, an expression about each, and the boxes of its objects."""
        expressions = [example["expressions"] for example in examples]
        chosen = processor.expressions.sample(expressions, example_rng, single=self.num_queries == 1)
        image = processor.image([example["image"] for example in examples])
        image, boxes = jitter_batch(image, [one.boxes for one in chosen], self.scale_jitter, example_rng)
        text = processor.text([one.text for one in chosen])
        return {"image": image, "text": text, "expressions": processor.expressions(boxes)}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            batch_size=4,
            encoder=MultiwayEncoderConfig(32, 16, 300, 24, 16, 1, 2),
            embed_dim=16,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            decoder_warmup_fraction=0.3,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/32 on RefCOCO, one-stage (released configuration, whose learning rate falls by a step at 5/6)."""
        return cls(
            encoder=MultiwayEncoderConfig(640, 32, 64_010, 20, 768, 12, 12, drop_path_rate=0.1),
            embed_dim=256,
            scale_jitter=(0.3, 1.4),
            caption_fraction=0.0,
            encoder_lr_scale=0.1,
            decoder_attention_heads=8,
            decoder_ffn_dim=2048,
            dropout=0.1,
            batch_size=32,
            optimizer=OptimizerConfig(5e-4, 0.0, (0.9, 0.98), 1e-9, "wsd", 0.1, 0.1, 1 / 6, max_grad_norm=0.15),
        )
