"""Pages in, a corpus out: a recipe of curation on Daft, on this machine or on a Ray cluster, shard by shard.

What is finished stays: the same command goes on after a kill. Every step says how many pages, texts and images came
to it and left it, and why others did not.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.constraints import PositiveInt, validate_constraints
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.saved import check_empty, save_corpus
from polymodal.curation.steps import Curation, CurationStep, Rejection
from polymodal.curation.web import Block, blocks_of, markdown_of, parallel_lists
from polymodal.errors import UnreadableExample, UserError, needs
from polymodal.modalities import Image, Interleaved
from polymodal.modalities.image import to_rgb
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import write_json

Executor = Literal["native", "ray"]
DOCUMENTS, DROPPED, SETTINGS = "documents.parquet", "dropped.parquet", "settings.json"
LISTS = ("texts", "images", "images_captions", "metadata")
MARKDOWN = pa.schema({"key": pa.string(), "markdown": pa.string()} | dict.fromkeys(LISTS, pa.list_(pa.string())))
KINDS = {"row": "cell"}  # of blocks that documents have another name for
BATCH = 32  # pages that a process gets at once
QUERY = 20_000  # pages in memory at once, for which processes are started


Figures = Callable[[str, str], bytes | None]
"""From the key of a page and an address on it to the figure that stands there; None where it is not at hand."""


@dataclasses.dataclass(frozen=True)
class CurationOptions:
    """Where and in which pieces pages are curated."""

    runner: Executor = "native"
    """Daft's runner: native on this machine, or ray on the cluster of RAY_ADDRESS, by default one on this machine."""
    shard: PositiveInt = 512
    """Pages that are written together, and need not be done again after a stop."""

    def __post_init__(self) -> None:
        validate_constraints(self)


@dataclasses.dataclass
class StepStats:
    """What came to a step and what left it; reasons: why texts, or whole pages, did not."""

    pages_in: int = 0
    pages_out: int = 0
    texts_in: int = 0
    texts_out: int = 0
    figures_in: int = 0
    figures_out: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)


def pages_in(source: Path) -> Iterator[dict[str, str]]:
    """Pages of a folder of HTML files, or of a Parquet or JSON lines file with a column html and perhaps url.

    Raises UserError for anything else, and where there is none.
    """
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".html", ".htm", ".xhtml"))
        if not files:
            raise UserError(f"{source} has no .html file.")
        for path in files:
            html = path.read_text(encoding="utf-8", errors="replace")
            folder = path.parent.relative_to(source).as_posix()
            yield {
                "key": path.relative_to(source).as_posix(),
                "html": html,
                "base": "" if folder == "." else f"{folder}/",
            }
        return
    if not source.is_file():
        raise UserError(f"There is no file or folder {source}.")
    yield from _of_table(source)


def _of_table(source: Path) -> Iterator[dict[str, str]]:
    from pyarrow import dataset
    from pyarrow import json as arrow_json

    try:
        if source.suffix == ".parquet":
            batches = dataset.dataset(source).to_batches()
        else:
            batches = iter(arrow_json.read_json(source).to_batches())
        for first, batch in enumerate(batches):
            if "html" not in batch.schema.names:
                raise UserError(f"{source} has no column html; it has {', '.join(batch.schema.names)}.")
            for number, row in enumerate(batch.to_pylist()):
                key = row.get("key") or row.get("url") or f"{first}/{number}"
                yield {"key": str(key), "html": row["html"] or "", "base": str(row.get("url") or "")}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{source} is neither Parquet nor JSON lines that can be read ({error}).") from error


def pages_of(corpus: Corpus, rows: Sequence[int] | None = None) -> Iterator[dict[str, str]]:
    """Pages of a corpus that keeps them as they were found, such as `manuals`, with their splits."""
    if "html" not in corpus.table.column_names:
        raise UserError(f"The corpus '{corpus.name}' has no pages as they were found (a column html); manuals has.")
    split_of = {int(row): split for split, own in corpus.splits.items() for row in own}
    for row in range(len(corpus)) if rows is None else rows:
        page = {"key": corpus.key(row), "html": corpus.raw(row, "html"), "base": ""}
        yield page | ({"split": split_of[row]} if row in split_of else {})


