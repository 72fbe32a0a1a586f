"""The claims of `hybrid_captions`, for `polymodal reproduce hybrid_captions`: AltText and synthetic captions against
AltText alone, against synthetic captions alone (`--claim synthetic`), and the formats for a language model that sees
(`--claim formats`).

Images are composed scenes, whose captions in all formats are written by templates: synthetic captions see attributes,
places and relations, and name every other concept, with attributes that are wrong now and then; AltText names objects of
all concepts among clutter, and three of ten AltTexts are of another image. Queries are captions as people write them,
with names and attributes, names alone (`test_names`), and long ones with places (`test_long`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.claim import Claim
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.registry import load_corpus
from polymodal.corpora.saved import save_corpus
from polymodal.curation.template_captioner import (
    SceneFacts,
    TemplateCaptioner,
    noisy_alt_text,
    scene_facts,
    with_article,
)
from polymodal.data.caption_mixing import SYNTHETIC_FORMATS, format_tag, mixing_ratios, sample_formats
from polymodal.data.processor import Processor
from polymodal.data.sequence import SequenceBatch
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities import Image, Questions, Text
from polymodal.modalities.text import stored_texts
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.dual_encoders.hybrid_captions import Recipe
from polymodal.recipes.generation import inductive_moment_matching
from polymodal.recipes.language_models import mono_internvl
from polymodal.rng import ExampleRNG
from polymodal.training.run import Run
from polymodal.types import Budget, Example

CLASSES = {
    "Animals & Nature": "creature",
    "Food & Drink": "food",
    "Objects": "object",
    "Travel & Places": "place",
    "Activities": "activity",
}
HALLUCINATION_RATE, IRRELEVANT = 0.3, 0.3


def captioner(corpus: Corpus, seed: int) -> TemplateCaptioner:
    """Return a captioner that recognizes every other concept of the scenes."""
    emoji = load_corpus("emoji").table
    columns = (emoji.column(name).to_pylist() for name in ("concept", "category"))
    classes = {concept: CLASSES.get(category, "object") for concept, category in zip(*columns, strict=True)}
    names = sorted({one.name for row in corpus.rows("train").tolist() for one in scene_facts(corpus, row).objects})
    return TemplateCaptioner(classes, frozenset(names[::2]), HALLUCINATION_RATE, seed)


def human_caption(facts: SceneFacts, places: bool = False) -> str:
    """Return a query as people describe images: attributes and names of all objects."""
    phrases = [with_article(f"{one.size} {one.color} {one.name}") for one in facts.objects]
    where = [f" at the {one.place}" if places else "" for one in facts.objects]
    return " and ".join(f"{phrase}{place}" for phrase, place in zip(phrases, where, strict=True))


def hybrid_scenes(run: Run | None, corpus: Corpus, folder: Path, seed: int) -> Corpus:
    """Write scenes with captions in all formats for training, and test images with three kinds of queries."""
    writer, rng = captioner(corpus, seed), np.random.default_rng(seed)
    training = corpus.rows("train").tolist()

    def record(row: int, split: str, texts: list[dict[str, str]]) -> dict[str, Any]:
        values = {name: corpus.raw(row, name) for name in ("image", "questions")}
        return values | {"key": f"{split}: {corpus.key(row)}", "split": split, "text": texts}

    def rows() -> Iterator[dict[str, Any]]:
        for row in training:
            facts, others = (scene_facts(corpus, one) for one in (row, int(rng.choice(training))))
            names, other_names = ([one.name for one in some.objects] for some in (facts, others))
            alt_text = noisy_alt_text(names, other_names, IRRELEVANT, rng)
            texts = stored_texts(alt_text)
            for form in SYNTHETIC_FORMATS:
                written = writer.write(corpus.key(row), facts, form, alt_text)
                texts += stored_texts(written.text, language=format_tag(form))
            yield record(row, "train", texts)
        for split in ("validation", "test"):
            for row in corpus.rows(split).tolist():
                facts = scene_facts(corpus, row)
                yield record(row, split, stored_texts(human_caption(facts)))
                if split == "test":
                    names = " ".join(one.name for one in facts.objects)
                    yield record(row, "test_names", stored_texts(names))
                    yield record(row, "test_long", stored_texts(human_caption(facts, places=True)))

    columns: dict[str, Any] = {"image": Image(), "text": Text(), "questions": Questions()}
    about = dataclasses.replace(corpus.about, name="hybrid_scenes", description="scenes with captions in all formats")
    return save_corpus(folder, about, columns, rows())


_start = dataclasses.replace(clip.Recipe.tiny(), batch_size=4)  # the corpus is made after it; no arm begins with it
_mixed = Recipe(
    image=ImageEncoderConfig(96, stem=(24, 48, 96), width=96, depth=0, pool_type="max"),
    text=TextEncoderConfig(width=96),
    embed_dim=96,
    word_dropout=0.0,
)
_further = {
    "SSC alone": dataclasses.replace(_mixed, synthetic_ratio=1.0),
    "SSC 0.25": dataclasses.replace(_mixed, synthetic_ratio=0.25),
    "SSC 0.75": dataclasses.replace(_mixed, synthetic_ratio=0.75),
    "DSC 0.5": dataclasses.replace(_mixed, synthetic_formats=("dsc",)),
    "DSC alone": dataclasses.replace(_mixed, synthetic_formats=("dsc",), synthetic_ratio=1.0),
    "AFC alone": dataclasses.replace(_mixed, synthetic_formats=("afc",), synthetic_ratio=1.0),
    "SSC, concatenated": dataclasses.replace(_mixed, combination="concatenate"),
}
claim = Claim(
    sentence="x",
    baseline=dataclasses.replace(_mixed, synthetic_ratio=0.0),
    treatment=_mixed,
    further=_further,
    start=_start,
    start_budget=Budget(steps=1),
    start_makes=hybrid_scenes,
    start_weights=False,
    corpus="scenes",
    budget=Budget(steps=200),
    seeds=5,
    metrics=("test/text_to_image/R@10",),
)
