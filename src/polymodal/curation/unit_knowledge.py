"""Three-phase conversion of images and texts to a knowledge graph (UKnow, Gong et al. 2024).

Content extraction reads an item with simple tools or given ones, information symbolization makes discrete relations of
what they return, and knowledge construction emits triplets. Only training rows are read, so that no edge of a held-out
item exists.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import NonNegativeInt, PositiveInt, PositiveUnitInterval, validate_constraints
from polymodal.corpora.corpus import Corpus
from polymodal.curation.hierarchical_retrieval import normalized
from polymodal.curation.semantic_duplicates import centered
from polymodal.curation.sentences import split_sentences
from polymodal.data.knowledge_graph import CONTENT, GraphBuilder, KnowledgeGraph
from polymodal.data.subsets import nested_subset
from polymodal.errors import UnreadableExample, UserError, unknown
from polymodal.modalities import Image, Regions, Text
from polymodal.modalities.image import to_square
from polymodal.modalities.image_modes import to_rgb
from polymodal.modalities.text_augmentation import STOP_WORDS
from polymodal.training.run import embed, load_run

COLORS = {  # basic color terms (Berlin and Kay 1969), as sRGB
    "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128), "red": (220, 30, 40),
    "orange": (250, 140, 20), "yellow": (250, 215, 50), "green": (50, 150, 60), "blue": (50, 100, 220),
    "purple": (130, 60, 170), "pink": (245, 150, 190), "brown": (120, 75, 40),
}  # fmt: skip
SIDE = 8  # pixels of a thumbnail
NAME = re.compile(r"(?<=[\w,;:] )[A-Z][\w'-]+(?: [A-Z][\w'-]+)*")  # capitalized words within a sentence
MAX_FREQUENCY = 0.5  # of texts: more frequent words tell none from another
EMBEDDED_TOGETHER = 512  # nodes whose content is in memory at once
COMPARED_FEATURES = 20_000  # words of TF-IDF

Embedder = Callable[[Sequence[Any]], Float[np.ndarray, "images dim"]]


@dataclass(frozen=True)
class ConverterConfig:
    """Thresholds of the conversion. Columns are categorical ones or texts of the corpus, by name."""

    caption_fraction: PositiveUnitInterval = 1.0
    """Fraction of the images whose captions are linked to them; all texts are nodes."""
    image_similarity: PositiveUnitInterval = 0.9
    """Cosine similarity of images from which they are similar."""
    text_similarity: PositiveUnitInterval = 0.5
    """Cosine similarity of TF-IDF vectors from which texts are of the same topic."""
    max_neighbors: PositiveInt = 5
    """Similar images, or texts of the same topic, of each at most."""
    min_color_fraction: PositiveUnitInterval = 0.2
    """Fraction of an image from which a color is its tag."""
    max_keywords: NonNegativeInt = 512
    """Words that are keywords, the most frequent."""
    events: tuple[str, ...] = ()
    """Columns whose values are events, the coarsest first; images that share the finest are linked."""
    tags: tuple[str, ...] = ()
    """Columns whose values are tags of images."""
    times: tuple[str, ...] = ()
    """Columns whose values are times."""
    places: tuple[str, ...] = ()
    """Columns whose values are places."""
    image_embedder: str = ""
    """Folder of a finished run whose embeddings say which images are similar, which should not be one that learned from
    the same graph; empty: pixels of thumbnails."""

    def __post_init__(self) -> None:
        validate_constraints(self)

    @property
    def metadata(self) -> tuple[str, ...]:
        return (*self.events, *self.tags, *self.times, *self.places)


@dataclass
class ExtractedContent:
    """What phase 1 reads of an item. embedding: of its image. metadata: values by column."""

    row: int
    key: str
    texts: list[str]
    embedding: Float[np.ndarray, " dim"]
    colors: dict[str, float] = field(default_factory=dict)
    objects: list[Any] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class Symbols:
    """What phase 2 makes of contents: symbols by text, and links with their similarity.

    similar: pairs of places among the contents. topics: pairs of texts.
    """

    keywords: dict[str, list[str]]
    entities: dict[str, list[str]]
    sentences: dict[str, list[str]]
    similar: list[tuple[int, int, float]]
    topics: list[tuple[str, str, float]]


def extract_content(
    corpus: Corpus, config: ConverterConfig, embedder: Embedder | None = None
) -> list[ExtractedContent]:
    """Phase 1, content extraction: run the tools on every training item whose image can be read.

    embedder: a frozen embedder of images, which should not be the one that learns from the graph, as its own
    similarities would confirm themselves; by default pixels of thumbnails. Raises UserError for a column that is none.
    """
    if strange := [name for name in config.metadata if name not in corpus.table.column_names]:
        raise unknown("column", strange[0], corpus.table.column_names)
    image_column = corpus.column_with(Image)
    text_column = corpus.column_with(Text) if corpus.has_modality(Text) else ""
    region_column = corpus.column_with(Regions) if corpus.has_modality(Regions) else ""
    contents = []
    for row in corpus.rows("train").tolist():
        try:
            image = to_rgb(corpus.value(row, image_column, min_side=2 * SIDE))
        except UnreadableExample:
            continue
        texts, objects = [], []
        if text_column:
            with contextlib.suppress(UnreadableExample):
                modality: Any = corpus.columns[text_column]
                captions = modality.in_main_language(corpus.value(row, text_column))
                texts = list(dict.fromkeys(" ".join(caption.text.split()) for caption in captions))
        if region_column:
            with contextlib.suppress(UnreadableExample):
                objects = corpus.value(row, region_column)
        pixels = to_square(image, SIDE)
        vector = pixels.ravel() / 255 if embedder is None else embedder([image])[0]
        values = {name: corpus.raw(row, name) for name in config.metadata}
        contents.append(
            ExtractedContent(
                row, corpus.key(row), texts, vector.astype(np.float32), color_fractions(pixels), objects,
                {name: str(value) for name, value in values.items() if value is not None},
            )
        )  # fmt: skip
    if not contents:
        raise UserError(f"No training image of '{corpus.name}' can be read, of which a graph is made.{corpus.hint}")
    return contents


def symbolize(contents: Sequence[ExtractedContent], config: ConverterConfig) -> Symbols:
    """Phase 2, information symbolization: raw results of the tools become identities and discrete relations.

    Strings are compared without capitals and double blanks (`GraphBuilder`), similarities by thresholds and as the
    `max_neighbors` nearest.
    """
    texts = list(dict.fromkeys(text for content in contents for text in content.texts))
    words = {text: [*dict.fromkeys(re.findall(r"[^\W\d_]{3,}", text.lower()))] for text in texts}
    counts = Counter(word for of_text in words.values() for word in of_text if word not in STOP_WORDS)
    frequent = [word for word, count in counts.most_common() if 1 < count <= MAX_FREQUENCY * len(texts)]
    kept = {*frequent[: config.max_keywords]}
    sentences = {text: split_sentences(text) for text in texts}
    (vectors,) = centered(normalized(np.stack([content.embedding for content in contents])))
    return Symbols(
        {text: [word for word in of_text if word in kept] for text, of_text in words.items()},
        {text: [*dict.fromkeys(NAME.findall(text))] for text in texts},
        {text: of_text for text, of_text in sentences.items() if len(of_text) > 1},
        nearest_pairs(vectors, config.max_neighbors, config.image_similarity),
        [(texts[a], texts[b], one) for a, b, one in _topics(texts, config)],
    )


def construct_graph(contents: Sequence[ExtractedContent], symbols: Symbols, config: ConverterConfig) -> KnowledgeGraph:
    """Phase 3, knowledge construction: emit the triplets of each of the five types."""
    build = GraphBuilder()
    captioned = [place for place, content in enumerate(contents) if content.texts]
    keys, linked = [contents[place].key for place in captioned], set[int]()
    if keys:
        linked = {captioned[place] for place in nested_subset(keys, config.caption_fraction)}
    images = [build.node("image", content.key, content.row) for content in contents]
    for place, content in enumerate(contents):
        image = images[place]
        for color, fraction in content.colors.items():
            if fraction >= config.min_color_fraction:
                build.triplet(image, "has_tag", build.node("tag", color), "color_fractions", fraction)
        for name in config.tags:
            if name in content.metadata:
                build.triplet(image, "has_tag", build.node("tag", content.metadata[name]), f"column {name}")
        for region in content.objects:
            crop = build.node("object", region.name, content.row, tuple(map(float, region.box)))
            build.triplet(image, "has_object", crop, "regions")
            build.triplet(crop, "is_a", build.node("class", region.name), "regions")
        for text in content.texts:
            node = build.node("text", text, content.row)
            if place in linked:
                build.triplet(image, "described_by", node, "captions")
                _name_objects(build, content, symbols.entities[text])
        nodes = [build.node("text", text) for text in content.texts]
        for node, other in _next_few(nodes, config.max_neighbors):
            build.triplet(node, "same_item", other, "captions")
        _events(build, image, content, config)
    for text, keywords in symbols.keywords.items():
        _in_text(build, text, keywords, symbols)
    for a, b, similarity in symbols.similar:
        build.triplet(images[a], "similar_to", images[b], "nearest neighbors", similarity)
    for first, second, similarity in symbols.topics:
        build.triplet(build.node("text", first), "same_topic", build.node("text", second), "TF-IDF", similarity)
    _same_metadata(build, contents, images, config)
    return build.graph()


def convert(corpus: Corpus, config: ConverterConfig) -> KnowledgeGraph:
    """Convert the training rows of a corpus to a graph: all three phases.

    Raises UserError for shards and mixtures, whose rows have an order of their own.
    """
    if type(corpus).parts is not Corpus.parts:
        raise UserError("A graph is made of one source whose rows are known; name a single one, without --stream.")
    run = load_run(config.image_embedder) if config.image_embedder else None
    embedder = None if run is None else lambda images: run.embed(image=list(images))["image"].numpy()
    contents = extract_content(corpus, config, embedder)
    return construct_graph(contents, symbolize(contents, config), config)


def node_features(
    method: Any, processor: Any, corpus: Corpus, graph: KnowledgeGraph
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield nodes and their frozen features: embeddings of images, of the crops of objects, and of texts.

    Nodes whose image cannot be read are left out.
    """
    for kind in CONTENT:
        every = graph.of_type(kind)
        for nodes in np.split(every, range(EMBEDDED_TOGETHER, len(every), EMBEDDED_TOGETHER)):
            values = [_content(kind, int(node), corpus, graph) for node in nodes]
            if there := [place for place, value in enumerate(values) if value is not None]:
                columns: dict[str, Any] = {"text" if kind == "text" else "image": [values[place] for place in there]}
                (vectors,) = embed(method, processor, **columns).values()
                yield nodes[there], vectors


