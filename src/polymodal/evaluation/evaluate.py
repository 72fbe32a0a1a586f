"""Everything that can be asked of a run on a corpus: what the corpus has columns for and the method is capable of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import label_of
from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.evaluation.classification import balanced_accuracy, linear_probe, prompt_ensemble, zero_shot
from polymodal.evaluation.entity_extraction import field_scores
from polymodal.evaluation.grounding import grounding_scores
from polymodal.evaluation.image_generation import generation_scores
from polymodal.evaluation.image_text_matching import matching_scores
from polymodal.evaluation.missing_modalities import classification_scores, fill_scores
from polymodal.evaluation.recommendation import prototype_scores, recommendation_scores
from polymodal.evaluation.referring import referring_scores
from polymodal.evaluation.region_classification import region_scores
from polymodal.evaluation.retrieval import ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.token_likelihood import document_scores
from polymodal.evaluation.transcription import transcription_scores
from polymodal.evaluation.vqa_captioning import (
    caption_scores,
    object_hallucination_scores,
    question_scores,
    text_scores,
)
from polymodal.modalities import (
    Audio,
    Category,
    Expressions,
    History,
    Image,
    Images,
    Interleaved,
    Mask,
    Points,
    Questions,
    Regions,
    Table,
    Text,
    Video,
    Words,
)
from polymodal.training.feature_cache import with_features
from polymodal.training.run import Run, embed
from polymodal.types import (
    CanClassify,
    CanClassifyAnswers,
    CanClassifyRegions,
    CanClassifyTokens,
    CanDetect,
    CanEmbed,
    CanEncodePatches,
    CanGenerateImages,
    CanGenerateText,
    CanImputeTable,
    CanRecommend,
    CanScorePairs,
    CanScoreTokens,
    CanTranscribe,
    Example,
    HasFeatures,
    HasLikelihood,
    HasPrototypes,
    HasTextCorpus,
    Processor,
)

# What texts can be about, the first that there is.
ITEMS: dict[str, type] = {"points": Points, "video": Video, "image": Image, "sound": Audio}
QUERIES: dict[str, type] = {"table": Table, "sound": Audio}  # what items are found by, beside texts
PAIRED = (("table", "image"), ("sound", "video"))
MAX_VALIDATION_EXAMPLES = 2000  # of all examples, where there are more: a curve is looked at eight times a run
VALIDATION_EXAMPLES = 40  # that are asked about; writing takes longer than a step
VALIDATION_STEPS = (1, 8)  # of generation
VALIDATION_PAGES = 150  # a look at long pages takes longer than many steps


@dataclass(frozen=True)
class ItemVectors:
    """A split's readable examples with the vectors of what texts are about in them, such as their images."""

    rows: np.ndarray
    examples: list[Example]
    vectors: Float[Tensor, "items dim"]

    @classmethod
    def of(cls, method: nn.Module, processor: Processor, reader: Reader, split: str, item: str) -> ItemVectors:
        """item: `image`, or another name that the method knows such a column by."""
        rows, examples = reader.read_split(split)
        vectors = embed(method, processor, 256, **{item: [example[item] for example in examples]})[item]
        return cls(rows, examples, vectors)


