"""Image-text pairs from interleaved documents: pools of images and sentences, and the corpus that is made of them.

What models compute, embeddings and synthetic texts, is kept beside the output folder until it is written, so that the
same command goes on after a stop.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from PIL import Image as PILImage

from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import check_empty, save_corpus
from polymodal.curation.captions import check_embeds_pairs, check_generates_text, describe
from polymodal.curation.hierarchical_retrieval import normalized
from polymodal.curation.merged_texts import Merger, template_merger
from polymodal.curation.perplexity_filter import Perplexity
from polymodal.curation.resumable import run_resumably
from polymodal.curation.sentences import split_sentences
from polymodal.errors import UnreadableExample, UserError
from polymodal.files import remove_folder, written_aside
from polymodal.modalities import Image, Interleaved, Modality, Text
from polymodal.modalities.image import encoded, to_rgb
from polymodal.training.feature_cache import weights_key
from polymodal.training.folder_lock import writes
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import Run, write_json

SHARD = 2048  # images or sentences whose embeddings are one file
MERGED = 64  # texts between two lines of the file of merged texts
ALONE = -1  # piece of an image that is in no document
SETTINGS = "settings.json"

Rejects = Callable[[int, int], str | None]
"""From width and height of an image, why it is left out, or None."""


class PooledImage(NamedTuple):
    """Image of a document. row: of the corpus. piece: its place in the document, -1 for an image without document."""

    key: str
    row: int
    piece: int = ALONE


class PooledSentence(NamedTuple):
    """Sentence of a document. row: of the corpus."""

    text: str
    row: int


@dataclass
class DocumentPools:
    """All images and all sentences of documents. rejected: images that were left out, by reason."""

    corpus: Corpus
    images: list[PooledImage]
    sentences: list[PooledSentence]
    rejected: Counter[str] = field(default_factory=Counter)
    _last: tuple[int, list[Any]] = (ALONE, [])  # images of a document are asked for one after the other

    def data(self, image: PooledImage) -> bytes:
        """Return the encoded image."""
        if image.piece == ALONE:
            column = self.corpus.column_with(Image)
            return _encoded(self.corpus.raw(image.row, column), lambda: self.corpus.value(image.row, column))
        column = self.corpus.column_with(Interleaved)
        if self._last[0] != image.row:
            pieces = self.corpus.raw(image.row, column)
            # In the numbering of `Interleaved.decode`, which leaves out empty pieces.
            stored = [piece["figure"] for piece in pieces if piece["text"] or piece["figure"] is not None]
            self._last = image.row, stored
        return _encoded(self._last[1][image.piece], lambda: self.corpus.value(image.row, column)[image.piece].figure)


def _encoded(stored: Any, opened: Callable[[], Any]) -> bytes:
    """Return stored bytes as they are; of an image that is stored as a path, its pixels as PNG."""
    data = stored.get("bytes") if isinstance(stored, dict) else stored
    return data if isinstance(data, bytes) else encoded(to_rgb(opened()))


def pools_of(corpus: Corpus, rows: Iterable[int], rejects: Rejects) -> DocumentPools:
    """Break documents into images and sentences. An image that is damaged is left out, counted; a document where what
    stands for an image is none is left out as a whole.

    Raises UserError for a corpus without documents.
    """
    column = corpus.column_with(Interleaved)
    pools = DocumentPools(corpus, [], [])
    for row in map(int, rows):
        try:
            pieces = corpus.value(row, column)
        except UnreadableExample:
            pools.rejected["unreadable"] += 1
            continue
        for place, piece in enumerate(pieces):
            if piece.figure is not None:
                pools.rejected.update(filter(None, [reason := _why_not(piece.figure, rejects)]))
                if reason is None:
                    pools.images.append(PooledImage(f"{corpus.key(row)}#{place}", row, place))
            if piece.text and piece.kind != "code":
                pools.sentences += [PooledSentence(text, row) for text in split_sentences(piece.text)]
    return pools


def _why_not(image: PILImage.Image, rejects: Rejects) -> str | None:
    """Return why an image is left out: its size, or a damaged file, which is found when pixels are decoded."""
    reason = rejects(*image.size)
    try:
        to_rgb(image)
    except UnreadableExample:
        return reason or "unreadable"
    return reason


def with_images_of(pools: DocumentPools, corpus: Corpus, rows: Iterable[int], rejects: Rejects) -> DocumentPools:
    """Return pools with the images of a plain corpus instead, such as ImageNet's, and the sentences of documents.

    Rows of the images are those of the plain corpus, which becomes the corpus of the pools.
    """
    column, images, rejected = corpus.column_with(Image), [], Counter[str]()
    for row in map(int, rows):
        try:
            reason = _why_not(corpus.value(row, column), rejects)
        except UnreadableExample:
            reason = "unreadable"
        if reason is None:
            images.append(PooledImage(corpus.key(row), row))
        else:
            rejected[reason] += 1
    return DocumentPools(corpus, images, pools.sentences, rejected)


@dataclass(frozen=True)
class PairingModels:
    """Models of a pipeline of pairs.

    embed_images, embed_texts: vectors of one space, from encoded images and from texts. perplexity: None takes n-gram
    models of the sentences. captions: short captions of encoded images; None does without. merge: see `Merger`. tags:
    base vocabulary of tags. excluded: texts of evaluations, which are no sentences of the pool. version: of the models,
    by which stored results are recognized.
    """

    embed_images: Callable[[Sequence[bytes]], np.ndarray]
    embed_texts: Callable[[Sequence[str]], np.ndarray]
    perplexity: Perplexity | None = None
    captions: Callable[[Sequence[bytes]], Sequence[str]] | None = None
    merge: Merger = template_merger
    tags: Sequence[str] = ()
    excluded: Sequence[str] = ()
    version: str = ""

    def merged(self, pools: DocumentPools, parts: Sequence[tuple[PooledImage, str, Sequence[str]]]) -> list[str]:
        """Return one text of each image, its real sentence and its tags, with a caption where there is a captioner."""
        captions: Sequence[str] = [""] * len(parts)
        if self.captions is not None:
            captions = self.captions([pools.data(image) for image, _, _ in parts])
        return [self.merge(text, caption, tags) for (_, text, tags), caption in zip(parts, captions, strict=True)]


def embedded_by(run: Run) -> tuple[Callable[[Sequence[bytes]], np.ndarray], Callable[[Sequence[str]], np.ndarray]]:
    """Return how a run embeds images and texts. Raises UserError for one that embeds not both in one space."""
    check_embeds_pairs(run)
    return (
        lambda images: run.embed(image=list(images))["image"].float().numpy(),
        lambda texts: run.embed(text=list(texts))["text"].float().numpy(),
    )


def captioned_by(run: Run) -> Callable[[Sequence[bytes]], list[str]]:
    """Return how a run captions images, greedily. Raises UserError for one that cannot generate text."""
    check_generates_text(run)
    return lambda images: describe(run, [np.asarray(to_rgb(Image().decode(data))) for data in images])


def run_version(*runs: Run | None) -> str:
    """Return what tells runs with other weights apart."""
    return " ".join(weights_key(run.model) for run in runs if run is not None)


@dataclass(frozen=True)
class Kept:
    """Where a pipeline keeps what models computed. folder: None keeps nothing."""

    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def shards(self, name: str, items: Sequence[Any], compute: Callable[[Sequence[Any]], Any]) -> np.ndarray:
        """Return an array with a row or number for each item, computed shard by shard; finished shards are read."""
        parts = []
        for start in range(0, len(items), SHARD):
            file = self.folder / f"{name}-{start:09d}.npy" if self.folder else None
            if file is not None and file.is_file():
                parts.append(np.load(file, allow_pickle=False))
                continue
            parts.append(np.asarray(compute(items[start : start + SHARD]), dtype=np.float32))
            if file is not None:
                with written_aside(file) as aside, aside.open("wb") as stream:
                    np.save(stream, parts[-1])
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def embed(
        self, name: str, items: Sequence[Any], embed: Callable[[Sequence[Any]], np.ndarray]
    ) -> Float[np.ndarray, "items dim"]:
        """Return L2-normalized embeddings."""
        vectors = self.shards(name, items, embed)
        return normalized(vectors) if len(vectors) else np.zeros((0, 1), np.float32)

    def texts(self, name: str, items: Sequence[Any], make: Callable[[Sequence[Any]], Sequence[str]]) -> list[str]:
        """Return texts that a model makes of items, chunk by chunk; finished chunks are read."""
        chunks = [items[start : start + MERGED] for start in range(0, len(items), MERGED)]
        file = self.folder / f"{name}.jsonl" if self.folder else None
        made = run_resumably(chunks, lambda number, chunk: list(make(chunk)), file)
        return [text for part in made for text in part]


NOT_KEPT = Kept()


@dataclass
class Paired:
    """Images with their texts.

    images: places in the pool. real: real sentences of each, the most similar first. synthetic: one text of each.
    balanced: places in `images` that are left after balancing. counts: what each step left, and what it cost.
    """

    images: list[int]
    real: list[list[str]]
    synthetic: list[str]
    balanced: Int[np.ndarray, " kept"]
    counts: dict[str, float]


@runtime_checkable
class Pairing(Protocol):
    """What a recipe does that pairs the images of documents with texts."""

    def rejects(self, width: int, height: int) -> str | None:
        """Return why an image is left out, or None."""
        ...

    def pair_documents(
        self, pools: DocumentPools, models: PairingModels, kept: Kept = NOT_KEPT, balance: bool = True
    ) -> Paired:
        """Pair the images of the pools with texts of the pools. balance: whether images are sampled by clusters."""
        ...


@writes("out")
def write_pairs(
    recipe: Pairing,
    corpus: Corpus,
    out: Path | str,
    models: PairingModels,
    language: str = "en",
    images: Corpus | None = None,
    further: Mapping[str, Any] | None = None,
) -> tuple[Corpus, dict[str, dict[str, float]]]:
    """Write a corpus of images with several texts each; return it with the counts of every split.

    Each split of the documents has its own pools, so that no sentence is in two of them; the training split alone is
    balanced. images: a plain corpus whose images are paired instead of those of the documents, split by split.
    further: settings that identify this run. Raises UserError for a folder that is not empty, and when nothing is left.
    """
    out, left_out = Path(out), Counter[str]()
    aside = out.with_name(f".{out.name}.pairing")
    check_empty(out)
    corpus.column_with(Interleaved)  # raises UserError for a corpus without documents
    settings = {
        "recipe": recipe_record(recipe),
        "corpus": {name: str(value) for name, value in corpus.choices.items()},
        "rows": [len(corpus), corpus.table.nbytes],
        "models": models.version,
        "texts": zlib.crc32(json.dumps([*models.tags, *models.excluded]).encode()),
        **(further or {}),
    }
    _begin(aside, settings)
    counts: dict[str, dict[str, float]] = {}

    def rows() -> Iterator[dict[str, Any]]:
        for split in corpus.splits:
            if images is not None and split not in images.splits:
                continue
            pools = pools_of(corpus, corpus.rows(split), recipe.rejects)
            if images is not None:
                pools = with_images_of(pools, images, images.rows(split), recipe.rejects)
            left_out.update(pools.rejected)
            if not pools.images or not pools.sentences:
                continue
            paired = recipe.pair_documents(pools, models, Kept(aside / split), balance=split == "train")
            counts[split] = {f"images left out: {name}": n for name, n in pools.rejected.items()} | paired.counts
            yield from ({"split": split, **row} for row in _rows_of(pools, paired, language))

    about = About(
        name=out.name,
        description=f"images paired with texts by {type(recipe).__module__.rpartition('.')[2]} from {corpus.name}",
        license="that of the documents",
        source=corpus.name,
        modalities=("image", "text"),
    )
    columns: dict[str, Modality] = {"image": Image(), "text": Text()}
    written = save_corpus(
        out, about, columns, rows(), made=lambda: json.loads(json.dumps(settings | {"counts": counts}))
    )
    remove_folder(aside)
    if not len(written):
        remove_folder(out)
        raise UserError(f"No image of {corpus.name} is left with a text ({_reasons(left_out, counts)}).")
    return written, counts


def _reasons(images: Counter[str], counts: Mapping[str, Mapping[str, float]]) -> str:
    """Return why images and sentences were left out, and how many."""
    reasons = Counter({f"images left out: {name}": number for name, number in images.items()})
    for of_split in counts.values():
        reasons.update({name: int(n) for name, n in of_split.items() if name.startswith("sentences left out")})
    listed = ", ".join(f"{name} {number:,}" for name, number in (+reasons).most_common())
    return listed or "there are no images or texts"


def _rows_of(pools: DocumentPools, paired: Paired, language: str) -> Iterator[dict[str, Any]]:
    """Yield key, image and texts of each image that is left, its real texts first."""
    for place in paired.balanced.tolist():
        image = pools.images[paired.images[place]]
        texts = dict.fromkeys([*paired.real[place], paired.synthetic[place]])
        records = [{"text": text, "language": language} for text in texts]
        yield {"key": image.key, "image": pools.data(image), "text": records}


def _begin(aside: Path, settings: Mapping[str, Any]) -> None:
    """Create the folder of what models computed, or continue that of the same command."""
    file, plain = aside / SETTINGS, json.loads(json.dumps(settings))
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != plain:
        raise UserError(
            f"{aside} was begun with another recipe, other documents or models; remove it, or choose another --out."
        )
    aside.mkdir(parents=True, exist_ok=True)
    write_json(file, plain)