def _content(kind: str, node: int, corpus: Corpus, graph: KnowledgeGraph) -> Any:
    if kind == "text":
        return graph.payloads[node]
    try:
        image = to_rgb(corpus.value(int(graph.rows[node]), corpus.column_with(Image)))
    except UnreadableExample:
        return None
    if kind == "image":
        return image
    left, top, right, bottom = graph.nodes.column("box")[node].as_py()
    return image.crop((int(left), int(top), max(int(right), int(left) + 1), max(int(bottom), int(top) + 1)))


def color_fractions(pixels: np.ndarray) -> dict[str, float]:
    """Return the fraction of an image that is nearest to each basic color. pixels: height x width x 3, uint8."""
    palette = np.array(list(COLORS.values()), dtype=np.float32)
    distance = np.square(pixels.reshape(-1, 1, 3).astype(np.float32) - palette).sum(-1)
    counts = np.bincount(distance.argmin(1), minlength=len(palette)) / len(distance)
    return {name: float(fraction) for name, fraction in zip(COLORS, counts, strict=True) if fraction}


def nearest_pairs(vectors: Any, k: int, threshold: float) -> list[tuple[int, int, float]]:
    """Return pairs of a row and one of its k nearest others of a cosine similarity of at least the threshold."""
    from sklearn.neighbors import NearestNeighbors

    count = vectors.shape[0]
    if count < 2:
        return []
    index = NearestNeighbors(n_neighbors=min(k + 1, count), metric="cosine", algorithm="brute").fit(vectors)
    distances, neighbors = index.kneighbors(vectors)
    pairs = []
    for row in range(count):
        others = [(int(one), 1 - float(d)) for one, d in zip(neighbors[row], distances[row], strict=True) if one != row]
        pairs += [(row, one, similarity) for one, similarity in others[:k] if similarity >= threshold]
    return pairs


