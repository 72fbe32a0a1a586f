"""Files of vectors by their suffix: Parquet, CSV, and NumPy's NPY and NPZ."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.errors import UserError


class ParquetVectors:
    """A column of keys, and a column of vectors (lists of float32) per modality, written chunk by chunk."""

    def __init__(self, path: Path):
        self.path = path
        self.writer: pq.ParquetWriter | None = None

    def write(self, keys: list[str], vectors: dict[str, np.ndarray]) -> None:
        lists = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])
            for name, values in vectors.items()
        }
        table = pa.table({"key": keys} | lists)
        self.writer = self.writer or pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class CsvVectors:
    """A column of keys, and a column per dimension: image_0, image_1 and so on."""

    def __init__(self, path: Path):
        self.path = path
        self.file: IO[str] | None = None

    def write(self, keys: list[str], vectors: dict[str, np.ndarray]) -> None:
        if self.file is None:
            self.file = self.path.open("w", newline="", encoding="utf-8")
            names = [f"{name}_{n}" for name, values in vectors.items() for n in range(values.shape[1])]
            csv.writer(self.file).writerow(["key", *names])
        numbers = np.concatenate([*vectors.values()], axis=1).astype(np.float32)
        csv.writer(self.file).writerows([key, *map(str, row)] for key, row in zip(keys, numbers, strict=True))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class NpzVectors:
    """An array of keys, and an array of vectors (float32) per modality."""

    def __init__(self, path: Path):
        self.path = path
        self.keys: list[str] = []
        self.chunks: dict[str, list[np.ndarray]] = {}

    def write(self, keys: list[str], vectors: dict[str, np.ndarray]) -> None:
        self.keys += keys
        for name, values in vectors.items():
            self.chunks.setdefault(name, []).append(values.astype(np.float32))

    def close(self) -> None:
        if self.keys:
            arrays: dict[str, Any] = {name: np.concatenate(chunks) for name, chunks in self.chunks.items()}
            with self.path.open("wb") as file:
                self.save(file, arrays)

    def save(self, file: IO[bytes], arrays: dict[str, Any]) -> None:
        np.savez(file, key=np.array(self.keys), **arrays)


class NpyVectors(NpzVectors):
    """One array of vectors (float32), in the order of the examples."""

    def write(self, keys: list[str], vectors: dict[str, np.ndarray]) -> None:
        if len(vectors) > 1:
            raise UserError(
                f"A .npy file holds one array, and this run embeds {' and '.join(vectors)}; choose one with --column, "
                "or write .npz, .parquet or .csv."
            )
        super().write(keys, vectors)

    def save(self, file: IO[bytes], arrays: dict[str, Any]) -> None:
        np.save(file, *arrays.values())


WRITERS: dict[str, Any] = {".parquet": ParquetVectors, ".csv": CsvVectors, ".npy": NpyVectors, ".npz": NpzVectors}


def vector_writer(out: Path) -> Any:
    """Return the class that writes files with this suffix. Raises UserError for another suffix."""
    if out.suffix.lower() not in WRITERS:
        raise UserError(f"Vectors are written as {', '.join(WRITERS)}, and {out} is none of these; rename --out.")
    return WRITERS[out.suffix.lower()]
