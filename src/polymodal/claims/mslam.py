"""The claim of `mslam`, for `polymodal reproduce mslam`."""

from __future__ import annotations

from dataclasses import replace

from polymodal.claim import Claim
from polymodal.recipes.speech_audio.mslam import Recipe
from polymodal.types import Budget

_mslam = Recipe(batch_size=32, max_audio_seconds=3.0)
claim = Claim(
    sentence="Text and pairs with CTC make an encoder of speech better than speech alone, and let a head that learned "
    "from speech read text.",
    baseline=replace(_mslam, unpaired_text=False, paired_losses="none"),
    treatment=_mslam,
    further={
        "with CTC, without text": replace(_mslam, paired_losses="ctc", unpaired_text=False),
    },
    corpus="speech",
    languages=("es", "pt", "sw", "tr"),  # written much as they are spoken
    budget=Budget(steps=320),  # longer runs of three seeds do not fit into the time of a claim
    seeds=3,
    metrics=(
        "test/linear_probe_language/accuracy",
        "test/text_probe/gain_by_order",
        "test/transcripts/character_error_rate",
        "test/transcripts/word_error_rate",
        "test/text_probe/character_error_rate",
        "test/text_to_sound/R@10",
    ),
    deciding=("test/linear_probe_language/accuracy", "test/text_probe/gain_by_order"),
    tuning={"learning_rate": (1e-3, 3e-3)},
    tuning_fraction=0.4,
    tuned_like={"with CTC, without text": "treatment"},
    paper_results="MINDS-14 intents 82.7 % with speech alone, 85.0 with CTC and no text, 86.9 with both; FLEURS "
    "language identification 71.4 and 73.3",
)