def figures_of(corpus: Corpus) -> Figures:
    """The figures of a corpus of documents that keeps the addresses that they have on its pages."""
    if "addresses" not in corpus.table.column_names:
        return lambda key, address: None
    column = corpus.column_with(Interleaved)
    rows = {corpus.key(row): row for row in range(len(corpus))}

    @functools.lru_cache(maxsize=1)  # a page is asked for all of its figures, one after the other
    def of_page(key: str) -> dict[str, bytes]:
        pieces = (piece["figure"] for piece in corpus.raw(rows[key], column))
        return dict(zip(corpus.raw(rows[key], "addresses"), filter(None, pieces), strict=True))

    return lambda key, address: of_page(key).get(address)


def plain_texts(folder: Path) -> dict[str, list[str]]:
    """By key, the texts of every document that `curate_pages` wrote into a folder, without marks."""
    found = pq.read_table(folder / DOCUMENTS, columns=["key", "texts"])
    return {row["key"]: [text for text in row["texts"] if text is not None] for row in found.to_pylist()}


def figures_below(root: Path) -> Figures:
    """The files of a folder. Addresses of the web stay in the Markdown; nothing is fetched, and no other file read."""
    root = root.resolve()

    def read(key: str, address: str) -> bytes | None:
        path = (root / unquote(address)).resolve()
        if "://" in address or not path.is_relative_to(root):
            return None
        with suppress(OSError, UnreadableExample):
            data = path.read_bytes()
            to_rgb(Image().decode(data))
            return data
        return None

    return read


def curate_pages(
    recipe: Curation,
    pages: Iterable[Mapping[str, str]],
    out: Path | str,
    known: Any,
    options: CurationOptions | None = None,
    source: Path | str = "",
    further: Mapping[str, Any] | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    figures: Figures | None = None,
) -> tuple[Corpus, dict[str, StepStats]]:
    """A corpus of the documents that pages come to, and what every step did.

    known: what the recipe has learned (`Curation.fit`). source: where the pages are from. further: what else tells
    this run from others, such as where good texts are from. figures: by default the files below `source`, where it is a
    folder, and nothing else.
    Raises UserError for a folder that is not empty, one that another command began, and when nothing is left.
    """
    options, out = options or CurationOptions(), Path(out)
    check_empty(out)
    aside = out.with_name(f".{out.name}.curating")
    _begin(aside, {"recipe": recipe_record(recipe), "source": str(source), **(further or {})})
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
        shutil.rmtree(aside)
        raise UserError(f"Nothing is left of {next(iter(counts.values())).pages_in:,} pages.")
    if figures is None and source and Path(source).is_dir():
        figures = figures_below(Path(source))
    corpus = _written(recipe, shards, out, source, counts, figures or (lambda key, address: None))
    shutil.rmtree(aside)
    return corpus, counts


def _tables(
    pages: Iterable[Mapping[str, str]], steps: Mapping[str, CurationStep], options: CurationOptions
) -> Iterator[pa.Table]:
    """What becomes of pages, a shard at a time."""
    rest = iter(pages)
    while some := list(itertools.islice(rest, QUERY)):
        waiting: list[pa.Table] = []
        for table in run_pipeline(some, steps, options.runner):
            waiting.append(table)
            if sum(map(len, waiting)) >= options.shard:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)


