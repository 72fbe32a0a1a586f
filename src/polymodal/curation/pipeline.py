"""Curation pipeline: pages to a corpus by a curation recipe on Daft, locally or on a Ray cluster, shard by shard.

Finished shards are kept: the same command resumes after a kill. Each step reports how many pages, texts and images it
received and kept, and the reasons for dropping others.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.constraints import PositiveInt, validate_constraints
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.saved import check_empty, save_corpus
from polymodal.curation.page_sources import PageImages, images_below
from polymodal.curation.steps import Curation, CurationStep, Rejection
from polymodal.curation.web import PageBlock, blocks_of, markdown_of, parallel_lists
from polymodal.errors import UserError, needs
from polymodal.files import remove_folder, remove_removed, written_aside
from polymodal.modalities import Interleaved
from polymodal.training.folder_lock import writes
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import write_json

Executor = Literal["native", "ray"]
DOCUMENTS, DROPPED, SETTINGS = "documents.parquet", "dropped.parquet", "settings.json"
WRITING = "writing"  # beside the shards while the output folder is written
LISTS = ("texts", "images", "images_captions", "metadata")
MARKDOWN = pa.schema({"key": pa.string(), "markdown": pa.string()} | dict.fromkeys(LISTS, pa.list_(pa.string())))
KINDS = {"row": "cell"}  # block kind -> document segment kind
BATCH = 32  # pages per batch of a worker process
QUERY = 20_000  # pages per Daft query, in memory at once


@dataclasses.dataclass(frozen=True)
class CurationOptions:
    """Executor and shard size of curation."""

    runner: Executor = "native"
    """Daft runner: native (local), or ray on the cluster of RAY_ADDRESS, by default a local one."""
    shard: PositiveInt = 512
    """Pages per shard, the unit of resuming."""

    def __post_init__(self) -> None:
        validate_constraints(self)


@dataclasses.dataclass
class StepStats:
    """Statistics of a step: counts in and out, and reasons for dropping texts or whole pages."""

    pages_in: int = 0
    pages_out: int = 0
    texts_in: int = 0
    texts_out: int = 0
    figures_in: int = 0
    figures_out: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)


def plain_texts(folder: Path) -> dict[str, list[str]]:
    """Return, by key, the plain texts of every document that `curate_pages` wrote into a folder."""
    table = pq.read_table(folder / DOCUMENTS, columns=["key", "texts"])
    return {row["key"]: [text for text in row["texts"] if text is not None] for row in table.to_pylist()}


@writes("out")
def curate_pages(
    recipe: Curation,
    pages: Iterable[Mapping[str, str]],
    out: Path | str,
    known: Any,
    options: CurationOptions | None = None,
    source: Path | str = "",
    further: Mapping[str, Any] | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    figures: PageImages | None = None,
) -> tuple[Corpus, dict[str, StepStats]]:
    """Curate pages; return the corpus of documents and the statistics of every step.

    known: fitted state of the recipe (`Curation.fit`). source: origin of the pages. further: further settings that
    identify this run, such as the source of good texts. figures: by default the files below `source`, if it is a
    folder. Raises UserError for a folder that is not empty, one that another command began, and when nothing is left.
    """
    options, out = options or CurationOptions(), Path(out)
    aside = out.with_name(f".{out.name}.curating")
    remove_removed(aside)
    half_written = (aside / WRITING).is_file()
    if not half_written:
        check_empty(out)
    _begin(aside, {"recipe": recipe_record(recipe), "source": str(source), **(further or {})})
    if half_written:
        shutil.rmtree(out, ignore_errors=True)
    steps = recipe.steps(known)
    shards = sorted(aside.glob("*.parquet"))
    left = itertools.islice(pages, sum(pq.read_metadata(file).num_rows for file in shards), None)
    for table in track(_tables(left, steps, options)):
        file = aside / f"{len(shards):06d}.parquet"
        pq.write_table(table, file.with_suffix(".partial"))
        os.replace(file.with_suffix(".partial"), file)
        shards.append(file)
    counts = _counted(shards, steps)
    if not list(counts.values())[-1].pages_out:
        remove_folder(aside)
        raise UserError(f"Nothing is left of {next(iter(counts.values())).pages_in:,} pages.")
    if figures is None and source and Path(source).is_dir():
        figures = images_below(Path(source))
    (aside / WRITING).touch()
    corpus = _written(recipe, shards, out, source, counts, figures or (lambda key, address: None))
    remove_folder(aside)
    return corpus, counts


def _tables(
    pages: Iterable[Mapping[str, str]], steps: Mapping[str, CurationStep], options: CurationOptions
) -> Iterator[pa.Table]:
    """Yield the results of pages, one table per shard."""
    remaining = iter(pages)
    while batch := list(itertools.islice(remaining, QUERY)):
        waiting: list[pa.Table] = []
        for table in run_pipeline(batch, steps, options.runner):
            waiting.append(table)
            if sum(map(len, waiting)) >= options.shard:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)


def run_pipeline(
    pages: Sequence[Mapping[str, str]], steps: Mapping[str, CurationStep], runner: Executor = "native"
) -> Iterator[pa.Table]:
    """Yield tables with the blocks of pages after all steps and what each step dropped, in order.

    Columns: key and split, remaining blocks, dropped texts with step and reason, and the number of texts and figures
    when the page was read and after each step. One Daft function runs all steps of a page (`map_pages`).
    Raises UserError without the package daft.
    """
    text, numbers = pa.string(), pa.list_(pa.int64())
    blocks = pa.list_(pa.struct(dict.fromkeys(PageBlock._fields, text)))
    dropped = pa.list_(pa.struct(dict.fromkeys(("step", *Rejection._fields), text)))
    parts = {"blocks": blocks, "dropped": dropped, "texts": numbers, "figures": numbers}
    return map_pages(pages, partial(_curated, steps=dict(steps)), parts, ("key", "split"), runner)


def map_pages(
    pages: Sequence[Mapping[str, str]],
    work: Callable[[Mapping[str, str]], dict[str, Any]],
    parts: Mapping[str, pa.DataType],
    kept: Sequence[str] = ("key",),
    runner: Executor = "native",
) -> Iterator[pa.Table]:
    """Yield tables of what a function makes of each page, in order, in one process per core.

    work: from key, html and base of a page to a value of each of `parts`; it is sent to processes. parts: types of its
    values. kept: columns of pages that stand before them. Raises UserError without the package daft.
    """
    daft = _daft(runner)
    types = {name: daft.DataType.from_arrow_type(kind) for name, kind in parts.items()}

    @daft.cls(use_process=True, max_concurrency=min(os.cpu_count() or 1, len(pages)))
    class Worker:
        def __init__(self, work: Callable[[Mapping[str, str]], dict[str, Any]]):
            self.work = work

        @daft.method(return_dtype=daft.DataType.struct(types))
        def done(self, key: str, html: str, base: str) -> dict[str, Any]:
            return self.work({"key": key, "html": html, "base": base})

    columns = dict.fromkeys((*kept, "key", "html", "base"))
    frame = daft.from_pydict({name: [page.get(name, "") for page in pages] for name in columns}).into_batches(BATCH)
    worker: Any = Worker(work)
    frame = frame.select(*kept, worker.done(*map(daft.col, ("key", "html", "base"))).alias("done"))
    frame = frame.select(*kept, *(daft.col("done")[name].alias(name) for name in parts))
    for batch in frame.to_arrow_iter():
        yield pa.Table.from_batches([batch])


def _daft(runner: Executor) -> Any:
    """Import and configure Daft, without progress output and, unless the user opts in, without telemetry."""
    for name in ("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "DAFT_SHOW_QUERY_ID", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    try:
        import daft

        if runner == "ray":
            import ray

            if not ray.is_initialized():
                ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except ImportError as error:
        missing = "ray" if runner == "ray" else "daft"
        raise needs(missing, "ray" if runner == "ray" else "curation", "Curating") from error
    if daft.get_or_infer_runner_type() != runner:
        daft.set_runner_ray() if runner == "ray" else daft.set_runner_native()
    return daft


def _curated(page: Mapping[str, str], steps: Mapping[str, CurationStep]) -> dict[str, Any]:
    return steps_of_page(page["html"], page["base"], steps)


def steps_of_page(html: str, base: str, steps: Mapping[str, CurationStep]) -> dict[str, Any]:
    """Apply all steps to a page; returns the plain values of `run_pipeline`'s columns."""
    blocks = blocks_of(html, base)
    stages, rejections = [blocks], []
    for name, step in steps.items():
        blocks, dropped = step(blocks)
        stages.append(blocks)
        rejections += [{"step": name, **rejection._asdict()} for rejection in dropped]
    figures = [sum(bool(block.image) for block in stage) for stage in stages]
    texts = [len(stage) - count for stage, count in zip(stages, figures, strict=True)]
    left = [block._asdict() for block in blocks]
    return {"blocks": left, "dropped": rejections, "texts": texts, "figures": figures}


