"""VESL: boxes with phrases for images with captions, by an open-vocabulary detector (CLOC, section 4).

Captions, best long ones that a model wrote (`curation.captions`), give noun phrases; the detector is asked for all of
them, and every box that it is confident of keeps its most confident phrase. The result is a corpus that `cloc` trains
on:

    write_regions(corpus, "with_regions", OWLv2Detector("google/owlv2-large-patch14-ensemble"))
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from PIL import Image as PILImage

from polymodal.corpora._wordnet import WordNet, wordnet
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import write_with_column
from polymodal.errors import UnreadableExample, UserError, needs, one_line
from polymodal.modalities import Image, Regions, Text
from polymodal.modalities.image import to_rgb

PartOfSpeech = Literal["determiner", "adjective", "noun", "other"]
Tagger = Callable[[str], PartOfSpeech]
MAX_PHRASES = 20
CONFIDENCE = 0.1
_DETERMINERS = "a an the this that these those some any each every all both another my your his her its our their"
# Closed classes, of which WordNet has some as nouns or adjectives ("a", "i", "while", "through").
_OTHERS = (
    "and or but nor so if of in on at by to from with without for over under near behind between into onto up down off "
    "out as than then there here is are was were be been being am has have had do does did can could will would may "
    "might must shall should not no i you he she it we they me him us them who whom what which when where why how very "
    "too also just only one while through about after again against above below before during until because since "
    "along across around"
)
# Generic words of web pages, which name nothing that an image shows.
_WEB_WORDS = (
    "image images photo photos photograph picture pictures view stock vector wallpaper background illustration click "
    "here free download clipart png jpg jpeg gif hd www http https com website page print buy sale price shop "
    "copyright"
)

DETERMINERS, OTHERS, WEB_WORDS = (frozenset(words.split(" ")) for words in (_DETERMINERS, _OTHERS, _WEB_WORDS))


class Detection(NamedTuple):
    """A box (left, top, right, bottom in pixels) with the number of its phrase and a confidence from 0 to 1."""

    phrase: int
    box: tuple[float, float, float, float]
    confidence: float


class Detector(Protocol):
    """An open-vocabulary detector."""

    def __call__(self, image: PILImage.Image, phrases: Sequence[str]) -> list[Detection]: ...


def lexical_tagger() -> Tagger:
    """Return a tagger of single English words by WordNet: their most frequent part of speech (11 MB, once).

    Forms of verbs that are counted as verbs more often ("holding", "plays") are no nouns.
    """
    lexicon = wordnet("VESL")

    def tag(word: str) -> PartOfSpeech:
        if word in DETERMINERS:
            return "determiner"
        if word in OTHERS:
            return "other"
        noun = lexicon.noun(word) if len(word) > 1 else None
        is_noun = noun is not None and lexicon.is_mostly_noun(word) and lexicon.is_mostly_noun(noun)
        if is_noun and not _is_participle(word, lexicon):
            return "noun"
        return "adjective" if word in lexicon.adjectives else "other"

    return tag


def _is_participle(word: str, lexicon: WordNet) -> bool:
    """Return whether a word in -ing is the form of a verb: "holding", and not "building", a noun as often."""
    if not word.endswith("ing"):
        return False
    stem = word.removesuffix("ing")
    verbs = {stem, f"{stem}e", stem[:-1] if stem[-2:-1] == stem[-1:] else stem}  # "wearing", "riding", "sitting"
    threshold = max(5 * lexicon.uses.get((word, "n"), 0), 1)
    counts = [(lexicon.uses.get((verb, "v"), 0), lexicon.uses.get((verb, "n"), 0)) for verb in verbs]
    return any(as_verb >= threshold and as_verb > as_noun for as_verb, as_noun in counts)


def noun_phrases(caption: str, tag: Tagger, max_phrases: int = MAX_PHRASES) -> list[str]:
    """Return the different noun phrases of a caption: an optional determiner, adjectives, then nouns.

    In lower case, without generic words of web pages, and without determiners, so that equal things have equal phrases.
    Words stay as written, and nouns of any kind count: a detector decides what an image shows. Metrics need physical
    objects in the singular (`evaluation.object_parser`).
    """
    phrases: dict[str, None] = {}
    # Punctuation ends a phrase.
    for clause in re.split(r"[^\w\s'-]+", caption.lower()):
        words = [word for word in re.findall(r"[^\W\d_][\w'-]*", clause) if word not in WEB_WORDS]
        # One letter a word, so that a phrase is a match of a regular expression over the tags.
        tags = "".join(tag(word)[0] for word in words)
        for match in re.finditer(r"d?(a*n+)", tags):
            phrases.setdefault(" ".join(words[match.start(1) : match.end(1)]))
    return list(phrases)[:max_phrases]


def detect_regions(
    image: PILImage.Image, phrases: Sequence[str], detector: Detector, confidence: float = CONFIDENCE
) -> list[dict[str, Any]]:
    """Return regions as `Regions` stores them: confident boxes, each with the most confident of its phrases."""
    best: dict[tuple[int, ...], Detection] = {}
    for detection in detector(image, phrases) if phrases else ():
        left, top, right, bottom = (round(edge) for edge in detection.box)
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if detection.confidence <= confidence or box[0] >= box[2] or box[1] >= box[3]:
            continue
        if box not in best or detection.confidence > best[box].confidence:
            best[box] = detection
    return [{"name": phrases[detection.phrase], "box": list(box)} for box, detection in best.items()]


def write_regions(
    corpus: Corpus,
    folder: Path | str,
    detector: Detector,
    tag: Tagger | None = None,
    max_phrases: int = MAX_PHRASES,
    confidence: float = CONFIDENCE,
) -> Corpus:
    """Write a corpus with a column `regions`: phrases of captions that were detected in training images.

    Training images without any stay, with no regions, and so do all other splits. Raises UserError for a corpus without
    images or captions, for a folder that is not empty, and where nothing was detected.
    """
    image_column, text_column = corpus.column_with(Image), corpus.column_with(Text)
    tag = tag or lexical_tagger()

    def training() -> Iterator[tuple[int, list[dict[str, Any]]]]:
        count = 0
        for row in corpus.rows("train").tolist():
            try:
                image = to_rgb(corpus.value(row, image_column))
                captions = corpus.value(row, text_column)
            except UnreadableExample:
                continue
            phrases = noun_phrases(". ".join(caption.text for caption in captions), tag, max_phrases)
            regions = detect_regions(image, phrases, detector, confidence)
            count += bool(regions)
            yield row, regions
        if not count:
            raise UserError(
                f"No phrase of a caption was detected in the training images of '{corpus.name}'; lower the confidence."
            )

    about = dataclasses.replace(
        corpus.about,
        name=f"{corpus.name}-regions",
        description=f"{corpus.about.description}; with boxes that a detector found",
        composed="; ".join(text for text in (corpus.about.composed, "boxes are a detector's own") if text),
    )
    return write_with_column(corpus, folder, about, "regions", Regions(), training())


class OWLv2Detector:
    """OWLv2 (Minderer et al. 2023) through transformers; the paper has L/14 with images of 448 px.

    An image is padded below and on the right to a square, and boxes are brought back to its pixels.
    """

    def __init__(self, name: str, device: str = "cpu"):
        """name: of a model on the Hugging Face Hub, or a folder. Raises UserError when it cannot be loaded."""
        try:
            from transformers import Owlv2ForObjectDetection, Owlv2Processor

            self.processor = Owlv2Processor.from_pretrained(name, trust_remote_code=False)
            model = Owlv2ForObjectDetection.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
        except ImportError as error:
            raise needs("transformers", "hub", "OWLv2") from error
        except (OSError, ValueError) as error:
            raise UserError(f"'{name}' is no OWLv2 that can be loaded ({one_line(error)}).") from error
        self.model, self.device = model.eval().to(device), device

    def __call__(self, image: PILImage.Image, phrases: Sequence[str]) -> list[Detection]:
        """Return the most confident phrase of each of the model's boxes."""
        import torch

        # The text tower has 16 positions; a run of nouns may be longer.
        inputs = self.processor(text=[list(phrases)], images=[image], truncation=True, return_tensors="pt")
        inputs = inputs.to(self.device)
        with torch.no_grad():
            outputs = self.model(**inputs)
        confidence, phrase = outputs.logits[0].sigmoid().max(-1)
        middle, size = outputs.pred_boxes[0].split(2, dim=-1)
        corners = torch.cat([middle - size / 2, middle + size / 2], dim=-1) * max(image.size)
        each = zip(phrase.tolist(), corners.tolist(), confidence.tolist(), strict=True)
        return [Detection(number, (box[0], box[1], box[2], box[3]), sure) for number, box, sure in each]
