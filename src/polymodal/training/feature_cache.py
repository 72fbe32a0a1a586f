"""Feature cache: outputs of frozen encoders are computed once per input, kept on disk, and looked up by content hash.

A frozen encoder gives the same features for the same input in every epoch. While a stage trains, the frozen encoders
among a recipe's `cacheable_encoders` therefore look up their inputs, and compute only new ones. The features of one set
of weights share a folder of the cache, so that later runs, other seeds and other recipes reuse them. Each process
appends to its own files, features before keys, so that a kill at any time leaves only complete entries, and processes
need no locks.
"""

from __future__ import annotations

import errno
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.corpora._cache import cache_directory
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError, unknown
from polymodal.layers.transformer import Packing
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens

DIGEST = 16  # bytes of a key; two of 2^60 inputs share one with a probability below one in a hundred
ROOT: ContextVar[Path | None] = ContextVar("ROOT", default=None)  # by default in the cache
KEY = np.dtype([("digest", f"V{DIGEST}"), ("first", "<i8"), ("count", "<i8")])


class FeatureCache:
    """Feature vectors in memory-mapped files, by the hash of their input; an entry has one or more vectors."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.width = 0  # until there is an entry
        self.places: dict[bytes, tuple[int, int, int]] = {}  # digest -> file, first row, rows
        self.files: list[Path] = []
        self.maps: list[Any] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for keys in sorted(folder.glob("*.keys")):
                self._open(keys)
        except OSError as error:
            raise self._error(error) from error
        self.own: int | None = None

    def _open(self, keys: Path) -> None:
        held = keys.read_bytes()
        entries = np.frombuffer(held[: len(held) // KEY.itemsize * KEY.itemsize], KEY)
        self.files.append(keys.with_suffix(".rows"))
        self.maps.append(None)
        self.width = int(keys.stem.rpartition("-")[2])
        number, rows = len(self.files) - 1, self.files[-1]
        written = rows.stat().st_size // (4 * self.width) if rows.is_file() else 0
        for digest, first, count in entries:
            if first + count <= written:  # a machine that went down may have kept the keys and lost their features
                self.places[digest.tobytes()] = (number, int(first), int(count))

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self.places

    @property
    def size(self) -> int:
        """Bytes of all features in the cache."""
        return sum(count for _, _, count in self.places.values()) * self.width * 4

    def add(self, digests: Sequence[bytes], entries: Sequence[Float[Tensor, "rows width"]]) -> None:
        """Append entries. Raises UserError when the disk cannot take them."""
        arrays = [entry.float().numpy(force=True) for entry in entries]
        try:
            if self.own is None:
                self.own = len(self.files)
                self.width = arrays[0].shape[1]
                self.files.append(self.folder / f"{uuid.uuid4().hex}-{self.width}.rows")
                self.maps.append(None)
                self.files[self.own].touch()
            rows = self.files[self.own]
            first = rows.stat().st_size // (4 * self.width)
            keys = np.empty(len(arrays), KEY)
            for number, (digest, array) in enumerate(zip(digests, arrays, strict=True)):
                keys[number] = (np.void(digest), first, len(array))
                self.places[digest] = (self.own, first, len(array))
                first += len(array)
            with open(rows, "ab") as file:
                file.write(np.concatenate(arrays).tobytes())
            with open(rows.with_suffix(".keys"), "ab") as file:
                file.write(keys.tobytes())
        except OSError as error:
            raise self._error(error) from error
        self.maps[self.own] = None  # it has grown

    def get(self, digests: Iterable[bytes]) -> list[Float[np.ndarray, "rows width"]]:
        """Return the entries of these digests."""
        found = []
        for digest in digests:
            file, first, count = self.places[digest]
            if self.maps[file] is None:
                flat = np.memmap(self.files[file], "<f4", "r")
                self.maps[file] = flat[: len(flat) // self.width * self.width].reshape(-1, self.width)
            found.append(self.maps[file][first : first + count])
        return found

    def _error(self, error: OSError) -> UserError:
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        return UserError(
            f"The features of a frozen tower cannot be kept in {self.folder}: {why}; make room, name another folder in "
            "POLYMODAL_CACHE, or train with --no-cache-features."
        )


class CachedEncoder:
    """Replaces `forward` and `pooled` of a frozen encoder by cache lookups, until `release`."""

    def __init__(self, encoder: Encoder, root: Path):
        self.encoder = encoder
        self.folder = root / weights_key(encoder)
        self.stores: dict[str, FeatureCache] = {}
        self.computed = self.looked_up = 0
        encoder.pooled = self._pooled  # type: ignore[method-assign]
        encoder.forward = self._forward

    def release(self) -> None:
        """Restore the encoder's own `forward` and `pooled`."""
        del self.encoder.pooled, self.encoder.forward

    def _compute(self, value: Any) -> Any:
        return type(self.encoder).forward(self.encoder, value)

    def _pooled(self, value: Any) -> Tensor:
        entries = self._entries("pooled", value, lambda part: list(self._compute(part)[-1][:, None]))
        return torch.from_numpy(np.concatenate(entries)).to(_device(value))

    def _forward(self, value: Any) -> Any:
        entries = self._entries("tokens", value, lambda part: _split(self._compute(part)))
        return _joined([torch.from_numpy(entry.copy()) for entry in entries], value)

    def _entries(self, kind: str, value: Any, compute: Any) -> list[np.ndarray]:
        """Return the entry of every input of a batch, computing missing ones."""
        digests = input_digests(value)
        if kind not in self.stores:
            self.stores[kind] = FeatureCache(self.folder / kind)
        store = self.stores[kind]
        new = {digest: index for index, digest in enumerate(digests) if digest not in store}
        if new:
            with torch.no_grad(), torch.autocast(_device(value).type, enabled=False):  # the same at any precision
                entries = compute(_some(value, list(new.values())))
            store.add(list(new), entries)
        self.computed += len(new)
        self.looked_up += len(digests) - len(new)
        return store.get(digests)

    def report(self) -> dict[str, int]:
        """Return the number of features, their bytes, and how many inputs were computed and looked up."""
        return {
            "features": sum(len(store) for store in self.stores.values()),
            "bytes": sum(store.size for store in self.stores.values()),
            "computed": self.computed,
            "looked_up": self.looked_up,
        }