@dataclass(frozen=True)
class PairedTest:
    """A split with its vectors: one an item, such as an image, and one a caption.

    owner: which item a caption belongs to.
    """

    rows: np.ndarray
    items: Float[Tensor, "items dim"]
    texts: list[str]
    text_vectors: Float[Tensor, "texts dim"]
    owner: np.ndarray

    @classmethod
    def of(cls, method: nn.Module, processor: Processor, items: ItemVectors, language: str | None) -> PairedTest:
        """language: only captions in it; None takes all. Raises UserError when there are none."""
        captions = [
            (number, caption.text)
            for number, example in enumerate(items.examples)
            for caption in example["text"]
            if language in (None, caption.language)
        ]
        if not captions:
            raise UserError(f"There is no caption in the language '{language}'.")
        owner, texts = np.array([number for number, _ in captions], dtype=np.int64), [text for _, text in captions]
        vectors = embed(method, processor, text=texts)["text"]
        return cls(items.rows, items.vectors, texts, vectors, owner)

    def text_to_item(self, name: str) -> list[Score]:
        """Queries are captions; right are all items that have this very caption."""
        having = defaultdict(list)
        for text, owner in zip(self.texts, self.owner, strict=True):
            having[text].append(owner)
        relevant = [np.unique(having[text]) for text in self.texts]
        found = ranks(self.text_vectors, self.items, relevant)
        return retrieval_scores(name, found, relevant, len(self.items), self.owner)

    def item_to_text(self, name: str) -> list[Score]:
        """Queries are items; right are all captions equal to one of their own."""
        places = defaultdict(list)
        own: dict[int, set[str]] = defaultdict(set)
        for place, (text, owner) in enumerate(zip(self.texts, self.owner, strict=True)):
            places[text].append(place)
            own[int(owner)].add(text)
        asking = np.array(sorted(own))
        relevant = [np.array(sorted(place for text in own[number] for place in places[text])) for number in asking]
        found = ranks(self.items[torch.from_numpy(asking)], self.text_vectors, relevant)
        return retrieval_scores(name, found, relevant, len(self.texts), asking)

    def zero_shot_concept(self, name: str) -> list[Score]:
        """Which concept of the split is it? A concept's class vector is the ensemble of its captions."""
        asking = np.unique(self.owner)
        classes = prompt_ensemble([self.text_vectors[torch.from_numpy(self.owner == number)] for number in asking])
        relevant = [np.array([place]) for place in range(len(asking))]
        found = ranks(self.items[torch.from_numpy(asking)], classes, relevant)
        return [Score(f"{name}/top-{k}", (found <= k).astype(float), k / len(asking)) for k in (1, 5)]


def main_language(corpus: Corpus) -> str | None:
    """The language that training draws most often; None when the corpus does not say."""
    text = corpus.columns[corpus.column_with(Text)]
    assert isinstance(text, Text)
    return text.main_language


def evaluate(run: Run, corpus: Corpus, reader: Reader | None = None) -> list[Score]:
    """All scores that this method can have on the test splits of this corpus.

    reader: one that has read the corpus already, to save decoding again.
    """
    reader = reader or Reader(corpus, run.processor)
    keep = run.record["runtime"]["cache_features"]
    with with_features(run.model, run.recipe.freeze) if keep else nullcontext():
        return _scores(run, corpus, reader)


def _scores(run: Run, corpus: Corpus, reader: Reader) -> list[Score]:
    model = run.model
    kinds = modalities_asked(corpus, run.processor)
    tests = [split for split in corpus.splits if split.startswith("test")]
    scores: list[Score] = []
    item = item_of(kinds)
    if isinstance(model, CanEmbed) and Text in kinds and item is not None:
        scores += _paired_scores(run, corpus, reader, item)
    if isinstance(model, CanScorePairs) and Text in kinds and item is not None:
        for split in tests:
            scores += matching_scores(model, run.processor, reader, split, item)
    if (
        isinstance(model, CanClassifyAnswers)
        and Questions in kinds
        and item is not None
        and has_names(run.processor, "answers")
    ):
        for split in tests:
            scores += question_scores(model, run.processor, reader, split, item=item)
    if isinstance(model, CanTranscribe) and {Audio, Text} <= kinds:
        for split in tests:
            scores += transcription_scores(model, run.processor, reader, split)
    if (
        isinstance(model, CanClassifyRegions)
        and Regions in kinds
        and item is not None
        and has_names(run.processor, "entities")
    ):
        for split in tests:
            scores += region_scores(model, run.processor, reader, split, item)
    if isinstance(model, CanEmbed) and {Points, Images} <= kinds:
        for split in tests:
            scores += view_to_points(model, run.processor, reader, split)
    if isinstance(model, CanEmbed):
        for query, shown in PAIRED:
            for split in tests if {QUERIES[query], ITEMS[shown]} <= kinds else ():
                scores += paired_items(model, run.processor, reader, split, query, shown)
    if isinstance(model, CanEncodePatches) and {Image, Mask} <= kinds:
        for split in tests:
            scores += grounding_scores(run, corpus, reader, split)
    if isinstance(model, CanClassify | HasFeatures) and corpus.label is not None:
        scores += classification_scores(run, corpus, reader)
    if isinstance(model, CanImputeTable) and Table in kinds:
        for split in tests:
            scores += fill_scores(run, reader, split)
    if isinstance(model, CanClassifyTokens) and Words in kinds:
        for split in tests:
            scores += field_scores(model, run.processor, reader, split)
    if isinstance(model, CanScoreTokens) and _has_documents(kinds):
        for split in tests:
            scores += document_scores(model, run.processor, reader, split)
    if isinstance(model, CanDetect) and Expressions in kinds:
        for split in tests:
            scores += referring_scores(model, run.processor, reader, split)
    if isinstance(model, CanGenerateText) and isinstance(model, HasLikelihood) and {Image, Text} <= kinds:
        for split in tests:
            scores += written_scores(model, run.processor, reader, split)
            if Regions in kinds:
                scores += object_hallucination_scores(model, run.processor, reader, split)
        if isinstance(run.recipe, HasTextCorpus) and (language := run.recipe.open_text_corpus()) is not None:
            scores += text_scores(model, run.processor, language, "test")
    if isinstance(model, CanRecommend) and History in kinds:
        for split in tests:
            scores += recommendation_scores(model, run.processor, reader, split)
    if isinstance(model, CanGenerateImages) and _has_labelled_images(kinds, corpus, run.processor):
        for split in tests:
            scores += generation_scores(model, run.processor, reader, split)
    if isinstance(model, HasPrototypes):
        scores += prototype_scores(model, run.processor)
    return scores


