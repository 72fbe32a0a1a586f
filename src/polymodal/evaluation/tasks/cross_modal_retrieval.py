"""Retrieval between texts and images, clips, sounds or point clouds; zero-shot classification and a linear probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.classification import balanced_accuracy, linear_probe, prompt_ensemble, zero_shot
from polymodal.evaluation.embeddings import ItemVectors, PairedTest, main_language
from polymodal.evaluation.panels import (
    EXAMPLES,
    MAX_CANDIDATES,
    NOTE,
    TOP,
    Panel,
    Panels,
    clipped,
    retrieval_panels,
    text_panel,
    value_panel,
)
from polymodal.evaluation.retrieval import METRICS
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import ITEMS, WITH_TEXT, Task, TaskInputs
from polymodal.modalities import Category, Text
from polymodal.training.run import embed


def cross_modal_scores(inputs: TaskInputs) -> list[Score]:
    """Both directions on every test split; captions of other languages than the main one find items of `test`."""
    method, processor, reader, corpus, item = inputs.method, inputs.processor, inputs.reader, inputs.corpus, inputs.item
    assert item is not None
    items = {split: ItemVectors.of(method, processor, reader, split, item) for split in inputs.test_splits}
    main, scores = main_language(corpus), []
    for split, vectors in items.items():
        test = PairedTest.of(method, processor, vectors, main)
        scores += test.text_to_item(f"{split}/text_to_{item}") + test.item_to_text(f"{split}/{item}_to_text")
        scores += test.zero_shot_concept(f"{split}/zero_shot/concept")
    if corpus.label is not None:
        scores += _label_scores(inputs, corpus.label, item, items)
    for language in _other_languages(corpus, main):
        test = PairedTest.of(method, processor, items["test"], language)
        of_language = test.text_to_item(f"test/text_to_{item}_{language}")
        scores += [score for score in of_language if score.name.endswith("R@10")]
    return scores


def validation_scores(inputs: TaskInputs) -> list[Score]:
    """Retrieval of items by captions of the main language."""
    item = inputs.item
    assert item is not None
    items = ItemVectors.of(inputs.method, inputs.processor, inputs.reader, "validation", item)
    test = PairedTest.of(inputs.method, inputs.processor, items, main_language(inputs.corpus))
    return test.text_to_item(f"validation/text_to_{item}")


def _other_languages(corpus: Corpus, main: str | None) -> list[str]:
    text = corpus.columns[corpus.column_with(Text)]
    assert isinstance(text, Text)
    return [language for language in text.language_shares if language != main] if "test" in corpus.splits else []


def _label_scores(inputs: TaskInputs, label: str, item: str, items: Mapping[str, ItemVectors]) -> list[Score]:
    """Zero-shot by the corpus's prompts, and a linear probe, on every split in `items`."""
    corpus = inputs.corpus
    scores = []
    labels = {split: _labels(corpus, label, of_split) for split, of_split in items.items()}
    if corpus.prompts:
        _, classes = _class_vectors(inputs, label)
        for split, of_split in items.items():
            scores.append(zero_shot(f"{split}/zero_shot_{label}/accuracy", of_split.vectors, labels[split], classes))
    if {"train", "validation"} <= set(corpus.splits):
        train, tuning = (
            ItemVectors.of(inputs.method, inputs.processor, inputs.reader, part, item)
            for part in ("train", "validation")
        )
        probe = linear_probe(
            (train.vectors.numpy(), _labels(corpus, label, train)),
            (tuning.vectors.numpy(), _labels(corpus, label, tuning)),
        )
        for split, of_split in items.items():
            predicted = probe.predict(of_split.vectors.numpy())
            scores.append(balanced_accuracy(f"{split}/linear_probe_{label}/accuracy", predicted, labels[split]))
    return scores


def _labels(corpus: Corpus, label: str, items: ItemVectors) -> np.ndarray:
    return np.array([corpus.value(row, label) for row in items.rows])


def plot(inputs: TaskInputs) -> Panels:
    """Captions with the items that are most similar; below, zero-shot classes where the corpus has prompts."""
    corpus, item = inputs.corpus, inputs.item
    assert item is not None
    rows, examples = inputs.test_examples(MAX_CANDIDATES)
    text = corpus.columns[corpus.column_with(Text)]
    assert isinstance(text, Text)
    texts = [text.in_main_language(example["text"])[0].text for example in examples]
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int)
    items = [example[item] for example in examples]
    vectors = embed(inputs.method, inputs.processor, 256, **{item: items, "text": texts})
    panels = retrieval_panels(
        [text_panel([texts[number]], "query") for number in chosen],
        vectors["text"][torch.from_numpy(chosen)] @ vectors[item].T,
        [np.flatnonzero([other == texts[number] for other in texts]) for number in chosen],
        lambda number, title, right: value_panel(corpus, int(rows[number]), inputs.item_column, title, right),
        f"Retrieval among {len(rows)} test examples; green: relevant",
    )
    if corpus.label is None or not corpus.prompts:
        return panels
    some = np.linspace(0, len(rows) - 1, min(TOP, len(rows))).round().astype(int)
    classes = _zero_shot_panels(inputs, corpus.label, rows[some], vectors[item][torch.from_numpy(some)])
    return replace(panels, rows=[*panels.rows, classes])


def _zero_shot_panels(
    inputs: TaskInputs, label: str, rows: np.ndarray, items: Float[Tensor, "items dim"]
) -> list[Panel]:
    names, vectors = _class_vectors(inputs, label)
    panels = [text_panel(["zero-shot classification", ("above each: the predicted class", NOTE)])]
    for row, number in zip(rows.tolist(), (items @ vectors.T).argmax(1).tolist(), strict=True):
        truth = inputs.corpus.value(row, label)
        title = clipped(names[number], 20, 1)
        if number != truth:
            title += f"\n(label: {clipped(names[truth], 14, 1)})"
        panels.append(value_panel(inputs.corpus, row, inputs.item_column, title, number == truth))
    return panels


def _class_vectors(inputs: TaskInputs, label: str) -> tuple[tuple[str, ...], Float[Tensor, "classes dim"]]:
    """The classes of a label, and the ensemble of the vectors of each one's prompts."""
    modality = inputs.corpus.columns[label]
    assert isinstance(modality, Category)
    prompts = [list(inputs.corpus.prompts[name]) for name in modality.names]
    vectors = embed(inputs.method, inputs.processor, text=[text for texts in prompts for text in texts])["text"]
    return modality.names, prompt_ensemble(vectors.split([len(texts) for texts in prompts]))


task = Task(
    capability=CanEmbed,
    requires=WITH_TEXT,
    order=10,
    score=cross_modal_scores,
    validate=validation_scores,
    plot=plot,
    metrics=METRICS | {"top-*": MetricKind(), "accuracy": MetricKind()},
    headline=(
        *(f"text_to_{item}/{metric}" for item in ITEMS for metric in ("R@10", "R@1", "MRR")),
        *(f"{item}_to_text/R@10" for item in ITEMS),
        *("zero_shot_*/accuracy", "linear_probe_*/accuracy", "test_twitter/text_to_image/R@10"),
    ),
    forward_methods=("embed",),
    hint='search RUN "a red fruit"',
)
