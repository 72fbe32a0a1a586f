"""Synthetic texts of images: tags, and the fusion of a real sentence with caption and tags (RealSyn, section 3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from polymodal.curation.hierarchical_retrieval import flat_search
from polymodal.curation.quality import words_of
from polymodal.curation.sentences import FUNCTION_WORDS, content_words

Merger = Callable[[str, str, Sequence[str]], str]
"""From a real sentence, a caption, which may be empty, and tags: one text."""

NUM_FREQUENT = 50  # words of other languages than English that are too frequent to be tags


def mine_tags(sentences: Iterable[str], count: int, base: Sequence[str] = (), stop_words: bool = True) -> list[str]:
    """Return tags: the given ones, then the most frequent content words of sentences, `count` in all.

    The paper doubles the vocabulary of its tagger in this way. stop_words: leave out English function words; else the
    50 most frequent words.
    """
    counts = Counter(word for sentence in sentences for word in {*words_of(sentence)})
    frequent = FUNCTION_WORDS if stop_words else {word for word, _ in counts.most_common(NUM_FREQUENT)}
    given = list(dict.fromkeys(base))
    mined = [
        word
        for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        if word not in frequent and len(word) > 2 and word.isalpha() and word not in given
    ]
    return [*given, *mined][: max(count, len(given))]


def top_tags(
    images: Float[np.ndarray, "images dim"], tags: Float[np.ndarray, "tags dim"], names: Sequence[str], k: int
) -> list[list[str]]:
    """Return the k most similar tags of each image (zero-shot), the most similar first."""
    if not names or not k:
        return [[] for _ in images]
    return [[names[row] for row in rows if row >= 0] for rows in flat_search(images, tags, k).rows.tolist()]


def template_merger(sentence: str, caption: str, tags: Sequence[str]) -> str:
    """Fuse by a template, without a language model: what caption and tags add to the sentence stands before it.

    Every content word of the sentence is kept. Tags that sentence or caption have already are not repeated, and a
    caption that adds no content word is left out.
    """
    words = {*words_of(sentence)}
    if caption and not {*content_words(caption)} <= words:
        words |= {*words_of(caption)}
        lead = caption.rstrip(".!? ")
    else:
        lead = ""
    more = [tag for tag in tags if not {*words_of(tag)} <= words]
    if more:
        listed = f"{', '.join(more[:-1])} and {more[-1]}" if len(more) > 1 else more[0]
        lead = f"{lead} with {listed}" if lead else f"an image of {listed}"
    return f"{lead[0].upper()}{lead[1:]}: {sentence}" if lead else sentence
