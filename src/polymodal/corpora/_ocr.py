"""Errors of optical character recognition: characters that look alike, broken and joined letters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# What a character, or its parts, is taken for.
CONFUSIONS: dict[str, str | list[str]] = {
    "0": "O", "1": "lI", "2": "Z", "5": "S", "6": "b", "8": "B", "&": "8", ".": ",", ",": ".", "a": "ou", "b": "h6",
    "c": "eo", "d": ["cl", "o"], "e": "co", "f": "t", "g": "9q", "h": "bn", "i": "l1j", "j": "i", "k": ["lc", "h"],
    "l": "1Ii", "m": ["rn", "nn"], "n": ["ri", "h", "u"], "o": "0ce", "p": "n", "q": "g", "r": "nt", "s": "5z",
    "t": "fl", "u": ["ii", "n", "v"], "v": "uy", "w": ["vv", "u"], "x": "z", "y": "vg", "z": "s2", "A": "4R",
    "B": "8R", "C": "GO", "D": "O0", "E": "FB", "F": "PE", "G": "C6", "H": "NM", "I": "l1", "J": "I", "K": "RX",
    "L": "I", "M": "NH", "N": "MH", "O": "0QD", "P": "FR", "R": "BK", "S": "58", "T": "I7", "U": "V", "V": "UY",
    "W": ["VV", "N"], "X": "K", "Y": "V", "Z": "2",
}  # fmt: skip
DELETED, INSERTED = 0.15, 0.1  # fractions of the errors; the others are confusions
STRAY = ".,'-i l"
MAX_RATE = 0.4  # of errors, of texts whose rate is sampled
RATES = {"": None, "_clean": 0.0, "_noisy": MAX_RATE}  # by the ending of a split; None: sampled from 0 to `MAX_RATE`


def read_texts(text: str, split: str, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yield splits with what is read of a text there: in training at a sampled rate, else at every rate of `RATES`."""
    for ending, rate in RATES.items() if split != "train" else [("", None)]:
        yield split + ending, with_ocr_errors(text, rng.uniform(0, MAX_RATE) if rate is None else rate, rng)


def with_ocr_errors(text: str, rate: float, rng: np.random.Generator) -> str:
    """Return a text with errors at this fraction of its characters, at random."""
    read = []
    for character in text:
        kind = rng.random()
        if rng.random() >= rate:
            read.append(character)
        elif kind < DELETED:
            continue
        elif kind < DELETED + INSERTED or character not in CONFUSIONS:
            read.append(character + str(rng.choice(list(STRAY))))
        else:
            read.append(str(rng.choice(list(CONFUSIONS[character]))))
    return " ".join("".join(read).split()) or text[:1]
