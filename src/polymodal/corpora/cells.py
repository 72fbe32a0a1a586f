"""700 human blood cells (10x Genomics, PBMC 68k, reduced): the expression of 765 genes, a type, and a text about it.

Expression is log-normalised counts of single-cell RNA sequencing. The texts on the ten types name what a type is and
the marker genes that it is known for; they are written by us from textbook knowledge and the same for all cells of a
type. The table holds what was measured of each cell. Splits are by cell, stratified by type; for zero-shot tests leave
types out with `without_types`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import needs, unknown
from polymodal.modalities import Category, Cell, Modality, Table, Text
from polymodal.modalities.modality import to_npy
from polymodal.modalities.text import stored_texts

PACKAGE = PyPIPackage("scanpy", "1.11.5", "fcd383ddcf7acbf7c0ca232c25ad51b00aec9f8d2f7c8954b8c6ee0962257166", 2_097_836)
TYPES = {
    "CD4+/CD25 T Reg": "A regulatory T cell, which holds back other cells. It expresses CD4, IL2RA (CD25) and FOXP3.",
    "CD4+/CD45RA+/CD25- Naive T": "A naive helper T cell that has met no antigen yet. It expresses CD4, CCR7 and SELL.",
    "CD4+/CD45RO+ Memory": "A memory helper T cell that remembers an antigen. It expresses CD4, IL7R and S100A4.",
    "CD8+ Cytotoxic T": "A cytotoxic T cell that kills infected cells. It expresses CD8A, GZMK, GZMA and CCL5.",
    "CD8+/CD45RA+ Naive Cytotoxic": "A naive cytotoxic T cell, not yet activated. It expresses CD8B, CD8A and CCR7.",
    "CD14+ Monocyte": "A classical monocyte, which eats microbes. It expresses CD14, LYZ, S100A8 and S100A9.",
    "CD19+ B": "A B cell, which makes antibodies. It expresses CD19, MS4A1 (CD20), CD79A and CD79B.",
    "CD34+": "A blood stem or progenitor cell, from which other blood cells grow. It expresses CD34 and SOX4.",
    "CD56+ NK": "A natural killer cell, which kills infected cells. It expresses NKG7, GNLY, GZMB and NCAM1 (CD56).",
    "Dendritic": "A dendritic cell, which shows antigens to T cells. It expresses FCER1A, CLEC10A and HLA-DRA.",
}
PHASES = ("G1", "S", "G2M")
MEASURED = {"n_genes": "genes", "n_counts": "molecules", "percent_mito": "", "S_score": "", "G2M_score": ""}

about = About(
    name="cells",
    description="700 blood cells: the expression of 765 genes, cell type and a text about it",
    license="data: CC-BY-4.0 (10x Genomics); package: BSD-3-Clause; texts on types: ours (Apache-2.0)",
    source=f"PyPI: {PACKAGE.name}",
    modalities=("cell", "text", "table", "category"),
    download_bytes=PACKAGE.bytes,
    composed="the texts on the ten cell types are written by us",
)


def cells() -> Corpus:
    """Open the corpus, fetching and preparing it once (2 MB).

    Raises UserError when that is not possible, such as without the package h5py.
    """
    columns: dict[str, Modality] = {
        "expression": Cell(),
        "captions": Text(),
        "measured": Table(MEASURED, {"phase": PHASES}),
        "type": Category(tuple(TYPES)),
    }
    further = {"genes": pa.string()}
    corpus = open_prepared(about, columns, _rows, further=further, label="type", prompts=lambda name: (TYPES[name],))
    genes = tuple(corpus.raw(0, "genes").split())
    return replace(corpus, columns=dict(corpus.columns) | {"expression": Cell(genes)})


def without_types(corpus: Corpus, *types: str) -> Corpus:
    """Return the corpus without these types in training and validation, and all of their cells in
    `test_unseen_types`."""
    for name in types:
        if name not in TYPES:
            raise unknown("cell type", name, TYPES)
    held_out = np.isin(np.array(corpus.table.column("type").to_pylist()), types)
    splits = {name: rows if name == "test" else rows[~held_out[rows]] for name, rows in corpus.splits.items()}
    return corpus.with_splits(splits | {"test_unseen_types": np.flatnonzero(held_out)})


def _rows(prepare: Preparation) -> Iterator[Row]:
    try:
        import h5py
    except ImportError as error:
        raise needs("h5py", "corpora", "Preparing the corpus 'cells'") from error
    (_, data), *_ = members(prepare.fetch(PACKAGE), lambda name: name.endswith("pbmc68k_reduced.h5ad"))
    with h5py.File(io.BytesIO(data)) as file:
        observed = file["obs"][:]
        names = [name.decode() for name in file["uns/bulk_labels_categories"][:]]
        phases = [name.decode() for name in file["uns/phase_categories"][:]]
        genes = [row["index"].decode() for row in file["raw.var"][:]]
        values, places, starts = (file[f"raw.X/{part}"][:] for part in ("data", "indices", "indptr"))
    types = [names[cell["bulk_labels"]] for cell in observed]
    keys = [cell["index"].decode() for cell in observed]
    split_of = split_groups(types, keys)
    for row, (cell, name, key) in enumerate(zip(observed, types, keys, strict=True)):
        expression = np.zeros(len(genes), np.float32)
        own = slice(starts[row], starts[row + 1])
        expression[places[own]] = values[own]
        yield {
            "key": key,
            "split": split_of[key],
            "expression": to_npy(expression),
            "captions": stored_texts(TYPES[name]),
            "measured": {column: float(cell[column]) for column in MEASURED} | {"phase": phases[cell["phase"]]},
            "type": name,
            "genes": " ".join(genes) if row == 0 else None,
        }
