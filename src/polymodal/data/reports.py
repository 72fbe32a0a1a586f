"""Reports of findings: sentences of absence, which findings a text states, and assembly by region (Abn-BLIP)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

NO_ABNORMAL = "no abnormal"  # marks a sentence of absence, which the assembly leaves out (released code)
NORMAL = "Normal."
NO_FINDING = "no abnormal finding."
# What a sentence of absence says; the released code has about 200 such templates.
TEMPLATES = (
    "no abnormal {}.",
    "there is no abnormal {}.",
    "no abnormal {} is seen.",
    "no abnormal sign of {}.",
    "this scan shows no abnormal {}.",
    "no abnormal {} in this scan.",
)


def absence(name: str, rng: np.random.Generator | None = None) -> str:
    """Return a sentence that a finding is absent: a template at random, or the first without `rng`."""
    template = TEMPLATES[0 if rng is None else int(rng.integers(len(TEMPLATES)))]
    return template.format(name.lower())


def report_of(sentences: Sequence[str]) -> str:
    """Return the sentences of the findings that are present as one text; empty sentences are of absent ones."""
    present = [sentence.rstrip(".") + "." for sentence in sentences if sentence]
    return " ".join(present) or NO_FINDING


def assemble(
    sentences: Sequence[str], regions: Sequence[str], rewrite: Callable[[str, list[str]], str] | None = None
) -> dict[str, str]:
    """Return a paragraph for each region, in the order of the list of findings.

    sentences: one of each finding. Sentences of absence are left out; a region without any other is "Normal.".
    rewrite: makes a paragraph of a region and its sentences, such as by a language model; by default they are joined.
    """
    of_region: dict[str, list[str]] = {region: [] for region in regions}
    for sentence, region in zip(sentences, regions, strict=True):
        if sentence.strip() and NO_ABNORMAL not in sentence.lower():
            of_region[region].append(sentence)
    return {
        region: (rewrite(region, kept) if rewrite else report_of(kept)) if kept else NORMAL
        for region, kept in of_region.items()
    }


def split_sentences(report: str) -> list[str]:
    """Split a report at full stops that end a sentence."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", report.strip()) if part.strip()]


def states(sentence: str, name: str) -> bool:
    """Return whether a sentence states a finding: it has all words of its name, in any order, and denies nothing."""
    words = _words(sentence)
    denies = NO_ABNORMAL in sentence.lower() or words[:1] == ["no"] or words[:3] == ["there", "is", "no"]
    return not denies and {*_words(name)} <= {*words}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