def cached_encoders(model: nn.Module, names: Iterable[str], root: Path | None = None) -> dict[str, CachedEncoder]:
    """Cache the named encoders, whose weights must not change until they are released."""
    root = root or ROOT.get() or cache_directory() / "features"
    encoders = {name: model.get_submodule(name) for name in names}
    return {name: CachedEncoder(encoder, root) for name, encoder in encoders.items() if isinstance(encoder, Encoder)}


@contextmanager
def features_kept_in(root: Path) -> Iterator[None]:
    """Cache features in this folder inside the block, and leave the user's cache as it is."""
    token = ROOT.set(root)
    try:
        yield
    finally:
        ROOT.reset(token)


@contextmanager
def with_features(model: nn.Module, freeze: tuple[str, ...]) -> Iterator[None]:
    """Cache the encoders that are completely frozen, inside the block. freeze: as in the recipe."""
    frozen = frozen_names(model, freeze)
    names = {name for name, child in model.named_children() if isinstance(child, Encoder)}
    names -= {name.partition(".")[0] for name, _ in model.named_parameters() if name not in frozen}
    cached = cached_encoders(model, sorted(names))
    try:
        yield
    finally:
        for encoder in cached.values():
            encoder.release()


def frozen_names(model: nn.Module, freeze: tuple[str, ...]) -> set[str]:
    """Return the names of the parameters that a recipe freezes. Raises UserError for an entry without a match."""
    names = [name for name, _ in model.named_parameters()]
    frozen = set()
    for entry in freeze:
        meant = {name for name in names if name.startswith(f"{entry}_encoder.") or fnmatchcase(name, entry)}
        if not meant:
            towers = {name.partition("_encoder.")[0] for name in names if "_encoder." in name}
            raise unknown("tower to freeze", entry, towers)
        frozen |= meant
    return frozen


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters and none of them is trainable."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def weights_key(encoder: nn.Module) -> str:
    """Return a hash of an encoder's architecture and weights."""
    digest = hashlib.sha256(f"{type(encoder).__qualname__} {getattr(encoder, 'config', '')}".encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy(force=True).data if tensor.numel() else b"")
    return digest.hexdigest()[:DIGEST]


def input_digests(value: Any) -> list[bytes]:
    """Return a hash of every input of a batch, independent of padding."""
    if isinstance(value, Tokens):
        rows, lengths = value.ids, value.lengths.tolist()
    elif isinstance(value, Padded):
        rows, lengths = value.values, value.lengths.tolist()
    else:
        rows, lengths = value, [None] * len(value)
    array = rows.numpy(force=True)
    return [
        hashlib.blake2b(np.ascontiguousarray(row[:length]).data, digest_size=DIGEST).digest()
        for row, length in zip(array, lengths, strict=True)
    ]


def _some(value: Any, rows: list[int]) -> Any:
    """Select inputs of a batch, with no more padding than they need."""
    if isinstance(value, Tokens | Padded):
        lengths = value.lengths[rows]
        held = value.ids if isinstance(value, Tokens) else value.values
        return type(value)(held[rows][:, : int(lengths.max())], lengths)
    return value[rows]


def _device(value: Any) -> torch.device:
    return value.lengths.device if isinstance(value, Tokens | Padded) else value.device


def _split(output: Any) -> list[Float[Tensor, "rows width"]]:
    """Split an encoder's output by input: the pooled vector, followed by the tokens."""
    tokens, pooled = output[0], output[-1]
    if len(output) == 3:
        each = list(tokens.split(output[1].mask.sum(1).tolist()))
    elif isinstance(tokens, Padded):
        each = [row[:length] for row, length in zip(tokens.values, tokens.lengths.tolist(), strict=True)]
    else:
        each = list(tokens)
    return [torch.cat([vector[None], row]) for vector, row in zip(pooled, each, strict=True)]


def _joined(entries: list[Float[Tensor, "rows width"]], value: Any) -> Any:
    """Invert `_split`: assemble the output that the encoder gives for such an input."""
    device = _device(value)
    pooled = torch.stack([entry[0] for entry in entries]).to(device)
    if isinstance(value, Tokens):
        return torch.cat([entry[1:] for entry in entries]).to(device), Packing.of(value.mask), pooled
    lengths = torch.tensor([len(entry) - 1 for entry in entries], device=device)
    tokens = nn.utils.rnn.pad_sequence([entry[1:] for entry in entries], batch_first=True).to(device)
    return (Padded(tokens, lengths) if isinstance(value, Padded) else tokens), pooled
