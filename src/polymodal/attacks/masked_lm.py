"""Which word could stand here? A small masked language model of the corpus's captions, which is nobody's text tower."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import MOST_ROWS
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities import Text
from polymodal.modalities.text import Tokens
from polymodal.objectives.masked_modeling import masked_cross_entropy

STOP_WORDS = ENGLISH_STOP_WORDS
MASK, UNKNOWN, FIRST = 0, 1, 2  # words are numbered from FIRST
RARE = 2  # a word that occurs less often is unknown
MASKED, KEPT, RANDOM = 0.15, 0.1, 0.1  # BERT, section 3.1
STEPS, BATCH, RATE = 400, 64, 3e-3
CONTEXT = 32


class WordModel:
    """Whole words, seen from both sides (BERT, Devlin et al. 2019), learned on training captions of one language."""

    def __init__(self, texts: Sequence[str], seed: int = 0, steps: int = STEPS):
        """texts: captions to learn from; 15 seconds on one core."""
        counts = Counter(word for text in texts for word in split(text))
        known = (word for word, count in counts.most_common() if count >= RARE)
        self.words = [word for word in known if any(map(str.isalnum, word))]
        self.numbers = {word: number for number, word in enumerate(self.words, FIRST)}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = TextEncoderConfig(context_length=CONTEXT, width=64, depth=2)
            self.encoder = config.build(FIRST + len(self.words))
            self.head = nn.Linear(config.width, FIRST + len(self.words))
            self._learn([text for text in texts if split(text)], steps)
        self.encoder.eval()

    @classmethod
    def of(cls, corpus: Corpus, language: str | None, seed: int = 0) -> WordModel:
        """language: of the captions; None takes all."""
        column = corpus.column_with(Text)
        modality = corpus.columns[column]
        assert isinstance(modality, Text)
        rows = corpus.raw_values(corpus.sample("train", MOST_ROWS), column)
        captions = [caption for row in rows for caption in modality.decode(row)]
        return _learned(tuple(caption.text for caption in captions if language in (None, caption.language)), seed)

    def candidates(self, places: Sequence[tuple[list[str], int]], count: int) -> list[list[str]]:
        """The `count` likeliest words at one place of each caption, of which it sees all; no stop word among them.

        places: captions as lists of words, and the place of the word that is to be replaced.
        """
        inside = [(words, place) for words, place in places if place < CONTEXT]
        if not inside:
            return [[] for _ in places]
        tokens = self._tokens([[self._number(word) for word in words] for words, _ in inside])
        with torch.no_grad():
            hidden, packing, _ = self.encoder(tokens)
            rows = packing.pad(hidden)[torch.arange(len(inside)), [place for _, place in inside]]
            likely = self.head(rows)[:, FIRST:].topk(min(count, len(self.words))).indices.tolist()
        found = iter(likely)
        offered = []
        for words, place in places:
            own = clean(words[place])
            numbers = next(found) if place < CONTEXT else []
            offered.append([w for n in numbers if (w := self.words[n]) != own and w not in STOP_WORDS])
        return offered

    def _number(self, word: str) -> int:
        return self.numbers.get(clean(word), UNKNOWN)

    def _tokens(self, rows: list[list[int]]) -> Tokens:
        return Tokens.of([row[:CONTEXT] for row in rows])

    def _learn(self, texts: list[str], steps: int) -> None:
        rows = [[self._number(word) for word in split(text)] for text in texts]
        optimizer = torch.optim.AdamW([*self.encoder.parameters(), *self.head.parameters()], RATE)
        for step in range(steps):
            some = torch.randint(len(rows), (BATCH,)).tolist()
            tokens = self._tokens([rows[number] for number in some])
            asked = tokens.mask & (torch.rand(tokens.ids.shape) < MASKED)
            lot = torch.rand(tokens.ids.shape)
            shown = tokens.ids.masked_fill(asked & (lot > KEPT + RANDOM), MASK)
            others = torch.randint(FIRST, FIRST + len(self.words), tokens.ids.shape)
            shown = torch.where(asked & (lot < RANDOM), others, shown)
            hidden, packing, _ = self.encoder(Tokens(shown, tokens.lengths))
            logits = self.head(packing.pad(hidden)[asked])
            loss = masked_cross_entropy(logits, tokens.ids[asked])
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@functools.lru_cache(maxsize=4)
def _learned(texts: tuple[str, ...], seed: int) -> WordModel:
    return WordModel(texts, seed)


def clean(word: str) -> str:
    """In lower case, without punctuation around it."""
    return word.lower().strip(".,;:!?\"'()“”‘’")


def split(text: str) -> list[str]:
    """The words of a text, as the model knows them; places are those of `text.split()`."""
    return [clean(word) for word in text.split()]