def _begin(aside: Path, settings: dict[str, Any]) -> None:
    """Create the folder of shards, or resume that of the same command. Raises UserError for that of another."""
    file, settings = aside / SETTINGS, _plain(settings)
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise UserError(
            f"{aside} was begun with another recipe or other pages or good texts; remove it, or choose another --out."
        )
    aside.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def _counted(shards: Sequence[Path], steps: Iterable[str]) -> dict[str, StepStats]:
    counts = {"read": StepStats()} | {name: StepStats() for name in steps}
    for shard in shards:
        for row in pq.read_table(shard, columns=["dropped", "texts", "figures"]).to_pylist():
            texts, figures = [0, *row["texts"]], [0, *row["figures"]]
            present = [True, *(bool(text + figure) for text, figure in zip(texts[1:], figures[1:], strict=True))]
            for index, count in enumerate(counts.values()):
                count.pages_in += present[index]
                count.pages_out += present[index + 1]
                count.texts_in += texts[index]
                count.texts_out += texts[index + 1]
                count.figures_in += figures[index]
                count.figures_out += figures[index + 1]
            for rejection in row["dropped"]:
                counts[rejection["step"]].reasons[rejection["reason"]] += 1
    return counts


def _written(
    recipe: Curation,
    shards: Sequence[Path],
    out: Path,
    source: Path | str,
    counts: Mapping[str, StepStats],
    figures: PageImages,
) -> Corpus:
    def documents() -> Iterator[tuple[str, dict[str, Any], list[PageBlock]]]:
        """Yield key, page and blocks of each document."""
        for shard in shards:
            for row in pq.read_table(shard, columns=["key", "split", "blocks"]).to_pylist():
                if not row["blocks"]:
                    continue
                parts = recipe.documents([PageBlock(**block) for block in row["blocks"]])
                for number, blocks in enumerate(parts):
                    yield row["key"] if len(parts) == 1 else f"{row['key']}#{number}", row, blocks

    def rows() -> Iterator[dict[str, Any]]:
        for key, page, blocks in documents():
            if document := _document(blocks, page["key"], figures):
                yield {"key": key, "split": page["split"] or split_by_hash(page["key"]), "document": document}

    about = About(
        name=out.name,
        description=f"documents curated by {type(recipe).__module__.rpartition('.')[2]} from {source or 'pages'}",
        license="that of the pages",
        source=str(source),
        modalities=("interleaved",),
    )
    said = {name: vars(count) for name, count in counts.items()}
    made = {"recipe": recipe_record(recipe), "counts": said}
    corpus = save_corpus(out, about, {"document": Interleaved()}, rows(), made=lambda: _plain(made))
    as_markdown = ({"key": key, "markdown": markdown_of(own), **parallel_lists(own)} for key, _, own in documents())
    _write_table(out / DOCUMENTS, MARKDOWN, as_markdown)
    gone = (
        {"key": row["key"], **one}
        for shard in shards
        for row in pq.read_table(shard, columns=["key", "dropped"]).to_pylist()
        for one in row["dropped"]
    )
    _write_table(out / DROPPED, pa.schema(dict.fromkeys(("key", "step", "reason", "text"), pa.string())), gone)
    return corpus


def _write_table(file: Path, schema: pa.Schema, records: Iterator[dict[str, Any]]) -> None:
    """Write a Parquet file in batches, atomically."""
    with written_aside(file) as aside, pq.ParquetWriter(aside, schema) as writer:
        while chunk := list(itertools.islice(records, 1024)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def _document(blocks: Sequence[PageBlock], page: str, figures: PageImages) -> list[dict[str, Any]]:
    """Return the segments of a document: texts as Markdown, and available figures."""
    pieces: list[dict[str, Any]] = []
    for block in blocks:
        if not block.image:
            pieces.append({"kind": KINDS.get(block.kind, block.kind), "text": block.markdown, "figure": None})
        elif (image := figures(page, block.image)) is not None:
            pieces.append({"kind": "figure", "text": block.text, "figure": image})
    return pieces


def _plain(value: Any) -> Any:
    """Convert to plain JSON values; infinity becomes a string."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)