def _topics(texts: Sequence[str], config: ConverterConfig) -> list[tuple[int, int, float]]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(re.search(r"\w\w", text) for text in texts):
        return []
    vectors = TfidfVectorizer(max_features=COMPARED_FEATURES, sublinear_tf=True).fit_transform(texts)
    return nearest_pairs(vectors, config.max_neighbors, config.text_similarity)


def _name_objects(build: GraphBuilder, content: ExtractedContent, entities: Iterable[str]) -> None:
    """Objects are named by the entities of a caption that contain the name of their class."""
    for region in content.objects:
        for entity in entities:
            if region.name.lower() in entity.lower().split():
                crop = build.node("object", region.name, content.row, tuple(map(float, region.box)))
                build.triplet(crop, "named", build.node("entity", entity), "captions")


def _in_text(build: GraphBuilder, text: str, keywords: Sequence[str], symbols: Symbols) -> None:
    """Keywords, entities and sentences of a text, and the order of these."""
    node = build.node("text", text)
    for word in keywords:
        build.triplet(node, "has_keyword", build.node("keyword", word), "frequent words")
    for entity in symbols.entities[text]:
        build.triplet(node, "mentions", build.node("entity", entity), "capitalized words")
    parts = [build.node("text", sentence) for sentence in symbols.sentences.get(text, ())]
    for part in parts:
        build.triplet(node, "has_sentence", part, "sentences")
    for before, after in itertools.pairwise(parts):
        build.triplet(after, "continues", before, "sentences")


