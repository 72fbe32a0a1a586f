"""Commands that make data: corpora, curate, caption, sample-preferences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal import source
from polymodal.cli._flags import (
    Arguments,
    JsonOptions,
    NoOptions,
    RunOptions,
    leading_words,
    parse,
    parse_together,
    positional,
    recipe_that,
    run_and_corpus,
)
from polymodal.cli._printing import counted, megabytes, print_json, print_table, terminal
from polymodal.cli._recipe_flags import parse_with_recipe
from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.errors import UserError, unknown

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus


def corpora(arguments: Arguments) -> None:
    """the built-in corpora (datasets): list, show NAME, fetch NAME..., fetch --all, remove NAME..."""
    words = leading_words(arguments)
    action, *names = words or ["list"]
    actions = {"list": _list_corpora, "show": _show_corpora, "fetch": _fetch_corpora, "remove": _remove_corpora}
    if action not in actions:
        raise unknown("action of corpora", action, actions)
    from polymodal.corpora import registry

    for name in names:
        if name not in registry.names():
            raise unknown("corpus", name, registry.names())
    actions[action](names, arguments[len(words) :])


def _list_corpora(names: list[str], arguments: Arguments) -> None:
    options = parse(JsonOptions, arguments, "corpora list", corpora)
    from polymodal.corpora import registry
    from polymodal.corpora._cache import prepared_size

    if options.json:
        print_json([registry.state(name) for name in names or registry.built_in()])
        return
    rows = []
    for about in registry.built_in().values():
        sizes = megabytes(about.download_bytes), megabytes(prepared_size(about.name))
        rows.append([about.name, " + ".join(about.modalities), about.description, *sizes])
    print_table(["corpus", "modalities", "what", "download", "in the cache"], rows)
    terminal().print("Licences: polymodal corpora show NAME", highlight=False)


def _show_corpora(names: list[str], arguments: Arguments) -> None:
    @dataclass(frozen=True)
    class Options:
        examples: PositiveInt = 3
        """Number of examples to show."""
        seed: NonNegativeInt = 0
        """Random seed for choosing examples."""
        out: str | None = None
        """Output file of the contact sheet (PNG); by default NAME.png in this folder."""
        json: bool = False
        """Print JSON for scripts; no contact sheet unless --out is given."""

    options = parse(Options, arguments, "corpora show NAME", corpora)
    if len(names) != 1:
        raise UserError("Say which corpus: polymodal corpora show emoji.")
    from polymodal.corpora import registry
    from polymodal.corpora.contact_sheet import describe_row, plot_contact_sheet, some_rows

    corpus, console = registry.load_corpus(names[0]), terminal()
    rows = some_rows(corpus, options.examples, options.seed)
    examples = {corpus.key(row): describe_row(corpus, int(row)) for row in rows}
    out = options.out or (None if options.json else f"{corpus.name}.png")
    if out:
        try:
            plot_contact_sheet(corpus, rows, Path(out))
        except (OSError, ValueError) as error:
            raise UserError(f"The contact sheet cannot be written to {out}: {error}.") from error
    if options.json:
        print_json(registry.state(corpus.name) | {"shown": examples})
        return
    _print_counts(corpus)
    columns = [
        [name, type(modality).__name__.lower(), f"{corpus.has(name).mean():.0%}"]
        for name, modality in corpus.columns.items()
    ]
    print_table(["column", "modality", "filled"], columns)
    for key, said in examples.items():
        print_table([key, ""], [[name, text] for name, text in said.items()])
    console.print(f"Licence: {corpus.about.license}\nSource: {corpus.about.source}", highlight=False)
    console.print(f"Contact sheet: {out}", highlight=False)


def _fetch_corpora(names: list[str], arguments: Arguments) -> None:
    @dataclass(frozen=True)
    class Options:
        all: bool = False
        """Fetch every corpus that is not in the cache yet."""

    options = parse(Options, arguments, "corpora fetch NAME...", corpora)
    if not names and not options.all:
        raise UserError("Say which corpus: polymodal corpora fetch emoji, or fetch --all.")
    from polymodal.corpora import registry
    from polymodal.corpora._cache import is_prepared

    console, failed = terminal(), []
    if options.all:
        names = [name for name, about in registry.built_in().items() if not is_prepared(about.folder)]
        size = sum(registry.built_in()[name].download_bytes for name in names)
        console.print(f"{len(names)} corpora to fetch and prepare: {megabytes(size)} of packages.", highlight=False)
    for name in names:
        try:
            corpus = registry.load_corpus(name)
        except UserError as error:
            if not options.all:
                raise
            failed.append(name)
            console.print(f"{name}: {error}", highlight=False)
            continue
        _print_counts(corpus)
    if failed:
        raise UserError(f"{len(failed)} could not be prepared: {', '.join(failed)}; the others are there.")


def _print_counts(corpus: Corpus) -> None:
    terminal().print(f"{corpus}.", highlight=False)


def _remove_corpora(names: list[str], arguments: Arguments) -> None:
    parse(NoOptions, arguments, "corpora remove NAME...", corpora)
    if not names:
        raise UserError("Say which corpus: polymodal corpora remove emoji.")
    from polymodal.corpora._cache import remove

    for name in names:
        freed = remove(name)
        message = f"Removed {name} ({megabytes(freed)})." if freed else f"{name} is not in the cache."
        terminal().print(message, highlight=False)


def curate(arguments: Arguments) -> None:
    """curate web pages to a corpus of interleaved documents, with counts of every step"""
    usage = "curate RECIPE PAGES --out FOLDER [--good TEXTS] [--runner ray]"
    spec, rest = positional(arguments, usage)
    path, rest = positional(rest, usage)
    kind = recipe_that("steps", spec, "no recipe of curation", "data_curation")

    @dataclass(frozen=True)
    class Options:
        out: str = "curated"
        """Output folder; `--data FOLDER` opens it."""
        good: str | None = None
        """Text file, or built-in corpus with captions, of good texts in the language: for perplexity and frequent
        words."""
        flagged: str | None = None
        """File with one flagged (unwanted) word per line."""

    kinds = {"options": Options, "curation": source.find("polymodal.curation.pipeline", "CurationOptions")}
    parsed = parse_with_recipe(kinds, kind, rest, f"curate {spec} PAGES", curate)
    from polymodal.corpora import registry
    from polymodal.curation.pipeline import curate_pages, figures_of, pages_in, pages_of
    from polymodal.curation.quality import good_texts, lines_of_file
    from polymodal.training import Interrupted

    recipe, options = source.real(parsed.recipe), parsed.options
    source_corpus = registry.load_corpus(path) if path in registry.names() else None
    pages, figures = (
        (pages_of(source_corpus), figures_of(source_corpus)) if source_corpus else (pages_in(Path(path)), None)
    )
    flagged = [word for line in lines_of_file(options.flagged) for word in line.split()] if options.flagged else ()
    fitted = recipe.fit(good_texts(options.good, recipe.language) if options.good else (), flagged)
    settings = {"good": options.good, "flagged": options.flagged}
    try:
        corpus, counts = curate_pages(
            recipe,
            pages,
            options.out,
            fitted,
            source.real(parsed.curation),
            path,
            settings,
            lambda one: counted(one, "Curated"),
            figures,
        )
    except KeyboardInterrupt as stopped:
        raise Interrupted("Stopped; the same command goes on behind the pages that were finished.") from stopped
    print_table(
        ["step", "pages", "texts", "figures", "why texts or pages went"],
        [
            [
                name,
                f"{count.pages_in:,} → {count.pages_out:,}",
                f"{count.texts_in:,} → {count.texts_out:,}",
                f"{count.figures_in:,} → {count.figures_out:,}",
                ", ".join(f"{reason} {times:,}" for reason, times in count.reasons.most_common()),
            ]
            for name, count in counts.items()
        ],
        right=(1, 2, 3),
    )
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in corpus.splits.items())
    terminal().print(
        f"Wrote {len(corpus):,} documents ({sizes}) to {options.out}; documents.parquet has them as Markdown,\n"
        "dropped.parquet what went, and why.",
        highlight=False,
    )


def caption(arguments: Arguments) -> None:
    """caption a corpus's images by a run, keeping the best captions, as a corpus to train ulip_2 on"""
    path, rest = positional(arguments, "caption RUN --out FOLDER [--corpus NAME | --data PATH] [--score-with RUN]")

    @dataclass(frozen=True)
    class Options(RunOptions):
        out: str = "captions"
        """Output folder; `--data FOLDER` opens it."""
        score_with: str | None = None
        """Run that embeds images and texts, to rank captions by similarity (CLIP score); by default, by frequency."""

    kinds = {"options": Options, "captions": source.find("polymodal.curation.captions", "CaptionOptions")}
    parsed = parse_together(kinds, rest, "caption RUN", caption)
    from rich.progress import track

    from polymodal.curation.captions import CaptionCounts, captioned, write_captions
    from polymodal.curation.resumable import progress_file
    from polymodal.training import load_run

    out, score_with, options = parsed.options.out, parsed.options.score_with, source.real(parsed.captions)
    run, corpus = run_and_corpus(path, parsed.options)
    ranker, counts = load_run(score_with, parsed.options.trust_code) if score_with else None, CaptionCounts()
    unfinished = progress_file(Path(out))
    captions = captioned(
        run,
        corpus,
        corpus.rows("train"),
        options,
        ranker,
        counts,
        lambda items: track(items, "Describing", transient=True),
        unfinished,
    )

    def made() -> dict[str, Any]:
        made_of = {"run": path, "score_with": score_with, "corpus": corpus.name}
        return made_of | {"options": dataclasses.asdict(options), "counts": dataclasses.asdict(counts)}

    with _goes_on():
        written = write_captions(corpus, out, captions, made, unfinished)
    kept = max(counts.kept, 1)
    facts = {
        "images": f"{counts.images:,}",
        "different captions": f"{counts.distinct / max(counts.images, 1):.1f} of {options.num_return_sequences}",
        "kept": f"{counts.kept:,}, of {counts.words / kept:.1f} words",
        "fit": f"{counts.fit / kept:.3f} ({'cosine with the image' if score_with else 'fraction of the captions'})",
        "unreadable": f"{len(counts.unreadable):,} examples",
    }
    print_table(["", ""], [[name, value] for name, value in facts.items()])
    terminal().print(
        f"Wrote {len(written.rows('train')):,} training examples with captions, and all other splits, to {out}.",
        highlight=False,
    )


