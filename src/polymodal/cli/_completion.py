"""Completion in a shell: a short script per shell, which asks this program for the words that may follow."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from polymodal.cli._flags import HELP
from polymodal.errors import UserError, unknown

SCRIPTS = {
    "bash": """# polymodal: eval "$(polymodal completion bash)" in ~/.bashrc
_polymodal() {
    local IFS=$'\\n'
    local words=$(polymodal completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _polymodal polymodal
""",
    "zsh": """#compdef polymodal
# polymodal: eval "$(polymodal completion zsh)" in ~/.zshrc, after compinit
_polymodal() {
    local -a candidates
    candidates=("${(@f)$(polymodal completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -a candidates || _files
}
compdef _polymodal polymodal
""",
    "fish": """# polymodal: polymodal completion fish > ~/.config/fish/completions/polymodal.fish
complete -c polymodal -a '(polymodal completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}
OF_RECIPES = {"train", "show", "compare", "reproduce", "attack", "score", "curate"}
OF_CORPORA = {"--corpus"}
MAX_DEPTH = 3  # of the folders where runs are looked for


def script(arguments: Sequence[str]) -> str:
    """Return the script of a shell."""
    if not arguments or HELP & {*arguments}:
        raise UserError('Say for which shell: polymodal completion bash, zsh or fish; eval "$(...)" turns it on.')
    if arguments[0] not in SCRIPTS:
        raise unknown("completion for the shell", arguments[0], SCRIPTS)
    return SCRIPTS[arguments[0]]


def candidates(words: Sequence[str], commands: Collection[str], run: Callable[[str, list[str]], None]) -> list[str]:
    """Return what may stand in place of the last word. words: those after the program's name, the last one begun."""
    *before, begun = words or [""]
    if not before or before == ["help"]:
        choices: Collection[str] = commands
    elif begun.startswith("-"):
        choices = _flags(before, run)
    elif before[-1] in OF_CORPORA:
        from polymodal.corpora.about import names

        choices = names()
    elif before[0] in OF_RECIPES and (len(before) == 1 or before[0] == "compare"):
        from polymodal import recipes

        choices = [*recipes.entries()]
    elif len(before) == 1 and before[0] not in ("corpora", "completion", "list", "doctor", "version"):
        levels = ("*/" * depth for depth in range(1, MAX_DEPTH + 1))  # a whole home folder would take long
        choices = [str(path.parent) for level in levels for path in sorted(Path().glob(f"{level}run.json"))][:200]
    elif before == ["completion"]:
        choices = SCRIPTS
    else:
        choices = []
    return [word for word in choices if word.startswith(begun)]


def _flags(before: Sequence[str], run: Callable[[str, list[str]], None]) -> list[str]:
    """Return the flags in the help of a command."""
    help_text = io.StringIO()
    os.environ["COLUMNS"] = "200"
    with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
        positional = [word for word in before[1:2] if not word.startswith("-")]
        run(before[0], [*positional, "--help"])
    return sorted({*re.findall(r"(?<![\w-])--[\w.-]*\w", help_text.getvalue())})
