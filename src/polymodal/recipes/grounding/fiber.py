"""FIBER: fusion inside both backbones, pre-trained on captions at low and then on boxes at high resolution.

Gated cross-attention in the last blocks of a Swin transformer and of a RoBERTa makes one model of both: with the gates
off it is a dual encoder, with them on a fusion encoder that costs no layers on top (section 3.1). Coarse pre-training
has ITC, ITM and MLM on images with captions; fine pre-training adds a feature pyramid and a dynamic head, which align
locations with the words of a text and predict their boxes (section 3.2).

Terms: coarse-grained pre-training = losses.itc with itm and mlm, fine-grained pre-training = losses.token with box and
centerness, fusion in the backbone = models.fusion_in_backbone, alpha = layers.fusion_in_backbone.GatedFusion.alpha,
FPN = layers.feature_pyramid, dynamic head = layers.dynamic_head, ATSS = objectives.dense_detection.atss_assign.

Differs from the paper in: the backbones begin with random weights, not with those of Swin and RoBERTa, whose type
embedding is left out; by default there is no queue, whose features are of earlier weights, and gates have a higher
learning rate; a queue begins empty, and equal captions are positives of ITC and no negatives of ITM; 15 % of a
caption's tokens exactly are masked; images are square, without multi-scale training and flips; both stages have one
batch size (released: 4,096, then 64), context length (40, then 256), drop path rate (0.1, then 0.4) and schedule, and
no moving average of weights; boxes have no added pixel, and deformable convolutions over the coarser level resize their
offsets, which the released code reads out of order; questions have one answer and cross-entropy (soft scores, binary
cross-entropy). Captioning with a causal text backbone, NLVR2, COCO and LVIS detection are left out, for lack of data.
The claim `coarse_to_fine` is not to be run: at 30 minutes, it has no run yet in which an arm is above chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import AtLeastTwo, NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.expressions import CaptionsOrExpressionsColumn, ExpressionsColumn
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.questions import AnswersColumn
from polymodal.data.columns.regions import PhraseVocabularyColumn
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.masked_input import mask_texts
from polymodal.data.phrase_texts import GroundedRows, phrase_targets, require_boxes, sample_phrases
from polymodal.data.processor import Declared, Optional, Processor, SharedColumn, Sparse
from polymodal.data.video_text import sample_captions, sample_questions
from polymodal.encoders.swin import SwinEncoderConfig
from polymodal.modalities.text import Tokens, text_ids
from polymodal.models.dense_grounding import DenseGroundingConfig, Located, PhraseBoxBatch, detect, grounding_losses
from polymodal.models.dual_encoder import ImageTextBatch
from polymodal.models.fused_pretraining import FusedPretraining, Fusion, FusionBatch, VQABatch
from polymodal.models.fusion_in_backbone import RobertaConfig
from polymodal.objectives.detection import Detections
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="fiber",
    title="Coarse-to-Fine Vision-Language Pre-training with Fusion in the Backbone",
    year=2022,
    arxiv="2206.07643",
    modalities=("image", "text", "boxes"),
    code="microsoft/FIBER@ca0f36bd7e1ad0ac02af2550042b1f259adaf5f9",
    parameters={"backbone.image_encoder.*": 99_486_078, "backbone.text_encoder.*": 138_042_636},
)

BACKBONE, FUSION = ("backbone.*", "top.*"), ("backbone.*.fusion.*", "top.*")
HEADS = ("*_transform*", "*_pooler*", "itm_head.*", "mlm_*")


class FIBER(FusedPretraining):
    """The fused backbones with the heads of coarse pre-training, and the dense detector of fine pre-training."""

    def __init__(self, recipe: Recipe, vocab_size: int, num_answers: int):
        image, text, width = recipe.image, recipe.text, recipe.top_width
        sizes = (vocab_size, recipe.hidden_size, recipe.num_fuse_block, recipe.queue_size)
        super().__init__(image, text, *sizes, recipe.fusion, width, recipe.alpha_init, num_answers)
        self.recipe, self.num_queries = recipe, recipe.num_queries
        words = text.width if self.top is None else width
        self.detector = recipe.detector.build(image.widths, image.strides, words)

    losses = whole_batch(FusedPretraining.pair_losses)  # ITC, ITM, MLM

    def located(self, image: Float[Tensor, "batch 3 size size"], text: Tokens) -> Located:
        """Encode pairs at the resolution of fine pre-training, and detect."""
        maps, words = self.fused_maps(image, text, self.recipe.fine_window or None)
        return self.detector(maps, words, image.shape[-1])

    @whole_batch  # means over the positive locations of the batch
    def grounding_losses(self, batch: PhraseBoxBatch) -> dict[str, Tensor]:
        """Focal loss of locations and tokens, GIoU loss of boxes, and binary cross-entropy of centerness."""
        located, text = self.located(batch["image"], batch["text"]), batch["text"]
        return grounding_losses(located, text.mask[:, : located.logits.shape[2]], batch["boxes"], batch["spans"])

    def predict_boxes(self, batch: ImageTextBatch) -> dict[str, Detections]:
        """Return the boxes of what a text refers to, and their scores."""
        located = self.located(batch["image"], batch["text"])
        return {"dense": detect(located, batch["text"].content_mask[:, : located.logits.shape[2]], self.num_queries)}


@dataclass(frozen=True)
class Recipe(GroundedRows, TrainingRecipe):
    batch_size: AtLeastTwo = 32
    optimizer: OptimizerConfig = OptimizerConfig(5e-4, weight_decay=0.01)
    image: SwinEncoderConfig = SwinEncoderConfig()
    text: RobertaConfig = RobertaConfig()
    fusion: Fusion = "backbone"
    """Where image and text are fused: inside the last blocks of both backbones, or by co-attention on top (METER)."""
    num_fuse_block: PositiveInt = 3
    """Pairs of blocks with cross-attention (M)."""
    top_width: PositiveInt = 64
    """Channels of the blocks on top, where these fuse."""
    alpha_init: float = 0.0
    """Gates of cross-attention at the start; with 0, the fusion encoder is the dual encoder at first."""
    hidden_size: PositiveInt = 64
    """Dimensions of embeddings, and of each half of the fused vector."""
    queue_size: NonNegativeInt = 0
    """Earlier pairs that ITC compares with, and that ITM takes negatives from; for weights from pre-training alone."""
    mlm_probability: UnitInterval = 0.15
    """Fraction of a caption's tokens that are masked and predicted."""
    fine_image_size: PositiveInt = 96
    """Side of the image in fine pre-training, in pixels; the image backbone's size is that of coarse pre-training."""
    fine_window: NonNegativeInt = 0
    """Tokens along a side of a window in fine pre-training; 0: as before. Relative positions are interpolated."""
    detector: DenseGroundingConfig = DenseGroundingConfig()
    num_queries: PositiveInt = 1
    """Maximum boxes of a text that are predicted; expressions of several objects train the detector in any case."""
    expression_fraction: UnitInterval = 0.5
    """Probability of a referring expression where an image has named regions, too; else their caption, or a prompt."""
    num_negatives: NonNegativeInt = 4
    """Names that are sampled as negatives of a prompt."""
    coarse_fraction: UnitInterval = 0.4
    """Fraction of the budget that is coarse pre-training; 1 for a corpus without boxes."""
    vqa_fraction: UnitInterval = 0.0
    """Fraction of the budget at the end that fine-tunes for question answering."""
    num_answers: PositiveInt = 500
    """Number of answers: the most frequent ones of the training questions."""
    head_lr_scale: NonNegativeFloat = 1.0
    """Factor of the learning rate of cross-attention and heads in coarse pre-training."""
    gate_lr_scale: NonNegativeFloat = 20.0
    """Further factor of that of the gates: with 1 (paper), a few hundred steps hardly open them."""
    fine_lr_scale: NonNegativeFloat = 1.0
    """Factor of the learning rate in fine pre-training."""
    fine_text_lr_scale: NonNegativeFloat = 1.0
    """Further factor of that of the text backbone in fine pre-training."""

    size_fields: ClassVar[dict[str, Any]] = {"small": {"fine_image_size": 128}, "base": {"fine_image_size": 320}}

    @property
    def fine_fraction(self) -> float:
        """Fraction of the budget that is fine pre-training."""
        return 1 - self.coarse_fraction - self.vqa_fraction

    def stages(self) -> tuple[Stage, ...]:
        gates = {"backbone.*.alpha": self.head_lr_scale * self.gate_lr_scale}
        heads, text = gates | dict.fromkeys((*FUSION, *HEADS), self.head_lr_scale), self.fine_text_lr_scale
        fine: dict[str, Any] = {"batch": "grounding_batch", "losses": "grounding_losses", "rows": "grounded_rows"}
        fine |= {"lr_scale": self.fine_lr_scale, "lr_scales": {"backbone.text_encoder.*": text}}
        vqa: dict[str, Any] = {"batch": "question_batch", "losses": "answer_losses", "rows": "question_rows"}
        return (
            Stage("coarse", self.coarse_fraction, (*BACKBONE, "logit_scale.*", *HEADS), lr_scales=heads),
            Stage("fine", self.fine_fraction, (*BACKBONE, "detector.*"), **fine),
            Stage("vqa", self.vqa_fraction, (*BACKBONE, *HEADS, "answer_head.*"), **vqa),
        )

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise MissingModality for stages of which the corpus has no data."""
        require_boxes(corpus, self.fine_fraction > 0, self.vqa_fraction > 0)
        return [corpus]

    def columns(self) -> Declared:
        tokenizer = LearnedTokenizer(self.text.vocab_size, self.text.context_length)
        boxes = {"expressions": ExpressionsColumn(), "regions": PhraseVocabularyColumn()}
        return {
            "image": ImageColumn(self.fine_image_size, stretch=True),
            "text": CaptionsOrExpressionsColumn(tokenizer),
            **{name: Optional(Sparse(column)) for name, column in boxes.items() if self.fine_fraction > 0},
            "questions": Sparse(AnswersColumn(self.num_answers if self.vqa_fraction else 0)),
            "question": SharedColumn("text"),
            "answer": SharedColumn("questions"),
        }

    def build(self, processor: Processor) -> FIBER:
        return FIBER(self, processor.text.tokenizer.vocab_size, len(processor.answers))

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> FusionBatch:
        """Images, a caption of each, and the caption masked."""
        texts = sample_captions(examples, processor, example_rng)
        text, mask_id = processor.text(texts), processor.text.tokenizer.vocab_size
        uniform = torch.stack([example_rng.uniform(), example_rng.uniform()], dim=1)
        masked = mask_texts(text, self.mlm_probability, mask_id, example_rng, 1, mask_id)
        image = processor.image([example["image"] for example in examples])
        return {"image": image, "text": text, "group": text_ids(texts), "uniform": uniform, **masked}

    def grounding_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PhraseBoxBatch:
        """Images, and a text about each with the boxes of its phrases."""
        phrases = sample_phrases(examples, processor, example_rng, self.expression_fraction, self.num_negatives)
        targets = phrase_targets(phrases, processor.text.tokenizer)
        image = processor.image([example["image"] for example in examples])
        return {"image": image, "text": targets.text, "boxes": targets.boxes, "spans": targets.spans}

    def question_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> VQABatch:
        """Images, and a question about each."""
        questions = sample_questions(examples, processor, example_rng)
        return {"image": processor.image([example["image"] for example in examples]), **questions}

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            batch_size=4,
            image=SwinEncoderConfig(16, 2, 8, (1, 2), (1, 2), 4),
            text=RobertaConfig(300, 24, 16, 2, 2),
            num_fuse_block=2,
            hidden_size=16,
            queue_size=8,
            fine_image_size=32,
            detector=DenseGroundingConfig(2, 1, 16, 1, 4),
            vqa_fraction=0.3,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """Swin-B and RoBERTa-base (released configurations of both stages; 100,000, then 800,000 steps)."""
        return cls(
            batch_size=4096,
            optimizer=OptimizerConfig(1e-5, 0.01, (0.9, 0.98), 1e-8, "linear", warmup_ratio=0.1, max_grad_norm=1.0),
            image=SwinEncoderConfig(384, 4, 128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.1),
            text=RobertaConfig(50_265, 256, 768, 12, 12, 0.1),  # 40 tokens in coarse pre-training
            num_fuse_block=6,
            hidden_size=768,
            queue_size=4096,
            fine_image_size=800,
            detector=DenseGroundingConfig(3, 2, 256, 6, 16, 8.0),
            num_negatives=85,
            coarse_fraction=0.5,
            head_lr_scale=5.0,
            gate_lr_scale=1.0,
            fine_lr_scale=10.0,
            fine_text_lr_scale=0.1,
            num_answers=3129,
        )
