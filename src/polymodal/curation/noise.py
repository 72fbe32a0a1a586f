"""Benchmark of curation recipes: synthetic noise is inserted among the paragraphs of real pages.

Good paragraphs have at least three words, whose letters are of the page's script; no quality filter tests exactly that.
The noise has seven kinds that are common on web pages, made from the pages themselves.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.curation.quality import printable, words_of
from polymodal.curation.steps import Curation
from polymodal.curation.web import PageBlock, blocks_of
from polymodal.evaluation.statistics import Score

SCRIPTS = {"ar": "ARABIC", "fa": "ARABIC", "ru": "CYRILLIC", "el": "GREEK"}  # other languages: Latin
EDITIONS = {"ar": "/ar-MA/", "fa": "/fa-IR/", "en": "/en-US/"}  # part of the page keys of a language
OTHERS = ("fr", "de", "en", "es")  # languages of paragraphs that do not belong on a page
NOISE_FRACTION = 0.3  # number of noise paragraphs of each kind, relative to a page's good paragraphs


class Noisy(NamedTuple):
    """Page with inserted noise. kinds: of each block: good, a kind of noise, or empty for neither."""

    key: str
    blocks: list[PageBlock]
    kinds: list[str]


def pages_in_language(corpus: Corpus, language: str, splits: Sequence[str]) -> list[tuple[str, list[PageBlock]]]:
    """Return the pages of `manuals` in a language, with their keys; untranslated parts are in English."""
    mark = EDITIONS.get(language, f"/{language}-")
    rows = [int(row) for split in splits for row in corpus.rows(split) if mark in corpus.key(int(row))]
    return [(corpus.key(row), blocks_of(corpus.raw(row, "html"))) for row in rows]


def is_good(block: PageBlock, language: str) -> bool:
    """Return whether a block is a paragraph in the language's script."""
    letters = [character for character in block.text if character.isalpha()]
    if block.image or block.kind == "code" or len(words_of(block.text)) < 3:
        return False
    script = SCRIPTS.get(language, "LATIN")
    return sum(unicodedata.name(letter, "").startswith(script) for letter in letters) >= 0.8 * len(letters) > 0


def good_paragraphs(pages: Sequence[tuple[str, list[PageBlock]]], language: str) -> list[str]:
    return [block.text for _, blocks in pages for block in blocks if is_good(block, language)]


def with_noise(
    key: str, blocks: list[PageBlock], language: str, foreign: Sequence[str], rng: np.random.Generator
) -> Noisy:
    """Insert noise of every kind at random positions of a page. foreign: paragraphs of other languages."""
    placed = [(block, "good" if is_good(block, language) else "") for block in blocks]
    good = [block.text for block, kind in placed if kind]
    count = max(1, round(NOISE_FRACTION * len(good)))
    short = [block.text for block in blocks if not block.image and len(block.text.split()) < 3] or ["1", "2"]
    generators: dict[str, Callable[[], str]] = {
        "navigation": lambda: " | ".join(rng.choice(short, min(len(short), 8))),
        "spam": lambda: f"{' '.join(_one(good, rng).split()[:3])} ! " * int(rng.integers(6, 15)),
        "symbols": lambda: "".join(rng.choice(list("-=*#/|0123456789: "), int(rng.integers(20, 60)))),
        "mojibake": lambda: _one(good, rng).encode().decode("latin-1"),
        "wrong_language": lambda: _one(foreign, rng),
        "shuffled": lambda: " ".join("".join(rng.permutation(list(word))) for word in _one(good, rng).split()),
    }
    noise = [(make(), kind) for kind, make in generators.items() for _ in range(count)] if good else []
    for text, kind in noise:
        index = int(rng.integers(len(placed) + 1))
        placed.insert(index, (PageBlock("paragraph", text, text), kind))
    for text in rng.choice(good, min(count, len(good)), replace=False) if good else ():
        again = _nearly(text, rng)
        # Behind its original, which is the one to keep.
        placed.append((PageBlock("paragraph", again, again), "repeated"))
    return Noisy(key, [block for block, _ in placed], [kind for _, kind in placed])


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _nearly(text: str, rng: np.random.Generator) -> str:
    """Delete one word in fifteen, at least one (near-duplicate)."""
    words = text.split()
    dropped = set(rng.choice(len(words), max(1, len(words) // 15), replace=False).tolist())
    return " ".join(word for index, word in enumerate(words) if index not in dropped)


def curation_scores(recipe: Curation, corpus: Corpus, language: str, most: int, seed: int) -> list[Score]:
    """Return the recall of good paragraphs, also after each step and on pages without noise, and of each kind of noise
    the fraction dropped, per page.

    The recipe is fitted to good paragraphs of training pages. most: maximum number of other pages that are evaluated.
    """
    rng = np.random.default_rng(seed)
    fitted = recipe.fit(good_paragraphs(pages_in_language(corpus, language, ["train"]), language))
    foreign = [
        text
        for other in OTHERS
        if other != language
        for text in good_paragraphs(pages_in_language(corpus, other, ["test"])[:12], other)
    ]
    steps = recipe.steps(fitted)
    shares: dict[str, list[tuple[float, int]]] = defaultdict(list)
    after: dict[str, list[tuple[float, int]]] = {name: [] for name in steps}
    for key, blocks in pages_in_language(corpus, language, ["validation", "test"])[:most]:
        clean, left = [is_good(block, language) for block in blocks], blocks
        for step in steps.values():
            left = step(left).kept
        shares["clean"].append((_share(kept_of(blocks, left), clean), sum(clean)))
        page = with_noise(key, blocks, language, foreign, rng)
        good = [kind == "good" for kind in page.kinds]
        left = page.blocks
        for name, step in steps.items():
            left = step(left).kept
            after[name].append((_share(kept_of(page.blocks, left), good), sum(good)))
        survived = kept_of(page.blocks, left)
        for kind in dict.fromkeys(page.kinds):
            of_kind = [other == kind for other in page.kinds]
            shares[kind].append((_share(survived, of_kind), sum(of_kind)))
    scores = [_score("good/kept", shares["good"], dropped=False)]
    scores.append(_score("good/kept_of_clean_pages", shares.pop("clean"), dropped=False))
    scores += [_score(f"good/kept_after_{name}", pairs, dropped=False) for name, pairs in after.items()]
    noise = sorted(kind for kind in shares if kind not in ("", "good"))
    scores.append(_score("noise/dropped", [pair for kind in noise for pair in shares[kind]], dropped=True))
    return scores + [_score(f"noise/{kind}/dropped", shares[kind], dropped=True) for kind in noise]


def kept_of(before: Sequence[PageBlock], after: Sequence[PageBlock]) -> list[bool]:
    """Return for each block whether it is kept. after: remaining blocks in the same order, without unprintable
    characters."""
    remaining = iter(after)
    following = next(remaining, None)
    kept = []
    for block in before:
        same = following is not None and printable(block.markdown) == printable(following.markdown)
        kept.append(same)
        if same:
            following = next(remaining, None)
    return kept


def _share(chosen: Sequence[bool], among: Sequence[bool]) -> float:
    """Return the fraction of the blocks in `among` that are in `chosen`; 0 for none."""
    return sum(is_chosen for is_chosen, included in zip(chosen, among, strict=True) if included) / max(sum(among), 1)


def _score(name: str, shares: Sequence[tuple[float, int]], dropped: bool) -> Score:
    values, weights = np.array([share for share, _ in shares]), np.array([count for _, count in shares], float)
    return Score(name, 1 - values if dropped else values, None, weights=weights)
