"""Caption mixing: one caption an image and step, its format sampled by mixing ratios, c ~ Categorical(r).

The format of a caption is a private subtag of its language: `en-x-ssc` is a short synthetic caption in English. What
has none of them is AltText, whatever its language. Random numbers are streams of their own, so that all ratios have the
same numbers for everything else: with one format alone, training is bit for bit that on captions of this format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from polymodal.modalities.text import Caption
from polymodal.rng import ExampleRNG, splitmix64
from polymodal.types import Example

ALT_TEXT = "alt_text"
SUBTAGS = {"ssc": "ssc", "dsc": "dsc", "dsc_plus": "dscplus", "afc": "afc"}  # of BCP 47, at most 8 letters each
SYNTHETIC_FORMATS = tuple(SUBTAGS)
CAPTION_FORMATS = (ALT_TEXT, *SYNTHETIC_FORMATS)
_FORMAT_OF = {subtag: name for name, subtag in SUBTAGS.items()}
_STREAM = np.uint64(0xCA9710115)  # apart from an example's other random numbers


def format_tag(name: str, language: str = "en") -> str:
    """Return the language tag of captions of a format; that of AltText is the language itself."""
    return language if name == ALT_TEXT else f"{language}-x-{SUBTAGS[name]}"


def caption_format(language: str) -> str:
    """Return the format that a language tag says."""
    return _FORMAT_OF.get(language.lower().rpartition("-x-")[2], ALT_TEXT) if "-x-" in language.lower() else ALT_TEXT


def by_format(captions: Sequence[Caption]) -> dict[str, list[Caption]]:
    """Return the captions of each format that is there, in the order of `CAPTION_FORMATS`."""
    places = _places_by_format(tuple(caption.language for caption in captions))
    return {name: [captions[place] for place in some] for name, some in places.items()}


@lru_cache(maxsize=1024)
def _places_by_format(languages: tuple[str, ...]) -> dict[str, list[int]]:
    formats = [caption_format(language) for language in languages]
    grouped = {name: [place for place, other in enumerate(formats) if other == name] for name in CAPTION_FORMATS}
    return {name: places for name, places in grouped.items() if places}


def mixing_ratios(synthetic_ratio: float, synthetic_formats: Sequence[str]) -> dict[str, float]:
    """Return the probability of each format: the synthetic ones are equally frequent, AltText has the rest."""
    each = {name: synthetic_ratio / len(synthetic_formats) for name in synthetic_formats}
    return {name: ratio for name, ratio in {ALT_TEXT: 1 - synthetic_ratio, **each}.items() if ratio > 0}


def sample_format(formats: Sequence[str], ratios: Mapping[str, float], uniform: float) -> str:
    """Return the format that a number of [0, 1) chooses.

    Formats that an image lacks leave their probability to the others in proportion. formats: those of the image.
    """
    weights = np.array([ratios[name] for name in formats])
    place = int(np.searchsorted(np.cumsum(weights / weights.sum()), uniform, side="right"))
    return formats[min(place, len(formats) - 1)]  # a sum may round to less than 1


def sample_formats(
    examples: Sequence[Example], ratios: Mapping[str, float], example_rng: ExampleRNG, concatenate: bool = False
) -> list[Example]:
    """Keep of each example the captions of one format. Examples without text, or without these formats, stay.

    concatenate: in place of that, captions of AltText, each followed by one of a sampled synthetic format.
    """
    stream = ExampleRNG(splitmix64(example_rng.seeds ^ _STREAM))
    sampled = []
    for example, uniform in zip(examples, stream.uniform().tolist(), strict=True):
        if "text" in example:
            example = example | {"text": _of_one_format(example["text"], ratios, uniform, concatenate)}
        sampled.append(example)
    return sampled


def _of_one_format(
    captions: list[Caption], ratios: Mapping[str, float], uniform: float, concatenate: bool
) -> list[Caption]:
    grouped = {name: some for name, some in by_format(captions).items() if name in ratios}
    if not grouped:
        return captions
    if not concatenate or len(grouped) == 1 or ALT_TEXT not in grouped:
        return grouped[sample_format([*grouped], ratios, uniform)]
    synthetic = grouped[sample_format([name for name in grouped if name != ALT_TEXT], ratios, uniform)]
    alt_texts = grouped[ALT_TEXT]
    pairs = [
        (alt_texts[n % len(alt_texts)], synthetic[n % len(synthetic)])
        for n in range(max(len(alt_texts), len(synthetic)))
    ]
    return [Caption(f"{alt.text.rstrip(' .')}. {other.text}", alt.language) for alt, other in pairs]
