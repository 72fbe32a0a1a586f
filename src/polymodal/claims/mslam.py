"""The claim of `mslam`, for `polymodal reproduce mslam`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.speech_audio.mslam import Recipe
from polymodal.types import Budget

_whole = Recipe()
claim = Claim(
    sentence="Text and pairs with CTC make an encoder of speech better than speech alone, and let a head that learned "
    "from speech read text.",
    baseline=dataclasses.replace(_whole, unpaired_text=False, paired_losses="none"),
    treatment=_whole,
    further={
        "with text": dataclasses.replace(_whole, paired_losses="none"),
        "with pairs read together": dataclasses.replace(_whole, paired_losses="tlm"),
    },
    corpus="speech",
    languages=("es", "pt", "sw", "tr"),  # written much as they are spoken
    budget=Budget(steps=1500),
    seeds=3,
    metrics=(
        "test/linear_probe_language/accuracy",
        "test/transcripts/character_error_rate",
        "test/text_probe/gain_by_order",
        "test/text_probe/character_error_rate",
        "test/transcripts/word_error_rate",
        "test/text_to_sound/R@10",
        "test_recorded/linear_probe_language/accuracy",
        "test_recorded/transcripts/character_error_rate",
    ),
    paper_results="MINDS-14 intents 82.7 % with speech alone, 85.0 with CTC and no text, 86.9 with both; FLEURS "
    "language identification 71.4 and 73.3",
)
