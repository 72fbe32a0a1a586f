"""Interleaved documents of users, as OBELICS and MMC4 have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from format_samples import png
from polymodal.corpora import Corpus, from_path
from polymodal.data.processor import fit_processor
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Interleaved
from polymodal.modalities.image import to_rgb
from polymodal.recipes.any_to_any import moma
from polymodal.rng import ExampleRNG

COUNT = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def document(corpus: Corpus, row: int) -> list[Any]:
    """Texts, and figures as the red of their first pixel."""
    pieces = corpus.value(row, corpus.column_with(Interleaved))
    return [
        piece.text if piece.figure is None else np.asarray(to_rgb(piece.figure))[0, 0, 0].item() for piece in pieces
    ]


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(png(number))


STORED: dict[str, Any] = {
    "records": lambda n: {"bytes": png(n), "path": f"{n}.png"},
    "bytes": png,
    "paths": lambda n: f"{n}.png",
}


def obelics(stored: Any) -> list[dict[str, Any]]:
    return [
        {
            "images": [None, stored(n), None, stored(0)][: 2 + n % 3],
            "texts": [f"first {n}", None, "then", None][: 2 + n % 3],
            "metadata": "[]",
            "general_metadata": "{}",
        }
        for n in range(COUNT)
    ]


@pytest.mark.parametrize("kind", STORED)
def test_obelics(kind, tmp_path):
    write_images(tmp_path / "images")
    pq.write_table(pa.Table.from_pylist(obelics(STORED[kind])), tmp_path / "a.parquet")
    corpus = from_path(tmp_path / "a.parquet")
    assert set(corpus.columns) == {"document"}
    assert document(corpus, 0) == ["first 0", 0]
    assert document(corpus, 5) == ["first 5", 100, "then", 0]
    assert [piece["kind"] for piece in corpus.raw(5, "document")] == ["paragraph", "figure", "paragraph", "figure"]


def test_obelics_with_lists_of_two_lengths_is_counted_and_addresses_are_a_sentence(tmp_path):
    rows = obelics(png)
    rows[4]["texts"].append("more")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = from_path(tmp_path / "a.parquet")
    assert document(corpus, 5) == ["first 5", 100, "then", 0]
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "row 4")]
    assert sorted(np.concatenate(list(corpus.splits.values()))) == [row for row in range(COUNT) if row != 4]
    rows = obelics(lambda n: f"https://example.org/{n}.jpg")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"such as https://example\.org/0\.jpg; download them"):
        from_path(tmp_path / "b.parquet")


def mmc4(number: int) -> dict[str, Any]:
    return {
        "url": f"https://example.org/{number}",
        "text_list": ["one", "two", "three"],
        "image_info": [
            {"image_name": f"{number}.png", "raw_url": "x", "matched_text_index": 2, "matched_sim": 0.3},
            {"image_name": "0.png", "raw_url": "y", "matched_text_index": 0, "matched_sim": 0.2},
        ][: number % 3],
        "similarity_matrix": [[0.1, 0.2]],
        "could_have_url_duplicate": 0,
    }


def test_mmc4_as_it_is_released(tmp_path):
    write_images(tmp_path / "images")
    rows = [mmc4(number) for number in range(COUNT)]
    rows[4]["image_info"][0]["matched_text_index"] = 3
    (tmp_path / "docs_shard_0_v2.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "docs_shard_0_v2.jsonl")
    assert document(corpus, 2) == [0, "one", "two", 40, "three"]
    assert document(corpus, 3) == ["one", "two", "three"]
    assert document(corpus, 7) == ["one", "two", 140, "three"]
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "row 4")]


def test_a_missing_entry_of_mmc4_is_counted(tmp_path):
    write_images(tmp_path)
    rows = [mmc4(number) for number in range(COUNT)]
    rows[4]["image_info"][0] = None
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "docs.jsonl")
    assert document(corpus, 7) == ["one", "two", 140, "three"]
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "row 4")]


def test_our_own_documents_in_parquet(tmp_path):
    rows = [
        {"document": [{"kind": "heading", "text": f"{n}", "figure": None}, {"kind": "f", "text": "", "figure": png(n)}]}
        for n in range(COUNT)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert document(from_path(tmp_path / "a.parquet"), 4) == ["4", 80]


def test_moma_learns_from_documents_of_users(tmp_path):
    write_images(tmp_path)
    rows = obelics(STORED["paths"])
    rows[3]["images"][1] = "missing.png"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus, recipe = from_path(tmp_path / "a.parquet"), moma.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    with pytest.raises(UnreadableExample, match=r"missing\.png cannot be read"):
        processor.load_example(corpus, 3)
    examples = [processor.load_example(corpus, row) for row in (4, 5, 6, 7)]
    losses = recipe.build(processor).losses(recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4)))
    assert all(torch.isfinite(loss) for loss in losses.values())
