"""Speech: synthetic voices that read names, glosses, captions and manuals in 17 languages, and recordings of people.

espeak-ng, which has to be installed, reads the names of emoji, WordNet's glosses, captions of stamps and sentences of
the manuals; voice, speed and pitch are drawn for each. `train`, `validation` and `test` hold this synthetic speech, the
test by voices of its own. The real test are the captions that people recorded for Tux Paint, `test_recorded`;
recordings of captions that stand in training are `train_recorded`. Splits follow those of the texts: concepts of the
emoji, stamps, pages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polymodal.corpora._packages import DebianPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.corpora.manuals import manuals
from polymodal.corpora.stamps import stamps
from polymodal.errors import UserError
from polymodal.modalities import Audio, Category, Modality, Table, Text
from polymodal.modalities.audio import encoded, resampled
from polymodal.modalities.text import stored_texts

WORDNET = DebianPackage(
    "wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752", 6_467_132
)
# BCP 47 -> espeak-ng's voice; those that read the language's own script well
VOICES = {
    "en": "en-us",
    "de": "de",
    "fr": "fr-fr",
    "es": "es",
    "pt": "pt",
    "ru": "ru",
    "el": "el",
    "tr": "tr",
    "sw": "sw",
    "hi": "hi",
    "vi": "vi",
    "ca": "ca",
    "ro": "ro",
    "bg": "bg",
    "da": "da",
    "be": "be",
    "nl": "nl",
}
VARIANTS = ("", "+m1", "+m3", "+m5", "+f1", "+f2", "+f3")
TEST_VARIANTS = ("+m7", "+f4")  # voices that no other split has
NAMES, CAPTIONS, GLOSSES, SENTENCES = 1500, 250, 1500, 250  # texts of a language; glosses are English
SOURCES = ("name", "caption", "gloss", "manual", "recorded")
RATE = 16_000  # samples a second

about = About(
    name="speech",
    description="synthetic speech in 17 languages, and 7,000 captions recorded by people in 12",
    license="texts: Unicode-3.0, WordNet 3.0, GPL-2, GFDL-1.2+; recordings: GPL-2",
    source=f"espeak-ng on the corpora 'emoji', 'stamps', 'manuals' and Debian: {WORDNET.name}",
    modalities=("audio", "text", "table", "category"),
    download_bytes=WORDNET.bytes,
    composed="speech is synthetic but for the splits *_recorded",
    version=3,
)


class Utterance(NamedTuple):
    text: str
    language: str
    source: str
    split: str


def speech() -> Corpus:
    """Open the corpus, preparing it once (some minutes), and the corpora of its texts.

    Raises UserError when that is not possible, such as without espeak-ng.
    """
    columns: dict[str, Modality] = {
        "sound": Audio(RATE),
        "captions": Text(),
        "phonemes": Text(),
        "language": Category(),
        "source": Category(SOURCES),
        "voice": Category(),
        "measured": Table({"duration": "s"}, {}),
    }
    return open_prepared(about, columns, _rows, label="language")


def _rows(prepare: Preparation) -> Iterator[Row]:
    program = shutil.which("espeak-ng")
    if program is None:
        raise UserError("The corpus 'speech' needs espeak-ng, which is not here: apt-get install espeak-ng.")
    utterances = [*_names(), *_captions(), *_glosses(prepare), *_sentences()]
    with ThreadPoolExecutor(4) as threads:
        numbered = threads.map(lambda item: synthesize(program, item[1], item[0]), enumerate(utterances))
        for utterance, (sound, phonemes, voice) in prepare.track(
            zip(utterances, numbered, strict=True), "Speaking", len(utterances)
        ):
            if sound is not None:
                yield _row(utterance, sound, phonemes, voice)
    yield from _recordings(prepare)


def _row(utterance: Utterance, waveform: np.ndarray, phonemes: str | None, voice: str, key: str = "") -> Row:
    return {
        "key": f"{utterance.source}/{utterance.language}/{key or utterance.text}",
        "split": utterance.split,
        "sound": encoded(waveform, RATE, "OGG"),
        "captions": stored_texts(utterance.text, language=utterance.language),
        "phonemes": stored_texts(phonemes, language=utterance.language) if phonemes else None,
        "language": utterance.language,
        "source": utterance.source,
        "voice": voice,
        "measured": {"duration": len(waveform) / RATE},
    }


def synthesize(program: str, utterance: Utterance, number: int) -> tuple[np.ndarray | None, str, str]:
    """Synthesize speech: waveform at RATE (None for silence), phonemes in IPA, and the voice, sampled by the number."""
    import soundfile

    rng = np.random.default_rng(number)
    variants = TEST_VARIANTS if utterance.split == "test" else VARIANTS
    voice = VOICES[utterance.language] + variants[rng.integers(len(variants))]
    speed, pitch = rng.integers(130, 200), rng.integers(30, 70)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "--ipa", "-w", str(path), "--stdin"]
        done = subprocess.run(command, input=utterance.text, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.is_file():
            return None, "", voice
        waveform, rate = soundfile.read(path, dtype="float32")
    if len(waveform) < rate // 20:
        return None, "", voice
    return resampled(waveform, rate, RATE), " ".join(done.stdout.split()), voice


def _some(texts: dict[str, list[tuple[str, str]]], count: int, source: str) -> Iterator[Utterance]:
    """Sample at most `count` different texts per language with a fixed seed. texts: language -> (text, split)."""
    for language, candidates in sorted(texts.items()):
        distinct = sorted(dict(reversed(candidates)).items())
        order = np.random.default_rng(len(distinct)).permutation(len(distinct))[:count]
        yield from (Utterance(text, language, source, split) for text, split in (distinct[place] for place in order))


def _names() -> Iterator[Utterance]:
    corpus, texts = emoji(), defaultdict(list)
    for split in ("train", "validation", "test"):
        for row in corpus.rows(split):
            named: set[str] = set()
            for caption in corpus.value(row, "captions"):  # the first of a language is the name
                if caption.language in VOICES and caption.language not in named:
                    named.add(caption.language)
                    texts[caption.language].append((caption.text, split))
    return _some(_one_split(texts), NAMES, "name")


def _captions() -> Iterator[Utterance]:
    corpus, texts = stamps(), defaultdict(list)
    for split in ("train", "validation"):  # the captions of the test are those that people recorded
        for row in corpus.rows(split):
            for caption in corpus.value(row, "captions"):
                if caption.language in VOICES:
                    texts[caption.language].append((caption.text, split))
    return _some(_one_split(texts), CAPTIONS, "caption")


def _one_split(texts: dict[str, list[tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
    """Remove texts that occur in several splits."""
    kept = {}
    for language, pairs in texts.items():
        splits = defaultdict(set)
        for text, split in pairs:
            splits[text.lower()].add(split)
        kept[language] = [(text, split) for text, split in pairs if len(splits[text.lower()]) == 1]
    return kept


def _glosses(prepare: Preparation) -> Iterator[Utterance]:
    found = []
    for _, data in members(prepare.fetch(WORDNET), lambda name: name.endswith(("data.noun", "data.verb"))):
        for line in data.decode().splitlines():
            gloss = line.partition(" | ")[2].partition(";")[0].strip()
            if 3 <= len(gloss.split()) <= 14 and not line.startswith(" "):
                found.append((gloss, split_by_hash(gloss)))
    return _some({"en": found}, GLOSSES, "gloss")


def _sentences() -> Iterator[Utterance]:
    corpus, texts = manuals(), defaultdict(list)
    splits = {int(row): split for split, rows in corpus.splits.items() for row in rows}
    for row, split in splits.items():
        language = corpus.raw(row, "language")
        if language not in ("en", "de", "fr", "ru") or not corpus.raw(row, "key").startswith("gimp-help"):
            continue
        for piece in corpus.raw(row, "document"):
            for sentence in re.split(r"(?<=[.!?])\s+", piece["text"]) if piece["kind"] == "paragraph" else ():
                if 4 <= len(sentence.split()) <= 16:
                    texts[language].append((sentence, split))
    return _some(_one_split(texts), SENTENCES, "manual")


def _recordings(prepare: Preparation) -> Iterator[Row]:
    corpus = stamps()
    decode = Audio(RATE).decode
    for split in corpus.splits:
        for row in prepare.track(corpus.rows(split), f"Reading recordings, {split}"):
            captions = {caption.language: caption.text for caption in corpus.value(row, "captions")}
            for recording in corpus.raw(row, "spoken") or ():
                language = recording["language"]
                if language in captions:
                    name = "test_recorded" if split == "test" else "train_recorded"
                    utterance = Utterance(captions[language], language, "recorded", name)
                    yield _row(utterance, decode(recording["sound"]), None, "human", corpus.key(row))
