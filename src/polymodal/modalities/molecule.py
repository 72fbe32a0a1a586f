"""Molecules: SMILES, and molecular graphs parsed by RDKit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers

from polymodal.errors import UnreadableExample, needs
from polymodal.modalities.text import END, PAD, START, TextTokenizer

ATOM_FEATURES = {"element": 119, "degree": 7, "charge": 11, "hydrogens": 6, "aromatic": 2, "chirality": 4, "ring": 2}
BOND_FEATURES = {"kind": 4, "ring": 2, "stereo": 6}  # feature -> number of values

UNKNOWN = "<unknown>"


class MoleculeGraph(NamedTuple):
    """Molecular graph. smiles: canonical. atoms, bonds: indices of ATOM_FEATURES and BOND_FEATURES values.

    ends: atoms of each bond, in both directions one after the other, as message passing needs them.
    """

    smiles: str
    atoms: Int[np.ndarray, "atoms 7"]
    ends: Int[np.ndarray, "2 bonds"]
    bonds: Int[np.ndarray, "bonds 3"]


@dataclass(frozen=True)
class Molecule:
    """Column of SMILES strings."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.string()

    def decode(self, value: str) -> MoleculeGraph:
        """Parse a molecule. Raises UnreadableExample for an invalid SMILES string, UserError without RDKit."""
        molecule = parse_smiles(value)
        if molecule is None:
            raise UnreadableExample(f"'{value}' is no molecule")
        atoms = [
            (
                min(atom.GetAtomicNum(), 118),
                min(atom.GetDegree(), 6),
                min(max(atom.GetFormalCharge() + 5, 0), 10),
                min(atom.GetTotalNumHs(), 5),
                int(atom.GetIsAromatic()),
                min(int(atom.GetChiralTag()), 3),
                int(atom.IsInRing()),
            )
            for atom in molecule.GetAtoms()
        ]
        ends, bonds = [], []
        kinds = {1.0: 0, 2.0: 1, 3.0: 2, 1.5: 3}
        for bond in molecule.GetBonds():
            start, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            features = (kinds.get(bond.GetBondTypeAsDouble(), 0), int(bond.IsInRing()), min(int(bond.GetStereo()), 5))
            ends += [(start, end), (end, start)]
            bonds += [features, features]
        return MoleculeGraph(
            _rdkit().MolToSmiles(molecule),
            np.array(atoms, np.int64),
            np.array(ends, np.int64).reshape(-1, 2).T.copy(),
            np.array(bonds, np.int64).reshape(-1, 3),
        )

    def describe(self, value: MoleculeGraph) -> str:
        return f"{value.smiles} ({len(value.atoms)} atoms, {len(value.bonds) // 2} bonds)"

    def plot(self, value: MoleculeGraph, axes: Any) -> None:
        from rdkit.Chem import Draw

        axes.imshow(Draw.MolToImage(parse_smiles(value.smiles), size=(300, 240)))
        axes.axis("off")


def parse_smiles(smiles: str) -> Any:
    """Parse a SMILES string with RDKit; None when it is invalid. Raises UserError without RDKit."""
    return _rdkit().MolFromSmiles(smiles)


def _rdkit() -> Any:
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise needs("rdkit", "molecules", "Reading molecules") from error
    rdBase.DisableLog("rdApp.*")  # the caller reports the error with the example's key
    return Chem


# An atom in brackets, an element of two letters, a ring number of two digits, or any other sign on its own.
SMILES_TOKEN = r"\[[^\]]+\]|Br|Cl|%\d\d|."


def smiles_tokenizer(smiles: Iterable[str], context_length: int) -> TextTokenizer:
    """Train a SMILES tokenizer: atoms, bonds, branches and ring numbers are tokens (after Schwaller et al. 2019).

    The vocabulary is every token of `smiles`; others become `<unknown>`.
    """
    split = pre_tokenizers.Split(tokenizers.Regex(SMILES_TOKEN), behavior="isolated")
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(special_tokens=[PAD, START, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(smiles, trainer)
    return TextTokenizer(tokenizer, context_length)
