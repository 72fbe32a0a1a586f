"""mSLAM: joint pre-training on unpaired speech, unpaired text and some transcripts, with a CTC loss.

Hidden speech is told from other hidden speech and named by codes of its own (w2v-BERT), hidden spans of characters are
named (SpanBERT), and pairs are read in one sequence in which each side helps to guess the other (TLM). A CTC loss on
the speech of pairs makes its positions hold the very characters that text is made of: without it, the two share an
encoder but not a space. Text enters above the blocks that speech has for itself (section 3).

Terms: w2v-BERT = losses.w2v_bert, SpanBERT = losses.span_bert, TLM = losses.tlm, CTC = losses.ctc.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.audio import AudioColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.masks import mask_spans, mask_time_spans
from polymodal.data.processor import Declared, Optional, Processor, Sparse
from polymodal.encoders.speech_text import EncodedSpeech, SpeechTextEncoderConfig, num_output_frames
from polymodal.errors import UserError
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.quantize import GumbelQuantizer, GumbelQuantizerOutput
from polymodal.modalities import Audio, Text
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.objectives.ctc import ctc_greedy_decode, ctc_loss
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.reduction import mean_over
from polymodal.objectives.wav2vec2_contrastive import wav2vec2_contrastive_loss
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="mslam",
    title="mSLAM: Massively multilingual joint pre-training for speech and text",
    year=2022,
    arxiv="2202.01374",
    modalities=("audio", "text"),
    parameters={"*": 0.6e9},  # section 4: the model of 0.6 billion parameters
)

Pool = Literal["speech", "text", "pairs"]
POOLS: tuple[Pool, ...] = ("speech", "text", "pairs")


class SpeechTextBatch(TypedDict):
    """Speech, unpaired text, and transcripts of some of the speech. Masks are True where masked.

    pairs: rows of `sound` with a transcript; where `paired`, their number, is 0, row 0 stands in.
    """

    sound: Padded
    masked_sound: Bool[Tensor, "sounds frames"]
    text: Tokens
    masked_text: Bool[Tensor, "texts length"]
    paired: Int[Tensor, ""]
    pairs: Int[Tensor, " pairs"]
    transcript: Tokens
    masked_transcript: Bool[Tensor, "pairs characters"]


class CTCBatch(TypedDict):
    """num_pairs: 0 where an empty pair stands in."""

    sound: Padded
    transcript: Tokens
    num_pairs: Int[Tensor, ""]


class MSLAM(nn.Module):
    """The encoder, the quantizer that makes speech its own vocabulary, and a head for each thing to be named."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        width = recipe.encoder.width
        self.recipe = recipe
        self.encoder = recipe.encoder.build(vocabulary)
        self.quantizer = GumbelQuantizer(
            width,
            recipe.num_codevector_groups,
            recipe.num_codevectors_per_group,
            recipe.embed_dim,
            temperature_decay=recipe.gumbel_temperature_decay,
        )
        self.context = nn.Linear(width, recipe.embed_dim)
        self.code_head = nn.Linear(width, recipe.num_codevector_groups * recipe.num_codevectors_per_group)
        self.character_head = MaskedLMHead(width, vocabulary)
        self.ctc_head = nn.Linear(width, vocabulary)
        self.transcriber = nn.Linear(width, vocabulary)

    def num_characters(self, batch: CTCBatch) -> dict[str, Tensor]:
        """Characters of the transcripts."""
        return {"ctc_finetune": (batch["transcript"].lengths - 2).sum()}

    @mean_over("num_characters")
    def ctc_finetuning_losses(self, batch: CTCBatch) -> dict[str, Tensor]:
        """Of transcription."""
        heard = self.encoder.encode_speech(batch["sound"])
        loss = ctc_loss(self.transcriber(heard.shared), heard.lengths, batch["transcript"])
        return {"ctc_finetune": loss * (batch["num_pairs"] > 0)}

    @whole_batch  # diversity is that of the codes of all frames
    def losses(self, batch: SpeechTextBatch) -> dict[str, Tensor]:
        """Of hidden speech, hidden text, and pairs."""
        hidden, weight = batch["masked_sound"], self.recipe.paired_weight * (batch["paired"] > 0)
        heard = self.encoder.encode_speech(batch["sound"], hidden)
        chosen, context = self.quantizer(heard.features[hidden]), self.context(heard.own[hidden])
        contrast = wav2vec2_contrastive_loss(context, chosen.vectors, hidden.sum(1), self.recipe.num_negatives)
        losses = {
            "contrastive": contrast,
            "diversity": self.recipe.diversity_loss_weight * chosen.diversity,
            "w2v_bert": self._code_loss(heard.shared[hidden], chosen.codes),
        }
        if self.recipe.unpaired_text:
            read = self.encoder.encode_text(batch["text"], batch["masked_text"]).values[batch["masked_text"]]
            losses["span_bert"] = self.recipe.mlm_weight * self._character_loss(
                read, batch["text"].ids[batch["masked_text"]]
            )
        if self.recipe.paired_losses in ("tlm", "tlm+ctc"):
            losses["tlm"] = weight * self._tlm_loss(heard, chosen, batch)
        if self.recipe.paired_losses in ("ctc", "tlm+ctc"):
            logits, lengths = self.ctc_head(heard.shared[batch["pairs"]]), heard.lengths[batch["pairs"]]
            losses["ctc"] = weight * ctc_loss(logits, lengths, batch["transcript"])
        return losses

    def _tlm_loss(
        self, heard: EncodedSpeech, chosen: GumbelQuantizerOutput, batch: SpeechTextBatch
    ) -> Float[Tensor, ""]:
        """Hidden speech and hidden characters of pairs, each named with both in sight (translation language model)."""
        pairs, hidden = batch["pairs"], batch["masked_sound"]
        speech = Padded(heard.own[pairs], heard.lengths[pairs])
        spelled = self.encoder.embed_text(batch["transcript"], batch["masked_transcript"])
        said, read = self.encoder.encode_pair(speech, spelled)
        paired = batch["paired"] > 0  # or frames of the sound that stands in for a pair would count
        of_pair = torch.zeros_like(hidden[:, 0]).index_fill(0, pairs, True) & paired
        codes = chosen.codes[of_pair[hidden.nonzero()[:, 0]]]
        own = (hidden[pairs] & paired)[speech.mask]
        characters = batch["masked_transcript"][batch["transcript"].mask]
        wanted = batch["transcript"].ids[batch["masked_transcript"]]
        return self._code_loss(said[own], codes) + self._character_loss(read[characters], wanted)

    def _code_loss(self, tokens: Float[Tensor, "n width"], codes: Int[Tensor, "n books"]) -> Float[Tensor, ""]:
        """Of the code of each book; codes do not learn to be predicted."""
        logits = self.code_head(tokens).unflatten(
            1, (self.recipe.num_codevector_groups, self.recipe.num_codevectors_per_group)
        )
        return masked_cross_entropy(logits.flatten(0, 1), codes.flatten())

    def _character_loss(self, tokens: Float[Tensor, "n width"], characters: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        return masked_cross_entropy(self.character_head(tokens, self.encoder.character.weight), characters)

    def _tops(self, batch: Batch) -> dict[str, Padded]:
        """What comes out of the shared blocks for each modality that the batch has."""
        tops = {}
        if "sound" in batch:
            heard = self.encoder.encode_speech(batch["sound"])
            tops["sound"] = Padded(heard.shared, heard.lengths)
        if "text" in batch:
            tops["text"] = self.encoder.encode_text(batch["text"])
        return tops

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalised means of the last tokens of speech and of text."""
        return {name: F.normalize(top.mean(), dim=1) for name, top in self._tops(batch).items()}

    def transcribe(self, batch: Batch) -> list[list[int]]:
        """The characters of each sound; or of each text, which the head for speech has never seen."""
        (top,) = self._tops(batch).values()
        logits = self.transcriber(top.values)
        return [ctc_greedy_decode(own[:length]) for own, length in zip(logits, top.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 64
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, weight_decay=0.01)
    encoder: SpeechTextEncoderConfig = SpeechTextEncoderConfig()
    max_audio_seconds: PositiveFloat = 4.0
    """Seconds of a sound; what comes after is left out."""
    embed_dim: PositiveInt = 64
    """Dimensions in which hidden speech is contrasted with codes."""
    num_codevector_groups: PositiveInt = 1
    """Books of codes."""
    num_codevectors_per_group: PositiveInt = 64
    """Codes of a book."""
    gumbel_temperature_decay: UnitInterval = 0.999
    """Factor of the quantizer's temperature at every step, from 2.0 down to 0.5."""
    num_negatives: PositiveInt = 100
    """Other hidden moments of the same speech that each is told from."""
    diversity_loss_weight: NonNegativeFloat = 1.0
    """Weight of choosing all codes alike often; with the paper's 0.1, pairs make nearly all speech one code here."""
    mask_time_prob: UnitInterval = 0.065
    """Probability that a moment begins a hidden stretch of speech."""
    mask_time_length: PositiveInt = 10
    """Moments of 40 ms in a hidden stretch."""
    text_mask_ratio: UnitInterval = 0.15
    """Share of a text's characters that are hidden."""
    mean_span_length: PositiveFloat = 5.0
    """Mean length of a hidden span in characters."""
    paired_text_mask_ratio: UnitInterval = 0.5
    """Share of a pair's characters that are hidden when both are read together."""
    unpaired_text: bool = True
    """Whether text by itself is learned from."""
    paired_losses: Literal["tlm+ctc", "tlm", "ctc", "none"] = "tlm+ctc"
    """What pairs are used for: reading both together, characters along speech (CTC), both losses, or nothing."""
    mlm_weight: NonNegativeFloat = 0.3
    """Of hidden characters, beside speech."""
    paired_weight: NonNegativeFloat = 1.0
    """Of both losses of pairs, beside speech; the paper has 0.03 for millions of steps."""
    pool_fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.3, 0.3, 0.4)
    """Of examples that have both: the shares of which only the sound, only the text, and both are used."""
    ctc_finetune_fraction: UnitInterval = 0.15
    """Share of the budget at the end that learns to transcribe the pairs; 0 pre-trains only."""
    finetune_encoder: bool = False
    """Whether the encoder is fine-tuned, too; without, a linear head learns on the frozen encoder (a linear probe)."""

    length_modality = Audio

    def __post_init__(self) -> None:
        if len(self.pool_fractions) != 3 or sum(self.pool_fractions) <= 0:
            raise UserError("--pool-fractions are three shares: of speech alone, of text alone, and of pairs.")

    def stages(self) -> tuple[Stage, ...]:
        learning = ("encoder.*", "transcriber.*") if self.finetune_encoder else ("transcriber.*",)
        before = ("encoder.*", "quantizer.*", "context.*", "*_head.*")
        return (
            Stage("pre-training", 1 - self.ctc_finetune_fraction, before),
            Stage(
                "transcription",
                self.ctc_finetune_fraction,
                learning,
                batch="ctc_finetuning_batch",
                losses="ctc_finetuning_losses",
            ),
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

    def pool(self, example: Example) -> Pool:
        """What is used of an example: what it has, and where it has both, what the lot of its texts says."""
        if "text" not in example or "sound" not in example:
            return "speech" if "sound" in example else "text"
        lot = (
            zlib.crc32("\n".join(caption.text for caption in example["text"]).encode())
            / 2**32
            * sum(self.pool_fractions)
        )
        return (
            "speech"
            if lot < self.pool_fractions[0]
            else "text"
            if lot < self.pool_fractions[0] + self.pool_fractions[1]
            else "pairs"
        )

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SpeechTextBatch:
        """Sounds, texts, which of the sounds have transcripts, and what is hidden of each.

        Of what there is none, an empty one stands in, in which nothing is hidden: all processes take the same steps.
        """
        pools = [self.pool(example) for example in examples]
        speech, text, pairs = ([n for n, pool in enumerate(pools) if pool == kind] for kind in POOLS)
        heard = speech + pairs
        sound = processor.sound([examples[n]["sound"] for n in heard] or [self._silence()])
        drawn = [
            processor.text.sample_caption(e["text"], rng) if "text" in e else ""
            for e, rng in zip(examples, example_rng.generators, strict=True)
        ]
        texts, transcripts = (processor.text([drawn[n] for n in rows] or [""]) for rows in (text, pairs))
        spans = [(texts, self.text_mask_ratio, text), (transcripts, self.paired_text_mask_ratio, pairs)]
        hidden, hidden_transcript = (
            self._mask_text(t, share, ExampleRNG(example_rng.seeds[rows])) for t, share, rows in spans
        )
        lengths = num_output_frames(sound.lengths).tolist()
        stretches = mask_time_spans(
            lengths if heard else [], self.mask_time_prob, self.mask_time_length, ExampleRNG(example_rng.seeds[heard])
        )
        return {
            "sound": sound,
            "masked_sound": stretches if heard else torch.zeros(1, lengths[0], dtype=torch.bool),
            "text": texts,
            "masked_text": hidden,
            "paired": torch.tensor(len(pairs)),
            "pairs": torch.arange(len(speech), len(heard)) if pairs else torch.zeros(1, dtype=torch.long),
            "transcript": transcripts,
            "masked_transcript": hidden_transcript,
        }

    def _silence(self) -> Float[np.ndarray, "frames bins"]:
        return np.zeros((8, self.encoder.num_mel_bins), dtype=np.float32)

    def _mask_text(self, text: Tokens, share: float, example_rng: ExampleRNG) -> Bool[Tensor, "batch length"]:
        """Spans of characters; nothing of a text that stands in for none."""
        if not len(example_rng.seeds):
            return torch.zeros_like(text.ids, dtype=torch.bool)
        return F.pad(mask_spans((text.lengths - 2).tolist(), share, example_rng, self.mean_span_length), (1, 1))

    def ctc_finetuning_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> CTCBatch:
        """Sounds and transcripts of the pool of pairs, and how many they are; an empty one stands in for none."""
        pairs = [(e, rng) for e, rng in zip(examples, example_rng.generators, strict=True) if self.pool(e) == "pairs"]
        texts = [processor.text.sample_caption(example["text"], rng) for example, rng in pairs]
        sounds = [example["sound"] for example, _ in pairs]
        return {
            "sound": processor.sound(sounds or [self._silence()]),
            "transcript": processor.text(texts or [""]),
            "num_pairs": torch.tensor(len(pairs)),
        }

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            encoder=SpeechTextEncoderConfig(
                num_mel_bins=20, width=16, shared_depth=1, num_heads=2, vocab_size=60, context_length=32
            ),
            max_audio_seconds=2.0,
            pool_fractions=(0.25, 0.25, 0.5),
            embed_dim=16,
            num_codevectors_per_group=16,
            num_negatives=4,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """The model of 0.6 billion parameters (section 4); widths of the first convolutions are those of w2v-BERT."""
        return cls(
            encoder=SpeechTextEncoderConfig(
                width=1024, speech_depth=8, shared_depth=16, num_heads=8, context_length=512
            ),
            max_audio_seconds=16.0,
            embed_dim=1024,
            num_codevectors_per_group=1024,
            diversity_loss_weight=0.1,
            gumbel_temperature_decay=0.999995,
            mean_span_length=20.0,
            paired_text_mask_ratio=0.15,
            paired_weight=0.03,
            batch_size=10_496,
            optimizer=OptimizerConfig(
                weight_decay=0.01, learning_rate=6e-4, warmup_ratio=40_000 / 1_300_000, betas=(0.9, 0.98)
            ),
        )
