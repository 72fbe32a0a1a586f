"""Command for the built-in corpora: list, show, fetch, remove."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polymodal.cli._flags import (
    Arguments,
    JsonOptions,
    NoOptions,
    leading_words,
    parse,
)
from polymodal.cli._printing import megabytes, print_json, print_table, terminal
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
    for key, cells in examples.items():
        print_table([key, ""], [[name, text] for name, text in cells.items()])
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
