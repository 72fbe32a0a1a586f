"""EVE: pre-training of one image-text transformer by masked prediction alone, with modality-aware mixtures of experts.

Of a pair, the transformer encodes the visible patches and the masked text together; a light decoder reconstructs the
masked patches, and a head predicts the masked tokens. Attention is shared by the modalities, MLPs are of one modality,
and the last blocks have a mixture of experts whose router reads an embedding of the modality of each token. There is no
contrastive or matching loss, which need further passes (`--use-itc-itm` adds them, for comparison); both come in
fine-tuning for retrieval, as answers do in fine-tuning for VQA.

Terms: masked signal modeling = losses.mlm and losses.mim, modality-aware MoE = layers.top2_moe.Top2MoE with
encoder.modality_embedding, multiway transformer = encoders.multiway_moe.MultiwayMoEEncoder, L_aux = losses.balance,
ITC = losses.itc, ITM = losses.itm, re-ranking = MultiwayPairs.itm_logits.

Differs from the paper in: the code of pre-training was never released, so that its hyper-parameters are MAE's or common
ones, and not checked; blocks begin with random weights, not with BEiT's; images have one size in all stages (released:
224, then 384 or 480 px); in evaluation no token is dropped and the second expert has no noise, and padding takes no
capacity; patches keep their positions where some are masked, which the released code drops; embeddings are normalized
by the last layer norm, which it leaves out in evaluation; one stage fine-tunes for retrieval and answers, unless
`--finetuning` names one of them; a question has one answer; negatives of ITM differ in text, not in image id; ITM ranks
all pairs of `matching` (released: the 128 best of ITC). NLVR2 and its bi-attention are left out, as no corpus here has
statements about two images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polymodal.constraints import AtLeastTwo, DecayRate, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.questions import AnswersColumn
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.processor import Declared, Processor, SharedColumn, Sparse
from polymodal.data.video_text import sample_questions
from polymodal.encoders.multiway_moe import MultiwayMoEConfig
from polymodal.errors import UserError
from polymodal.modalities import Questions
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.models.masked_autoencoder import MaskedAutoencoderConfig
from polymodal.models.masked_signal_modeling import MaskedPairsBatch, MaskedSignalModeling, mask_pairs
from polymodal.models.multiway_pairs import PairsBatch, PairsQuestionBatch, sample_image_pairs
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="eve",
    title="EVE: Efficient Vision-Language Pre-training with Masked Prediction and Modality-Aware MoE",
    year=2023,
    arxiv="2308.11971",
    modalities=("image", "text"),
    code="ssyze/EVE@39415a05c492d2d924c0597bf79f94ee9ac5b94c",
    parameters={"encoder.*": 475_077_888},  # MultiwayTransformer of the released base configuration at 224 px
)

PAIRS = ("*_projection.*", "logit_scale.*", "itm_head.*")


class EVE(MaskedSignalModeling):
    """The encoder with the heads of pre-training and fine-tuning."""

    def __init__(self, recipe: Recipe, vocab_size: int, num_answers: int):
        decoder, dim, ratio = recipe.decoder_config, recipe.embed_dim, recipe.mlm_probability
        super().__init__(recipe.encoder, decoder, vocab_size, dim, num_answers, ratio)
        self.recipe = recipe

    @whole_batch  # a mixture of experts balances the tokens of the batch
    def losses(self, batch: MaskedPairsBatch) -> dict[str, Tensor]:
        """MLM and MIM; with `use_itc_itm`, ITC and ITM, too; and the balance of the experts."""
        losses, balances = self.masked_losses(batch, self.recipe.joint_masking)
        if self.recipe.use_itc_itm:
            pair_losses, of_pairs = self.pair_losses(batch)
            losses, balances = losses | pair_losses, balances + of_pairs
        return losses | self._balance(balances)

    @whole_batch
    def finetuning_losses(self, batch: PairsQuestionBatch) -> dict[str, Tensor]:
        """ITC and ITM, the loss of answers, or both; and the balance of the experts."""
        losses, balances = ({}, []) if self.recipe.finetuning == "vqa" else self.pair_losses(batch)
        if "question" in batch:
            answer_losses, of_questions = self.answer_losses(batch)
            losses, balances = losses | answer_losses, balances + of_questions
        return losses | self._balance(balances)

    def _balance(self, balances: list[Tensor]) -> dict[str, Tensor]:
        """The mean over passes of the mean over mixtures of experts."""
        return {"balance": self.recipe.balance_weight * torch.stack(balances).mean()}


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 48
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    encoder: MultiwayMoEConfig = MultiwayMoEConfig()
    decoder_width: PositiveInt = 64
    """Channels of the decoder that reconstructs patches."""
    decoder_depth: PositiveInt = 1
    """Blocks of the decoder."""
    decoder_num_heads: PositiveInt = 4
    """Attention heads of the decoder."""
    embed_dim: PositiveInt = 64
    """Dimensions in which images and texts are contrasted."""
    mlm_probability: UnitInterval = 0.5
    """Fraction of a text's tokens that are masked and predicted."""
    mask_ratio: DecayRate = 0.75
    """Fraction of an image's patches that are masked and reconstructed."""
    joint_masking: bool = True
    """Whether one pass sees visible patches and masked texts; else one sees masked texts with all patches, and another
    visible patches with all words."""
    use_itc_itm: bool = False
    """Whether pre-training has ITC and ITM, too, in five further passes."""
    balance_weight: NonNegativeFloat = 0.001
    """Weight of the balance loss of the mixtures of experts."""
    finetune_fraction: UnitInterval = 0.4
    """Fraction of the budget at the end that is fine-tuning; 0 pre-trains only."""
    finetuning: Literal["both", "retrieval", "vqa"] = "both"
    """What is fine-tuned: ITC and ITM for retrieval, answers to questions (VQA), or both, as far as the corpus has
    questions."""
    finetune_lr_scale: NonNegativeFloat = 1.0
    """Factor of the learning rate in fine-tuning."""
    head_lr_scale: NonNegativeFloat = 1.0
    """Further factor of the learning rate of the heads that are new in fine-tuning."""
    num_answers: PositiveInt = 1500
    """Number of answers: the most frequent ones of the training questions."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.8, 1.0))

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"embed_dim": 128, "decoder_width": 128, "decoder_depth": 2},
        "base": {"embed_dim": 256, "decoder_width": 256, "decoder_depth": 4},
    }

    @property
    def decoder_config(self) -> MaskedAutoencoderConfig:
        """The configuration of the decoder."""
        size, patch = self.encoder.image_size, self.encoder.patch_size
        return MaskedAutoencoderConfig(
            (size, size),
            (patch, patch),
            decoder_width=self.decoder_width,
            decoder_depth=self.decoder_depth,
            decoder_num_heads=self.decoder_num_heads,
            mask_ratio=self.mask_ratio,
        )

    def stages(self) -> tuple[Stage, ...]:
        masked, last, kind = ("encoder.*", "mlm_head.*", "decoder.*"), self.finetune_fraction, self.finetuning
        tuned = (*(PAIRS if kind != "vqa" else ()), *(("answer_head.*",) if kind != "retrieval" else ()))
        finetuning: dict[str, Any] = {"batch": "finetuning_batch", "losses": "finetuning_losses"}
        finetuning["lr_scales"] = dict.fromkeys(tuned, self.head_lr_scale)
        return (
            Stage("pre-training", 1 - last, masked + (PAIRS if self.use_itc_itm else ())),
            Stage("fine-tuning", last, ("encoder.*", *tuned), lr_scale=self.finetune_lr_scale, **finetuning),
        )

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError for fine-tuning on questions alone, of which the corpus has none."""
        if self.finetune_fraction and self.finetuning == "vqa" and not corpus.has_modality(Questions):
            raise UserError(
                f"The corpus '{corpus.name}' has no questions for --finetuning vqa: write --finetuning retrieval."
            )
        return [corpus]

    def columns(self) -> Declared:
        has_answers = self.finetune_fraction and self.finetuning != "retrieval"
        return {
            "image": ImageColumn(self.encoder.image_size, stretch=True),
            "text": TextColumn(LearnedTokenizer(self.encoder.vocab_size, self.encoder.context_length)),
            "questions": Sparse(AnswersColumn(self.num_answers if has_answers else 0)),
            "question": SharedColumn("text"),
            "answer": SharedColumn("questions"),
        }

    def build(self, processor: Processor) -> EVE:
        return EVE(self, processor.text.tokenizer.vocab_size, len(processor.answers))

    def pairs_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PairsBatch:
        """Augmented images and a caption of each."""
        return sample_image_pairs(examples, processor, self.augmentation, example_rng)

    def training_batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> MaskedPairsBatch:
        """Pairs, masked texts, and which patches are masked."""
        batch, mask_id = self.pairs_batch(examples, processor, example_rng), processor.text.tokenizer.vocab_size
        ratios = self.mlm_probability, self.mask_ratio
        return {**batch, **mask_pairs(batch["text"], self.encoder.num_patches, mask_id, *ratios, example_rng)}

    def finetuning_batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> PairsQuestionBatch:
        """Pairs, and a question about each image with its answer, where the corpus has questions."""
        batch = self.pairs_batch(examples, processor, example_rng)
        return {**batch, **sample_questions(examples, processor, example_rng)}

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            batch_size=4,
            encoder=MultiwayMoEConfig(32, 16, 300, 24, 16, 2, 2, num_experts=4),
            decoder_width=16,
            decoder_num_heads=2,
            embed_dim=16,
            num_answers=16,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """EVE-Base: released configuration, fine-tuned for retrieval at 224 px (COCO: 3e-5, heads 10 times as fast).

        480,000 steps of 2,048 pairs; the decoder is MAE's.
        """
        return cls(
            encoder=MultiwayMoEConfig(
                224, 16, 64_000, 40, 768, 12, 12, 2, num_experts=32, drop_path_rate=0.1, word_dropout=0.1
            ),
            decoder_width=512,
            decoder_depth=8,
            decoder_num_heads=16,
            embed_dim=256,
            batch_size=2048,
            optimizer=OptimizerConfig(5e-4, 0.05, (0.9, 0.98), eps=1e-8, max_grad_norm=1.0),
            finetune_fraction=0.05,
            finetune_lr_scale=0.06,
            head_lr_scale=10.0,
            augmentation=ImageAugmentation(scale=(0.5, 1.0), hflip_prob=0.5),
        )
