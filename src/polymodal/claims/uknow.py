"""The claims of `uknow`: pre-training on all edges of the graph against pairs, at few captions; and link prediction
with features of both modalities (`--claim reasoning`)."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.curation.unit_knowledge import ConverterConfig
from polymodal.models.knowledge_graph_completion import KnowledgeGraphCompletionConfig
from polymodal.recipes.dual_encoders.uknow import Recipe
from polymodal.types import Budget

_few = ConverterConfig(caption_fraction=0.1, events=("category", "concept"))
_every = dataclasses.replace(_few, caption_fraction=1.0)
# An anchor has 2 images and 4 texts with all edges, and one of each as a pair: steps have as many encodes.
_edges = Recipe(batch_size=64, converter=_few)
_pairs = dataclasses.replace(_edges, batch_size=192, unit_knowledge=())
claim = Claim(
    sentence="With captions of a tenth of the images, pre-training on all five types of edges of a knowledge graph "
    "finds images of unseen concepts by their captions better than pre-training on pairs with as many encodes.",
    baseline=_pairs,
    treatment=_edges,
    further={
        "pairs, graph-aware negatives": dataclasses.replace(_pairs, unit_knowledge=("IT_cross",)),
        "pairs, all captions": dataclasses.replace(_pairs, converter=_every),
        "all edges, all captions": dataclasses.replace(_edges, converter=_every),
    },
    corpus="emoji_vendors",
    budget=Budget(steps=300),
    seeds=5,
    metrics=(
        "test/text_to_image/R@10",
        "test_openmoji/text_to_image/R@10",
        "test_twitter/text_to_image/R@10",
        "test/image_to_text/R@10",
        "test/text_to_image/R@1",
    ),
    tuning={"learning_rate": (1e-3, 2e-3, 4e-3)},
    tuning_fraction=0.4,
    tuned_like={
        "pairs, graph-aware negatives": "baseline",
        "pairs, all captions": "baseline",
        "all edges, all captions": "treatment",
    },
    paper_results="no gain could be read from the sources that were available",
)

# Both stages are trained in each run, so that no edge that is held out was a positive of pre-training.
_both = dataclasses.replace(_edges, converter=_every, reasoning_fraction=0.5)
_units = ("I_in", "T_in", "I_cross", "T_cross", "IT_cross")
reasoning = Claim(
    sentence="Links of a knowledge graph are predicted better with features of images and texts than with those of "
    "texts alone.",
    baseline=dataclasses.replace(_both, completion=KnowledgeGraphCompletionConfig(node_features="text")),
    treatment=_both,
    further={"ids alone": dataclasses.replace(_both, completion=KnowledgeGraphCompletionConfig(node_features="ids"))},
    corpus="emoji_vendors",
    budget=Budget(steps=400),
    seeds=5,
    metrics=(
        "test/link_prediction/Hits@10",
        "test/link_prediction/MRR",
        *(f"test/link_prediction/{unit}/Hits@10" for unit in _units),
    ),
    deciding=("test/link_prediction/Hits@10", "test/link_prediction/MRR"),
    tuning={"learning_rate": (1e-3, 2e-3, 4e-3)},
    tuning_fraction=0.4,
    tuned_like={"ids alone": "baseline"},
    paper_results="no numbers could be read from the sources that were available",
)
