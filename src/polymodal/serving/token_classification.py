"""Entity extraction (token classification) of document pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.evaluation.tasks.entity_extraction import CanClassifyTokens, entities, predict_fields
from polymodal.modalities import Words
from polymodal.serving.json_lines import write_json_lines
from polymodal.serving.missing_capability import lacks
from polymodal.training.run import Run


def write_fields(run: Run, corpus: Corpus, split: str, path: Path) -> int:
    """Write one JSON object per page: its key, and its fields, each with text and word indices.

    split: `all` takes every page. Returns the number of pages. Raises UserError for a run that does not classify
    tokens, a corpus without words, a split without pages, and an unwritable path.
    """
    if not isinstance(run.model, CanClassifyTokens):
        raise lacks(run, "classify words (entity extraction)", "classify_tokens")
    if not run.model.has_learned_fields:
        raise UserError("This run was pre-trained alone and knows no fields; fine-tune it with --finetune-fraction 1.")
    corpus.column_with(Words)
    reader = Reader(corpus, run.processor)
    rows, examples = reader.read_all(np.arange(len(corpus)) if split == "all" else corpus.rows(split))
    if not examples:
        raise UserError(f"The split '{split}' of '{corpus.name}' has no readable page.")
    records = []
    for row, (words, fields) in zip(rows.tolist(), predict_fields(run.model, run.processor, examples), strict=True):
        found = [
            {"field": field, "text": " ".join(word.text for word in words[first:end]), "words": [first, end]}
            for first, end, field in sorted(entities(words, fields))
        ]
        records.append({"key": corpus.key(row), "fields": found})
    write_json_lines(path, records)
    return len(records)