def run_pipeline(
    pages: Sequence[Mapping[str, str]], steps: Mapping[str, CurationStep], runner: Executor = "native"
) -> Iterator[pa.Table]:
    """The blocks of pages after each step, and what each step dropped, as they are finished, in order.

    Columns key and split, blocks that are left, dropped texts with step and reason, and how many texts and figures
    there were when the page was read and after each step. One Daft function does all steps of a page, in a process for
    each core. Raises UserError without the package daft.
    """
    daft = _daft(runner)
    text = daft.DataType.string()
    blocks = daft.DataType.list(daft.DataType.struct(dict.fromkeys(Block._fields, text)))
    dropped = daft.DataType.list(daft.DataType.struct(dict.fromkeys(("step", *Rejection._fields), text)))
    numbers = daft.DataType.list(daft.DataType.int64())
    parts = {"blocks": blocks, "dropped": dropped, "texts": numbers, "figures": numbers}
    made = daft.DataType.struct(parts)

    @daft.cls(use_process=True, max_concurrency=min(os.cpu_count() or 1, len(pages)))
    class Worker:
        def __init__(self, steps: Mapping[str, CurationStep]):
            self.steps = steps

        @daft.method(return_dtype=made)
        def curated(self, html: str, base: str) -> dict[str, Any]:
            return steps_of_page(html, base, self.steps)

    columns = ("key", "split", "html", "base")
    frame = daft.from_pydict({name: [page.get(name, "") for page in pages] for name in columns}).into_batches(BATCH)
    worker: Any = Worker(dict(steps))
    frame = frame.select("key", "split", worker.curated(daft.col("html"), daft.col("base")).alias("done"))
    frame = frame.select("key", "split", *(daft.col("done")[name].alias(name) for name in parts))
    for batch in frame.to_arrow_iter():
        yield pa.Table.from_batches([batch])


def _daft(runner: Executor) -> Any:
    """The library, quiet, and with no word to its makers of who uses it unless the user says so."""
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


def steps_of_page(html: str, base: str, steps: Mapping[str, CurationStep]) -> dict[str, Any]:
    """What `curated` has of a page, as plain values."""
    blocks = blocks_of(html, base)
    every, gone = [blocks], []
    for name, step in steps.items():
        blocks, dropped = step(blocks)
        every.append(blocks)
        gone += [{"step": name, **one._asdict()} for one in dropped]
    figures = [sum(bool(block.image) for block in some) for some in every]
    texts = [len(some) - count for some, count in zip(every, figures, strict=True)]
    left = [block._asdict() for block in blocks]
    return {"blocks": left, "dropped": gone, "texts": texts, "figures": figures}


def _begin(aside: Path, settings: dict[str, Any]) -> None:
    """A folder for shards; one of the same command goes on. Raises UserError for one of another."""
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
            there = [True, *(bool(text + figure) for text, figure in zip(texts[1:], figures[1:], strict=True))]
            for place, count in enumerate(counts.values()):
                count.pages_in += there[place]
                count.pages_out += there[place + 1]
                count.texts_in += texts[place]
                count.texts_out += texts[place + 1]
                count.figures_in += figures[place]
                count.figures_out += figures[place + 1]
            for one in row["dropped"]:
                counts[one["step"]].reasons[one["reason"]] += 1
    return counts


def _written(
    recipe: Curation,
    shards: Sequence[Path],
    out: Path,
    source: Path | str,
    counts: Mapping[str, StepStats],
    figures: Figures,
) -> Corpus:
    def documents() -> Iterator[tuple[str, dict[str, Any], list[Block]]]:
        """Key, page and blocks."""
        for shard in shards:
            for row in pq.read_table(shard, columns=["key", "split", "blocks"]).to_pylist():
                if not row["blocks"]:
                    continue
                parts = recipe.documents([Block(**block) for block in row["blocks"]])
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
    """A Parquet file, some records at a time; it appears when it is whole."""
    aside = file.with_name(f".{file.name}.partial")
    with pq.ParquetWriter(aside, schema) as writer:
        while some := list(itertools.islice(records, 1024)):
            writer.write_table(pa.Table.from_pylist(some, schema))
    os.replace(aside, file)


def _document(blocks: Sequence[Block], page: str, figures: Figures) -> list[dict[str, Any]]:
    """Texts as Markdown, and the figures that are at hand."""
    pieces: list[dict[str, Any]] = []
    for block in blocks:
        if not block.image:
            pieces.append({"kind": KINDS.get(block.kind, block.kind), "text": block.markdown, "figure": None})
        elif (image := figures(page, block.image)) is not None:
            pieces.append({"kind": "figure", "text": block.text, "figure": image})
    return pieces


def _plain(value: Any) -> Any:
    """For JSON, which has no infinity."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)
