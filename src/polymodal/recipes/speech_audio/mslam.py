"""mSLAM: one encoder learns from speech without text, from text without speech, and from a little of both together.

Hidden speech is told from other hidden speech and named by codes of its own (w2v-BERT), hidden spans of characters are
named (SpanBERT), and pairs are read in one sequence in which each side helps to guess the other (TLM). A CTC loss on
the speech of pairs makes its positions hold the very characters that text is made of: without it, the two share an
encoder but not a space. Text enters above the blocks that speech has for itself (section 3).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.masking import hidden_spans, hidden_stretches
from polymodal.data.speech_text import SpeechTextProcessor
from polymodal.draws import Draws
from polymodal.encoders.speech_text import Heard, SpeechTextEncoderConfig, moments
from polymodal.errors import UserError
from polymodal.layers.quantise import Chosen, GumbelQuantiser
from polymodal.layers.word_head import WordHead
from polymodal.modalities import Audio, Text
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import TextTokenizer, Tokenizer, Tokens
from polymodal.objectives.ctc import ctc_loss, spoken
from polymodal.objectives.masked import mean_cross_entropy
from polymodal.objectives.masked_contrast import masked_contrast
from polymodal.ranges import Count, NotNegative, Positive, Share
from polymodal.training.optimiser import Optimisation
from polymodal.types import Batch, Budget, Claim, Example, Paper, Stage

paper = Paper(
    slug="mslam",
    title="mSLAM: Massively multilingual joint pre-training for speech and text",
    year=2022,
    arxiv="2202.01374",
    modalities=("audio", "text"),
)

Pool = Literal["speech", "text", "pairs"]
POOLS: tuple[Pool, ...] = ("speech", "text", "pairs")


class MSLAM(nn.Module):
    """The encoder, the quantiser that makes speech its own vocabulary, and a head for each thing to be named."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        width = recipe.encoder.width
        self.recipe = recipe
        self.encoder = recipe.encoder.build(vocabulary)
        self.quantiser = GumbelQuantiser(width, recipe.books, recipe.codes, recipe.dim, cooling=recipe.cooling)
        self.context = nn.Linear(width, recipe.dim)
        self.code_head = nn.Linear(width, recipe.books * recipe.codes)
        self.character_head = WordHead(width, vocabulary)
        self.ctc_head = nn.Linear(width, vocabulary)
        self.transcriber = nn.Linear(width, vocabulary)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of transcription for a batch that asks for it, else of hidden speech, hidden text, and pairs."""
        if "asked" in batch:
            heard = self.encoder.listen(batch["sound"])
            loss = ctc_loss(self.transcriber(heard.shared), heard.lengths, batch["transcript"])
            return {"transcription": loss * (batch["asked"] > 0)}
        hidden, weight = batch["hidden_sound"], self.recipe.pair_weight * (batch["paired"] > 0)
        heard = self.encoder.listen(batch["sound"], hidden)
        chosen, context = self.quantiser(heard.features[hidden]), self.context(heard.own[hidden])
        contrast = masked_contrast(context, chosen.vectors, hidden.sum(1), self.recipe.distractors)
        losses = {
            "contrast": contrast + self.recipe.diversity * chosen.diversity,
            "codes": self._naming(heard.shared[hidden], chosen.codes),
        }
        if self.recipe.unpaired_text:
            read = self.encoder.read(batch["text"], batch["hidden"]).values[batch["hidden"]]
            losses["text"] = self.recipe.text_weight * self._spelling(read, batch["text"].ids[batch["hidden"]])
        if self.recipe.pairs in ("together", "both"):
            losses["together"] = weight * self._together(heard, chosen, batch)
        if self.recipe.pairs in ("ctc", "both"):
            logits, lengths = self.ctc_head(heard.shared[batch["pairs"]]), heard.lengths[batch["pairs"]]
            losses["ctc"] = weight * ctc_loss(logits, lengths, batch["transcript"])
        return losses

    def _together(self, heard: Heard, chosen: Chosen, batch: Batch) -> Float[Tensor, ""]:
        """Hidden speech and hidden characters of pairs, each named with both in sight (translation language model)."""
        pairs, hidden = batch["pairs"], batch["hidden_sound"]
        speech = Padded(heard.own[pairs], heard.lengths[pairs])
        spelled = self.encoder.spelled(batch["transcript"], batch["hidden_transcript"])
        said, read = self.encoder.together(speech, spelled)
        of_pair = torch.zeros_like(hidden[:, 0]).index_fill(0, pairs, True)
        codes = chosen.codes[of_pair[hidden.nonzero()[:, 0]]]
        own = hidden[pairs][speech.mask]
        characters = batch["hidden_transcript"][batch["transcript"].mask]
        wanted = batch["transcript"].ids[batch["hidden_transcript"]]
        return self._naming(said[own], codes) + self._spelling(read[characters], wanted)

    def _naming(self, tokens: Float[Tensor, "n width"], codes: Int[Tensor, "n books"]) -> Float[Tensor, ""]:
        """Of the code of each book; codes do not learn to be foretold."""
        logits = self.code_head(tokens).unflatten(1, (self.recipe.books, self.recipe.codes))
        return mean_cross_entropy(logits.flatten(0, 1), codes.flatten())

    def _spelling(self, tokens: Float[Tensor, "n width"], characters: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        return mean_cross_entropy(self.character_head(tokens, self.encoder.character.weight), characters)

    def _tops(self, batch: Batch) -> dict[str, Padded]:
        """What comes out of the shared blocks for each modality that the batch has."""
        tops = {}
        if "sound" in batch:
            heard = self.encoder.listen(batch["sound"])
            tops["sound"] = Padded(heard.shared, heard.lengths)
        if "text" in batch:
            tops["text"] = self.encoder.read(batch["text"])
        return tops

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalised means of the last tokens of speech and of text."""
        return {name: F.normalize(top.mean(), dim=1) for name, top in self._tops(batch).items()}

    def transcribe(self, batch: Batch) -> list[list[int]]:
        """The characters of each sound; or of each text, which the head for speech has never seen."""
        (top,) = self._tops(batch).values()
        logits = self.transcriber(top.values)
        return [spoken(own[:length]) for own, length in zip(logits, top.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class Recipe(Optimisation):
    batch_size: Count = 64
    learning_rate: NotNegative = 3e-3
    weight_decay: NotNegative = 0.01
    encoder: SpeechTextEncoderConfig = SpeechTextEncoderConfig()
    longest: Positive = 4.0
    """Seconds of a sound; what comes after is left out."""
    dim: Count = 64
    """Dimensions in which hidden speech is contrasted with codes."""
    books: Count = 1
    """Books of codes."""
    codes: Count = 64
    """Codes of a book."""
    cooling: Share = 0.999
    """Factor of the quantiser's temperature at every step, from 2.0 down to 0.5."""
    distractors: Count = 100
    """Other hidden moments of the same speech that each is told from."""
    diversity: NotNegative = 1.0
    """Weight of choosing all codes alike often; with the paper's 0.1, pairs make nearly all speech one code here."""
    speech_start: Share = 0.065
    """Probability that a moment begins a hidden stretch of speech."""
    speech_stretch: Count = 10
    """Moments of 40 ms in a hidden stretch."""
    hidden_text: Share = 0.15
    """Share of a text's characters that are hidden."""
    text_span: Positive = 5.0
    """Mean length of a hidden span in characters."""
    hidden_transcript: Share = 0.5
    """Share of a pair's characters that are hidden when both are read together."""
    unpaired_text: bool = True
    """Whether text by itself is learned from."""
    pairs: Literal["both", "together", "ctc", "none"] = "both"
    """What pairs are used for: reading both together, characters along speech (CTC), both losses, or nothing."""
    text_weight: NotNegative = 0.3
    """Of hidden characters, beside speech."""
    pair_weight: NotNegative = 1.0
    """Of both losses of pairs, beside speech; the paper has 0.03 for millions of steps."""
    pools: tuple[NotNegative, NotNegative, NotNegative] = (0.3, 0.3, 0.4)
    """Of examples that have both: the shares of which only the sound, only the text, and both are used."""
    transcription: Share = 0.15
    """Share of the budget at the end that learns to transcribe the pairs; 0 pre-trains only."""
    transcribe_with: Literal["head", "all"] = "head"
    """What learns it: a linear head on the frozen encoder, which tells what is in it, or all weights."""

    padded = Audio

    def __post_init__(self) -> None:
        if len(self.pools) != 3 or sum(self.pools) <= 0:
            raise UserError("--pools are three shares: of speech alone, of text alone, and of pairs.")

    def stages(self) -> tuple[Stage, ...]:
        learning = ("transcriber.*",) if self.transcribe_with == "head" else ("encoder.*", "transcriber.*")
        before = ("encoder.*", "quantiser.*", "context.*", "*_head.*")
        stages = (
            Stage("pre-training", 1 - self.transcription, before),
            Stage("transcription", self.transcription, learning, training_batch=self.transcribed_batch),
        )
        return tuple(stage for stage in stages if stage.share > 0)

    def processor(self, corpus: Corpus) -> SpeechTextProcessor:
        for kind in (Audio, Text):
            corpus.column_of(kind)
        return SpeechTextProcessor.fit(corpus, self.encoder.bins, self.longest, self._learn_characters)

    def _learn_characters(self, texts: Iterable[str]) -> Tokenizer:
        return TextTokenizer.characters(texts, self.encoder.vocabulary, self.encoder.context)

    def load_processor(self, directory: Path) -> SpeechTextProcessor:
        return SpeechTextProcessor.load(directory, TextTokenizer.load(directory, self.encoder.context))

    def build(self, processor: SpeechTextProcessor) -> MSLAM:
        return MSLAM(self, processor.tokenizer.vocabulary)

    def pool(self, example: Example) -> Pool:
        """What is used of an example: what it has, and where it has both, what the lot of its texts says."""
        if "text" not in example or "sound" not in example:
            return "speech" if "sound" in example else "text"
        lot = zlib.crc32("\n".join(caption.text for caption in example["text"]).encode()) / 2**32 * sum(self.pools)
        return "speech" if lot < self.pools[0] else "text" if lot < self.pools[0] + self.pools[1] else "pairs"

    def training_batch(self, examples: list[Example], processor: SpeechTextProcessor, draws: Draws) -> Batch:
        """Sounds, texts, which of the sounds have transcripts, and what is hidden of each.

        Of what there is none, an empty one stands in, in which nothing is hidden: all processes take the same steps.
        """
        pools = [self.pool(example) for example in examples]
        speech, text, pairs = ([n for n, pool in enumerate(pools) if pool == kind] for kind in POOLS)
        heard = speech + pairs
        sound = processor.sound([examples[n]["sound"] for n in heard] or [self._silence()])
        drawn = [
            processor.text.draw(e["text"], rng) if "text" in e else ""
            for e, rng in zip(examples, draws.generators, strict=True)
        ]
        texts, transcripts = (processor.text([drawn[n] for n in rows] or [""]) for rows in (text, pairs))
        spans = [(texts, self.hidden_text, text), (transcripts, self.hidden_transcript, pairs)]
        hidden, hidden_transcript = (self._hidden(t, share, Draws(draws.seeds[rows])) for t, share, rows in spans)
        lengths = moments(sound.lengths).tolist()
        stretches = hidden_stretches(
            lengths if heard else [], self.speech_start, self.speech_stretch, Draws(draws.seeds[heard])
        )
        return {
            "sound": sound,
            "hidden_sound": stretches if heard else torch.zeros(1, lengths[0], dtype=torch.bool),
            "text": texts,
            "hidden": hidden,
            "paired": torch.tensor(len(pairs)),
            "pairs": torch.arange(len(speech), len(heard)) if pairs else torch.zeros(1, dtype=torch.long),
            "transcript": transcripts,
            "hidden_transcript": hidden_transcript,
        }

    def _silence(self) -> Float[np.ndarray, "frames bins"]:
        return np.zeros((8, self.encoder.bins), dtype=np.float32)

    def _hidden(self, text: Tokens, share: float, draws: Draws) -> Bool[Tensor, "batch length"]:
        """Spans of characters; nothing of a text that stands in for none."""
        if not len(draws.seeds):
            return torch.zeros_like(text.ids, dtype=torch.bool)
        return F.pad(hidden_spans((text.lengths - 2).tolist(), share, draws, self.text_span), (1, 1))

    def transcribed_batch(self, examples: list[Example], processor: SpeechTextProcessor, draws: Draws) -> Batch:
        """Sounds and transcripts of the pool of pairs, and how many they are; an empty one stands in for none."""
        pairs = [(e, rng) for e, rng in zip(examples, draws.generators, strict=True) if self.pool(e) == "pairs"]
        texts = [processor.text.draw(example["text"], rng) for example, rng in pairs]
        sounds = [example["sound"] for example, _ in pairs]
        return {
            "sound": processor.sound(sounds or [self._silence()]),
            "transcript": processor.text(texts or [""]),
            "asked": torch.tensor(len(pairs)),
        }

    @classmethod
    def paper(cls) -> Recipe:
        """The model of 0.6 billion parameters (section 4); widths of the first convolutions are those of w2v-BERT."""
        return cls(
            encoder=SpeechTextEncoderConfig(width=1024, speech_depth=8, shared_depth=16, heads=8, context=512),
            longest=16.0,
            dim=1024,
            codes=1024,
            diversity=0.1,
            cooling=0.999995,
            text_span=20.0,
            hidden_transcript=0.15,
            pair_weight=0.03,
            batch_size=10_496,
            learning_rate=6e-4,
            warmup=40_000 / 1_300_000,
            betas=(0.9, 0.98),
        )


_whole = Recipe()
claim = Claim(
    sentence="Text and pairs with CTC make an encoder of speech better than speech alone, and let a head that learned "
    "from speech read text.",
    baseline=dataclasses.replace(_whole, unpaired_text=False, pairs="none"),
    treatment=_whole,
    further={
        "with text": dataclasses.replace(_whole, pairs="none"),
        "with pairs read together": dataclasses.replace(_whole, pairs="together"),
    },
    corpus="speech",
    languages=("es", "pt", "sw", "tr"),  # written much as they are spoken
    budget=Budget(steps=1500),
    seeds=3,
    metrics=(
        "test/linear_probe_language/accuracy",
        "test/transcripts/character_error_rate",
        "test/texts_as_speech/gain_by_order",
        "test/texts_as_speech/character_error_rate",
        "test/transcripts/word_error_rate",
        "test/text_to_sound/R@10",
        "test_recorded/linear_probe_language/accuracy",
        "test_recorded/transcripts/character_error_rate",
    ),
    paper_figures="MINDS-14 intents 82.7 % with speech alone, 85.0 with CTC and no text, 86.9 with both; FLEURS "
    "language identification 71.4 and 73.3",
)
