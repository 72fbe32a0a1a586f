"""Molecules: a column of SMILES strings."""

from __future__ import annotations

import re

from polymodal.corpora._types import is_string
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Molecule

rank = 1
option = "molecule"
USUAL = ("smiles", "canonical_smiles", "isomeric_smiles", "smi", "selfies_smiles", "molecule", "mol")
# Atoms, bonds, branches, rings and charges; a word of a language has other letters.
_SMILES = re.compile(r"[A-Za-z0-9@+\-\[\]()=#$:/\\%.*]+$")
_ATOM = re.compile(r"\[[^\]]+\]|Br|Cl|[BCNOPSFIbcnops]")


def find(view: View) -> Found | None:
    """Find the column of SMILES strings: a named one, or one of a usual name. What is none is counted when it is
    read."""
    if view.named is not None and not is_string(view.type(view.named)):
        raise view.refuse("molecule")
    if any(isinstance(kind, Molecule) for kind in view.modalities.values()):
        return None
    names = [view.named] if view.named else [name for name in view.usual(USUAL) if _has_smiles(view, name)]
    return Found({names[0]: FoundColumn(Molecule())}, (names[0],)) if names else None


def _has_smiles(view: View, name: str) -> bool:
    """Return whether most strings look like SMILES, without RDKit."""
    values = view.sample(name) if is_string(view.type(name)) else []
    alike = sum(bool(_SMILES.match(value.strip()) and _ATOM.search(value)) for value in values)
    return alike > len(values) / 2
