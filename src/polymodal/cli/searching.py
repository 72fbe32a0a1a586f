"""Commands about embeddings: embed, index, search."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from polymodal.cli._flags import (
    HELP,
    Arguments,
    JsonOptions,
    RunOptions,
    TrustOptions,
    leading_words,
    parse,
    positional,
    run_and_corpus,
)
from polymodal.cli._next_steps import next_steps, query_of
from polymodal.cli._output_files import output_file
from polymodal.cli._printing import (
    bar,
    print_json,
    print_table,
    said_of_unreadable,
    say_which_weights,
    terminal,
    waiting,
)
from polymodal.constraints import PositiveInt


def embed(arguments: Arguments) -> None:
    """write the embeddings of images and captions to a Parquet, CSV, NPY or NPZ file"""
    path, rest = positional(arguments, "embed RUN --data PATH --out vectors.parquet")

    @dataclass(frozen=True)
    class Options(RunOptions):
        out: str | None = None
        """Output file: .parquet (default: vectors.parquet), .csv, .npy or .npz."""
        column: str = ""
        """The only modality to embed, such as image or text; by default all that the run embeds."""

    options = parse(Options, rest, "embed RUN", embed)
    from polymodal.serving.embedding import write_embeddings
    from polymodal.serving.vector_files import vector_writer

    out = output_file(options.out, "vectors.parquet")
    vector_writer(out.path)
    run, corpus = run_and_corpus(path, options)
    with waiting(f"Embedding {corpus.name}"):
        count, skipped = write_embeddings(run, corpus, out.path, options.column)
    message = f"Wrote the vectors of {count:,} examples to {out}{said_of_unreadable(skipped)}."
    terminal().print(message, highlight=False)


def index(arguments: Arguments) -> None:
    """build or update a vector index of a corpus or of your own data"""
    path, rest = positional(arguments, "index RUN --data PATH --out DIR")

    @dataclass(frozen=True)
    class Options(RunOptions):
        out: str = "index"
        """Output folder, or a URL such as s3://bucket/index."""

    options = parse(Options, rest, "index RUN", index)
    from polymodal.serving.index_build import build_index

    run, corpus = run_and_corpus(path, options)
    with bar(f"Indexing {corpus.name}", "examples") as report:
        built = build_index(run, corpus, options.out, report)
    counts = {"added": built.added, "changed": built.changed, "removed": built.removed, "as before": built.kept}
    changes = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing"
    terminal().print(f"{options.out}: {changes}{said_of_unreadable(built.skipped)}.", highlight=False)
    terminal().print(next_steps([f"search RUN {shlex.quote(query_of(corpus))}"], options.out), highlight=False)


def search(arguments: Arguments) -> None:
    """retrieve images, or other modalities, by text; in an index also by an image or a sound"""
    usage = 'search RUN "a red fruit" [--top 8] [--out contact-sheet.png], or search INDEX "a red fruit" [--where ...]'
    path, rest = positional(arguments, usage)
    if HELP & {*rest}:  # of both: which it is follows from the folder
        with suppress(SystemExit):
            _search_index(path, rest)
    else:
        from polymodal.serving.index_table import is_index

        if is_index(path):
            _search_index(path, rest)
            return
    query, rest = positional(rest, usage)

    @dataclass(frozen=True)
    class Options(RunOptions):
        top: PositiveInt = 8
        """Number of results (top-k)."""
        split: str = "all"
        """Split to search, such as test; by default every example."""
        out: str | None = None
        """Output file for the images of the results, if any; by default contact-sheet.png, or a free name like it."""

    options = parse(Options, rest, 'search RUN "WORDS"', search)
    from polymodal.corpora.contact_sheet import has_images, image_of
    from polymodal.serving.search import search_corpus

    run, corpus = run_and_corpus(path, options)
    say_which_weights(run)
    with waiting(f"Looking through {corpus.name}; polymodal index does so once for many searches"):
        hits = search_corpus(run, corpus, query, options.top, options.split)
    terminal().print(_searched(corpus, options.split), highlight=False)
    with_images = has_images(corpus)
    _print_found(hits, [image_of(corpus, hit.row) if with_images else None for hit in hits], options.out)


def _search_index(place: str, arguments: Arguments) -> None:
    words = leading_words(arguments)

    @dataclass(frozen=True)
    class Options(JsonOptions, TrustOptions):
        image: str | None = None
        """Query image, instead of words."""
        audio: str | None = None
        """Query sound, instead of words."""
        where: str | None = None
        """SQL filter on key, split and metadata, such as "category = 'Food & Drink'"."""
        hybrid: bool = False
        """Hybrid search: also match the words in the captions."""
        top: PositiveInt = 8
        """Number of results (top-k)."""
        run: str | None = None
        """Run that built the index, if it was moved."""
        out: str | None = None
        """Output file for the images of the results, if any; by default contact-sheet.png, or a free name like it."""

    options = parse(Options, arguments[len(words) :], 'search INDEX "WORDS"', search)
    from polymodal.serving.index import Index, embedded_query

    opened = Index(place)
    query = embedded_query(opened.run(options.run, options.trust_code), " ".join(words), options.image, options.audio)
    hits = opened.find(query, options.top, options.where, " ".join(words) if options.hybrid else None)
    if options.json:
        print_json([hit.record() for hit in hits])
        return
    terminal().print(f"Searched the {len(opened):,} rows of {place}.", highlight=False)
    _print_found(hits, [hit.image for hit in hits], options.out)


def _searched(corpus: Any, split: str) -> str:
    """Say what was searched: how many rows of which split."""
    if split == "all":
        held_out = (
            f"; --split test searches the {len(corpus.rows('test')):,} test rows" if "test" in corpus.splits else ""
        )
        return f"Searched all {len(corpus):,} rows of {corpus.name}{held_out}."
    return f"Searched the {len(corpus.rows(split)):,} rows of the split '{split}' of {corpus.name}, of {len(corpus):,}."


def _print_found(hits: list[Any], images: list[Any], named: str | None) -> None:
    """Print a table of search results, and save their images in one. images: None for results without an image."""
    from polymodal.serving.images import save_image
    from polymodal.serving.search import contact_sheet

    each = zip(images, hits, strict=True)
    shown = [(image, hit.similarity) for image, hit in each if image is not None]
    out = output_file(named, "contact-sheet.png")
    if shown:
        save_image(contact_sheet(shown), str(out.path))
    print_table(
        ["", "similarity", "example", "caption"],
        [[str(n), f"{hit.similarity:.3f}", hit.key, hit.caption] for n, hit in enumerate(hits, start=1)],
        right=(0, 1),
    )
    if shown:
        terminal().print(f"The images are in {out}.", highlight=False)
