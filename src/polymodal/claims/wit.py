"""The claims of `wit`, for `polymodal reproduce wit`: the fields of a row, and languages (`--claim languages`). Arms of
the first see the same images (but for alternative texts alone, which two thirds of the images have), and those of the
second the same number of rows; all are trained for the same steps."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.recipes.dual_encoders.wit import Recipe
from polymodal.types import Budget

_all = Recipe(
    image=ImageEncoderConfig(stem=(16, 32, 64), width=96, depth=0, pool_type="max"),
    text=TextEncoderConfig(width=96),
    word_dropout=0.0,
)


def _only(reference: float = 0.0, attribution: float = 0.0, alt: float = 0.0) -> Recipe:
    return dataclasses.replace(_all, reference_weight=reference, attribution_weight=attribution, alt_weight=alt)


claim = Claim(
    sentence="Texts of all fields, one sampled at a step, transfer better to images of other vendors than the captions "
    "under the images alone.",
    baseline=_only(reference=1.0),
    treatment=_all,
    further={
        "attribution alone": _only(attribution=1.0),
        "alternative text alone": _only(alt=1.0),
        "all fields and context": dataclasses.replace(_all, section_weight=0.2),
    },
    corpus="emoji_pages",
    budget=Budget(steps=200),
    seeds=5,
    metrics=(
        "test_vendors/fields/reference/text_to_image/R@10",
        "test_vendors/fields/attribution/text_to_image/R@10",
        "test_vendors/fields/alt/text_to_image/R@10",
        "test/fields/reference/text_to_image/R@10",
        "test/fields/reference/image_to_text/R@10",
        "test/fields/attribution/text_to_image/R@10",
        "test/fields/alt/text_to_image/R@10",
        "test/fields/reference/text_to_text/R@10",
    ),
    tuning={"learning_rate": (1e-3, 3e-3)},
    tuning_fraction=0.5,
    tuned_like=dict.fromkeys(("attribution alone", "alternative text alone", "all fields and context"), "treatment"),
    paper_results="captions under the image are the best single field, and all fields together transfer best (not read "
    "in the repository)",
)
_ROWS = 3000  # at most what English has with a text
languages = Claim(
    sentence="Of as many rows, those in all languages teach to find images, and texts of other languages, better than "
    "English rows alone, averaged over languages, and English loses little.",
    baseline=dataclasses.replace(_all, train_languages=("en",), max_rows=_ROWS),
    treatment=dataclasses.replace(_all, max_rows=_ROWS),
    further={"text-text loss": dataclasses.replace(_all, max_rows=_ROWS, text_text_weight=0.5)},
    corpus="emoji_pages",
    budget=Budget(steps=200),
    seeds=5,
    metrics=(
        "test/fields/reference/text_to_image/R@10",
        "test/fields/reference/text_to_text/R@10",
        "test/fields/reference/text_to_image/en/R@10",
        *(f"test/fields/reference/text_to_image/{language}/R@10" for language in ("de", "ru", "ar", "hi", "sw")),
        "test_vendors/fields/reference/text_to_image/R@10",
    ),
    deciding=(
        "test/fields/reference/text_to_image/R@10",
        "test/fields/reference/text_to_text/R@10",
        "test/fields/reference/text_to_image/en/R@10",
    ),
    margins={"test/fields/reference/text_to_image/en/R@10": 0.05},
    tuning={"learning_rate": (1e-3, 3e-3)},
    tuning_fraction=0.5,
    tuned_like={"text-text loss": "treatment"},
    paper_results="a multilingual set makes retrieval in other languages possible (not read in the repository)",
)
