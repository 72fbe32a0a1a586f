"""Alignment of image-text pairs by a frozen dual encoder: the score of CLIP filtering; and what a filter does to tags.

The scorer is a run of its own, not the method that is trained on what it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.curation.captions import check_embeds_pairs
from polymodal.data.loader import Reader
from polymodal.data.subsets import best_scored
from polymodal.errors import UserError
from polymodal.evaluation.head_tail import tag_frequencies, tiers
from polymodal.evaluation.statistics import means_by_cluster
from polymodal.training.run import Run, embed

READ_TOGETHER = 2048  # pairs whose images are in memory at once


def alignment_scores(run: Run, corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Return for each row the cosine similarity of its image and its caption, the mean over several captions.

    NaN for a row that cannot be read. Raises UserError for a run that does not embed images and texts.
    """
    check_embeds_pairs(run)
    reader, scores = Reader(corpus, run.processor, memory=0), np.full(len(rows), np.nan)
    place_of = {int(row): place for place, row in enumerate(rows)}
    for start in range(0, len(rows), READ_TOGETHER):
        readable, examples = reader.read_all(rows[start : start + READ_TOGETHER])
        if not examples:
            continue
        owner = np.repeat(np.arange(len(examples)), [len(example["text"]) for example in examples])
        texts = [caption.text for example in examples for caption in example["text"]]
        images = embed(run.model, run.processor, image=[example["image"] for example in examples])["image"].numpy()
        similarity = (images[owner] * embed(run.model, run.processor, text=texts)["text"].numpy()).sum(1)
        scores[[place_of[int(row)] for row in readable]] = means_by_cluster(similarity, owner)[0]
    return scores


def column_scores(corpus: Corpus, rows: np.ndarray, column: str) -> np.ndarray:
    """Return the numbers of a column, NaN where there is none. Raises UserError for a column of something else."""
    try:  # tables of text, such as CSV, have numbers as texts
        values = corpus.raw_values(rows, column)
        return np.array([np.nan if value in (None, "") else value for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"The column '{column}' has no numbers; --quality-filter takes one that has.") from None


def filtered(scores: np.ndarray, fraction: float) -> np.ndarray:
    """Return the places of the fraction with the best scores. Raises UserError where fewer have a score."""
    best, scored = best_scored(scores, fraction), np.isfinite(scores)
    if not scored[best].all():
        raise UserError(
            f"{scored.sum()} of {len(scores)} pairs have a score of --quality-filter, which keeps {len(best)}; take a "
            f"--quality-fraction of {np.floor(100 * scored.mean()) / 100:g} or less, or score more of them."
        )
    return best


class TagDiversity(NamedTuple):
    """Diversity of a tag before and after a selection of rows.

    effective: the exponential of the entropy of its values. tail: fraction of rows whose value is in the tail, the
    rarest third of values before. lost: values of which no row is left.
    """

    effective: tuple[float, float]
    tail: tuple[float, float]
    lost: tuple[str, ...]


def diversity_audit(corpus: Corpus, kept: np.ndarray) -> dict[str, TagDiversity]:
    """Return what a selection of training rows, such as a quality filter's, does to each tag of the corpus.

    Tags are the categorical columns and the languages of captions (`evaluation.head_tail`).
    """
    after = tag_frequencies(corpus.with_splits({"train": kept}), every_row=True)
    audit = {}
    for name, counts in tag_frequencies(corpus, every_row=True).items():
        left = {value: after[name].get(value, 0) for value in counts}
        audit[name] = TagDiversity(
            (_effective(counts), _effective(left)),
            (_tail(counts, counts), _tail(left, counts)),
            tuple(value for value, count in counts.items() if count and not left[value]),
        )
    return audit


def _effective(counts: Mapping[str, int]) -> float:
    present = np.array([count for count in counts.values() if count], dtype=np.float64)
    p = present / max(present.sum(), 1)
    return float(np.exp(-(p * np.log(p)).sum()))


def _tail(counts: Mapping[str, int], before: Mapping[str, int]) -> float:
    rare = tiers({value: count for value, count in before.items() if count})["tail"]
    return sum(counts[value] for value in rare) / max(sum(counts.values()), 1)
