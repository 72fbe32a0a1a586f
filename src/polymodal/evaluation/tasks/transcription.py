"""Transcription of speech: error rates, also of texts through the head that was trained on speech."""

from __future__ import annotations

import warnings
from typing import Any, Protocol, runtime_checkable

import numpy as np
from rapidfuzz.distance import Levenshtein
from torch import nn

from polymodal.data.loader import Reader
from polymodal.evaluation.panels import EXAMPLES, NOTE, Panels, text_panel, value_panel, verdict_color
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Audio, Text
from polymodal.training.run import answers
from polymodal.types import Batch, Example

BATCH = 64


@runtime_checkable
class CanTranscribe(Protocol):
    """Capability: the transcript of each sound or text, as token ids."""

    def transcribe(self, batch: Batch) -> list[list[int]]: ...


def transcription_scores(
    method: nn.Module, processor: Any, reader: Reader, split: str, max_examples: int | None = None
) -> list[Score]:
    """Character and word error rates over all texts, in the characters of the method's tokenizer.

    `text_probe`: error rates of texts through the head for speech; low where speech and text have a common space.
    Sounds that are cut off at the maximum length are left out, as their transcripts say more than is heard; their
    number is warned of. Nothing when all are cut off. max_examples: of a split, evenly spaced.
    """
    _, examples = reader.read_split(split, max_examples)
    examples = _heard_to_the_end(examples, processor, reader, split)
    if not examples:
        return []
    texts = [example["text"][0].text for example in examples]
    wanted = processor.tokenizer.decode(processor.tokenizer(texts))
    columns_of = {"transcripts": {"sound": [e["sound"] for e in examples]}, "text_probe": {"text": texts}}
    transcripts = {
        name: processor.texts(
            [row for part in answers(method, processor, "transcribe", columns, BATCH) for row in part]
        )
        for name, columns in columns_of.items()
    }
    scores = [score for name, one in transcripts.items() for score in _character_scores(f"{split}/{name}", one, wanted)]
    return [
        *scores,
        error_rate(f"{split}/transcripts/word_error_rate", _words(transcripts["transcripts"]), _words(wanted)),
    ]


def _heard_to_the_end(examples: list[Example], processor: Any, reader: Reader, split: str) -> list[Example]:
    column, audio = processor.sound, reader.corpus.columns[reader.corpus.column_with(Audio)]
    assert isinstance(audio, Audio)
    whole = [example for example in examples if not column.is_cut_off(example["sound"], audio.longest)]
    if count := len(examples) - len(whole):
        warnings.warn(
            f"{count} of {len(examples)} sounds of '{split}' are cut off at {column.max_audio_seconds:g} s, and their "
            "transcripts are not scored; train with a longer --max-audio-seconds.",
            stacklevel=2,
        )
    return whole


def _character_scores(name: str, predicted: list[str], wanted: list[str]) -> list[Score]:
    """The error rate, and by how much it is lower than against the same characters in another order."""
    rng = np.random.default_rng(0)
    mixed = ["".join(rng.permutation(list(text))) for text in wanted]
    rate, other = error_rate(f"{name}/character_error_rate", predicted, wanted), error_rate(name, predicted, mixed)
    return [rate, Score(f"{name}/gain_by_order", other.clusters - rate.clusters, 0.0, weights=rate.weights)]


def error_rate(name: str, predicted: list[Any], wanted: list[Any]) -> Score:
    """Levenshtein distance of prediction and reference, divided by the length of the reference.

    An empty prediction has 100 %, the chance level.
    """
    edits = np.array(
        [Levenshtein.distance(one, other) for one, other in zip(predicted, wanted, strict=True)], dtype=float
    )
    lengths = np.array([max(len(one), 1) for one in wanted], dtype=float)
    return Score(name, edits / lengths, 1.0, higher_is_better=False, weights=lengths)


def _words(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def plot(inputs: TaskInputs) -> Panels:
    """Spectrograms with the reference and the transcript."""
    rows, examples = inputs.test_examples(EXAMPLES)
    texts = [example["text"][0].text for example in examples]
    wanted = inputs.processor.tokenizer.decode(inputs.processor.tokenizer(texts))
    columns = {"sound": [example["sound"] for example in examples]}
    parts = answers(inputs.method, inputs.processor, "transcribe", columns, BATCH)
    written = inputs.processor.texts([row for part in parts for row in part])
    column = inputs.corpus.column_with(Audio)
    panels = [
        [
            value_panel(inputs.corpus, row, column),
            text_panel([(f"reference: {right}", NOTE), (f"transcript: {text}", verdict_color(text == right))]),
        ]
        for row, text, right in zip(rows.tolist(), written, wanted, strict=True)
    ]
    return Panels(panels, "Transcripts", (2.0, 2.8))


task = Task(
    capability=CanTranscribe,
    requires=((Audio, Text),),
    order=40,
    score=lambda inputs: inputs.over_test_splits(transcription_scores),
    plot=plot,
    metrics={
        "*_error_rate": MetricKind(higher_is_better=False, is_fraction=False),  # insertions may exceed the reference
        "gain_by_order": MetricKind(is_fraction=False),
    },
    headline=("transcripts/word_error_rate", "transcripts/character_error_rate"),
    forward_methods=("transcribe",),
)
