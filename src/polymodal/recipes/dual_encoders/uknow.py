"""UKnow: contrastive pre-training with positives from all edges of a knowledge graph that is made of images and texts.

A three-phase converter makes a multimodal knowledge graph of the training rows, with five types of unit knowledge:
within and between images, within and between texts, and between both. An anchor is contrasted with a neighbor by each
of them, and what the graph links is no negative; the same graph is completed by link prediction (reasoning), on
features of the frozen encoders.

The official repository has a README and no code: the types are from there, relations, losses, weights and thresholds
are choices of this package. Differs from the paper in: content is extracted by simple tools (thumbnails or a run's
embeddings, colors, regions and metadata of the data, frequent and capitalized words, TF-IDF), not by detectors, scene
and NER models, and texts are not summarized; text without an image is no node; the news data set is not built; event
classification is that of labels (`evaluate`); multi-hop retrieval and visual question answering are left out.

Terms: unit knowledge = data.knowledge_graph.RELATIONS, content extraction = curation.unit_knowledge.extract_content,
information symbolization = curation.unit_knowledge.symbolize, knowledge construction =
curation.unit_knowledge.construct_graph, edge-typed positives = data.edge_sampler.EdgeSampler, graph-aware negatives =
UKnow.linked, L_IT = losses.contrastive, L_II = losses.cross_image, L_TT = losses.cross_text, L_Iin = losses.in_image,
L_Tin = losses.in_text, reasoning = models.knowledge_graph_completion.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.curation.unit_knowledge import ConverterConfig, convert, node_features
from polymodal.data.columns.knowledge import KnowledgeColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.knowledge_graph import KnowledgeGraph, relations_of
from polymodal.data.loader import Reader
from polymodal.data.processor import Declared, Processor, Sparse
from polymodal.data.subsets import grouped_order
from polymodal.layers.distributed import all_gather
from polymodal.layers.logit_scale import LogitScale
from polymodal.modalities.text import Tokens
from polymodal.modalities.text_augmentation import without_words
from polymodal.models.knowledge_graph_completion import (
    CompletesGraph,
    KnowledgeGraphCompletion,
    KnowledgeGraphCompletionConfig,
    LinkBatch,
    LinkedNodes,
    sample_triplets,
)
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.multi_positive import masked_info_nce
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe, ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="uknow",
    title="UKnow: A Unified Knowledge Protocol with Multimodal Knowledge Graph Datasets for Reasoning and "
    "Vision-Language Pre-Training",
    year=2024,
    arxiv="2302.06891",
    modalities=("image", "text"),
)
Unit = Literal["I_in", "T_in", "I_cross", "T_cross", "IT_cross"]
LINKS: dict[str, tuple[str, str, Unit]] = {  # loss -> anchor, neighbor, and the type of the edge between them
    "contrastive": ("image", "text", "IT_cross"),
    "cross_image": ("image", "image_neighbor", "I_cross"),
    "cross_text": ("text", "text_neighbor", "T_cross"),
    "in_image": ("image", "tag", "I_in"),
    "in_text": ("text", "entity", "T_in"),
}
IMAGES, SYMBOLS = ("image", "image_neighbor"), ("tag", "entity")


class KnowledgeBatch(ImageTextBatch):
    """Anchors and a neighbor by each type of edge; without nodes: pairs (CLIP).

    nodes: numbers in the order of `Recipe.items`, then the text again if it is a caption of the image; -1 for none.
    """

    image_neighbor: NotRequired[Float[Tensor, "batch 3 size size"]]
    text_neighbor: NotRequired[Tokens]
    tag: NotRequired[Tokens]
    entity: NotRequired[Tokens]
    nodes: NotRequired[Int[Tensor, "batch items"]]


class UKnow(CompletesGraph, DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int, graph: KnowledgeGraph):
        super().__init__(recipe, vocabulary)
        self.recipe, self.graph = recipe, graph
        units = [unit for unit in recipe.unit_knowledge if unit != "IT_cross" and recipe.own_temperatures]
        self.scales = nn.ModuleDict({unit: LogitScale(recipe.logit_scale_init) for unit in units})
        self.linked = LinkedNodes(graph, recipe.unit_knowledge)
        self.completion = None
        if recipe.reasoning_fraction:
            self.completion = KnowledgeGraphCompletion(graph, recipe.embed_dim, recipe.completion)

    def encode(self, batch: KnowledgeBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Embeddings of anchors and neighbors, beside the numbers of their nodes as floating-point numbers."""
        if "nodes" not in batch:
            return super().encode(batch)
        values: dict[str, Tensor] = {"nodes": batch["nodes"].double()}
        for name in self.recipe.items:
            values[name] = self.encode_modality("image" if name in IMAGES else "text", dict(batch)[name])
        return values

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted InfoNCE of each type of edge, with graph-aware negatives; without a graph that of CLIP alone."""
        if "nodes" not in encoded:
            return {"contrastive": info_nce(encoded["image"], encoded["text"], self.logit_scale())}
        numbers = encoded["nodes"].detach().unbind(1)
        number = dict(zip((*self.recipe.items, "caption"), numbers, strict=True))
        losses = {}
        for name, (anchor, neighbor, unit) in self.recipe.links.items():
            a, b = number[anchor], number[neighbor]
            valid = (a >= 0) & (number["caption" if unit == "IT_cross" else neighbor] >= 0)
            masks = self.linked(a, all_gather(b)), self.linked(b, all_gather(a))
            scale = self.scales[unit]() if unit in self.scales else self.logit_scale()
            loss = masked_info_nce(encoded[anchor], encoded[neighbor], scale, valid, *masks)
            losses[name] = self.recipe.weight(unit) * loss
        return losses

    @two_halves("encode", "contrastive_losses")
    def losses(self, batch: KnowledgeBatch) -> dict[str, Tensor]:  # type: ignore[override]
        return self.contrastive_losses(self.encode(batch))


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    unit_knowledge: tuple[Unit, ...] = ("I_in", "T_in", "I_cross", "T_cross", "IT_cross")
    """Types of edges that give positives, and negatives to leave out; none: pairs alone, which is CLIP."""
    converter: ConverterConfig = ConverterConfig()
    in_weight: NonNegativeFloat = 0.2
    """Weight of the losses of edges within images and within texts."""
    cross_weight: NonNegativeFloat = 0.3
    """Weight of the losses of edges between images and between texts."""
    own_temperatures: bool = True
    """Whether each type of edge learns a temperature of its own."""
    max_degree: PositiveInt = 50
    """Neighbors by a relation that are sampled of a node at most, and nodes of which a hub is sampled."""
    paired_fraction: UnitInterval = 1.0
    """Fraction of the anchor images that have a caption, where not all have; others are neighbors alone at 1."""
    reasoning_fraction: UnitInterval = 0.0
    """Fraction of the budget, at its end, for link prediction on features of the frozen encoders."""
    held_out_links: UnitInterval = 0.1
    """Fraction of the linked pairs of nodes that are held out for the test of link prediction, if it is trained."""
    completion: KnowledgeGraphCompletionConfig = KnowledgeGraphCompletionConfig()

    @property
    def links(self) -> dict[str, tuple[str, str, Unit]]:
        return {name: link for name, link in LINKS.items() if link[2] in (self.unit_knowledge or ("IT_cross",))}

    @property
    def items(self) -> tuple[str, ...]:
        """What a batch has one of for each anchor."""
        return ("image", "text", *(neighbor for _, neighbor, _ in self.links.values() if neighbor != "text"))

    def weight(self, unit: Unit) -> float:
        return 1.0 if unit == "IT_cross" else self.cross_weight if unit.endswith("cross") else self.in_weight

    def build(self, processor: Processor) -> UKnow:
        return UKnow(self, processor.tokenizer.vocab_size, processor.knowledge.graph)

    def stages(self) -> tuple[Stage, ...]:
        """Pre-training, on anchors with and without captions or on pairs alone; then reasoning."""
        towers = ("image_*", "text_*", "logit_scale*", "scales.*")
        links: dict[str, Any] = {"batch": "triplet_batch", "losses": "link_losses", "order": "anchor_order"}
        return (
            Stage("pre-training", 1 - self.reasoning_fraction, towers, order="anchor_order", mine="anchor_rows"),
            Stage("reasoning", self.reasoning_fraction, ("completion.*",), mine="embed_nodes", **links),
        )

    def cacheable_encoders(self) -> tuple[str, ...]:
        return ()

    def columns(self) -> Declared:
        further: Declared = {"text": Sparse(TextColumn(self.text)), "knowledge": KnowledgeColumn(self.graph_of)}
        return {**super().columns(), **further}

    def graph_of(self, corpus: Corpus) -> KnowledgeGraph:
        """Make the graph of the training rows; links are held out where link prediction is trained."""
        graph, held_out = convert(corpus, self.converter), self.held_out_links
        return graph.with_split(held_out / 2, held_out) if self.reasoning_fraction else graph

    def anchor_rows(self, method: UKnow, reader: Reader) -> np.ndarray:
        """The rows whose image is linked to a caption; all nodes where captions are not compared."""
        knowledge, pairs = reader.processor.knowledge, "IT_cross" in (self.unit_knowledge or ("IT_cross",))
        return knowledge.captioned_rows(reader.corpus) if pairs else knowledge.anchor_rows()

    def embed_nodes(self, method: UKnow, reader: Reader) -> np.ndarray:
        """Give the nodes the features of the frozen encoders, with which link prediction begins."""
        assert method.completion is not None
        for nodes, features in node_features(method, reader.processor, reader.corpus, method.graph):
            method.completion.set_features(nodes, features)
        return reader.processor.knowledge.anchor_rows()

    def anchor_order(self, corpus: Corpus, mined: np.ndarray, seed: int) -> object:
        """Mined rows, among which others are mixed in pre-training with a graph."""
        others = np.setdiff1d(corpus.rows("train"), mined)
        p = self.paired_fraction if self.unit_knowledge and len(others) else 1.0
        return grouped_order([mined, others] if p < 1 else [mined], [p, 1 - p] if p < 1 else [1.0], seed)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> KnowledgeBatch:
        """An augmented view of each image, a caption or another text, and a neighbor of both by each type of edge."""
        knowledge, rngs = processor.knowledge, example_rng.generators
        images, anchors = ([example[name] for example in examples] for name in ("image", "knowledge"))
        captions = [example.get("text", []) for example in examples]
        links = {neighbor: (anchor, relations_of(unit, anchor)) for anchor, neighbor, unit in self.links.values()}
        nodes = knowledge.neighborhoods([row for _, row in anchors], links, self.max_degree, rngs)
        batch: dict[str, Any] = {}
        for name, of_item in zip(self.items, nodes.T.tolist(), strict=False):
            if name in IMAGES:
                values = knowledge.images(anchors, of_item, processor.image, images)
                batch[name] = processor.image.augmented(values, self.augmentation, example_rng, captions)
            else:
                dropout = 0.0 if name in SYMBOLS else self.word_dropout
                texts = zip(knowledge.texts(of_item), rngs, strict=True)
                batch[name] = processor.text([without_words(text, dropout, rng) for text, rng in texts])
        if self.unit_knowledge:
            batch["nodes"] = torch.from_numpy(nodes)
        return KnowledgeBatch(**batch)  # type: ignore[typeddict-item]

    def triplet_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> LinkBatch:
        """A training triplet for each example, sampled from the whole graph."""
        return sample_triplets(processor.knowledge.graph, example_rng.generators)

    @classmethod
    def tiny(cls) -> Recipe:
        return dataclasses.replace(super().tiny(), reasoning_fraction=0.5)

    @classmethod
    def paper(cls) -> Recipe:
        """CLIP ViT-B/32, whose towers the paper pre-trains; its own hyper-parameters could not be read."""
        return cls(**vars(clip.Recipe.paper()))
