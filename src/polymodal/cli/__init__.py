"""The command line: one function per command. Imports happen when a command runs, so that help is fast."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from polymodal.cli._flags import HELP, Arguments, NoOptions, leading_words, parse
from polymodal.cli.answering import ask, classify
from polymodal.cli.attacking import attack, score
from polymodal.cli.collecting import collect, review
from polymodal.cli.comparing import compare, reproduce
from polymodal.cli.corpora import corpora
from polymodal.cli.curation import caption, curate, sample_preferences
from polymodal.cli.data import data
from polymodal.cli.evaluating import evaluate
from polymodal.cli.recipes import doctor, list_, new, show
from polymodal.cli.scaling import scaling
from polymodal.cli.searching import embed, index, search
from polymodal.cli.training import resume, runs, train
from polymodal.cli.tuning import tune
from polymodal.cli.using import export, extract, generate, ground, serve
from polymodal.end_signals import end_signals
from polymodal.errors import UserError, check_resources, unknown


def help_(arguments: Arguments) -> None:
    """explain a command: `polymodal help train`; without one, list the commands"""
    words = leading_words(arguments)
    if arguments[len(words) :]:
        parse(NoOptions, arguments[len(words) :], "help [COMMAND]", help_)
    if not words:
        _help()
    elif words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    else:
        _run(words[0], [*words[1:], "--help"])


def version(arguments: Arguments) -> None:
    """print the version"""
    if arguments:
        parse(NoOptions, arguments, "version", version)
    from polymodal import __version__

    print(f"polymodal {__version__}")


def completion(arguments: Arguments) -> None:
    """print a completion script: `polymodal completion bash`, zsh or fish"""
    from polymodal.cli._completion import candidates, script

    if HELP & {*arguments[:1]}:
        parse(NoOptions, arguments, "completion bash|zsh|fish", completion)
    if arguments[:1] == ["words"]:  # what the scripts ask for
        print("\n".join(candidates(arguments[1:], COMMANDS, _run)))
    else:
        print(script(arguments), end="")


COMMANDS: dict[str, Callable[[Arguments], None]] = {
    "list": list_,
    "show": show,
    "corpora": corpora,
    "data": data,
    "train": train,
    "resume": resume,
    "runs": runs,
    "tune": tune,
    "evaluate": evaluate,
    "compare": compare,
    "scaling": scaling,
    "reproduce": reproduce,
    "score": score,
    "attack": attack,
    "embed": embed,
    "index": index,
    "search": search,
    "serve": serve,
    "generate": generate,
    "ask": ask,
    "classify": classify,
    "ground": ground,
    "extract": extract,
    "export": export,
    "sample-preferences": sample_preferences,
    "caption": caption,
    "curate": curate,
    "collect": collect,
    "review": review,
    "new": new,
    "doctor": doctor,
    "help": help_,
    "version": version,
    "completion": completion,
}

HEADINGS = {  # of the list of commands, by the first one below each
    "list": "What there is",
    "train": "Train",
    "evaluate": "Measure",
    "embed": "Use a run",
    "sample-preferences": "Make training data",
    "new": "Your own method, and this installation",
}
EXAMPLES = (
    "polymodal data photos/",
    "polymodal train clip --data photos/ --out runs/mine",
    'polymodal search runs/mine "a dog"',
    "polymodal compare clip siglip sparc --corpus emoji",
)

# Errors of the operating system that are no fault of a command: a full disk or quota, and a read-only place.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Errors of a path that a user named: too long, a link in a circle, a file in place of a folder.
UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)

# Default positional arguments with --help; the flags of a recipe are then those of the recipe named here.
STANDING_IN: dict[str, Arguments] = {
    "show": ["clip"],
    "train": ["clip"],
    "resume": ["RUN"],
    "tune": ["clip"],
    "evaluate": ["RUN"],
    "scaling": ["COMPARISON"],
    "reproduce": ["sparc"],
    "embed": ["RUN"],
    "index": ["RUN"],
    "search": ["RUN", "WORDS"],
    "serve": ["RUN"],
    "generate": ["RUN"],
    "ask": ["RUN", "IMAGE"],
    "classify": ["RUN", "IMAGE"],
    "ground": ["RUN", "IMAGE", "TEXT"],
    "sample-preferences": ["RUN"],
    "caption": ["RUN"],
    "curate": ["wasm", "PAGES"],
    "collect": ["CONCEPTS.csv", "IMAGES"],
    "review": ["FOLDER"],
    "extract": ["RUN"],
    "score": ["aloha", "CAPTIONS.jsonl"],
    "attack": ["set_level_attack", "RUN"],
    "export": ["RUN"],
    "new": ["NAME"],
}


def _with_help(name: str, arguments: Arguments) -> Arguments:
    """Complete missing positional arguments of a command if help is requested."""
    if not HELP & {*arguments}:
        return arguments
    words = leading_words(arguments)
    return [*words, *STANDING_IN.get(name, [])[len(words) :], *arguments[len(words) :]]


def _run(name: str, arguments: Arguments) -> None:
    COMMANDS[name](_with_help(name, arguments))


def main() -> None:
    """Entry point; exit status 0, 2 for user errors, 130 after Ctrl-C, SIGTERM and SIGHUP."""
    warnings.showwarning = _show_warning
    with end_signals():
        _main(sys.argv[1:])


def _main(arguments: Arguments) -> None:
    try:
        if not arguments or arguments[0] in HELP:
            _help()
        elif arguments[0] == "--version":
            version([])
        elif arguments[0] in COMMANDS:
            together = int(os.environ.get("WORLD_SIZE", "1")) > 1
            if together and arguments[0] not in ("train", "resume"):
                raise UserError(f"Only train and resume use several processes; start {arguments[0]} without torchrun.")
            _run(arguments[0], arguments[1:])
            if together:
                _leave()
        else:
            raise unknown("command", arguments[0], COMMANDS)
    except UserError as error:
        print(f"polymodal: {error}", file=sys.stderr)
        sys.exit(130 if type(error).__name__ == "Interrupted" else 2)
    except KeyboardInterrupt as stopped:
        _stop_at_once(str(stopped) or "stopped.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, RuntimeError, MemoryError, ImportError) as error:
        print(f"polymodal: {_said_of(error)}", file=sys.stderr)
        sys.exit(2)


def _said_of(error: Exception) -> str:
    """Return a sentence for an error of the operating system that is no fault of a command. Raises all others."""
    try:
        check_resources(error)
    except UserError as limit:
        return str(limit)
    if isinstance(error, OSError) and error.errno in (*UNWRITABLE, *UNUSABLE):
        what = "written" if error.errno in UNWRITABLE else "used"
        return f"{error.filename or 'A path'} cannot be {what}: {error.strerror}."
    if str(error).startswith("Symlink loop"):  # of `Path.resolve`, until Python 3.12
        return f"{error}; name another path."
    raise error


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show a warning of this package as a sentence, and those of others as Python does."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f"polymodal: {message}", file=file or sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


def _help() -> None:
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)

    def say(text: str, first: str = "", rest: str = "") -> None:
        print(textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False))

    say("polymodal: pre-train any modality with any published method, and know which one works on your data.")
    print("\nFor example:")
    for example in EXAMPLES:
        print(f"  {example}")
    for name, command in COMMANDS.items():
        if name in HEADINGS:
            print(f"\n{HEADINGS[name]}:")
        say(command.__doc__ or "", f"  {name:<18} ", " " * 21)
    print()
    say("polymodal COMMAND --help explains a command.")


def _stop_at_once(message: str) -> NoReturn:
    """Exit without waiting for threads, which may be writing; further Ctrl-C would interrupt Python's shutdown."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    with suppress(OSError):  # the reader of a pipe may have ended, too
        print(f"{show_cursor}polymodal: {message}", file=sys.stderr)
    _leave(130)


def _leave(status: int = 0) -> NoReturn:
    """Exit one of several processes immediately, after everything is written: gloo threads sometimes abort during
    Python's shutdown, which torchrun would report as a failed run."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
