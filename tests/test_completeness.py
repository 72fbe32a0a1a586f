"""Completeness of captions and discrete tokens of pairs: tasks on methods whose answers are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.evaluation.tasks.completeness import completeness_scores, listed, worse_captions
from polymodal.evaluation.tasks.discrete_tokens import HasDiscreteTokens, discrete_token_scores, jaccard
from polymodal.evaluation.tasks.discrete_tokens import task as discrete_tokens
from polymodal.recipes.dual_encoders import clip, fdt


def test_worse_captions_leave_out_name_one_or_add_one() -> None:
    assert listed(["cat", "bus", "pear"]) == "a cat, a bus and a pear"
    worse = worse_captions(["cat", "bus", "pear"], "owl", 1)
    assert worse["without_one"] == ["a bus and a pear", "a cat and a pear", "a cat and a bus"]
    assert worse["one_only"] == ["a cat", "a bus", "a pear"]
    assert worse["with_absent"] == ["a cat, a owl, a bus and a pear"]


class ByLength(nn.Module):
    """Finds an image the more similar to a text, the longer it is; or the same to all."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        vectors = {}
        if "image" in batch:
            vectors["image"] = torch.ones(len(batch["image"]), 1)
        if "text" in batch:
            vectors["text"] = self.factor * batch["text"].lengths[:, None].float()
        return vectors


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(fdt.Recipe.tiny(), corpus)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1.0, {"without_one": 1.0, "one_only": 1.0, "with_absent": 0.0}),
        (-1.0, {"without_one": 0.0, "one_only": 0.0, "with_absent": 1.0}),
        (0.0, {"without_one": 0.0, "one_only": 0.0, "with_absent": 0.0}),
    ],
)
def test_a_method_that_prefers_long_captions_is_seen(
    factor: float, expected: dict[str, float], corpus: Corpus, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = corpus.value

    def two_regions(_: Corpus, row: int, column: str, **options: Any) -> Any:
        found = value(row, column, **options)
        return [*found, found[0]._replace(name=f"other {row}")] if column == "regions" else found

    monkeypatch.setattr(type(corpus), "value", two_regions)
    scores = completeness_scores(ByLength(factor), processor, Reader(corpus, processor), "test")
    assert {score.name.split("/")[2]: score.value for score in scores} == expected
    assert all(score.chance == 0.5 for score in scores)


def test_rows_without_regions_are_left_out(corpus: Corpus, processor: Processor) -> None:
    place = corpus.table.schema.get_field_index("regions")
    stored = corpus.table.column("regions").to_pylist()
    other = [{**stored[0][0], "name": "other"}]
    changed = [None if row % 2 else regions + other for row, regions in enumerate(stored)]
    column = pa.array(changed, corpus.table.schema.field("regions").type)
    sparse = dataclasses.replace(corpus, table=corpus.table.set_column(place, "regions", column))
    scores = completeness_scores(ByLength(1.0), processor, Reader(sparse, processor), "test")
    assert [len(score.clusters) for score in scores] == [sum(row % 2 == 0 for row in corpus.rows("test"))] * 3


class Fixed(nn.Module):
    """Images activate the tokens 0 and 1; captions 1 and 2, of which 2 with the weight 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def concept_weights(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        rows = len(batch["image"])
        weights = {"image": [0.5, 0.5, 0.0, 0.0], "text": [0.0, 1.0, 0.0, 0.0]}
        return {name: torch.tensor(row).expand(rows, 4) for name, row in weights.items()}

    def concept_votes(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        raise NotImplementedError


def test_active_tokens_are_those_with_a_weight(corpus: Corpus, processor: Processor) -> None:
    scores = discrete_token_scores(Fixed(), processor, Reader(corpus, processor), "test")
    values = {score.name.rpartition("/")[2]: score.value for score in scores}
    assert values == {"overlap": 0.5, "image_active": 0.5, "text_active": 0.25, "unused": 0.5}
    assert scores[0].chance == pytest.approx(0.5)
    for score in scores:
        assert discrete_tokens.kind_of(score.name).higher_is_better == score.higher_is_better
    a = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(jaccard(a, a), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_only_methods_with_a_table_have_discrete_tokens(processor: Processor) -> None:
    assert isinstance(fdt.Recipe.tiny().build(processor), HasDiscreteTokens)
    assert not isinstance(clip.Recipe.tiny().build(processor), HasDiscreteTokens)