@contextmanager
def _goes_on() -> Iterator[None]:
    """Report after Ctrl-C that the command can be resumed."""
    from polymodal.training import Interrupted

    try:
        yield
    except KeyboardInterrupt as stopped:
        raise Interrupted("Stopped; the same command goes on behind the examples that were finished.") from stopped


def sample_preferences(arguments: Arguments) -> None:
    """sample preference pairs from a run's own answers, as a corpus to train mpo on"""
    path, rest = positional(
        arguments, "sample-preferences RUN --out FOLDER [--corpus NAME | --data PATH] [--num-return-sequences 16]"
    )

    @dataclass(frozen=True)
    class Options(RunOptions):
        out: str = "preferences"
        """Output folder; `--data FOLDER` opens it."""

    kinds = {"options": Options, "pairs": source.find("polymodal.curation.preferences", "PairOptions")}
    parsed = parse_together(kinds, rest, "sample-preferences RUN", sample_preferences)
    from rich.progress import track

    from polymodal.corpora.saved import load_description
    from polymodal.curation.preferences import write_preferences

    run, corpus = run_and_corpus(path, parsed.options)
    out, pairs_options = parsed.options.out, source.real(parsed.pairs)
    with _goes_on():
        written = write_preferences(
            run, corpus, out, pairs_options, lambda items: track(items, "Asking", transient=True)
        )
    counts = load_description(out)["made"]["counts"]
    pairs = sum(counts["pairs"].values())
    facts = {
        "questions": f"{counts['questions']:,}, of which {counts['questions_with_pairs']:,} gave pairs",
        "right answers": f"{counts['right'] / max(counts['answers'], 1):.1%} of {counts['answers']:,}",
        "without a final answer": f"{counts['without_answer']:,}",
        "pairs": ", ".join(f"{kind} {count:,}" for kind, count in counts["pairs"].items()),
        "words": f"{counts['words_of_chosen'] / pairs:.1f} chosen, {counts['words_of_rejected'] / pairs:.1f} rejected",
    }
    print_table(["", ""], [[name, value] for name, value in facts.items()])
    terminal().print(
        f"Wrote {len(written.rows('train')):,} training examples with pairs, and all other splits, to {out}.\n"
        f"Next: polymodal train mpo --data {out} --init {path}",
        highlight=False,
    )
