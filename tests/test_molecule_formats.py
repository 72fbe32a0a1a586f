"""Molecules of CSV and SDF files."""

from __future__ import annotations

import gzip

import pytest

from format_samples import COUNT, SAMPLES
from polymodal.corpora import from_path
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Molecule, Table, Text


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_smiles_of_csv_with_their_descriptions_and_values(tmp_path):
    lines = [f"{'C' * (n + 1)}O,{n * 0.5 - 1},an alcohol of {n + 1} carbons" for n in range(12)]
    lines[4] = "C1CC,0.1,half a ring"
    (tmp_path / "m.csv").write_text("\n".join(["SMILES,logP,description", *lines]))
    corpus = from_path(tmp_path / "m.csv")
    assert isinstance(corpus.columns["SMILES"], Molecule)
    assert corpus.value(0, "SMILES").smiles == "CO"
    assert corpus.value(0, corpus.column_with(Text))[0].text == "an alcohol of 1 carbons"
    assert corpus.value(2, corpus.column_with(Table)).numbers.tolist() == [0.0]
    with pytest.raises(UnreadableExample, match="'C1CC' is no molecule"):
        corpus.value(4, "SMILES")


def test_a_column_of_words_is_no_molecule(tmp_path):
    (tmp_path / "m.csv").write_text("molecule,text\n" + "".join(f"the thing é {n},a text {n}\n" for n in range(12)))
    assert not from_path(tmp_path / "m.csv").has_modality(Molecule)


@pytest.mark.parametrize("compressed", [False, True])
def test_sdf_has_properties_and_counts_what_is_none(compressed, tmp_path):
    file = SAMPLES["sdf"](tmp_path) / "molecules.sdf"
    text = file.read_text()
    first, second, rest = text.split("$$$$\n", 2)
    text = "$$$$\n".join([first, second.replace(" C ", " Xx ", 1), rest])
    file.write_text(text)
    if compressed:
        file = tmp_path / "molecules.sdf.gz"
        file.write_bytes(gzip.compress(text.encode()))
    corpus = from_path(file)
    assert len(corpus) == COUNT - 1
    assert [(one.count, one.reason) for one in corpus.skipped] == [(1, "is no molecule that RDKit reads")]
    assert corpus.raw(1, "smiles") == "CCCO"
    assert corpus.raw(1, "title_line") == "alcohol 2"
    assert corpus.value(1, corpus.column_with(Table)).numbers.tolist() == [1.0]


def test_a_file_that_is_no_sdf_is_a_sentence(tmp_path):
    (tmp_path / "a.sdf").write_text("nothing\n")
    with pytest.raises(UserError, match="no molecule that can be read"):
        from_path(tmp_path / "a.sdf")


def test_properties_in_another_encoding_are_a_sentence(tmp_path):
    SAMPLES["sdf"](tmp_path)
    file = next(tmp_path.rglob("*.sdf"))
    first, end, rest = file.read_bytes().partition(b"$$$$")
    file.write_bytes(first + b"> <unit>\n\xb5M\n\n" + end + rest)
    with pytest.raises(UserError, match="is not written in UTF-8"):
        from_path(file)


def test_measurements_of_one_molecule_are_in_one_split(tmp_path):
    lines = [f"{'C' * (n % 30 + 1)}O,{n * 0.5}" for n in range(120)]
    (tmp_path / "m.csv").write_text("\n".join(["smiles,logP", *lines]))
    corpus = from_path(tmp_path / "m.csv")
    molecules = [{corpus.raw(int(row), "smiles") for row in rows} for rows in corpus.splits.values()]
    assert all(molecules)
    assert sum(map(len, molecules)) == 30
