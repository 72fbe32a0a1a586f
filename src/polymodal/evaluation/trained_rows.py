"""A warning of test rows that a run was trained on, as when the user's data changed since."""

from __future__ import annotations

import warnings

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.training.run import Run
from polymodal.training.training_rows import trained_on


def warn_of_trained_rows(run: Run, corpus: Corpus) -> int:
    """Warn where test rows of this corpus, of one without them validation rows, were trained on; return how many."""
    tests = [split for split in corpus.splits if split.startswith("test")]
    kind = "test" if tests else "validation"
    held_out = [corpus.splits[split] for split in tests or corpus.splits if split.startswith(kind)]
    if run.directory is None or not held_out:
        return 0
    rows = np.unique(np.concatenate(held_out))
    trained = trained_on(run.directory, corpus, rows)
    if len(trained):
        keys = ", ".join(corpus.key(int(row)) for row in trained[:3])
        warnings.warn(
            f"{len(trained):,} of {len(rows):,} {kind} rows of '{corpus.name}' were trained on, such as {keys}: scores "
            "on them say nothing about new data.",
            stacklevel=2,
        )
    return len(trained)
