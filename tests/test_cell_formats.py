"""Single cells of .h5ad files: X of each storage, names of genes, what is observed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from format_samples import COUNT, SAMPLES
from polymodal.corpora import from_path
from polymodal.errors import UserError
from polymodal.modalities import Cell, Table

h5py = pytest.importorskip("h5py")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_expression_genes_types_and_table(tmp_path):
    file = SAMPLES["h5ad"](tmp_path)
    with h5py.File(file, "a") as opened:
        opened["obs"]["cell_type"]["codes"][2] = -1
    corpus = from_path(file)
    assert {*corpus.columns} == {"expression", "cell_type", "table"}
    assert corpus.columns["expression"] == Cell(("CD3", "MS4A1", "NKG7"))
    np.testing.assert_array_equal(corpus.value(4, "expression"), [0, 5, 0])
    assert (corpus.label, corpus.key(4)) == ("cell_type", "AAC4-1")
    assert corpus.columns["cell_type"].names[corpus.value(1, "cell_type")] == "T cell"
    assert not corpus.has("cell_type")[2]
    assert corpus.value(2, corpus.column_with(Table)).numbers.tolist() == [21.0]


@pytest.mark.parametrize("storage", ["dense", "csr", "csc"])
def test_each_storage_of_x_gives_its_values(storage, tmp_path):
    file = SAMPLES["h5ad"](tmp_path)
    matrix = np.random.default_rng(0).integers(0, 3, (COUNT, 3)).astype(np.float32)
    with h5py.File(file, "a") as opened:
        del opened["X"]
        if storage == "dense":
            opened.create_dataset("X", data=matrix)
        else:
            x, kept = opened.create_group("X"), getattr(sparse, f"{storage}_array")(matrix)
            x.attrs["encoding-type"], x.attrs["shape"] = f"{storage}_matrix", matrix.shape
            for part in ("data", "indices", "indptr"):
                x.create_dataset(part, data=getattr(kept, part))
    corpus = from_path(file)
    np.testing.assert_array_equal([corpus.value(row, "expression") for row in range(COUNT)], matrix)


def test_what_the_library_writes_is_read(tmp_path):
    anndata = pytest.importorskip("anndata")
    import pandas

    anndata.settings.allow_write_nullable_strings = True
    matrix = np.random.default_rng(0).random((COUNT, 4)).astype(np.float32)
    observed = pandas.DataFrame({"louvain": pandas.Categorical(["0", "1"] * 6), "doublet": [True, False] * 6})
    observed["depth"] = pandas.array([1, None, *range(10)], dtype="Int64")
    observed.index = [f"c{n}" for n in range(COUNT)]
    genes = pandas.DataFrame({"feature_name": list("ABCD")}, index=[f"ENSG{n}" for n in range(4)])
    anndata.AnnData(sparse.csr_matrix(matrix), observed, genes).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    corpus = from_path(tmp_path / "a.h5ad")
    assert corpus.columns["expression"] == Cell(("A", "B", "C", "D"))
    np.testing.assert_array_equal([corpus.value(row, "expression") for row in range(COUNT)], matrix)
    assert corpus.label == "louvain"
    assert corpus.raw(1, "table") == {"depth": None, "doublet": "False"}


def test_damaged_files_are_a_sentence(tmp_path):
    file = SAMPLES["h5ad"](tmp_path)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nothing"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="it is damaged, or of another kind"):
            from_path(file)
    file.write_bytes(whole)
    with h5py.File(file, "a") as opened:
        del opened["var"]
    with pytest.raises(UserError, match="has no var; write it anew"):
        from_path(file)


def test_files_with_other_genes_are_a_sentence(tmp_path):
    first = SAMPLES["h5ad"](tmp_path)
    (tmp_path / "b.h5ad").write_bytes(first.read_bytes())
    with h5py.File(tmp_path / "b.h5ad", "a") as opened:
        opened["var"]["gene"][0] = "CD4"
    with pytest.raises(UserError, match="has other genes than"):
        from_path(tmp_path)


def test_clusters_that_are_numbers_are_classes(tmp_path):
    file = SAMPLES["h5ad"](tmp_path)
    with h5py.File(file, "a") as opened:
        del opened["obs"]["cell_type"]
        opened["obs"]["leiden"] = np.arange(COUNT) % 3
    corpus = from_path(file)
    assert corpus.columns["leiden"].names == ("0", "1", "2")
    assert corpus.value(4, "leiden") == 1
