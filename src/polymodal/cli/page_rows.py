"""`curate` with a recipe that makes image-text rows of pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from polymodal import recipes, source
from polymodal.cli._flags import Arguments, parse_together
from polymodal.cli._printing import counted, print_table, say_of_paths, split_sizes, terminal
from polymodal.errors import UserError, missing

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus

MAX_LANGUAGES = 12  # that are listed


@dataclass(frozen=True)
class PageRowsOptions:
    """Where rows come from, and where they go."""

    out: str = "rows"
    """Output folder; `--data FOLDER` opens it."""
    media: str | None = None
    """CSV or TSV with the columns image_url and description, and also language and license: what the media pages of
    images say, where they are not among the pages (File:NAME.jpg.html)."""
    flagged: str | None = None
    """File with one flagged (unwanted) word per line; rows with such a word in a text are dropped."""
    language: str = ""
    """Language (BCP 47) of pages that state none (<html lang>)."""
    runner: Literal["native", "ray"] = "native"
    """Daft runner that parses pages: native (local), or ray on the cluster of RAY_ADDRESS, by default a local one."""


def curate_rows(spec: str, path: str, arguments: Arguments, command: Callable[[Arguments], None]) -> None:
    """Curate pages to image-text rows."""
    filters_kind = source.find("polymodal.curation.image_text_rows", "RowFilters")
    kinds = {"options": PageRowsOptions, "filters": filters_kind}
    parsed = parse_together(kinds, arguments, f"curate {spec} PAGES", command)
    options: PageRowsOptions = parsed.options
    from polymodal.corpora.about import is_built_in
    from polymodal.corpora.registry import load_corpus
    from polymodal.corpora.saved import check_empty
    from polymodal.curation.image_text_rows import media_table, with_drawings, written_rows
    from polymodal.curation.page_sources import images_below, images_of, pages_in, pages_of
    from polymodal.curation.quality import words_of_file

    corpus = load_corpus(path) if is_built_in(path) else None
    say_of_paths(path)
    check_empty(Path(options.out))
    root = Path(path) if Path(path).is_dir() else None
    if corpus is None and not Path(path).exists():
        raise missing("file or folder", path)
    if corpus is None and root is None:
        raise UserError(f"Images are read from files beside the pages; give a folder in place of {path}.")
    pages, images = (
        (pages_of(corpus), images_of(corpus)) if corpus else (pages_in(Path(path)), images_below(Path(path)))
    )
    if corpus is not None and "language" in corpus.table.column_names:
        spoken = dict(zip(*(corpus.table.column(name).to_pylist() for name in ("key", "language")), strict=True))
        pages = (page | {"language": spoken.get(page["key"]) or ""} for page in pages)
    filters = source.real(parsed.filters)
    result = recipes.find(spec).rows_of_pages(
        counted(pages, "Read"),
        filters,
        images=with_drawings(images, root),
        media=media_table(options.media) if options.media else None,
        flagged=words_of_file(options.flagged),
        language=options.language,
        runner=options.runner,
    )
    written = written_rows(result, options.out, path, {"filters": asdict(filters), "recipe": spec})
    print_table(
        ["step", "in", "rows", "why rows or texts went"],
        [
            [
                name,
                f"{count.rows_in:,}{' pages' if name == 'parse' else ''}",
                f"{count.rows_out:,}",
                ", ".join(f"{reason} {times:,}" for reason, times in (+count.reasons).most_common()),
            ]
            for name, count in result.counts.items()
        ],
        right=(1, 2),
    )
    _print_sizes(written, options.out)


def _print_sizes(written: Corpus, out: str) -> None:
    from polymodal.corpora.text_fields import CAPTIONS, FIELDS, LANGUAGE

    languages = Counter(written.table.column(LANGUAGE).to_pylist())
    listed = ", ".join(f"{language} {count:,}" for language, count in languages.most_common(MAX_LANGUAGES))
    fields = ", ".join(f"{name} {int(written.has(FIELDS[name]).sum()):,}" for name in CAPTIONS)
    sizes = split_sizes(written)
    further = f" and {len(languages) - MAX_LANGUAGES} more" if len(languages) > MAX_LANGUAGES else ""
    terminal().print(
        f"Languages: {listed}{further}. Texts: {fields}.\n"
        f"Wrote {len(written):,} rows ({sizes}) to {out}.\n"
        f"Next: polymodal train wit --data {out}",
        highlight=False,
    )
