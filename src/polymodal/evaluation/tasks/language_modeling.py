"""Bits per byte of texts alone, of the corpus on which a recipe's language model was pre-trained."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.mixture import Mixture
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.byte_likelihood import MAX_TEXTS, bits_per_byte, training_captions
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.evaluation.tasks.vqa_captioning import CanWrite
from polymodal.modalities import Image, Text


@runtime_checkable
class HasTextCorpus(Protocol):
    """Of a recipe: the corpus of its language model's pre-training on text; None for the run's own corpus."""

    def open_text_corpus(self) -> Corpus | None: ...


def text_scores(method: nn.Module, processor: Processor, corpus: Corpus, split: str) -> list[Score]:
    """Bits per byte of the first text of each example; chance: bytes as frequent as in the training split.

    Of a mixture, each part by itself.
    """
    scores = []
    for part in corpus.corpora if isinstance(corpus, Mixture) else (corpus,):
        _, examples = Reader(part, processor).read_split(split, MAX_TEXTS)
        texts = [example["text"][0].text for example in examples]
        name = f"{split}/text/{part.name}/bits_per_byte"
        training_texts = [captions[0].text for captions in training_captions(part)]
        scores.append(bits_per_byte(name, method, processor, texts, training_texts=training_texts))
    return scores


def _scores(inputs: TaskInputs) -> list[Score]:
    corpus = inputs.recipe.open_text_corpus() if isinstance(inputs.recipe, HasTextCorpus) else None
    return [] if corpus is None else text_scores(inputs.method, inputs.processor, corpus, "test")


task = Task(
    capability=CanWrite,
    requires=((Image, Text),),
    order=145,
    score=_scores,
    metrics={"bits_per_byte": MetricKind("bits per byte", higher_is_better=False)},
    headline=("text/*/bits_per_byte",),
    forward_methods=("log_likelihood",),
)
