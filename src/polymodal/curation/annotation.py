"""Manual checks of image-text pairs: two questions, two annotators, adjudication, agreement, and what they leave.

A pair is validated if two annotators say of it that it is authentic (the image is this concept, and of this culture)
and coherent (the text describes the image). Where their verdicts differ, a third one decides. Answers are lines of a
file that survives a process that is killed; the last answer of an annotator about a pair counts.
"""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool

from polymodal.errors import UserError, write_errors

QUESTIONS = ("authentic", "coherent")
ANSWERS = "answers.jsonl"
Status = Literal["unchecked", "disputed", "validated", "rejected"]
MAX_NAME = 40  # characters of the name of an annotator


@dataclass(frozen=True)
class Judgement:
    """Answers of one annotator about one pair."""

    key: str
    annotator: str
    authentic: bool
    coherent: bool

    @property
    def accepts(self) -> bool:
        return self.authentic and self.coherent


class Judgements:
    """All answers about pairs, in a file. Raises UserError for a file with lines of another form.

    An annotator is one person however the name is capitalized. Reading changes nothing: a line that was cut off when a
    process was killed is not an answer, and is removed before the next one is written.
    """

    def __init__(self, file: Path, given: Iterable[Judgement] = ()):
        self.file = file
        self.of_key: dict[str, dict[str, Judgement]] = defaultdict(dict)
        self._spelled = dict[str, str]()
        for judgement in (*_read(file), *given):
            self._take(judgement)

    def add(self, judgement: Judgement) -> None:
        """Keep an answer: it is on the disk when this returns. Raises UserError where it cannot be written."""
        line = (json.dumps(asdict(judgement), ensure_ascii=False) + "\n").encode()
        with write_errors(self.file), self.file.open("a+b", buffering=0) as lines:
            size = _without_cut_line(lines)
            try:
                if lines.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(lines.fileno())
            except OSError:
                lines.truncate(size)
                raise
        self._take(judgement)

    def spelled(self, annotator: str) -> str:
        """Return the name of an annotator as it was written in the first answer."""
        return self._spelled.get(annotator.casefold(), annotator)

    def _take(self, judgement: Judgement) -> None:
        name = self._spelled.setdefault(judgement.annotator.casefold(), judgement.annotator)
        self.of_key[judgement.key][name] = judgement

    def status(self, key: str) -> Status:
        """Return what the first two annotators of a pair, and the third one where they differ, make of it."""
        return adjudicated([judgement.accepts for judgement in self.of_key.get(key, {}).values()])

    def waits_for(self, key: str, annotator: str) -> bool:
        """Return whether a pair needs an answer that this annotator may give: not yet two, or a third opinion."""
        return annotator not in self.of_key.get(key, {}) and self.status(key) in ("unchecked", "disputed")

    def kappa(self) -> dict[str, float]:
        """Return Cohen's kappa of the first two annotators for each question, and for the verdict of both."""
        pairs = [list(of.values())[:2] for of in self.of_key.values() if len(of) > 1]
        both = {name: [[getattr(one, name) for one in pair] for pair in pairs] for name in (*QUESTIONS, "accepts")}
        return {name: cohen_kappa(np.array(votes, dtype=bool).reshape(-1, 2)) for name, votes in both.items()}


def _without_cut_line(lines: FileIO) -> int:
    """Remove a line without end, of a process that was killed, from a file; return the size in bytes that is left."""
    size = lines.seek(0, os.SEEK_END)
    lines.seek(max(size - 1, 0))
    if lines.read(1) not in (b"", b"\n"):
        lines.seek(0)
        size = lines.read().rfind(b"\n") + 1
        lines.truncate(size)
    return size


def _read(file: Path) -> list[Judgement]:
    """Read whole lines, without one that was cut off when a process was killed."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise UserError(f"{file} is a link or no file; answers are kept in a file of this folder, so remove it.")
    if not file.exists():
        return []
    content = file.read_bytes()
    complete = content.rfind(b"\n") + 1
    judgements = []
    for number, line in enumerate(content[:complete].splitlines(), 1):
        try:
            judgement = Judgement(**json.loads(line))
            strange = [name for name in QUESTIONS if not isinstance(getattr(judgement, name), bool)]
            strange += [name for name in ("key", "annotator") if not isinstance(getattr(judgement, name), str)]
        except (ValueError, TypeError, RecursionError):
            strange = ["line"]
        if strange:
            raise UserError(f"Line {number} of {file} is no answer of a review; mend it, or remove the line.")
        judgements.append(judgement)
    return judgements


def checked_annotator(name: str) -> str:
    """Return the name of an annotator without superfluous blanks. Raises UserError for an empty or strange one."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name or len(name) > MAX_NAME or not all(mark.isalnum() or mark in " ._-" for mark in name):
        raise UserError(f"The name of an annotator has 1 to {MAX_NAME} letters, digits, blanks, dots and dashes.")
    return name


def adjudicated(verdicts: Sequence[bool]) -> Status:
    """Return the status of a pair by the verdicts of its annotators, in order."""
    if len(verdicts) < 2:
        return "unchecked"
    if verdicts[0] != verdicts[1] and len(verdicts) < 3:
        return "disputed"
    accepted = verdicts[0] if verdicts[0] == verdicts[1] else verdicts[2]
    return "validated" if accepted else "rejected"


def cohen_kappa(votes: Bool[np.ndarray, "pairs 2"]) -> float:
    """Return the agreement of two annotators beyond chance; NaN where both always give one and the same answer."""
    from sklearn.metrics import cohen_kappa_score

    if len(np.unique(votes)) < 2:
        return float("nan")
    return float(cohen_kappa_score(votes[:, 0], votes[:, 1]))


def expected_purity(purity: float, error_rate: float, passes: int = 2) -> float:
    """Return the fraction of right pairs among those that all annotators accept.

    p (1 - a)^n / (p (1 - a)^n + (1 - p) a^n), with a fraction p of right pairs before, and n independent annotators
    whose verdict is wrong with probability a.
    """
    right, wrong = purity * (1 - error_rate) ** passes, (1 - purity) * error_rate**passes
    return right / (right + wrong) if right + wrong else 0.0


def simulated_answers(
    authentic: Bool[np.ndarray, " pairs"],
    coherent: Bool[np.ndarray, " pairs"],
    error_rate: float,
    rng: np.random.Generator,
) -> tuple[Bool[np.ndarray, " pairs"], Bool[np.ndarray, " pairs"]]:
    """Return the answers of an annotator whose verdict about a pair is wrong with a probability.

    authentic, coherent: the truth. A wrong verdict says yes to both questions about a wrong pair, and no to one of
    them, at random, about a right one.
    """
    right = authentic & coherent
    wrong_verdict, first = rng.random(len(right)) < error_rate, rng.random(len(right)) < 0.5
    rejects, accepts = wrong_verdict & right, wrong_verdict & ~right
    return (authentic | accepts) & ~(rejects & first), (coherent | accepts) & ~(rejects & ~first)
