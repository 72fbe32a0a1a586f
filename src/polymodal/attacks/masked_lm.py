"""Small masked language model (MLM) of the corpus's captions, which proposes word substitutions (BERT-Attack)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from polymodal.attacks.stop_words import STOP_WORDS
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities import Text
from polymodal.modalities.text import Tokens
from polymodal.objectives.masked_modeling import masked_cross_entropy

MASK, UNKNOWN, FIRST = 0, 1, 2  # ids of words begin at FIRST
RARE = 2  # minimum count of a known word
MASKED, KEPT, RANDOM = 0.15, 0.1, 0.1  # BERT, section 3.1
STEPS, BATCH, RATE = 400, 64, 3e-3
CONTEXT = 32


@runtime_checkable
class MaskedLM(Protocol):
    """A masked language model that proposes words."""

    def candidates(
        self, places: Sequence[tuple[list[str], int]], count: int, min_logit: float = 0.3
    ) -> list[list[str]]:
        """Return candidates for one word of each caption, see `WordModel.candidates`."""
        ...


class WordModel:
    """Word-level bidirectional MLM (BERT, Devlin et al. 2019), trained on training captions of one language."""

    def __init__(self, texts: Sequence[str], seed: int = 0, steps: int = STEPS):
        """Train the model, 15 seconds on one core. texts: training captions."""
        counts = Counter(word for text in texts for word in split(text))
        frequent = (word for word, count in counts.most_common() if count >= RARE)
        self.words = [word for word in frequent if any(map(str.isalnum, word))]
        self.numbers = {word: index for index, word in enumerate(self.words, FIRST)}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = TextEncoderConfig(context_length=CONTEXT, width=64, depth=2)
            self.encoder = config.build(FIRST + len(self.words))
            self.head = nn.Linear(config.width, FIRST + len(self.words))
            self._learn([text for text in texts if split(text)], steps)
        self.encoder.eval()

    @classmethod
    def of(cls, corpus: Corpus, language: str | None, seed: int = 0) -> WordModel:
        """Train on the captions of a corpus. language: of the captions; None takes all."""
        column = corpus.column_with(Text)
        modality = corpus.columns[column]
        assert isinstance(modality, Text)
        rows = corpus.raw_values(corpus.sample("train", MAX_ROWS), column)
        captions = [caption for row in rows for caption in modality.decode(row)]
        return _learned(tuple(caption.text for caption in captions if language in (None, caption.language)), seed)

    def candidates(
        self, places: Sequence[tuple[list[str], int]], count: int, min_logit: float = 0.3
    ) -> list[list[str]]:
        """Return the top `count` words at one position of each caption, which is not masked; stop words are excluded.

        places: captions as lists of words, and the index of the word to replace. min_logit: words with a lower logit
        are excluded (BERT-Attack, released code).
        """
        inside = [(words, index) for words, index in places if index < CONTEXT]
        if not inside:
            return [[] for _ in places]
        tokens = self._tokens([[self._number(word) for word in words] for words, _ in inside])
        with torch.no_grad():
            states, packing, _ = self.encoder(tokens)
            rows = packing.pad(states)[torch.arange(len(inside)), [index for _, index in inside]]
            logits, indices = self.head(rows)[:, FIRST:].topk(min(count, len(self.words)))
        pairs = zip(logits.tolist(), indices.tolist(), strict=True)
        remaining = iter([[n for logit, n in zip(*pair, strict=True) if logit >= min_logit] for pair in pairs])
        offered = []
        for words, index in places:
            original = clean(words[index])
            numbers = next(remaining) if index < CONTEXT else []
            offered.append([w for n in numbers if (w := self.words[n]) != original and w not in STOP_WORDS])
        return offered

    def _number(self, word: str) -> int:
        return self.numbers.get(clean(word), UNKNOWN)

    def _tokens(self, rows: list[list[int]]) -> Tokens:
        return Tokens.of([row[:CONTEXT] for row in rows])

    def _learn(self, texts: list[str], steps: int) -> None:
        rows = [[self._number(word) for word in split(text)] for text in texts]
        optimizer = torch.optim.AdamW([*self.encoder.parameters(), *self.head.parameters()], RATE)
        for step in range(steps):
            sampled = torch.randint(len(rows), (BATCH,)).tolist()
            tokens = self._tokens([rows[index] for index in sampled])
            selected = tokens.mask & (torch.rand(tokens.ids.shape) < MASKED)
            uniform = torch.rand(tokens.ids.shape)
            # BERT, section 3.1: of the selected words, 80 % become [MASK], 10 % random, 10 % stay.
            inputs = tokens.ids.masked_fill(selected & (uniform > KEPT + RANDOM), MASK)
            random_ids = torch.randint(FIRST, FIRST + len(self.words), tokens.ids.shape)
            inputs = torch.where(selected & (uniform < RANDOM), random_ids, inputs)
            states, packing, _ = self.encoder(Tokens(inputs, tokens.lengths))
            logits = self.head(packing.pad(states)[selected])
            loss = masked_cross_entropy(logits, tokens.ids[selected])
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@functools.lru_cache(maxsize=4)
def _learned(texts: tuple[str, ...], seed: int) -> WordModel:
    return WordModel(texts, seed)


def clean(word: str) -> str:
    """Lower-case a word and strip punctuation."""
    return word.lower().strip(".,;:!?\"'()“”‘’")


def split(text: str) -> list[str]:
    """Split a text into words as the model does; indices are those of `text.split()`."""
    return [clean(word) for word in text.split()]
