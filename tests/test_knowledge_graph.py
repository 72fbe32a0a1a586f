"""Knowledge graphs: signatures, splits, sampling by edge type, conversion, scorers and filtered ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.curation.unit_knowledge import (
    ConverterConfig,
    ExtractedContent,
    color_fractions,
    construct_graph,
    convert,
    nearest_pairs,
    symbolize,
)
from polymodal.data.edge_sampler import EdgeSampler
from polymodal.data.knowledge_graph import RELATIONS, UNITS, GraphBuilder, KnowledgeGraph, edge_precision
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.evaluation.link_prediction import filtered_ranks, ranking_metrics
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks.link_prediction import LinkRanker, split_scores
from polymodal.layers.graph import RelationalGraphConvolution
from polymodal.layers.knowledge_graph_embedding import ConvE, DistMult, TransE, scorer
from polymodal.models.knowledge_graph_completion import (
    CompletesGraph,
    KnowledgeGraphCompletion,
    KnowledgeGraphCompletionConfig,
    LinkedNodes,
    sample_triplets,
)

GOLDEN = {
    name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden" / "uknow.npz").items()
}


def star(images: int = 30) -> KnowledgeGraph:
    """Images that all have one tag, and each a tag of its own; they are similar in a ring."""
    build = GraphBuilder()
    nodes = [build.node("image", f"i{n}", n) for n in range(images)]
    for n, node in enumerate(nodes):
        build.triplet(node, "has_tag", build.node("tag", "Hub" if n % 2 else " hub"), "test")
        build.triplet(node, "similar_to", nodes[(n + 1) % images], "test", 0.9)
        build.triplet(node, "described_by", build.node("text", f"text {n}", n), "test")
    return build.graph()


def test_relations_are_of_one_type_and_link_what_their_signature_says(tmp_path: Path) -> None:
    graph = star()
    assert {one.unit for one in RELATIONS.values()} == {*UNITS}
    assert graph.types.count("tag") == 1  # equal up to capitals and blanks
    stored = {(h, t) for h, t, r in zip(graph.heads, graph.tails, graph.relation_numbers, strict=True) if r == 1}
    assert graph.relations[1] == "similar_to"
    assert {(t, h) for h, t in stored} == stored
    assert len(stored) == 60
    graph.save(tmp_path)
    again = KnowledgeGraph.load(tmp_path)
    assert again.nodes.equals(graph.nodes)
    assert again.triplets.equals(graph.triplets)
    build = GraphBuilder()
    build.triplet(build.node("tag", "a"), "has_tag", build.node("tag", "b"), "test")
    with pytest.raises(UserError, match="links image nodes there, not 'tag'"):
        build.graph()
    wrong = graph.triplets.set_column(3, "unit", [["T_in"] * len(graph.triplets)])
    with pytest.raises(UserError, match="knowledge, and not of another type"):
        KnowledgeGraph(graph.nodes, wrong)
    (tmp_path / "knowledge-nodes.parquet").write_bytes(b"damaged")
    with pytest.raises(UserError, match="no table of a knowledge graph"):
        KnowledgeGraph.load(tmp_path)


def test_a_triplet_and_its_inverse_are_in_one_split_and_no_node_loses_all_neighbors() -> None:
    graph = star().with_split(0.1, 0.2)
    split_of: dict[frozenset[int], set[str]] = {}
    for h, t, split in zip(graph.heads, graph.tails, graph.triplets.column("split").to_pylist(), strict=True):
        split_of.setdefault(frozenset((int(h), int(t))), set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    counts = [sum(splits == {name} for splits in split_of.values()) for name in ("validation", "test")]
    assert counts == [9, 18]  # of 90 pairs
    training = graph.training_triplets
    assert {*graph.heads[training], *graph.tails[training]} == {*range(len(graph))}


def test_relations_are_sampled_first_and_hubs_are_capped() -> None:
    build = GraphBuilder()
    image = build.node("image", "i", 0)
    for n in range(9):
        build.triplet(image, "similar_to", build.node("image", f"j{n}", n + 1), "test")
    build.triplet(image, "same_event", build.node("image", "k", 20), "test")
    rng = np.random.default_rng(0)
    sampler = EdgeSampler(build.graph(), ("similar_to", "same_event", "continues"), 50)
    neighbors = [sampler.sample(image, rng) for _ in range(2000)]
    assert np.mean(np.array(neighbors) == build.node("image", "k", 20)) == pytest.approx(0.5, abs=0.05)
    assert {*neighbors} == {*range(1, 11)}
    capped = EdgeSampler(star(), ("has_tag",), 5)
    assert sum(node in capped for node in range(len(star()))) == 5  # images that still have the tag
    assert capped.sample(10_000, rng) == -1


def test_conversion_reads_training_rows_alone_and_finds_what_is_there(corpus: Corpus) -> None:
    config = ConverterConfig(events=("label",), tags=("label",), times=("label",), caption_fraction=0.5)
    graph = convert(corpus, config)
    train = {*corpus.rows("train").tolist()}
    assert {*graph.rows[graph.rows >= 0].tolist()} == train
    numbers = graph.statistics()["relation"]
    assert numbers["has_object"] == numbers["is_a"] == len(train)
    assert numbers["described_by"] == 2 * len(train) / 2  # two captions of half of the images
    assert {"similar_to", "same_event", "same_topic", "same_item", "has_keyword", "at_time"} <= {*numbers}
    labels = np.array(corpus.table.column("label").to_pylist())
    assert edge_precision(graph, "same_event", labels) == 1
    assert edge_precision(graph, "similar_to", labels) > 0.9  # the color is in the image
    with pytest.raises(UserError, match="column 'lable'"):
        convert(corpus, dataclasses.replace(config, events=("lable",)))
    assert color_fractions(np.full((2, 2, 3), (220, 35, 45), np.uint8)) == {"red": 1.0}
    pairs = nearest_pairs(np.array([[1.0, 0], [0.9, 0.1], [0, 1.0]]), 1, 0.5)
    assert [(a, b) for a, b, _ in pairs] == [(0, 1), (1, 0)]


def test_images_of_an_event_and_captions_of_an_item_are_no_negatives_of_each_other() -> None:
    texts = [f"caption number {n}" for n in ["one", "two", "three", "four"]]
    contents = [
        ExtractedContent(n, f"i{n}", texts if n == 0 else [], np.eye(40)[n], metadata={"event": f"e{n % 2}"})
        for n in range(40)
    ]
    config = ConverterConfig(events=("event",), max_neighbors=3)
    graph = construct_graph(contents, symbolize(contents, config), config)
    images, captions = (torch.from_numpy(graph.of_type(kind)).double() for kind in ("image", "text"))
    even = torch.arange(40) % 2
    assert torch.equal(LinkedNodes(graph, UNITS)(images, images), even[:, None] == even)
    assert torch.equal(LinkedNodes(graph, ["T_cross"])(images, images), torch.eye(40).bool())
    assert len(captions) == 4
    assert LinkedNodes(graph, UNITS)(captions, captions).all()
    assert not LinkedNodes(graph, UNITS)(torch.tensor([-1.0]), images).any()


def test_a_triplet_and_its_inverse_are_one_observation(corpus: Corpus) -> None:
    graph = star().with_split(0.0, 0.2)
    held_out = graph.having("test")
    pairs = {frozenset(pair) for pair in zip(graph.heads[held_out], graph.tails[held_out], strict=True)}
    scores = split_scores(TaskInputs(Links(graph, "ids"), None, Reader(corpus, Processor({}, {}))), "test")
    assert len(pairs) == len(scores[0].clusters) < held_out.sum()


def test_scorers_are_those_of_pykeen() -> None:
    h, r, t = (GOLDEN[name] for name in "hrt")
    conve = ConvE(24, 4, channels=6)
    names = {"conv": "hr2d.1", "fc": "hr1d.0"}
    conve.load_state_dict(
        {f"{own}.{kind}": GOLDEN[f"conve/{name}.{kind}"] for own, name in names.items() for kind in ("weight", "bias")}
    )
    for name, module in {"transe": TransE(), "distmult": DistMult(), "conve": conve}.items():
        torch.testing.assert_close(module(h, r, t).detach(), GOLDEN[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="multiple of 4"):
        scorer("conve", 7)


def test_ranks_are_those_of_pykeen_and_metrics_have_their_chance() -> None:
    ranks, candidates = filtered_ranks(*(GOLDEN[name].numpy() for name in ("scores", "target", "known")))
    np.testing.assert_allclose(ranks, GOLDEN["realistic"].numpy())
    np.testing.assert_array_equal(candidates, GOLDEN["number_of_options"].numpy())
    queries, n = 4000, 50
    target, known = np.arange(queries) % n, np.zeros((queries, n), dtype=bool)
    perfect = np.eye(n)[target]
    for scores in (perfect, np.random.default_rng(0).random((queries, n))):
        metrics = ranking_metrics("x", *filtered_ranks(scores, target, known), np.arange(queries))
        for score in metrics:
            assert score.value == (1 if scores is perfect else pytest.approx(score.chance, abs=0.02))
    assert filtered_ranks(np.full((1, n), np.nan), target[:1], known[:1])[0] == n


def test_relational_convolution_is_its_equation() -> None:
    torch.manual_seed(0)
    layer, x = RelationalGraphConvolution(3, 2, 2, 2), torch.randn(4, 3)
    ends, relation = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 1, 1, 0]]), torch.tensor([0, 1, 0, 1, 0])
    expected = layer.self_loop(x)
    for node in range(4):
        for number in range(2):
            weight = sum(layer.coefficients[number, b] * layer.bases[b] for b in range(2))
            sources = [int(ends[0, e]) for e in range(5) if ends[1, e] == node and relation[e] == number]
            for source in sources:
                expected[node] = expected[node] + x[source] @ weight / len(sources)
    torch.testing.assert_close(layer(x, ends, relation), expected)


@pytest.mark.parametrize("name", ["transe", "distmult", "conve", "rgcn"])
def test_completion_leaves_other_true_tails_out_of_its_loss(name: str) -> None:
    torch.manual_seed(0)
    graph = star(6).with_split(0.0, 0.2)
    model = KnowledgeGraphCompletion(graph, 5, KnowledgeGraphCompletionConfig(name, dim=16))  # type: ignore[arg-type]
    model.set_features(graph.of_type("image"), torch.randn(6, 5))
    hub, inverse = graph.types.index("tag"), graph.relations.index("has_tag") + model.num_relations
    training = {
        (h, t) for h, t in zip(graph.heads[graph.training_triplets], graph.tails[graph.training_triplets], strict=True)
    }
    true = [int(h) for h, t in training if t == hub]
    scores = model(torch.tensor([hub]), torch.tensor([inverse]))[0]
    others = [node for node in range(len(graph)) if node not in true[1:]]
    expected = scores[others].logsumexp(0) - scores[true[0]]
    loss = model.loss(torch.tensor([hub]), torch.tensor([inverse]), torch.tensor([true[0]]))
    torch.testing.assert_close(loss, expected)
    images = torch.from_numpy(graph.of_type("image"))
    if name != "rgcn":  # e = W_type feature + residual vector
        own = model.projections["image"](model.features[images]) + model.residual.weight[images]
        torch.testing.assert_close(model.embeddings()[images], own)


class Links(CompletesGraph, torch.nn.Module):
    """A method of link prediction alone."""

    def __init__(self, graph: KnowledgeGraph, node_features: str):
        super().__init__()
        config = KnowledgeGraphCompletionConfig(node_features=node_features, dim=16)  # type: ignore[arg-type]
        self.graph, self.completion = graph, KnowledgeGraphCompletion(graph, 4, config)


def test_held_out_links_follow_from_features_of_images() -> None:
    build = GraphBuilder()
    for n in range(40):  # an image has a caption, and mostly the tag of its group
        image = build.node("image", f"i{n}", n)
        build.triplet(image, "described_by", build.node("text", f"text {n}", n), "test")
        build.triplet(image, "has_tag", build.node("tag", f"group {n % 4}"), "test")
    graph, mrr = build.graph(), {}
    held_out = np.array(["test" if n % 2 and n > 40 else "train" for n in range(80)])
    graph = KnowledgeGraph(graph.nodes, graph.triplets.set_column(6, "split", [held_out.tolist()]))
    for kind in ("both", "ids"):
        torch.manual_seed(0)
        method = Links(graph, kind)
        method.completion.set_features(graph.of_type("image"), torch.eye(4)[torch.arange(40) % 4])
        optimizer = torch.optim.Adam(method.parameters(), 0.1)
        for step in range(60):
            batch = sample_triplets(graph, [np.random.default_rng([step, n]) for n in range(32)])
            optimizer.zero_grad()
            method.link_losses(batch)["link_prediction"].backward()
            optimizer.step()
        places = np.flatnonzero(held_out == "test")
        ranks, candidates = LinkRanker(method, graph).ranks(places)
        assert candidates[: len(places)].tolist() == [4] * len(places)  # of the type that the relation links
        mrr[kind] = np.mean(1 / ranks[: len(places)])
    assert mrr["both"] > 0.7
    assert mrr["ids"] < mrr["both"] - 0.15, mrr
