"""What is wrong with the flags of a command, in a sentence with the nearest name, in place of tyro's box."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator

from polymodal.errors import UserError

WIDE = "2000"  # columns, in which no row of a box is wrapped
KINDS = {"invalid literal for int()": "a whole number", "could not convert string to float": "a number"}


@contextlib.contextmanager
def in_a_sentence(usage: str, with_help: bool) -> Iterator[None]:
    """Raise UserError for what tyro prints and exits for. usage: of the command. with_help: help is printed."""
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    if not with_help:
        os.environ["COLUMNS"] = WIDE
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as ended:
        if not ended.code or not (rows := _rows(printed.getvalue())):
            raise
        printed = io.StringIO()
        raise UserError(_sentence(rows, _help_of(usage))) from None
    finally:
        sys.stderr.write(printed.getvalue())
        if not with_help:
            os.environ.pop("COLUMNS")
            os.environ |= {} if columns is None else {"COLUMNS": columns}


def _help_of(usage: str) -> str:
    """Return the command whose help has the flags: 'polymodal train clip --help'."""
    words = itertools.takewhile(lambda word: word[0].islower() or word[0] == ".", usage.split())
    return " ".join(["polymodal", *words, "--help"])


def _rows(box: str) -> list[str]:
    """Return the rows of a box without its frame and colors; a line between two of its parts is empty."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    return [line.strip().strip("│").strip(" ─") for line in lines if line.strip().startswith("│")]


def _sentence(rows: list[str], help_command: str) -> str:
    message = " ".join(itertools.takewhile(bool, rows))
    if unknown := next((row for row in rows if row.startswith("Unrecognized options:")), ""):
        following = rows[rows.index(unknown) + 1] if unknown.endswith(":") else ""
        return _unknown(f"{unknown} {following}", rows, help_command)
    if parts := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.", message):
        value, flag = parts[1], min(parts[2].split("/"), key=len)
        choices = [choice for choice in re.findall(r"'([^']*)'", parts[3]) if choice != "None"]
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
        advice = f"; did you mean {near[0]}?" if near else "."
        return f"{flag} is one of {', '.join(choices)}, not '{value}'{advice}"
    if parts := re.match(r"Error parsing (\S+): (.*)", message):
        flag, reason = min(parts[1].split("/"), key=len), parts[2]
        kind = next((kind for start, kind in KINDS.items() if reason.startswith(start)), "")
        if kind and (value := re.search(r"'.*'$", reason)):
            return f"{flag} is {kind}, not {value[0]}."
        return f"{flag}: {reason.rstrip('.')}; `{help_command}` explains it."
    return f"{message.rstrip('.')}; `{help_command}` explains it."


def _unknown(row: str, rows: list[str], help_command: str) -> str:
    """Return a sentence on the first unknown word. rows: with the flags that tyro finds similar."""
    word = row.partition(":")[2].strip().split(", ")[0].split()[0].partition("=")[0]
    if not word.startswith("-"):
        return f"{help_command.removesuffix(' --help')} takes no '{word}'; `{help_command}` explains it."
    flags = [flag for similar in rows if similar.startswith("--") for flag in re.findall(r"--[\w.-]+", similar)]
    near = difflib.get_close_matches(word, flags, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else f"`{help_command}` lists the flags."
    return f"There is no flag {word}; {advice}"