def modalities_asked(corpus: Corpus, processor: Any) -> set[type]:
    """The modalities that the corpus has and the method takes."""
    taken = ITEMS | {"views": Images, "text": Text, "table": Table, "words": Words, "history": History}
    columns = getattr(processor, "columns", taken)
    left_out = {kind for name, kind in taken.items() if name not in columns}
    return {type(modality) for modality in corpus.columns.values()} - left_out


def item_of(kinds: set[type]) -> str | None:
    """What texts are about and are compared with, by the name that methods know it by; None where there is nothing."""
    return next((name for name, kind in ITEMS.items() if kind in kinds), None)


def has_names(processor: Any, what: str) -> bool:
    """Whether a run has learned names of something, such as of `answers` or `entities`."""
    return len(getattr(processor, what, ())) > 0


def _has_documents(kinds: set[type]) -> bool:
    """Whether there are documents of text and images, or what some can be made of."""
    return {Image, Text} <= kinds or Interleaved in kinds


def _has_labelled_images(kinds: set[type], corpus: Corpus, processor: Processor) -> bool:
    """Whether images have a label that the method takes, so that a classifier can look at generated ones."""
    return Image in kinds and corpus.label is not None and label_of(processor) is not None


def written_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, most: int | None = None
) -> list[Score]:
    """Captions, and questions where the corpus has them. most: examples that are asked about."""
    asks = reader.corpus.has_modality(Questions)
    asked = question_scores(method, processor, reader, split, most) if asks else []
    return asked + caption_scores(method, processor, reader, split)


def paired_items(
    method: nn.Module, processor: Processor, reader: Reader, split: str, query: str, item: str
) -> list[Score]:
    """Retrieval of each example's item by its query, such as its image by its table row.

    Right are the items of all examples with the very same query, such as the same sound.
    """
    rows, examples = reader.read_split(split)
    vectors = embed(method, processor, 256, **{name: [example[name] for example in examples] for name in (query, item)})
    having: dict[Any, list[int]] = defaultdict(list)
    queries = [e[query].tobytes() if isinstance(e[query], np.ndarray) else n for n, e in enumerate(examples)]
    for place, value in enumerate(queries):
        having[value].append(place)
    relevant = [np.array(having[value]) for value in queries]
    found = ranks(vectors[query], vectors[item], relevant)
    return retrieval_scores(f"{split}/{query}_to_{item}", found, relevant, len(rows), np.arange(len(rows)))


