"""The claims of `wasm`, for `polymodal reproduce wasm`."""

from __future__ import annotations

import math
from dataclasses import replace

from polymodal.claim import CuratedTrainingClaim, CurationClaim
from polymodal.curation.quality import QualityFilters
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.recipes.any_to_any import moma
from polymodal.recipes.data_curation.wasm import PARAGRAPH, Recipe
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget

# As OBELICS has them for English, but for the share of common words: its list is of a size that no corpus here gives.
# Its list of stop words has hundreds; the 750 most frequent words of good pages take its place, which favors OBELICS.
OBELICS_PARAGRAPH = QualityFilters(
    min_words=4,
    max_words=1000,
    character_repetition=0.1,
    word_repetition=0.1,
    special_characters=0.3,
    stop_words=0.3,
    flagged_words=0.01,
    punctuation=0.001,
)
OBELICS_DOCUMENT = QualityFilters(
    min_words=10,
    max_words=2000,
    character_repetition=0.1,
    word_repetition=0.2,
    special_characters=0.275,
    stop_words=0.35,
    flagged_words=0.01,
    punctuation=0.03,
    language=0.8,
    perplexity=1500,
)
_obelics = Recipe(paragraph_filters=OBELICS_PARAGRAPH, document_filters=OBELICS_DOCUMENT, num_stop_words=750)
claim = CurationClaim(
    sentence="Limits made for Arabic keep more good Arabic paragraphs than those that OBELICS made for English, and no "
    "more noise.",
    baseline=_obelics,
    treatment=Recipe(),
    further={
        "OBELICS without stop words": replace(
            _obelics,
            paragraph_filters=replace(OBELICS_PARAGRAPH, stop_words=0.0),
            document_filters=replace(OBELICS_DOCUMENT, stop_words=0.0),
        ),
        "OBELICS without deduplication": replace(_obelics, dedup_similarity=101),
        "Wasm without perplexity": Recipe(paragraph_filters=replace(PARAGRAPH, perplexity=math.inf)),
    },
    corpus="manuals",
    language="ar",
    budget=Budget(examples=35),  # all there are, of one handbook
    seeds=5,
    metrics=(
        "good/kept",
        "good/kept_after_paragraph",
        "good/kept_of_clean_pages",
        "noise/dropped",
        *(
            f"noise/{kind}/dropped"
            for kind in ("mojibake", "navigation", "repeated", "shuffled", "spam", "symbols", "wrong_language")
        ),
    ),
    deciding=("good/kept", "noise/dropped"),
    margins={"noise/dropped": 0.02},
    paper_results="thresholds are compared in words only",
)
_english = Recipe(language="en", max_characters=1000)
_reader = moma.Recipe(
    batch_size=16,
    optimizer=OptimizerConfig(learning_rate=2.5e-3),
    language_model=LanguageModelConfig(vocab_size=1000, context_length=640, num_kv_heads=4, tie_word_embeddings=False),
    num_text_experts=1,
    num_image_experts=1,
    stage_fractions=(0.0, 1.0, 0.0),
)
structure = CuratedTrainingClaim(
    sentence="A model that learns from documents which keep their structure, images in their place, predicts the "
    "words of new ones better than one that learns from the same documents as plain text behind their images.",
    baseline=replace(_english, layout="flat"),
    treatment=_english,
    model=_reader,
    start=replace(_reader, stage_fractions=(1.0, 0.0, 0.0)),  # the image tokenizer, once a seed for both
    start_budget=Budget(steps=300),
    corpus="manuals",
    languages=("en",),
    budget=Budget(steps=500),
    seeds=3,
    metrics=("test/words/bits_per_byte", "test/words_and_marks/bits_per_byte", "test/image_paragraph_choice/accuracy"),
    paper_results="no model is trained",
)
