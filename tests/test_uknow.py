"""UKnow: CLIP without a graph, graph-aware negatives in plain loops, no leak of held-out rows and links."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.curation.unit_knowledge import ConverterConfig
from polymodal.data.columns.knowledge import KnowledgeColumn
from polymodal.data.processor import fit_processor
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.multi_positive import masked_info_nce
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.dual_encoders.uknow import LINKS, Recipe
from polymodal.rng import ExampleRNG

TINY = dataclasses.replace(Recipe.tiny(), batch_size=8, word_dropout=0.0)
HALF = ConverterConfig(caption_fraction=0.5, events=("label",))


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Any:
    """With a graph in which half of the images have captions, and links are held out."""
    return fit_processor(dataclasses.replace(TINY, converter=HALF), corpus)


def batch_of(recipe: Recipe, corpus: Corpus, processor: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    method = recipe.build(processor)
    examples = [processor.load_example(corpus, int(row)) for row in corpus.rows("train")[:8]]
    return method, recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 8))


def test_without_edges_the_loss_is_that_of_clip(corpus: Corpus, processor: Any) -> None:
    method, batch = batch_of(dataclasses.replace(TINY, unit_knowledge=()), corpus, processor)
    assert {*batch} == {"image", "text"}
    torch.manual_seed(0)
    reference = clip.Recipe.tiny().build(processor)
    reference.load_state_dict({name: value for name, value in method.state_dict().items() if "completion" not in name})
    assert torch.equal(method.losses(batch)["contrastive"], reference.losses(batch)["contrastive"])
    a, b = (F.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    nothing = torch.zeros(6, 6, dtype=torch.bool)
    masked = masked_info_nce(a, b, 5.0, ~nothing[0], nothing, nothing)
    torch.testing.assert_close(masked, info_nce(a, b, torch.tensor(5.0)))


def test_every_loss_is_infonce_without_linked_negatives(corpus: Corpus, processor: Any) -> None:
    recipe = dataclasses.replace(TINY, converter=HALF)
    method, batch = batch_of(recipe, corpus, processor)
    graph, encoded = processor.knowledge.graph, method.encode(batch)
    ends = np.stack([graph.heads, graph.tails])[:, graph.training_triplets]
    edges = {frozenset(pair) for pair in ends.T.tolist()}
    same = np.array(graph.triplets.column("relation").to_pylist())[graph.training_triplets] == "same_event"
    labels = np.array(corpus.table.column("label").to_pylist())
    of_event = {node: labels[graph.rows[node]] for node in ends[:, same].ravel().tolist()}

    def linked(a: int, b: int) -> bool:
        return frozenset((a, b)) in edges or (a in of_event and of_event[a] == of_event.get(b))

    nodes = dict(zip((*recipe.items, "caption"), batch["nodes"].T.tolist(), strict=True))
    losses = method.contrastive_losses(encoded)
    assert {*losses} == {*LINKS}
    assert -1 in nodes["caption"]  # half of the images have one
    for name, (anchor, neighbor, unit) in LINKS.items():
        given, scale = nodes["caption" if unit == "IT_cross" else neighbor], 1 / 0.07
        valid = [i for i in range(8) if nodes[anchor][i] >= 0 and given[i] >= 0]
        terms = []
        for x, y in ((anchor, neighbor), (neighbor, anchor)):
            for i in valid:
                a = nodes[x][i]
                assert frozenset((nodes[anchor][i], nodes[neighbor][i])) in edges
                negatives = [j for j in valid if nodes[y][j] != a and not linked(a, nodes[y][j])]
                logits = {j: scale * encoded[x][i] @ encoded[y][j] for j in {*negatives, i}}
                terms.append(torch.stack([*logits.values()]).logsumexp(0) - logits[i])
        torch.testing.assert_close(losses[name], recipe.weight(unit) * torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_a_masked_candidate_has_no_gradient_and_invalid_rows_have_none() -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(4, 3), dim=-1).requires_grad_() for _ in range(2))
    masked = torch.zeros(4, 4, dtype=torch.bool)
    masked[0, 2] = True
    valid = torch.tensor([True, False, False, False])
    masked_info_nce(a, b, 5.0, valid, masked, masked.T).backward()
    assert a.grad is not None
    assert not a.grad[1:].any()
    valid = torch.tensor([True, True, True, False])
    one_way = [masked_info_nce(a, b, 5.0, valid, masked, masked.T)]
    a_row = torch.autograd.grad(one_way[0], b)[0]
    changed = b.detach().clone()
    changed[3] = -changed[3]
    torch.testing.assert_close(masked_info_nce(a, changed, 5.0, valid, masked, masked.T), one_way[0])
    assert not a_row[3].any()
    assert masked_info_nce(a, b, 5.0, torch.zeros(4, dtype=torch.bool), masked, masked.T) == 0


def test_neighbors_are_of_their_edge_type_and_anchors_without_caption_are_mixed_in(
    corpus: Corpus, processor: Any
) -> None:
    recipe = dataclasses.replace(TINY, converter=HALF, reasoning_fraction=0.0, paired_fraction=0.5)
    _, batch = batch_of(recipe, corpus, processor)
    graph = processor.knowledge.graph
    rows = KnowledgeColumn(recipe.graph_of, recipe.graph_of(corpus)).captioned_rows(corpus)
    assert len(rows) == 12
    order = recipe.anchor_order(corpus, rows, 0)
    assert np.isin([order[n] for n in range(100)], rows).mean() == pytest.approx(0.5, abs=0.02)
    for place, kinds in ((2, {"image"}), (3, {"text"}), (4, {"object", "tag"}), (5, {"keyword", "text", "entity"})):
        sampled = [int(node) for node in batch["nodes"][:, place] if node >= 0]
        assert sampled
        assert {graph.types[node] for node in sampled} <= kinds