def view_to_points(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Retrieval of the cloud that each single image shows. The unit is a thing with all of its images."""
    _, examples = reader.read_split(split)
    views = [view for example in examples for view in example["views"]]
    owner = np.repeat(np.arange(len(examples)), [len(example["views"]) for example in examples])
    vectors = embed(method, processor, image=views, points=[example["points"] for example in examples])
    relevant = list(owner[:, None])
    found = ranks(vectors["image"], vectors["points"], relevant)
    return retrieval_scores(f"{split}/image_to_points", found, relevant, len(examples), owner)


def _paired_scores(run: Run, corpus: Corpus, reader: Reader, item: str) -> list[Score]:
    splits = [split for split in corpus.splits if split.startswith("test")]
    items = {split: ItemVectors.of(run.model, run.processor, reader, split, item) for split in splits}
    main, scores = main_language(corpus), []
    for split in splits:
        test = PairedTest.of(run.model, run.processor, items[split], main)
        scores += test.text_to_item(f"{split}/text_to_{item}") + test.item_to_text(f"{split}/{item}_to_text")
        scores += test.zero_shot_concept(f"{split}/zero_shot/concept")
    if corpus.label is not None:
        scores += _label_scores(run, corpus, reader, corpus.label, item, items)
    for language in _other_languages(corpus, main):
        test = PairedTest.of(run.model, run.processor, items["test"], language)
        found = test.text_to_item(f"test/text_to_{item}_{language}")
        scores += [score for score in found if score.name.endswith("R@10")]
    return scores


def _other_languages(corpus: Corpus, main: str | None) -> list[str]:
    text = corpus.columns[corpus.column_with(Text)]
    assert isinstance(text, Text)
    return [language for language in text.language_shares if language != main] if "test" in corpus.splits else []


def _label_scores(
    run: Run, corpus: Corpus, reader: Reader, label: str, item: str, items: Mapping[str, ItemVectors]
) -> list[Score]:
    """Zero-shot by the corpus's prompts, and a linear probe, on every split in `items`."""
    modality = corpus.columns[label]
    assert isinstance(modality, Category)
    scores = []
    labels = {split: _labels(corpus, label, found) for split, found in items.items()}
    if corpus.prompts:
        prompts = [list(corpus.prompts[name]) for name in modality.names]
        vectors = embed(run.model, run.processor, text=[text for texts in prompts for text in texts])["text"]
        classes = prompt_ensemble(vectors.split([len(texts) for texts in prompts]))
        for split, found in items.items():
            scores.append(zero_shot(f"{split}/zero_shot_{label}/accuracy", found.vectors, labels[split], classes))
    if {"train", "validation"} <= set(corpus.splits):
        train, tuning = (
            ItemVectors.of(run.model, run.processor, reader, part, item) for part in ("train", "validation")
        )
        probe = linear_probe(
            (train.vectors.numpy(), _labels(corpus, label, train)),
            (tuning.vectors.numpy(), _labels(corpus, label, tuning)),
        )
        for split, found in items.items():
            predicted = probe.predict(found.vectors.numpy())
            scores.append(balanced_accuracy(f"{split}/linear_probe_{label}/accuracy", predicted, labels[split]))
    return scores


def _labels(corpus: Corpus, label: str, items: ItemVectors) -> np.ndarray:
    return np.array([corpus.value(row, label) for row in items.rows])


def validation(corpus: Corpus) -> Any:
    """What `train` calls now and then: a few figures of the validation split; None without one.

    Of a large split, `MOST_VALIDATED` examples are looked at, the same each time.
    """
    if not len(corpus.splits.get("validation", ())):
        return None
    corpus = corpus.with_splits({**corpus.splits, "validation": corpus.sample("validation", MAX_VALIDATION_EXAMPLES)})
    readers: dict[int, Reader] = {}

    def metrics(method: nn.Module, processor: Processor) -> Mapping[str, float]:
        kinds = modalities_asked(corpus, processor)
        reader = readers.setdefault(id(processor), Reader(corpus, processor))
        if isinstance(method, CanRecommend) and History in kinds:
            return _metrics(recommendation_scores(method, processor, reader, "validation"))
        if isinstance(method, CanClassifyTokens) and Words in kinds:
            return _metrics(field_scores(method, processor, reader, "validation", VALIDATION_PAGES))
        if isinstance(method, CanScoreTokens) and _has_documents(kinds):
            return _metrics(document_scores(method, processor, reader, "validation"))
        if isinstance(method, CanDetect) and Expressions in kinds:
            return _metrics(referring_scores(method, processor, reader, "validation"))
        if isinstance(method, CanGenerateText) and {Image, Text} <= kinds:
            return _metrics(written_scores(method, processor, reader, "validation", VALIDATION_EXAMPLES))
        if isinstance(method, CanGenerateImages) and _has_labelled_images(kinds, corpus, processor):
            return _metrics(generation_scores(method, processor, reader, "validation", VALIDATION_STEPS))
        if not isinstance(method, CanEmbed):
            return {}
        if Text not in kinds:
            pairs = paired_items(method, processor, reader, "validation", "table", "image") if Table in kinds else []
            return _metrics(pairs)
        if (item := item_of(kinds)) is None:
            return {}
        items = ItemVectors.of(method, processor, reader, "validation", item)
        test = PairedTest.of(method, processor, items, main_language(corpus))
        return _metrics(test.text_to_item(f"validation/text_to_{item}"))

    return metrics


def _metrics(scores: list[Score]) -> dict[str, float]:
    return {score.name: score.value for score in scores}
