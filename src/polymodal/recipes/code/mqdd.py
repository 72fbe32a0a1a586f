"""MQDD: pre-training on text and code of questions and answers, to find questions that were asked before.

A long-sequence encoder reads pairs of a thread's parts, text or code of the question or of its answer, as one sequence.
Besides masked language modeling it predicts whether both parts are of one thread (Question-Answer, QA) and whether code
and text are of one post (Same-Post, SP), with negatives from other threads. Then a siamese network of the same encoder
is fine-tuned on labelled duplicates with hard negatives, so that vectors of posts can be indexed for search.

Terms: MLM = losses.mlm, SP = losses.sp, QA = losses.qa, Longformer = encoders.longformer, two-tower model =
models.siamese_classifier, input pair types = data.thread_pairs.QA_PAIRS and SP_PAIRS, F1 loss = duplicate_f1_losses,
full-text negatives = corpora.bm25.

Differs from the paper in: byte-level BPE instead of WordPiece, and a mask token that is never predicted; padding is
neither attended to nor predicted, and SP pairs are of their own kinds, unlike in the released script; posts are paired
in both orders, and by default compared by cosine, the script's alternative; each stage has a learning-rate schedule;
mimetic initialization of small models; a part alone, without a second one, is only for MLM. Left out are code search on
CodeSearchNet, a classifier of other data, and the comparison of posts with text or code alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.columns.thread import QueryColumn, ThreadColumn, linked_rows
from polymodal.data.processor import Declared, Optional, Processor, SharedColumn
from polymodal.data.thread_pairs import PartPairBatch, PostPairBatch, part_pair_batch, post_pair_batch
from polymodal.encoders.longformer import LongformerEncoderConfig
from polymodal.layers.distributed import all_gather, all_gather_with_grad
from polymodal.modalities.thread import DUPLICATE
from polymodal.models.siamese_classifier import ConcatenationHead, CosineHead
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.pair_matching import task_masked_bce
from polymodal.objectives.reduction import mean_over
from polymodal.objectives.soft_f1 import soft_macro_f1_loss
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="mqdd",
    title="MQDD: Pre-training of Multimodal Question Duplicity Detection for Software Engineering Domain",
    year=2022,
    arxiv="2203.14093",
    modalities=("threads",),
    code="kiv-air/MQDD@9bc5f2d7ba917f8ed35f177be11c5f4582d529b5",
    # The encoder and the heads of the released scripts, counted with transformers' LongformerModel.
    parameters={"encoder.*": 146_300_928, "vocab_head.*": 38_653_785, "pair_head.*": 771_002},
)


class MQDD(nn.Module):
    """The encoder with its vocabulary head, the pair head (logit 0: SP, logit 1: QA), and the head of duplicates."""

    validation_task = "duplicate_detection"

    def __init__(self, recipe: Recipe, vocab_size: int):
        super().__init__()
        self.recipe, width = recipe, recipe.encoder.width
        self.encoder = recipe.encoder.build(vocab_size)
        self.vocab_head = nn.Linear(width, vocab_size)
        self.pair_head = nn.Sequential(nn.Linear(width, recipe.pair_dim), nn.ReLU(), nn.Linear(recipe.pair_dim, 2))
        self.duplicate_head: ConcatenationHead | CosineHead = CosineHead()
        if recipe.duplicate_head == "concatenation":
            self.duplicate_head = ConcatenationHead(width, recipe.duplicate_dim, recipe.head_dropouts)

    def loss_counts(self, batch: PartPairBatch) -> dict[str, Tensor]:
        """Count the tokens that are predicted; the other losses are means over examples."""
        return {"mlm": batch["masked_pair"].sum()}

    @mean_over("loss_counts")
    def losses(self, batch: PartPairBatch) -> dict[str, Tensor]:
        """mlm: masked language modeling. sp, qa: binary cross-entropy of the pairs of each task (equal weights)."""
        states, packing, pooled = self.encoder(batch["mlm_pair"])
        logits = self.vocab_head(states[packing.pack(batch["masked_pair"])])
        losses = {"mlm": masked_cross_entropy(logits, batch["pair"].ids[batch["masked_pair"]])}
        # A task weighs as much as its part of the batch: the means are over all examples.
        each = task_masked_bce(self.pair_head(pooled), batch["matches"], batch["task_mask"])
        return losses | {name: each[n] for n, name in enumerate(("sp", "qa")) if name in self.recipe.objectives}

    def start_fine_tuning(self) -> None:
        """Set the dropout of fine-tuning."""
        self.encoder.set_dropout(self.recipe.finetune_dropout)

    def duplicate_logits(self, batch: Batch) -> Float[Tensor, "batch 2"]:
        """Return logits of no duplicate and of duplicate, of two posts each: `thread` and `second`."""
        return self.duplicate_head(self.encoder.pooled(batch["thread"]), self.encoder.pooled(batch["second"]))

    def duplicate_losses(self, batch: PostPairBatch) -> dict[str, Tensor]:
        """duplicates: cross-entropy. penalty: weighted norms of the head's parameters, as the released code has."""
        return self._with_penalty(F.cross_entropy(self.duplicate_logits(batch), batch["labels"]))

    @whole_batch
    def duplicate_f1_losses(self, batch: PostPairBatch) -> dict[str, Tensor]:
        """duplicates: 1 - soft macro F1 over the batch of all processes. penalty: as of `duplicate_losses`."""
        logits, labels = all_gather_with_grad(self.duplicate_logits(batch)), all_gather(batch["labels"])
        return self._with_penalty(soft_macro_f1_loss(logits, labels))

    def _with_penalty(self, loss: Tensor) -> dict[str, Tensor]:
        if not self.recipe.head_penalty or self.recipe.duplicate_head == "cosine":
            return {"duplicates": loss}
        return {"duplicates": loss, "penalty": self.recipe.head_penalty * self.duplicate_head.penalty()}

    def learned_duplicates(self) -> bool:
        """Return whether the head of duplicates was trained."""
        return self.recipe.finetune_fraction > 0

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Embed posts (`thread`) and queries in words (`text`): L2-normalized pooled vectors of the encoder."""
        return {name: F.normalize(self.encoder.pooled(value), dim=-1) for name, value in batch.items()}


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4, weight_decay=0.01)
    encoder: LongformerEncoderConfig = LongformerEncoderConfig()
    objectives: Literal["mlm+sp+qa", "mlm+sp", "mlm+qa", "mlm"] = "mlm+sp+qa"
    """Losses of pre-training; the pairs that are read are the same."""
    mlm_probability: UnitInterval = 0.15
    """Probability of a token to be predicted."""
    pair_dim: PositiveInt = 128
    """Inner width of the head of SP and QA."""
    short_length: PositiveInt = 48
    """Maximum sequence length in tokens of the first part of pre-training (curriculum of length)."""
    short_fraction: UnitInterval = 0.5
    """Fraction of pre-training with short sequences."""
    finetune_fraction: UnitInterval = 0.5
    """Fraction of the budget for fine-tuning on duplicates; 0 pre-trains only, 1 fine-tunes only."""
    finetune_lr_scale: NonNegativeFloat = 2.0
    """Factor of the learning rate in fine-tuning."""
    finetune_dropout: DecayRate = 0.1
    """Dropout probability of the encoder in fine-tuning (0.3 in the paper)."""
    duplicate_head: Literal["concatenation", "cosine"] = "cosine"
    """Head on the vectors of both posts: an MLP on their concatenation (as in the paper), or their cosine similarity,
    the alternative of the released code, which few pairs teach."""
    duplicate_dim: PositiveInt = 64
    """Inner width of the head of duplicates."""
    head_dropouts: tuple[DecayRate, DecayRate] = (0.1, 0.1)
    """Dropout probabilities of its input and of its inner layer (0.4 and 0.3 in the paper)."""
    duplicate_loss: Literal["cross_entropy", "f1"] = "cross_entropy"
    """Loss of fine-tuning: cross-entropy, or 1 - soft macro F1."""
    head_penalty: NonNegativeFloat = 0.0
    """Weight of the sum of the L2 norms of the head's parameters (0.03 in the paper)."""
    any_order: bool = True
    """Whether pairs of posts are trained in both orders, since the concatenation is not symmetric."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"pair_dim": 256, "duplicate_dim": 128, "short_length": 128},
        "base": {"pair_dim": 512, "duplicate_dim": 256, "short_length": 128},
    }

    def stages(self) -> tuple[Stage, ...]:
        heads, tuned = ("encoder.*", "vocab_head.*", "pair_head.*"), ("encoder.*", "duplicate_head.*")
        losses = "duplicate_f1_losses" if self.duplicate_loss == "f1" else "duplicate_losses"
        duplicates = Stage("duplicates", self.finetune_fraction, tuned, lr_scale=self.finetune_lr_scale, losses=losses)
        pretraining = 1 - self.finetune_fraction
        return (
            Stage("pre-training, short", pretraining * self.short_fraction, heads, batch="short_batch"),
            Stage("pre-training", pretraining * (1 - self.short_fraction), heads),
            replace(duplicates, rows="duplicate_rows", batch="duplicate_batch", on_start="start_fine_tuning"),
        )

    def columns(self) -> Declared:
        source = LearnedTokenizer(self.encoder.vocab_size, self.encoder.context_length, keep_case=True)
        return {"thread": ThreadColumn(source), "second": SharedColumn("thread"), "text": Optional(QueryColumn(source))}

    def build(self, processor: Processor) -> MQDD:
        return MQDD(self, processor.thread.tokenizer.vocab_size)

    def duplicate_rows(self, corpus: Corpus, processor: Processor) -> np.ndarray:
        """Return the training posts that have a duplicate."""
        return linked_rows(corpus, (DUPLICATE,))

    def short_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PartPairBatch:
        """Sample pairs of parts, which are cut to `short_length`."""
        length = min(self.short_length, self.encoder.context_length)
        return part_pair_batch(examples, processor, example_rng, self.mlm_probability, length)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PartPairBatch:
        """Sample pairs of parts, which are cut to the encoder's context length."""
        return part_pair_batch(examples, processor, example_rng, self.mlm_probability, self.encoder.context_length)

    def duplicate_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PostPairBatch:
        """Sample a duplicate or a negative of each post."""
        return post_pair_batch(examples, processor, example_rng, self.any_order)

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        encoder = LongformerEncoderConfig(300, 32, width=16, depth=2, num_heads=2, attention_window=8)
        return cls(
            encoder=encoder,
            pair_dim=16,
            short_length=16,
            duplicate_head="concatenation",
            duplicate_dim=16,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """Longformer-base (scripts/pretraining.py and duplicates.py of the released code).

        147,728,128 short examples, then 21 million of 1024 tokens; 10 epochs of 419,200 pairs. Posts of fine-tuning are
        as long as pairs, not 128 tokens, and one batch size is for both (32 and 100 in the released code).
        """
        short, full, tuned = 147_728_128, 21_000_000, 10 * 419_200
        total = short + full + tuned
        return cls(
            encoder=LongformerEncoderConfig(
                50_265, 1024, 768, 12, 12, attention_window=256, dropout=0.1, mimetic_init=False
            ),
            pair_dim=1000,
            short_length=256,
            short_fraction=short / (short + full),
            finetune_fraction=tuned / total,
            finetune_lr_scale=5e-6 / 1e-5,
            finetune_dropout=0.3,
            duplicate_head="concatenation",
            duplicate_dim=256,
            head_dropouts=(0.4, 0.3),
            head_penalty=0.03,
            any_order=False,
            batch_size=32,
            optimizer=OptimizerConfig(
                1e-5, 0.0, (0.9, 0.999), 1e-8, "linear", warmup_ratio=240_000 / total, max_grad_norm=0.0
            ),
        )
