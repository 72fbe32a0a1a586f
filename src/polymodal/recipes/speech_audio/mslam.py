"""mSLAM: joint pre-training on unpaired speech, unpaired text and some transcripts, with a CTC loss.

Masked speech is contrasted and predicted (w2v-BERT), masked spans of characters are predicted (SpanBERT), and pairs are
read as one sequence (TLM). A CTC loss on the speech of pairs makes frames hold the characters that text is made of, or
speech and text share an encoder but no space. Text enters above the contrastive block of speech (section 3). Languages
are sampled as often as the data have them; the paper has `--language-temperature 3`. Differs from the paper in:
fine-tuning by CTC alone, without a decoder for translation.

Terms: w2v-BERT = models.w2v_bert.W2vBertHeads, SpanBERT = losses.span_bert, TLM = tlm_loss, CTC = losses.ctc,
contrastive block = encoder.contrastive_block, masked-prediction block = encoder.multimodal_block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.audio import FRAMES_PER_SECOND, AudioColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.masks import mask_text_spans, mask_time_spans
from polymodal.data.pools import pool_of
from polymodal.data.processor import Declared, Optional, Processor, Sparse
from polymodal.data.speech_text import POOLS, UnmaskedSpeechText, speech_text_batch
from polymodal.encoders.speech_text import EncodedSpeech, SpeechTextEncoderConfig, num_output_frames
from polymodal.errors import UserError
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities import Audio, Text
from polymodal.modalities.padding import Padded
from polymodal.models.speech_recognizer import CTCBatch, SpeechRecognizer, ctc_batch
from polymodal.models.w2v_bert import W2vBertConfig
from polymodal.objectives.ctc import ctc_loss
from polymodal.objectives.masked_modeling import masked_lm_loss
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="mslam",
    title="mSLAM: Massively multilingual joint pre-training for speech and text",
    year=2022,
    arxiv="2202.01374",
    modalities=("audio", "text"),
    parameters={"*": 0.6e9},  # section 4: the model of 0.6 billion parameters
)


class SpeechTextBatch(UnmaskedSpeechText):
    """The masks of w2v-BERT, of SpanBERT, and of the transcripts in TLM."""

    masked_sound: Bool[Tensor, "sounds frames"]
    masked_text: Bool[Tensor, "texts length"]
    masked_transcript: Bool[Tensor, "pairs characters"]


class MSLAM(SpeechRecognizer):
    """The encoder, and the heads of all losses."""

    def __init__(self, recipe: Recipe, vocab_size: int):
        super().__init__(recipe.encoder.build(vocab_size), vocab_size)
        self.recipe, width = recipe, recipe.encoder.width
        self.w2v_bert = recipe.w2v_bert.build(width)
        self.character_head = MaskedLMHead(width, vocab_size)
        self.ctc_head = nn.Linear(width, vocab_size)

    @whole_batch  # the diversity loss is that of the codes of all frames
    def losses(self, batch: SpeechTextBatch) -> dict[str, Tensor]:
        """Compute the losses of masked speech, masked text, and pairs."""
        recipe, mask = self.recipe, batch["masked_sound"]
        paired_weight = recipe.paired_weight * (batch["paired"] > 0)
        speech = self.encoder.encode_speech(batch["sound"], mask)
        losses, codes = self.w2v_bert(speech, mask)
        if recipe.unpaired_text:
            text, masked = batch["text"], batch["masked_text"]
            states, embedding = self.encoder.encode_text(text, masked).values, self.encoder.character.weight
            mlm = masked_lm_loss(self.character_head, states, embedding, text.ids, masked)
            losses["span_bert"] = recipe.mlm_weight * mlm
        if "tlm" in recipe.paired_losses:
            losses["tlm"] = paired_weight * self.tlm_loss(speech, codes, batch)
        if "ctc" in recipe.paired_losses:
            # On masked speech alone: with the transcript in sight, the head would copy it.
            logits, lengths = self.ctc_head(speech.multimodal[batch["pairs"]]), speech.lengths[batch["pairs"]]
            losses["ctc"] = paired_weight * ctc_loss(logits, lengths, batch["transcript"])
        return losses

    def tlm_loss(
        self, speech: EncodedSpeech, codes: Int[Tensor, "masked codebooks"], batch: SpeechTextBatch
    ) -> Float[Tensor, ""]:
        """Compute the translation language modeling (TLM) loss: masked speech and text of pairs, as one sequence."""
        pairs, mask, transcript = batch["pairs"], batch["masked_sound"], batch["transcript"]
        frames = Padded(speech.contrastive[pairs], speech.lengths[pairs])
        characters = self.encoder.embed_text(transcript, batch["masked_transcript"])
        frame_states, character_states = self.encoder.encode_pair(frames, characters)
        paired = batch["paired"] > 0  # or frames of the sound that stands in for a pair would count
        of_pair = torch.zeros_like(mask[:, 0]).index_fill(0, pairs, True) & paired
        pair_codes = codes[of_pair[mask.nonzero()[:, 0]]]
        masked_frames = frame_states[(mask[pairs] & paired)[frames.mask]]
        targets, masked = (tokens[transcript.mask][None] for tokens in (transcript.ids, batch["masked_transcript"]))
        embedding, states = self.encoder.character.weight, character_states[None]
        mlm = masked_lm_loss(self.character_head, states, embedding, targets, masked)
        return self.w2v_bert.masked_prediction_loss(masked_frames, pair_codes) + mlm


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 64
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, weight_decay=0.01)
    encoder: SpeechTextEncoderConfig = SpeechTextEncoderConfig()
    max_audio_seconds: PositiveFloat = 4.0
    """Maximum length of a sound in seconds; the rest is cut off."""
    w2v_bert: W2vBertConfig = W2vBertConfig()
    mask_time_prob: UnitInterval = 0.065
    """Probability that a masked span of speech begins at a frame."""
    mask_time_length: PositiveInt = 10
    """Length of a masked span of speech in frames of 40 ms."""
    text_mask_ratio: UnitInterval = 0.15
    """Mask ratio of the characters of unpaired text."""
    mean_span_length: PositiveFloat = 5.0
    """Mean length of a masked span of text in characters."""
    paired_text_mask_ratio: UnitInterval = 0.5
    """Mask ratio of the characters of a pair (TLM)."""
    unpaired_text: bool = True
    """Train on unpaired text (SpanBERT)."""
    paired_losses: Literal["tlm+ctc", "tlm", "ctc", "none"] = "tlm+ctc"
    """Losses of pairs: TLM, CTC, both, or none."""
    mlm_weight: NonNegativeFloat = 0.3
    """Weight of the loss of unpaired text; that of speech has 1."""
    paired_weight: NonNegativeFloat = 1.0
    """Weight of the losses of pairs; the paper has 0.03, for millions of steps."""
    pool_fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.3, 0.3, 0.4)
    """Relative sizes of the pools of examples with both modalities: used as speech, as text, and as pairs."""
    ctc_finetune_fraction: UnitInterval = 0.15
    """Fraction of the budget at its end for CTC fine-tuning on the pairs; 0 pre-trains only."""
    finetune_encoder: bool = False
    """Fine-tune the encoder, too; without, a linear probe is trained on the frozen encoder."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"w2v_bert": W2vBertConfig(128, 1, 128), "max_audio_seconds": 8.0},
        "base": {"w2v_bert": W2vBertConfig(384, 1, 320), "max_audio_seconds": 16.0},
    }

    length_modality = Audio

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.pool_fractions) != 3 or sum(self.pool_fractions) <= 0:
            raise UserError("--pool-fractions are three relative sizes: of speech, of text, and of pairs.")

    def stages(self) -> tuple[Stage, ...]:
        pretrained = ("encoder.*", "w2v_bert.*", "character_head.*", "ctc_head.*")
        finetuned = ("encoder.*", "asr_head.*") if self.finetune_encoder else ("asr_head.*",)
        batch, losses = "ctc_finetuning_batch", "ctc_finetuning_losses"
        return (
            Stage("pre-training", 1 - self.ctc_finetune_fraction, pretrained),
            Stage("transcription", self.ctc_finetune_fraction, finetuned, batch=batch, losses=losses),
        )

    def columns(self) -> Declared:
        tokenizer = LearnedTokenizer(self.encoder.vocab_size, self.encoder.context_length, characters=True)
        return {
            "sound": Sparse(AudioColumn(self.encoder.num_mel_bins, max_audio_seconds=self.max_audio_seconds)),
            "text": Sparse(TextColumn(tokenizer)),
            "label": Optional(Sparse(LabelColumn())),
        }

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError: the corpus has no sounds or no texts."""
        for kind in (Audio, Text):
            corpus.column_with(kind)
        return [corpus]

    def build(self, processor: Processor) -> MSLAM:
        return MSLAM(self, processor.tokenizer.vocab_size)

    def pool(self, example: Example) -> str:
        """Return what is used of an example: what it has or, of both, what the hash of its texts says.

        A sound that was cut off is speech alone: its transcript says more than it does.
        """
        if "text" not in example or "sound" not in example:
            return "speech" if "sound" in example else "text"
        pool = POOLS[pool_of("\n".join(caption.text for caption in example["text"]), self.pool_fractions)]
        cut_off = len(example["sound"]) > int(FRAMES_PER_SECOND * self.max_audio_seconds)
        return "speech" if pool == "pairs" and cut_off else pool

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SpeechTextBatch:
        """Collate sounds, texts, which of the sounds have transcripts, and the masks."""
        pools = [self.pool(example) for example in examples]
        batch, rows = speech_text_batch(examples, pools, processor, example_rng, self.encoder.num_mel_bins)
        sounds, texts, pairs = (ExampleRNG(example_rng.seeds[some]) for some in rows)
        lengths, span = num_output_frames(batch["sound"].lengths).tolist(), self.mean_span_length
        return {
            **batch,
            "masked_sound": mask_time_spans(lengths, self.mask_time_prob, self.mask_time_length, sounds),
            "masked_text": mask_text_spans(batch["text"], self.text_mask_ratio, texts, span),
            "masked_transcript": mask_text_spans(batch["transcript"], self.paired_text_mask_ratio, pairs, span),
        }

    def ctc_finetuning_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> CTCBatch:
        """Collate sounds and transcripts of the pairs."""
        pairs = [n for n, example in enumerate(examples) if self.pool(example) == "pairs"]
        rng = ExampleRNG(example_rng.seeds[pairs])
        return ctc_batch([examples[n] for n in pairs], processor, rng, self.encoder.num_mel_bins)

    @classmethod
    def tiny(cls) -> Recipe:
        size = {"num_mel_bins": 20, "width": 16, "shared_depth": 1, "num_heads": 2}
        return cls(
            encoder=SpeechTextEncoderConfig(**size, vocab_size=60, context_length=32),
            w2v_bert=W2vBertConfig(embed_dim=16, num_codevectors_per_group=16, num_negatives=4),
            max_audio_seconds=2.0,
            pool_fractions=(0.25, 0.25, 0.5),
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """The model of 0.6 billion parameters (section 4), pre-training only; widths are those of w2v-BERT."""
        warmup = 40_000 / 1_300_000
        return cls(
            encoder=SpeechTextEncoderConfig(80, 1024, speech_depth=8, shared_depth=16, num_heads=8, context_length=512),
            w2v_bert=W2vBertConfig(1024, 1, 1024, gumbel_temperature_decay=0.999995, diversity_loss_weight=0.1),
            max_audio_seconds=16.0,
            mean_span_length=20.0,
            paired_text_mask_ratio=0.15,
            paired_weight=0.03,
            batch_size=10_496,
            pool_fractions=(2048.0, 8192.0, 256.0),
            ctc_finetune_fraction=0.0,
            optimizer=OptimizerConfig(6e-4, 0.01, (0.9, 0.98), lr_scheduler="inverse_sqrt", warmup_ratio=warmup),
        )
