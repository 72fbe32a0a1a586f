"""Commands that make corpora: curate, caption, sample-preferences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal import recipes, source
from polymodal.cli._flags import (
    Arguments,
    RunOptions,
    parse_together,
    positional,
    recipe_that,
    run_and_corpus,
)
from polymodal.cli._printing import counted, print_table, say_of_paths, split_sizes, terminal
from polymodal.cli._recipe_flags import parse_with_recipe
from polymodal.cli.page_rows import curate_rows
from polymodal.cli.pairing import curate_pairs
from polymodal.cli.triplets import curate_triplets
from polymodal.errors import UserError

MAX_REPORTED = 5000  # training examples whose captions are reported on

if TYPE_CHECKING:
    from polymodal.curation.pipeline import StepStats


def curate(arguments: Arguments) -> None:
    """curate pages to documents or image-text rows, documents to pairs, images to descriptions, with counts"""
    usage = "curate RECIPE PAGES --out FOLDER [--good TEXTS] [--runner ray]"
    spec, rest = positional(arguments, usage)
    path, rest = positional(rest, usage)
    if hasattr(kind := recipes.stand_in(spec), "pair_documents"):
        return curate_pairs(spec, kind, path, rest, curate)
    if hasattr(kind, "rows_of_pages"):
        return curate_rows(spec, path, rest, curate)
    if hasattr(kind, "annotate_images"):
        return curate_triplets(spec, kind, path, rest, curate)
    kind = recipe_that("steps", spec, "no recipe of curation", "data_curation")

    @dataclass(frozen=True)
    class Options:
        out: str = "curated"
        """Output folder; `--data FOLDER` opens it."""
        good: str | None = None
        """Text file, or built-in corpus with captions where no file has its name, of good texts in the language: for
        perplexity and frequent words."""
        flagged: str | None = None
        """File with one flagged (unwanted) word per line."""

    kinds = {"options": Options, "curation": source.find("polymodal.curation.pipeline", "CurationOptions")}
    parsed = parse_with_recipe(kinds, kind, rest, f"curate {spec} PAGES", curate)
    from polymodal.corpora.about import is_built_in
    from polymodal.corpora.registry import load_corpus
    from polymodal.curation.page_sources import images_of, pages_in, pages_of
    from polymodal.curation.pipeline import curate_pages
    from polymodal.curation.quality import good_texts, words_of_file

    recipe, options = source.real(parsed.recipe), parsed.options
    source_corpus = load_corpus(path) if is_built_in(path) else None
    say_of_paths(path, options.good)
    pages, images = (
        (pages_of(source_corpus), images_of(source_corpus)) if source_corpus else (pages_in(Path(path)), None)
    )
    flagged = words_of_file(options.flagged)
    fitted = recipe.fit(good_texts(options.good, recipe.language) if options.good else (), flagged)
    _say_unused(recipe.unused_filters(fitted) if hasattr(recipe, "unused_filters") else [])
    settings = {"good": options.good, "flagged": options.flagged}
    curation = source.real(parsed.curation)
    with _goes_on("pages"):
        out, shown = options.out, lambda one: counted(one, "Curated")
        corpus, counts = curate_pages(recipe, pages, out, fitted, curation, path, settings, shown, images)
    _print_step_counts(counts)
    sizes = split_sizes(corpus)
    terminal().print(
        f"Wrote {len(corpus):,} documents ({sizes}) to {options.out}; documents.parquet has them as Markdown,\n"
        "dropped.parquet what went, and why.",
        highlight=False,
    )


def _say_unused(filters: list[str]) -> None:
    """Print which filters are not applied."""
    if filters:
        terminal().print(
            f"Not applied without good texts (--good) or flagged words (--flagged): {', '.join(filters)}.",
            highlight=False,
        )


def _print_step_counts(counts: Mapping[str, StepStats]) -> None:
    """Print what each step of curation took and left."""
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


def caption(arguments: Arguments) -> None:
    """caption a corpus's images by a run, keeping the best captions, or in formats, as a corpus to train on"""
    path, rest = positional(arguments, "caption RUN --out FOLDER [--corpus NAME | --data PATH] [--score-with RUN]")

    @dataclass(frozen=True)
    class Options(RunOptions):
        out: str = "captions"
        """Output folder; `--data FOLDER` opens it."""
        score_with: str | None = None
        """Run that embeds images and texts, to rank captions by similarity (CLIP score); by default, by frequency."""
        formats: tuple[str, ...] = ()
        """Formats to write one caption each in, beside the images' own texts: ssc (short), dsc (descriptive), dsc_plus
        (dense) and afc (AltText-fused), as hybrid_captions trains on; without, several captions are sampled."""

    kinds = {"options": Options, "captions": source.find("polymodal.curation.captions", "CaptionOptions")}
    parsed = parse_together(kinds, rest, "caption RUN", caption)
    from rich.progress import track

    from polymodal.curation.captions import CaptionCounts, captioned, write_captions
    from polymodal.curation.resumable import progress_file
    from polymodal.training import load_run

    out, score_with, options = parsed.options.out, parsed.options.score_with, source.real(parsed.captions)
    run, corpus = run_and_corpus(path, parsed.options)
    if parsed.options.formats:
        if score_with is not None:
            raise UserError("--score-with ranks several captions of an image; with --formats, one is written in each.")
        return _write_formats(run, corpus, path, out, parsed.options.formats, options.max_new_tokens)
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

    with _goes_on("examples"):
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


def _write_formats(
    run: Any, corpus: Any, path: str, out: str, formats: tuple[str, ...], max_new_tokens: int | None
) -> None:
    """Write a caption of each format for every training image, and report on them."""
    from polymodal.curation.caption_formats import RunCaptioner, texts_by_format, write_formats
    from polymodal.curation.caption_quality import format_reports
    from polymodal.curation.resumable import progress_file
    from polymodal.training.feature_cache import weights_key

    made_of = {"run": path, "weights": weights_key(run.model), "corpus": corpus.name, "max_new_tokens": max_new_tokens}
    captioner, unfinished = RunCaptioner(run, max_new_tokens), progress_file(Path(out))
    with _goes_on("examples"):
        written = write_formats(corpus, out, captioner, formats, made=made_of, unfinished=unfinished)
    reports = format_reports(texts_by_format(written, MAX_REPORTED))
    header = ["format", "captions", "words", "assertions (ANA)", "unique entities", "entities per 1,000 words"]
    lines = []
    for form, one in reports.items():
        unique = f"{one.entities:,} in {one.counted:,} captions"
        means = [f"{one.tokens:.1f}", f"{one.assertions:.1f}", unique, f"{one.entities_per_1k_tokens:.1f}"]
        lines.append([form, f"{one.captions:,}", *means])
    print_table(header, lines, right=(1, 2, 3, 5))
    training = f"{len(written.rows('train')):,} training examples"
    terminal().print(f"Wrote {training} with captions of {', '.join(formats)} to {out}.", highlight=False)


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
    with _goes_on("examples"):
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


@contextmanager
def _goes_on(what: str) -> Iterator[None]:
    """Report after Ctrl-C that the command can be resumed. what: pages or examples."""
    from polymodal.training import Interrupted

    try:
        yield
    except KeyboardInterrupt as stopped:
        raise Interrupted(f"Stopped; the same command goes on behind the {what} that were finished.") from stopped