def _events(build: GraphBuilder, image: int, content: ExtractedContent, config: ConverterConfig) -> None:
    """Event labels of an image, each below that of the coarser column; times and places."""
    coarser = None
    for name in config.events:
        if name in content.metadata:
            event = build.node("event", content.metadata[name])
            build.triplet(image, "belongs_to_event", event, f"column {name}")
            if coarser is not None:
                build.triplet(event, "subevent_of", coarser, f"column {name}")
            coarser = event
    for kind, names in (("time", config.times), ("place", config.places)):
        for name in names:
            if name in content.metadata:
                node = build.node(kind, content.metadata[name])
                build.triplet(image, f"at_{kind}", node, f"column {name}")


def _same_metadata(
    build: GraphBuilder, contents: Sequence[ExtractedContent], images: Sequence[int], config: ConverterConfig
) -> None:
    """Link images of the same finest event, and texts of the same time or place, each to the next few."""
    by_event = _by_value(contents, config.events[-1:])
    for column, places in by_event:
        for a, b in _next_few(places, config.max_neighbors):
            build.triplet(images[a], "same_event", images[b], f"column {column}")
    for relation, names in (("same_time", config.times), ("same_place", config.places)):
        for column, places in _by_value(contents, names):
            texts = [place for place in places if contents[place].texts]
            for a, b in _next_few(texts, config.max_neighbors):
                first, second = (build.node("text", contents[place].texts[0]) for place in (a, b))
                build.triplet(first, relation, second, f"column {column}")


def _by_value(contents: Sequence[ExtractedContent], names: Iterable[str]) -> list[tuple[str, list[int]]]:
    groups: Mapping[tuple[str, str], list[int]] = defaultdict(list)
    for place, content in enumerate(contents):
        for name in names:
            if name in content.metadata:
                groups[name, content.metadata[name]].append(place)
    return [(name, places) for (name, _), places in groups.items()]


def _next_few(places: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return pairs of a place and each of the `count` after it, so that large groups have no quadratic number."""
    return [(a, b) for number, a in enumerate(places) for b in places[number + 1 : number + 1 + count]]
