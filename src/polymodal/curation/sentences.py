"""Sentences of documents: extraction, and the filters of a single sentence or of all of them (RealSyn, section 3.1)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polymodal.curation.quality import words_of

# Closing quotation marks and brackets belong to the sentence before them.
WESTERN_END = re.compile(r"""[.!?…]+["'”’»)\]]*\s+(?=[^a-z\s])|[؟।]["'”’»)\]]*\s*""")
CJK_END = re.compile(r"[。！？]+[”』」）]*")
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff]")  # written without spaces
_ABBREVIATED = """mr mrs ms dr prof st vs cf e.g i.e fig figs no nos vol inc ltd co jr sr approx dept est u.s u.k a.m
p.m"""
_BEFORE_NOUNS = """about above across after against along among around at before behind below beneath beside between by
down during for from in inside into near of off on onto out outside over past through to toward towards under up upon
with within without"""
_BESIDE_VERBS = "am is are was were be been being has have had does did do can could will would may"
_OTHERS = """a an the this that these those and or but nor so yet if as than then not no it its he she they we you i his
her their our your my me him them us who whom whose which what when where why how there here"""
ABBREVIATIONS, PREPOSITIONS = frozenset(_ABBREVIATED.split()), frozenset(_BEFORE_NOUNS.split())
AUXILIARIES = frozenset(_BESIDE_VERBS.split())
FUNCTION_WORDS = PREPOSITIONS | AUXILIARIES | frozenset(_OTHERS.split())
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\ufe0f\u200d]")
URL = re.compile(r"(?i)\bhttps?://|\bwww\.|\b[\w-]+\.(?:com|org|net|edu|gov|io|info|html?)\b")


def split_sentences(text: str) -> list[str]:
    """Split a text at line breaks and at the end marks of sentences, also of Chinese, Japanese, Arabic and Hindi.

    A full stop ends no sentence after an abbreviation, after an initial, or before a lower-case letter.
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        ends = sorted(
            match.end()
            for pattern in (WESTERN_END, CJK_END)
            for match in pattern.finditer(line)
            if not _abbreviates(line[: match.start() + 1])
        )
        for end in [*ends, len(line)]:
            sentence = " ".join(line[start:end].split())
            if sentence:
                sentences.append(sentence)
            start = end
    return sentences


def _abbreviates(before: str) -> bool:
    """Return whether a text ends with an abbreviation or an initial and its full stop."""
    if not before.endswith("."):
        return False
    last = before[:-1].split()[-1:] or [""]
    word = last[0].lstrip("(\"'“‘[")
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper())


def count_words(sentence: str) -> int:
    """Return the number of words; each Chinese or Japanese character is one."""
    return len(CJK.findall(sentence)) + len(CJK.sub(" ", sentence).split())


def normalize_sentence(sentence: str) -> str:
    """Return lower-case words and numbers alone, by which perceptual duplicates are found."""
    return " ".join(re.findall(r"\w+", sentence.lower()))


def content_words(text: str) -> list[str]:
    """Return words that are no English function words."""
    return [word for word in words_of(text) if word not in FUNCTION_WORDS]


def has_action(sentence: str) -> bool:
    """Return whether an English sentence has a verb form: a participle, a past form or an auxiliary."""
    words = words_of(sentence)
    return any(word in AUXILIARIES or (len(word) > 4 and word.endswith(("ing", "ed"))) for word in words)


def caption_complexity(sentence: str) -> int:
    """Return the largest number of relations of one word of an English sentence (CAT, Radenovic et al. 2023, 3.1).

    The published filter counts the edges of an object in a semantic parse. Without a parser, content words are related
    when they are next to each other or joined by function words among which is a preposition or an auxiliary.
    """
    relations: Counter[int] = Counter()
    previous, between = None, list[str]()
    for place, word in enumerate(words_of(sentence)):
        if word in FUNCTION_WORDS:
            between.append(word)
            continue
        if previous is not None and (not between or any(one in PREPOSITIONS | AUXILIARIES for one in between)):
            relations.update((previous, place))
        previous, between = place, []
    return max(relations.values(), default=0)


@dataclass(frozen=True)
class SentenceRules:
    """Rules of a single sentence.

    min_words, max_words: numbers of words that are kept. min_complexity: of `caption_complexity`; 0 disables it.
    require_action: whether a sentence needs a verb form.
    """

    min_words: int = 3
    max_words: int = 81
    min_complexity: int = 0
    require_action: bool = False

    def why_not(self, sentence: str) -> str | None:
        """Return the first rule that rejects a sentence; None if it passes all."""
        if EMOJI.search(sentence):
            return "emoji"
        if URL.search(sentence):
            return "url"
        number = count_words(sentence)
        if number < self.min_words:
            return "min_words"
        if number > self.max_words:
            return "max_words"
        if self.min_complexity and caption_complexity(sentence) < self.min_complexity:
            return "min_complexity"
        if self.require_action and not has_action(sentence):
            return "require_action"
        return None


@dataclass(frozen=True)
class UnigramModel:
    """Unigram probabilities of a set of sentences."""

    probabilities: dict[str, float]

    @classmethod
    def fit(cls, sentences: Iterable[str]) -> UnigramModel:
        counts = Counter(word for sentence in sentences for word in words_of(sentence))
        total = max(counts.total(), 1)
        return cls({word: count / total for word, count in counts.items()})

    def entropy(self, sentence: str) -> float:
        """Return -sum_i p(x_i) log p(x_i) over the words of a sentence, p of the whole set, natural logarithm.

        It is no entropy of the sentence's own histogram: every further word adds to it. Unseen words add nothing.
        """
        values = (self.probabilities.get(word, 0.0) for word in words_of(sentence))
        return sum(-p * math.log(p) for p in values if p > 0)


def first_of_each(sentences: Sequence[str], excluded: Iterable[str] = ()) -> list[int]:
    """Return the indices of the first of equal sentences, after normalization, without those that are excluded."""
    before, kept = {normalize_sentence(one) for one in excluded}, []
    for index, sentence in enumerate(sentences):
        normalized = normalize_sentence(sentence)
        if normalized not in before:
            before.add(normalized)
            kept.append(index)
    return kept
