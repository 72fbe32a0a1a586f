"""Pages of the documentation site that are written from the code: the command line, and the Python interface."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "polymodal"
GROUPS = {  # class that an option is a field of -> heading; fields of other classes belong to the command
    "DataOptions": "Data",
    "TowerOptions": "Pretrained encoders",
    "RuntimeConfig": "Hardware, memory and checkpoints",
    "TrustOptions": "Trust",
    "JsonOptions": "Output",
    "PresetOptions": "Hyper-parameters",
}


FIRST = ("Options", "Hyper-parameters")


@dataclasses.dataclass
class Option:
    """A flag or positional argument as help shows it."""

    flags: str
    text: str
    group: str

    @property
    def default(self) -> str:
        found = re.search(r"\((?:default: (.*)|(required))\)$", self.text)
        return (found[1] or found[2] or "").strip() if found else ""

    @property
    def meaning(self) -> str:
        return re.sub(r" ?\((default: .*|required)\)$", "", self.text)


def help_of(name: str, arguments: list[str]) -> tuple[str, Any]:
    """Return the help of a command with one box below the other, and the class of its options."""
    import tyro

    from polymodal import cli

    seen: list[Any] = []
    real = tyro.cli

    def watched(options: Any, **keywords: Any) -> Any:
        seen.append(options)
        return real(options, **keywords)

    written = io.BytesIO()
    said = io.TextIOWrapper(written, encoding="utf-8", write_through=True)  # boxes are drawn in UTF-8 alone
    environment = mock.patch.dict(os.environ, COLUMNS="100")
    watching = mock.patch.object(tyro, "cli", watched)
    with environment, watching, contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli._run(name, [*arguments, "--help"])
    return written.getvalue().decode(), seen[-1] if seen else None


def options_in(help_text: str, groups: dict[str, str]) -> list[Option]:
    """Return the options in the boxes of a help text. groups: heading by flag; others belong to their box."""
    found: list[Option] = []
    box, in_description = "", False
    for line in help_text.splitlines():
        if title := re.match(r"╭─ (.*?) ─", line):
            box, in_description = title[1], True
        if not line.startswith("│"):
            continue
        text = line[1:].rstrip("│ ")
        if set(text.strip()) <= {"─"}:
            continue
        if re.match(r" (-|[A-Z\[{])", text) and (box == "positional arguments" or text.startswith(" -")):
            flags, _, rest = re.sub(r"\s{2,}", "\0", text.strip(), count=1).partition("\0")
            name = re.search(r"--[\w.-]+", flags)
            heading = groups.get(name[0] if name else "", box.removesuffix(" options").strip() or "Options")
            found.append(Option(flags, rest, "Options" if heading == "options" else heading))
            in_description = False
        elif found and not in_description:
            found[-1].text = f"{found[-1].text} {text.strip()}".strip()
    return [option for option in found if "--help" not in option.flags]


def groups_of(options: Any) -> dict[str, str]:
    """Return the heading of each flag, by the class whose field it is."""
    if not dataclasses.is_dataclass(options):
        return {}
    kind = options if isinstance(options, type) else type(options)
    headings: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        held = getattr(field.type, "__origin__", field.type)
        if kind.__name__ == "Together" and dataclasses.is_dataclass(held):
            own = "Hyper-parameters" if field.name == "recipe" else ""
            headings |= {flag: own or heading for flag, heading in groups_of(held).items()}
            continue
        bases = [base for base in reversed(kind.__mro__) if field.name in vars(base).get("__annotations__", {})]
        owner = (bases or [kind])[0]
        headings[f"--{field.name.replace('_', '-')}"] = GROUPS.get(owner.__name__, "Options")
    return headings


def cell(text: str) -> str:
    text = re.sub(r"(?<![`\w])(--[\w.-]*\w)(?!`)", r"`\1`", text) if "`" not in text else text
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "&#91;").replace("\n", " ")


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def command_line() -> str:
    """Return the page of all commands with their options, as their help groups them."""
    from polymodal import cli

    lines = ["# Command line", ""]
    lines += ["Every command with its options, written from the parsers themselves. `polymodal COMMAND --help` prints"]
    lines += ["the same for your version, and `polymodal train RECIPE --help` the hyper-parameters of that recipe.", ""]
    lines += [
        "Exit status: 0; 2 for what you can put right, with a sentence on standard error; 130 after Ctrl-C.",
        "",
    ]
    lines += ["| command | what it does |", "|---|---|"]
    about = {name: " ".join((command.__doc__ or "").split()) for name, command in cli.COMMANDS.items()}
    lines += [f"| [`{name}`](#{name}) | {cell(text)} |" for name, text in about.items()]
    for name, text in about.items():
        lines += ["", f"## {name}", "", f"{text[0].upper()}{text[1:]}.", ""]
        said, options = help_of(name, [])
        for part in said.split("usage: ")[1:] or [f"polymodal {name}"]:  # search has two, of an index and of a run
            lines += ["", "```text", " ".join(part.partition("\n\n")[0].replace("[-h] ", "").split()), "```"]
            if name == "train":
                lines += [
                    "",
                    "The hyper-parameters are those of `clip`; each recipe's page has its own.",
                ]
            lines += option_tables(options_in(part, groups_of(options)))
    return "\n".join([*lines, ""])


def option_tables(options: list[Option]) -> list[str]:
    """Return the lines of a table for each group."""
    lines = []
    for heading in sorted({option.group for option in options}, key=lambda group: (group not in FIRST, group)):
        lines += ["", f"**{heading[0].upper()}{heading[1:]}**", "", "| option | meaning | default |", "|---|---|---|"]
        of_group = [option for option in options if option.group == heading]
        lines += [f"| {code(one.flags)} | {cell(one.meaning)} | {code(one.default)} |" for one in of_group]
    return lines


API = {  # page -> title, what it is about, objects
    "running": (
        "Train, evaluate, compare",
        "`import polymodal as pm`; data are a corpus, a path, several paths, or a table in memory.",
        ("api.train", "api.evaluate", "api.compare", "training.run.load_run"),
    ),
    "results": (
        "Runs and scores",
        "What `pm.train`, `pm.evaluate` and `pm.compare` return.",
        (
            "training.run.Run",
            "evaluation.scores.Scores",
            "evaluation.statistics.Score",
            "reproduce.result.ComparisonResult",
        ),
    ),
    "settings": (
        "Budgets, runtime, recipes",
        "Fields of a recipe are its hyper-parameters; those of each method are on [its page](../methods.md).",
        (
            "types.Budget",
            "training.runtime.RuntimeConfig",
            "types.Stage",
            "types.Paper",
            "types.Recipe",
            "types.Method",
            "claim.Claim",
            "errors.UserError",
        ),
    ),
    "data": (
        "Corpora",
        "A corpus is typed rows with splits: `pm.corpora.emoji()`, or one made of your data.",
        (
            "corpora.corpus.Corpus",
            "corpora.about.About",
            "corpora.sources.open_data",
            "corpora.sources.from_path",
            "corpora.in_memory.from_table",
        ),
    ),
}
LISTED = {
    "layers": "Layers",
    "encoders": "Encoders",
    "objectives": "Objectives",
    "models": "Models",
    "corpora/formats": "Formats",
    "corpora/schemas": "Schemas",
}


def exists(dotted: str) -> bool:
    """Whether the source defines what mkdocstrings is to show."""
    module, _, name = dotted.rpartition(".")
    file = SOURCE / f"{module.replace('.', '/')}.py"
    return file.is_file() and any(getattr(node, "name", "") == name for node in ast.parse(file.read_text("utf-8")).body)


def api_pages() -> dict[str, str]:
    """Return the pages of the Python interface by name."""
    pages = {}
    for name, (title, about, objects) in API.items():
        lines = [f"# {title}", "", about, ""]
        for dotted in objects:
            assert exists(dotted), f"{dotted} is named in tools/site_pages.py and not defined"
            lines += [f"::: polymodal.{dotted}", "    options:", "      show_root_heading: true"]
            lines += ["      show_root_toc_entry: true", "      show_if_no_docstring: true", "      heading_level: 2"]
            lines += ["      show_root_full_path: false", "      skip_local_inventory: true", ""]
        pages[name] = "\n".join(lines)
    pages["building-blocks"] = building_blocks()
    return pages


def building_blocks() -> str:
    """Return the list of modules that methods are made of, with the first sentence of each."""
    lines = ["# Building blocks", "", "Modules that recipes are composed of, and formats and schemas of data.", ""]
    for folder, title in LISTED.items():
        lines += [f"## {title}", "", "| module | content |", "|---|---|"]
        page = folder.replace("/", ".")
        for file in sorted((SOURCE / folder).glob("[!_]*.py")):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            sentence = cell(" ".join(text.split("\n\n")[0].split()))
            lines.append(f"| [`{file.stem}`](../reference/{page}.md#polymodal.{page}.{file.stem}) | {sentence} |")
        lines.append("")
    return "\n".join(lines)
