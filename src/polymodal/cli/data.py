"""Command that shows what is found in the user's data."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polymodal import source
from polymodal.cli._flags import HELP, Arguments, DataOptions, JsonOptions, leading_words, parse
from polymodal.cli._printing import print_json, waiting
from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.errors import UserError

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus
    from polymodal.corpora.data_report import DataReport

USAGE = "data PATH [PATH ...] [--format NAME] [--NAME-column COLUMN] [--out SHEET.png] [--json]"
FORMATS = Path(source.__file__).parent / "corpora" / "formats"  # importing it would import numpy


@dataclass(frozen=True)
class ShowOptions(DataOptions, JsonOptions):
    examples: PositiveInt = 3
    """Number of examples of the contact sheet."""
    seed: NonNegativeInt = 0
    """Random seed for choosing these examples."""
    max_images: PositiveInt = 20_000
    """Maximum number of images that are compared to find near-duplicates in two splits."""
    out: str | None = None
    """Output file of the contact sheet (PNG); by default NAME.png in the working folder, and none with --json."""


def data(arguments: Arguments) -> None:
    """what is found in your own data: format, columns, splits, leaks, and which recipes train on it"""
    paths = leading_words(arguments)
    if not paths and not HELP & {*arguments}:
        raise UserError(f"Usage: polymodal {USAGE}")
    options = parse(_options(), arguments[len(paths) :], "data PATH ...", data, more_help=_formats())
    options = dataclasses.replace(options, data=tuple(paths))
    _check(options)
    try:
        with waiting(f"Looking at {' '.join(paths)}"):
            corpus = options.open()
            report, lacks = _looked_at(corpus, options.max_images)
    except UserError as error:
        _show_unusable(options, error)
        raise UserError(str(error.__cause__ if isinstance(error.__cause__, UserError) else error)) from error
    sheet = _sheet(corpus, report, options)
    if options.json:
        recipes = {name: {"trains": not what, "lacks": what} for name, what in lacks.items()}
        print_json(report.record() | {"recipes": recipes, "contact_sheet": sheet[0]})
    else:
        from polymodal.cli._data_report import print_report

        print_report(corpus.name, report, lacks)
        print(sheet[1])
    if all(lacks.values()):
        raise UserError(f"No recipe trains on {' '.join(paths)}: {_why_not(report)}.")


def _why_not(report: DataReport) -> str:
    """What keeps all recipes from training, as a clause."""
    for column in report.columns:
        if column.modality and not column.usable:
            return f"{column.unreadable:,} of {column.sampled:,} values of '{column.name}' cannot be decoded"
    if not report.sizes.get("train"):
        return f"it has no rows to train on, only {' and '.join(report.sizes)}"
    return "each reads a column that it does not have"


def _options() -> Any:
    """The options without those that name other data."""
    import tyro

    fixed = [
        (name, Annotated[kind, tyro.conf.Suppress], dataclasses.field(default=default))
        for name, kind, default in (("corpus", str | None, None), ("data", tuple[str, ...], ()))
    ]
    return dataclasses.make_dataclass("DataCommandOptions", fixed, bases=(ShowOptions,), frozen=True)


def _formats() -> str:
    """What help says of the formats; read from their sources."""
    names = sorted(file.stem for file in FORMATS.glob("[!_]*.py"))
    described = {name: source.find(f"polymodal.corpora.formats.{name}", "description") for name in names}
    indent = " " * (max(map(len, names)) + 4)
    lines = [
        textwrap.fill(
            description,
            min(shutil.get_terminal_size().columns, 100),
            initial_indent=f"  {name}".ljust(len(indent)),
            subsequent_indent=indent,
        )
        for name, description in described.items()
    ]
    return "\n\nFormats that are read, found by looking at the data:\n" + "\n".join(lines)


def _check(options: Any) -> None:
    """Raise UserError for a built-in corpus, which is no path, and for an output file that is not written."""
    from polymodal.corpora.about import is_built_in

    for path in options.data:
        if is_built_in(path):
            raise UserError(f"'{path}' is a built-in corpus; it is shown by: polymodal corpora show {path}")
    if options.out:
        out = Path(options.out)
        if _is_beside(out, options.data):
            raise UserError(f"{out} would be beside your data, where nothing is written; choose another --out.")
        if out.exists() and not _is_sheet(out):
            raise UserError(f"{out} is there already, and no contact sheet; choose another --out.")


def _looked_at(corpus: Corpus, max_images: int) -> tuple[DataReport, Mapping[str, tuple[str, ...]]]:
    from polymodal.corpora.data_report import report_on
    from polymodal.recipes.suitability import what_recipes_lack

    report = report_on(corpus, max_images)
    unreadable = {
        column.name: f"readable values of '{column.name}' ({column.unreadable} of {column.sampled} cannot be decoded)"
        for column in report.columns
        if column.modality and not column.usable
    }
    return report, what_recipes_lack(corpus, unreadable)


def _show_unusable(options: Any, error: UserError) -> None:
    """Print what there is in data that cannot be used, as far as it is known; nothing where no file is read."""
    from polymodal.cli._data_report import print_table_of
    from polymodal.corpora.data_report import columns_of_table
    from polymodal.corpora.sources import local_files
    from polymodal.corpora.user_files import files_and_format, rows_of_format

    try:
        local = local_files([*options.data], options.stream)
        if local is None:
            return
        files, name = files_and_format(local, options.format)
        rows = rows_of_format(name, files)
    except UserError:
        return
    columns = columns_of_table(rows.table)
    if options.json:
        kept = {
            column.name: {"stored": column.stored, "modality": "", "examples": column.examples} for column in columns
        }
        empty: dict[str, Any] = {"splits": {}, "skipped": [], "notes": [str(error)], "recipes": {}}
        print_json({"format": name, "rows": rows.table.num_rows, "columns": kept} | empty)
    else:
        print_table_of(files.name, name, rows.table.num_rows, columns)


def _sheet(corpus: Corpus, report: DataReport, options: Any) -> tuple[str | None, str]:
    """Write the contact sheet; returns its path, and the sentence about it."""
    if options.json and options.out is None:
        return None, ""
    from polymodal.corpora.contact_sheet import plot_contact_sheet, some_rows

    if not any(column.examples for column in report.columns if column.modality):
        return None, "Contact sheet: none, as no example can be decoded."
    path = Path(options.out or f"{corpus.name}.png")
    if _is_beside(path, options.data):
        return None, "Contact sheet: none, as this folder holds the data; name a file elsewhere: --out."
    if path.exists() and not _is_sheet(path):
        return None, f"Contact sheet: none, as {path} is there already; name another: --out."
    replaced = " (written anew)" if path.exists() else ""
    try:
        with waiting("Drawing the contact sheet"):
            plot_contact_sheet(corpus, some_rows(corpus, options.examples, options.seed), path)
    except (OSError, ValueError) as error:
        raise UserError(f"The contact sheet cannot be written to {path}: {error}.") from error
    return str(path), f"Contact sheet: {path}{replaced}"


def _is_beside(path: Path, given: tuple[str, ...]) -> bool:
    """Return whether a file would be in a folder of the data."""
    for one in given:
        place = Path(one.removeprefix("hf:")).expanduser()  # `hf:FOLDER` is a folder
        folder = place if place.is_dir() else place.parent
        if one.startswith("hf:") and not place.is_dir():
            continue
        if "://" not in one and path.resolve().parent.is_relative_to(folder.resolve()):
            return True
    return False


def _is_sheet(path: Path) -> bool:
    """Return whether the file is a contact sheet that polymodal wrote."""
    from polymodal.corpora.contact_sheet import SOFTWARE

    if not path.is_file():
        return False
    with path.open("rb") as file:
        return SOFTWARE.encode() in file.read(4096)
