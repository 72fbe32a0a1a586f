"""The claim of `layoutlmv3`, for `polymodal reproduce layoutlmv3`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.documents.layoutlmv3 import Recipe
from polymodal.types import Budget

_base = Recipe()
claim = Claim(
    sentence="Naming hidden patches and aligning words with patches makes better pages than hiding words alone.",
    baseline=dataclasses.replace(_base, use_mim=False, use_wpa=False),
    treatment=_base,
    corpus="documents",
    budget=Budget(steps=500),
    seeds=3,
    metrics=(
        "test/fields/entity_f1",
        "test/fields/word_accuracy",
        "test/linear_probe_kind/page/accuracy",
        "test/linear_probe_kind/image/accuracy",
    ),
    paper_results="FUNSD F1 after 150,000 steps: 89.4 with words alone, 89.2 with patches, 89.8 with alignment",
)
