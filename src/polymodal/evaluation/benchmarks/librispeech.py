"""LibriSpeech: word and character error rates against the raw transcripts (Panayotov et al. 2015)."""

from __future__ import annotations

import re

from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.evaluation.tasks.transcription import CanTranscribe, error_rate
from polymodal.modalities import Audio, Text
from polymodal.training.run import answers

BATCH = 64


def normalized_words(text: str) -> list[str]:
    """Split a transcript into words in lower case; of punctuation, only apostrophes inside words stay."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


def transcript_scores(inputs: TaskInputs) -> list[Score]:
    """Error rates of every test split: all edits divided by all words (characters), as jiwer computes them."""
    scores = []
    for split in inputs.test_splits:
        _, examples = inputs.reader.read_split(split)
        columns = {"sound": [example["sound"] for example in examples]}
        parts = answers(inputs.method, inputs.processor, "transcribe", columns, BATCH)
        written = [normalized_words(text) for text in inputs.processor.texts([row for part in parts for row in part])]
        wanted = [normalized_words(example["text"][0].text) for example in examples]
        characters = [[" ".join(words) for words in texts] for texts in (written, wanted)]
        scores.append(error_rate(f"{split}/transcripts/word_error_rate", written, wanted))
        scores.append(error_rate(f"{split}/transcripts/character_error_rate", *characters))
    return scores


benchmark = Benchmark(
    title="LibriSpeech",
    source="Panayotov et al. 2015, ICASSP; openslr.org/12",
    data="a folder of test-clean or test-other with its .trans.txt files",
    splits=("test-clean", "test-other"),
    task=Task(
        capability=CanTranscribe,
        requires=((Audio, Text),),
        order=0,
        score=transcript_scores,
        metrics={"*_error_rate": MetricKind(higher_is_better=False, is_fraction=False)},
        headline=(
            *("transcripts/word_error_rate", "*/transcripts/word_error_rate"),
            *("transcripts/character_error_rate", "*/transcripts/character_error_rate"),
        ),
        forward_methods=("transcribe",),
        protocol=lambda inputs: {
            "metric": "edits divided by words of the references, over the whole split",
            "normalization": "lower case; punctuation removed except apostrophes inside words",
            "chance": "an empty transcript",
        },
    ),
)
