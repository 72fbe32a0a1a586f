"""Code-switching: words of a text are replaced by translations of a dictionary, which is read, or learned from rows.

Multimodal code-switched training (Ni et al. 2021, section 3.3, M3P): words of captions in one language are replaced
before tokenization, so that words of all languages of the dictionary are seen with images. A dictionary maps a word,
in lower case, to its translations by language.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from polymodal.errors import UserError, missing
from polymodal.modalities.text import Caption

Dictionary = Mapping[str, Mapping[str, Sequence[str]]]
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")  # letters, with apostrophes and hyphens inside
PUNCTUATION = " \t\"'“”„«».:!?()[]"  # around a word of a text in any language
PIECES = re.compile(r"[\s,،、;；|/]+")  # between words; a name without spaces (Chinese, Japanese, Thai) is one word
MUSE_NAME = re.compile(r"([a-z]{2,3})-([a-z]{2,3}(?:_[a-z]+)?)\.")  # en-de.txt, en-de.0-5000.txt
ITERATIONS = 8  # of expectation maximization


def code_switch(
    text: str, dictionary: Dictionary, sent_ratio: float, word_ratio: float, rng: np.random.Generator
) -> str:
    """Replace words of the dictionary by translations, word by word (`clag` of the released code).

    sent_ratio: probability that the text is switched at all. word_ratio: probability of each word then; its language
    and its translation are sampled uniformly, so that one text mixes languages.
    """
    if rng.random() >= sent_ratio:
        return text

    def switched(match: re.Match[str]) -> str:
        translations = dictionary.get(match[0].casefold())
        if not translations or rng.random() >= word_ratio:
            return match[0]
        return sample_translation(translations, rng)

    return WORD.sub(switched, text)


def code_switch_word(text: str, dictionary: Dictionary, sent_ratio: float, rng: np.random.Generator) -> str:
    """Replace one word, a random one of those in the dictionary (`dclag` of the released code, its pre-training).

    sent_ratio: probability that a word is replaced.
    """
    if rng.random() >= sent_ratio:
        return text
    matches = [match for match in WORD.finditer(text) if dictionary.get(match[0].casefold())]
    if not matches:
        return text
    match = matches[int(rng.integers(len(matches)))]
    translation = sample_translation(dictionary[match[0].casefold()], rng)
    return text[: match.start()] + translation + text[match.end() :]


def sample_translation(translations: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    """Sample a language, then one of its translations, both uniformly."""
    languages = list(translations)
    words = translations[languages[int(rng.integers(len(languages)))]]
    return words[int(rng.integers(len(words)))]


def learn_dictionary(
    rows: Iterable[Sequence[Caption]], source: str, min_probability: float = 0.3, max_translations: int = 3
) -> dict[str, dict[str, list[str]]]:
    """Learn translations of words from rows with captions in several languages, such as names of the same thing.

    IBM Model 1 (Brown et al. 1993) over the sets of words of each row, in both directions. A pair of words is a
    translation where each has at least `min_probability` given the other. Only the rows given are read: without those
    of test splits, none of their words gets in.

    source: the language (BCP 47 code) that is translated. max_translations: of a word in a language, the best ones.
    """
    aligned: dict[str, list[tuple[list[str], list[str]]]] = defaultdict(list)
    surface: dict[str, Counter[str]] = defaultdict(Counter)  # how a word is written most often
    for captions in rows:
        by_language: dict[str, list[str]] = defaultdict(list)
        for caption in captions:
            by_language[caption.language] += _words(caption.text, caption.language == source)
        words = [word.casefold() for word in dict.fromkeys(by_language.pop(source, []))]
        for language, others in by_language.items():
            for other in others:
                surface[other.casefold()][other] += 1
            if words and others:
                aligned[language].append((words, [other.casefold() for other in others]))
    dictionary: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for language, pairs in sorted(aligned.items()):
        for word, translations in _translations(pairs, min_probability, max_translations).items():
            written = [surface[one].most_common(1)[0][0] for one in translations]
            dictionary[word][language] = written
    return dict(sorted(dictionary.items()))


def read_dictionary(path: Path, source: str) -> dict[str, dict[str, list[str]]]:
    """Read a dictionary: files as MUSE has them (Lample et al. 2018), or a table of three columns.

    MUSE: `en-de.txt` with lines of a word and its translation. Three columns, separated by tabs, in a file of any name:
    word, language, translation. source: files of other source languages are left out. Raises UserError for what is no
    dictionary, and for one without a word.
    """
    if not path.exists():
        raise missing("dictionary", path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".txt", ".tsv")) if path.is_dir() else [path]
    dictionary: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for file in files:
        name = MUSE_NAME.match(file.name.lower())
        if name and name[1] != source:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if not line.strip():
                continue
            word, language, translation = _entry(line, name[2] if name else "", f"{file}, line {number}")
            translations = dictionary[word.casefold()].setdefault(language, [])
            if translation not in translations:
                translations.append(translation)
    if not dictionary:
        raise UserError(
            f"{path} has no translation of a word in '{source}'; give a file such as {source}-de.txt with a word and "
            "its translation in each line, or lines of word, language and translation with tabs between them."
        )
    return dict(dictionary)


def _entry(line: str, language: str, place: str) -> tuple[str, str, str]:
    """The word, the language and the translation of a line. language: of a file in MUSE's form, else empty."""
    parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split(None, 1))]
    if language and len(parts) == 2:
        parts.insert(1, language)
    if len(parts) != 3 or not all(parts):
        raise UserError(
            f"{place} is no entry of a dictionary: files named as en-de.txt have a word and its translation in each "
            "line, and others word, language and translation with tabs between them."
        )
    return parts[0], parts[1], parts[2]


