"""Retrieval between texts and images, clips, sounds or point clouds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.embeddings import ItemVectors, PairedTest, first_captions, main_language
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
from polymodal.evaluation.retrieval import METRICS, RECALLS
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import ITEMS, WITH_TEXT, Task, TaskInputs
from polymodal.evaluation.zero_shot import class_vectors
from polymodal.modalities import Text
from polymodal.training.run import embed


def cross_modal_scores(inputs: TaskInputs) -> list[Score]:
    """Both directions on every test split; captions of other languages than the main one find items of `test`."""
    method, processor, corpus, item = inputs.method, inputs.processor, inputs.corpus, inputs.item
    assert item is not None
    items = {split: inputs.item_vectors(split) for split in inputs.test_splits}
    main, scores = main_language(corpus), []
    for split, vectors in items.items():
        test = PairedTest.of(method, processor, vectors, main)
        scores += test.text_to_item(f"{split}/text_to_{item}") + test.item_to_text(f"{split}/{item}_to_text")
        scores += test.zero_shot_concept(f"{split}/zero_shot/concept")
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


def plot(inputs: TaskInputs) -> Panels:
    """Captions with the items that are most similar; below, zero-shot classes where the corpus has prompts."""
    corpus, item = inputs.corpus, inputs.item
    assert item is not None
    rows, examples = inputs.test_examples(MAX_CANDIDATES)
    texts = first_captions(corpus, examples)
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
    having = np.flatnonzero(corpus.has(corpus.label)[rows])
    if not len(having):
        return panels
    some = having[np.linspace(0, len(having) - 1, min(TOP, len(having))).round().astype(int)]
    classes = _zero_shot_panels(inputs, corpus.label, rows[some], vectors[item][torch.from_numpy(some)])
    return replace(panels, rows=[*panels.rows, classes])


def _zero_shot_panels(
    inputs: TaskInputs, label: str, rows: np.ndarray, items: Float[Tensor, "items dim"]
) -> list[Panel]:
    names, vectors = class_vectors(inputs, label)
    panels = [text_panel(["zero-shot classification", ("above each: the predicted class", NOTE)])]
    for row, number in zip(rows.tolist(), (items @ vectors.T).argmax(1).tolist(), strict=True):
        truth = inputs.corpus.value(row, label)
        title = clipped(names[number], 20, 1)
        if number != truth:
            title += f"\n(label: {clipped(names[truth], 14, 1)})"
        panels.append(value_panel(inputs.corpus, row, inputs.item_column, title, number == truth))
    return panels


task = Task(
    capability=CanEmbed,
    requires=WITH_TEXT,
    order=10,
    score=cross_modal_scores,
    validate=validation_scores,
    plot=plot,
    metrics=METRICS | {"top-*": MetricKind()},
    headline=(
        *(f"text_to_{item}/{metric}" for item in ITEMS for metric in ("R@10", "R@1", "MRR")),
        *(f"{item}_to_text/R@10" for item in ITEMS),
        "test_twitter/text_to_image/R@10",
    ),
    forward_methods=("embed",),
    protocol=lambda inputs: {
        "k": list(RECALLS),
        "relevant": "any item or caption with the same text; ties count as ranked before",
        "captions_per_image": "all of the main language",
        "averaged_over": "items",
    },
    hint='search RUN "a red fruit"',
)
