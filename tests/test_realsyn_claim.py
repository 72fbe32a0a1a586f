"""The claim of `realsyn`: its arms, and the documents that they get texts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import polymodal as pm
import test_realsyn
from polymodal.claims import realsyn as claims
from polymodal.corpora import from_path
from polymodal.curation.document_pairs import Paired, pools_of
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.errors import UserError
from polymodal.modalities.text import Caption
from polymodal.rng import ExampleRNG


def test_arms_of_the_claim_differ_in_texts_or_images_alone() -> None:
    arms = {"baseline": claims.claim.baseline, **claims.claim.further}
    for arm in arms.values():
        assert replace(arm, texts=claims.claim.treatment.texts, subset="balanced") == claims.claim.treatment
    texts = [Caption(tag, tag) for tag in (claims.LOCAL, *claims.REAL, claims.SYNTHETIC)]
    column, examples = TextColumn(LearnedTokenizer(300, 24)), [{"text": texts}] * 40
    chosen = replace(arms["T_r1-3"], word_dropout=0.0).sample_captions(examples, column, ExampleRNG.of(0, 0, 40))
    assert {*chosen} == {*claims.REAL}
    with pytest.raises(UserError, match="trains nothing; use it with: polymodal curate realsyn DOCUMENTS"):
        pm.recipes.find_method("realsyn")


def test_an_image_gets_the_nearest_sentence_of_its_document_alone(tmp_path: Path) -> None:
    rows = [
        {"texts": ["A red cat.", "A blue red cat.", None], "images": [None, None, test_realsyn.square("blue", 0)]},
        {"texts": ["A blue thing.", None], "images": [None, test_realsyn.square("red", 0)]},
        {"texts": [None], "images": [test_realsyn.square("green", 0)]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "documents.parquet")
    pools = pools_of(from_path(tmp_path / "documents.parquet"), range(3), test_realsyn.OPEN.rejects)
    paired = Paired([0, 1, 2], [], [], np.arange(3), {})
    local = claims.nearest_in_document(pools, paired, test_realsyn.MODELS)
    # Each has its own document's, although the other's is nearer; without a sentence, the nearest of all.
    assert local[:2] == ["A blue red cat.", "A blue thing."]
    assert local[2] in {sentence.text for sentence in pools.sentences}