def _words(text: str, is_source: bool) -> list[str]:
    """The words of a text; of the source language those that are looked up."""
    if is_source:
        return [word.casefold() for word in WORD.findall(text)]
    stripped = (piece.strip(PUNCTUATION) for piece in PIECES.split(text))
    return [word for word in stripped if any(character.isalpha() for character in word)]


def _translations(
    pairs: Sequence[tuple[list[str], list[str]]], min_probability: float, max_translations: int
) -> dict[str, list[str]]:
    """The translations of each word, best first. pairs: the words of each row in both languages."""
    numbers: tuple[dict[str, int], dict[str, int]] = {}, {}
    columns = []  # row, word, other word
    for row, sides in enumerate(pairs):
        first, second = (
            np.array([number.setdefault(word, len(number)) for word in dict.fromkeys(words)])
            for number, words in zip(numbers, sides, strict=True)
        )
        product = np.repeat(first, len(second)), np.tile(second, len(first))
        columns.append(np.stack([np.full(len(product[0]), row), *product]))
    row, word, other = np.concatenate(columns, axis=1)
    entries, entry = np.unique(word * len(numbers[1]) + other, return_inverse=True)
    given_word = _model_1(row, word, other, entry)
    score = np.minimum(given_word, _model_1(row, other, word, entry))
    names = [list(number) for number in numbers]
    best: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for place in np.flatnonzero(score >= min_probability).tolist():
        of_word, of_other = divmod(int(entries[place]), len(numbers[1]))
        best[names[0][of_word]].append((-float(score[place]), names[1][of_other]))
    return {one: [name for _, name in sorted(scored)[:max_translations]] for one, scored in best.items()}


def _model_1(
    row: Int[np.ndarray, " pairs"],
    source: Int[np.ndarray, " pairs"],
    target: Int[np.ndarray, " pairs"],
    entry: Int[np.ndarray, " pairs"],
) -> Float[np.ndarray, " entries"]:
    """IBM Model 1: t(target | source) of each entry, the number of a pair of words."""
    _, generated = np.unique(row * (int(target.max()) + 1) + target, return_inverse=True)  # a target word of a row
    count = int(entry.max()) + 1
    of_entry = np.zeros(count, dtype=np.int64)
    of_entry[entry] = source
    probability = np.ones(count)
    for _ in range(ITERATIONS):
        weight = probability[entry]
        # E step: which source word of the row generated it; M step: normalize over all that a source word generated.
        expected = np.bincount(entry, weight / np.bincount(generated, weight)[generated], count)
        probability = expected / np.bincount(of_entry, expected)[of_entry]
    return probability
