"""What captions of a format say: atomic assertions, their accuracy, unique entities, lengths and truncation.

Richness is the average number of atomic assertions (ANA) of a caption: claims that cannot be divided further, such as
"there is a dog" and "the dog is brown". Diversity is the number of unique entities in a fixed number of captions, as it
grows with the number; it is also given per thousand tokens, as long captions name more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polymodal.data.columns.caption_formats import token_lengths
from polymodal.errors import UserError
from polymodal.evaluation.language_models import ChatModel
from polymodal.evaluation.object_parser import PLACES, STOP
from polymodal.modalities.text import Tokenizer

ARTICLES = {"a", "an", "one", "two", "three", "four", "some", "several", "many"}
DEFINITE = {"the", "this", "that", "its", "their", "his", "her"}
# A noun phrase ends before one of these.
ENDS = frozenset(
    [
        *("at", "in", "on", "of", "with", "near", "next", "beside", "behind", "under", "over", "above", "below"),
        *("between", "from", "to", "by", "is", "are", "was", "were", "has", "have", "and", "or", "but", "that"),
        *("which", "who", "while", "left", "right", "there", "it", "shows", "standing", "sitting", "lying"),
    ]
)
INTRODUCTION = re.compile(r"^(?:an?|the|this) (?:image|photo|photograph|picture|drawing|view) (?:of|shows|with) ")
CLAUSES = re.compile(r"[.,;:!?]+(?:\s|$)|\band\b|\bwhile\b|\bwith\b")

Splitter = Callable[[str], Sequence[str]]


def split_assertions(caption: str) -> list[str]:
    """Split a caption in English by rules: an assertion for each noun phrase, of its attributes, and predicate.

    "a red bus at the left" says three things: there is a bus, it is red, it is at the left. Clauses without an article,
    such as keywords, are one assertion each.
    """
    return [assertion for clause in _clauses(caption) for assertion in _of_clause(clause)]


def _clauses(caption: str) -> list[list[str]]:
    text = INTRODUCTION.sub("", caption.lower().strip())
    return [words for clause in CLAUSES.split(text) if (words := re.findall(r"[^\W_][\w'-]*", clause))]


def _of_clause(words: list[str]) -> list[str]:
    start = next((place for place, word in enumerate(words) if word in ARTICLES | DEFINITE), None)
    if start is None:
        return [" ".join(words)]
    end = _end_of_phrase(words, start + 1)
    phrase, rest = words[start + 1 : end], words[end:]
    predicate = [" ".join([*phrase[-1:], *rest])] if rest else []
    if words[start] in DEFINITE or not phrase:
        return predicate or [" ".join(words)]
    *attributes, noun = phrase
    return [f"there is {words[start]} {noun}", *(f"{noun} is {one}" for one in attributes), *predicate]


def _end_of_phrase(words: list[str], start: int) -> int:
    return next((place for place in range(start, len(words)) if words[place] in ENDS), len(words))


def entities(caption: str) -> list[str]:
    """Return the nouns of noun phrases with an article, and the words of clauses without one, such as keywords.

    Words with digits, such as file names, are none.
    """
    nouns: list[str] = []
    for words in _clauses(caption):
        starts = [place for place, word in enumerate(words) if word in ARTICLES | DEFINITE]
        phrases = [words[start + 1 : _end_of_phrase(words, start + 1)] for start in starts]
        some = [phrase[-1] for phrase in phrases if phrase] if starts else words
        nouns += [word for word in some if word not in STOP | PLACES | ENDS and not any(map(str.isdigit, word))]
    return nouns


INSTRUCTION = """Split the description of an image into atomic assertions: short sentences that each say one thing that
can be true or false of the image, without repeating any. Write one per line, as "- assertion", and nothing else."""
EXAMPLE = ("A large red bus at the left.", "- There is a bus.\n- The bus is large.\n- The bus is red.\n- It is left.")


class ChatModelSplitter:
    """A chat model with an example in its prompt, decoded greedily: what the paper splits captions with."""

    def __init__(self, name: str, max_new_tokens: int = 512):
        """name: of a causal language model with a chat template. Raises UserError when it cannot be read."""
        self.chat = ChatModel(name, "splitting captions into assertions", max_new_tokens)

    def __call__(self, caption: str) -> list[str]:
        turns = (("system", INSTRUCTION), ("user", EXAMPLE[0]), ("assistant", EXAMPLE[1]), ("user", caption))
        return listed(self.chat.answer([{"role": role, "content": content} for role, content in turns]))


def listed(answer: str) -> list[str]:
    """Return the lines of a list, without equal ones."""
    lines = (line.strip() for line in answer.splitlines())
    return list(dict.fromkeys(line.lstrip("-* ").strip() for line in lines if line.startswith(("-", "*"))))


def average_assertions(captions: Sequence[str], split: Splitter = split_assertions) -> float:
    """Return the average number of atomic assertions (ANA) of a caption."""
    return float(np.mean([len(split(caption)) for caption in captions])) if captions else 0.0


def assertion_accuracy(
    captions: Sequence[str], judge: Callable[[int, str], bool], split: Splitter = split_assertions
) -> float:
    """Return the fraction of all assertions that are true. judge: of the number of a caption and an assertion."""
    judged = [judge(number, one) for number, caption in enumerate(captions) for one in split(caption)]
    return float(np.mean(judged)) if judged else 1.0


@dataclass(frozen=True)
class FormatReport:
    """What the captions of a format are like. truncated: fraction beyond the context length; NaN without a tokenizer.

    tokens: mean number, special ones included; words without a tokenizer. entities: unique ones in `counted` captions.
    """

    captions: int
    tokens: float
    truncated: float
    assertions: float
    counted: int
    entities: int
    entities_per_1k_tokens: float


def format_reports(
    texts: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer | None = None,
    split: Splitter = split_assertions,
    entities_of: Callable[[str], Iterable[str]] = entities,
    seed: int = 0,
) -> dict[str, FormatReport]:
    """Report on the captions of each format; entities are counted in as many captions of each, sampled at random.

    Raises UserError for a format without captions.
    """
    if empty := [name for name, some in texts.items() if not some]:
        raise UserError(f"There are no captions of the format {empty[0]}.")
    count, reports = min(map(len, texts.values()), default=0), {}
    for name, some in texts.items():
        lengths = token_lengths(some, tokenizer) if tokenizer else np.array([len(one.split()) for one in some])
        rows = np.sort(np.random.default_rng(seed).permutation(len(some))[:count])
        unique = {entity for row in rows.tolist() for entity in entities_of(some[row])}
        reports[name] = FormatReport(
            captions=len(some),
            tokens=float(lengths.mean()),
            truncated=float(np.mean(lengths > tokenizer.context_length)) if tokenizer else float("nan"),
            assertions=average_assertions(some, split),
            counted=count,
            entities=len(unique),
            entities_per_1k_tokens=1000 * len(unique) / max(int(lengths[rows].sum()), 1),
        )
    return reports
