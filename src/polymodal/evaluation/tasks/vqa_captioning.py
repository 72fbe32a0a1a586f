"""Generated captions and answers to questions (VQA), and the likelihood of reference captions."""

from __future__ import annotations

import re
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.conversation import DESCRIBE
from polymodal.data.instructions import longest_caption
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.byte_likelihood import MAX_TEXTS, bits_per_byte, training_captions
from polymodal.evaluation.capabilities import CanGenerateText, HasLikelihood
from polymodal.evaluation.panels import EXAMPLES, NEUTRAL, NOTE, Line, Panels, text_panel, value_panel
from polymodal.evaluation.question_answering import (
    METRICS,
    question_lines,
    question_protocol,
    question_scores,
    written_texts,
)
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Questions, Regions, Text

MAX_NAMED = 4000  # training examples whose objects' names are known
VALIDATION_EXAMPLES = 40  # with questions; writing takes longer than a step


@runtime_checkable
class CanWrite(CanGenerateText, HasLikelihood, Protocol):
    """Capability: generate a text, and give the log-probability of one."""


def answers_questions(processor: Any, corpus: Corpus) -> bool:
    """Return whether the corpus has questions, and the method reads them; a captioner does not."""
    return corpus.has_modality(Questions) and "questions" in processor.columns


def _reads_regions(processor: Any, corpus: Corpus) -> bool:
    return corpus.has_modality(Regions) and "regions" in processor.columns


def written_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, max_examples: int | None = None
) -> list[Score]:
    """Captions and questions, as far as the corpus has them. max_examples: with questions.

    Without a training split, captions are not scored, as chance is measured there.
    """
    has_questions = answers_questions(processor, reader.corpus)
    scores = question_scores(method, processor, reader, split, max_examples) if has_questions else []
    has_captions = reader.corpus.has_modality(Text) and len(reader.corpus.splits.get("train", ()))
    return scores + (caption_scores(method, processor, reader, split) if has_captions else [])


def object_hallucination_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, max_examples: int | None = None
) -> list[Score]:
    """The fraction of named objects that are not in the image, and of the image's objects that are named.

    Objects are identified by the names of the corpus's regions, such as "small cat"; the fractions are over all
    captions (CHAIR_i, Rohrbach et al. 2018, equation 1; and recall).
    """
    corpus = reader.corpus
    column = corpus.column_with(Regions)
    decode = corpus.columns[column].decode
    stored = corpus.raw_values(corpus.sample("train", MAX_NAMED), column)
    names = sorted({region.name.lower() for regions in stored for region in decode(regions)})
    _, examples = reader.read_split(split, max_examples)
    texts = written_texts(method, processor, [one["image"] for one in examples], [DESCRIBE] * len(examples))
    named = [{name for name in names if f" {name} " in f" {_words(text)} "} for text in texts]
    there = [{region.name.lower() for region in example["regions"]} for example in examples]
    num_named, num_present, right = (
        np.array([len(one) for one in sets], dtype=float)
        for sets in (named, there, [a & b for a, b in zip(named, there, strict=True)])
    )
    guessed = num_present.mean() / max(len(names), 1)  # that a name at random is in an image
    return [
        Score(
            f"{split}/captions/CHAIR_i",
            1 - right / np.maximum(num_named, 1),
            1 - guessed,
            higher_is_better=False,
            weights=num_named,
        ),
        Score(f"{split}/captions/object_recall", right / np.maximum(num_present, 1), weights=num_present),
    ]


def caption_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Bits per byte of the longest caption of each image, and the reduction by the image, compared with the image of
    another example. Chance: bytes as frequent as in the training split. Images without a caption are left out.
    """
    examples = [example for example in reader.read_split(split, MAX_TEXTS)[1] if "text" in example]
    if not examples:
        return []
    texts = [longest_caption(example) for example in examples]
    images = [example["image"] for example in examples]
    training_texts = [max((one.text for one in some), key=len) for some in training_captions(reader.corpus)]
    of_image, of_other = (
        bits_per_byte(f"{split}/captions/bits_per_byte", method, processor, texts, shown, training_texts)
        for shown in (images, [*images[1:], images[0]])
    )
    saved = Score(f"{split}/captions/image_gain", of_other.clusters - of_image.clusters, 0.0, weights=of_image.weights)
    return [of_image, saved]


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w'-]+", text.lower()))


def _split_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    scores = written_scores(method, processor, reader, split)
    if _reads_regions(processor, reader.corpus) and len(reader.corpus.splits.get("train", ())):
        scores += object_hallucination_scores(method, processor, reader, split)
    return scores


def _validate(inputs: TaskInputs) -> list[Score]:
    return written_scores(inputs.method, inputs.processor, inputs.reader, "validation", VALIDATION_EXAMPLES)


def plot(inputs: TaskInputs) -> Panels:
    """Images with the generated and the reference caption, and with answers to questions where there are any."""
    rows, examples = inputs.test_examples(EXAMPLES)
    images = [example["image"] for example in examples]
    lines: list[list[Line]] = [[] for _ in examples]
    if inputs.corpus.has_modality(Text):
        captions = written_texts(inputs.method, inputs.processor, images, [DESCRIBE] * len(images))
        lines = [
            [(f"Caption: {text}", NEUTRAL), (f"Reference: {longest_caption(example)}", NOTE)]
            for text, example in zip(captions, examples, strict=True)
        ]
    if answers_questions(inputs.processor, inputs.corpus):
        questions = question_lines(inputs.method, inputs.processor, examples, "image")
        lines = [of_example + more for of_example, more in zip(lines, questions, strict=True)]
    panels = [
        [value_panel(inputs.corpus, row, inputs.corpus.column_with(Image)), text_panel(of_example)]
        for row, of_example in zip(rows.tolist(), lines, strict=True)
    ]
    return Panels(panels, "Generated captions and answers; green: correct", (1.0, 4.0))


task = Task(
    capability=CanWrite,
    requires=((Image, Text), (Image, Questions)),
    order=140,
    score=lambda inputs: inputs.over_test_splits(_split_scores),
    validate=_validate,
    plot=plot,
    metrics={
        "captions/image_gain": MetricKind("bits per byte"),
        "bits_per_byte": MetricKind("bits per byte", higher_is_better=False),
        "CHAIR_i": MetricKind(higher_is_better=False),
        "object_recall": MetricKind(),
    }
    | METRICS,
    headline=("vqa/accuracy", "vqa/image_gain", "captions/bits_per_byte", "captions/CHAIR_i"),
    protocol=lambda inputs: question_protocol(inputs) if answers_questions(inputs.processor, inputs.corpus) else {},
    forward_methods=("generate_text", "log_likelihood"),
    hint="ask RUN IMAGE",
)
