"""What a run can be used for next: commands with its own data in them, quoted for a shell."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal.errors import UnreadableExample, UserError

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus

MAX_WORDS, MAX_HINTS = 6, 3  # words of a caption as a query; commands beside `evaluate`
LOOKED_AT = 20  # rows among which an example is looked for


def next_steps(commands: list[str], out: str) -> str:
    """Return the lines that say what comes next. commands: without the program's name; RUN stands for the run."""
    lines = [f"polymodal {command.replace('RUN', shlex.quote(out))}" for command in commands]
    return "Next: " + "\n      ".join(lines)


def hints(run: Any, corpus: Corpus) -> list[str]:
    """Return the commands that show the run at its tasks, with words, questions and images of its data."""
    from polymodal.data.loader import Reader
    from polymodal.evaluation.evaluate import applicable_tasks
    from polymodal.evaluation.task import TaskInputs

    inputs = TaskInputs(run.model, run.processor, Reader(corpus, run.processor), run.recipe)
    commands = dict.fromkeys(task.hint for task in applicable_tasks(inputs) if task.hint)
    return [filled(command, corpus) for command in commands if not command.startswith("evaluate")][:MAX_HINTS]


def filled(command: str, corpus: Corpus) -> str:
    """Return a hint with a query, a question and an image of the data in place of its placeholders."""
    if "QUESTION" in command and (question := _first(corpus, "Questions")):
        command = command.replace("QUESTION", shlex.quote(question[0].question))
    if " IMAGE" in command:
        command = command.replace(" IMAGE", f" {shlex.quote(_image(corpus))}")
    if '"a red fruit"' in command:
        command = command.replace('"a red fruit"', shlex.quote(query_of(corpus)))
    return command


def query_of(corpus: Corpus) -> str:
    """Return the first words of a caption."""
    captions = _first(corpus, "Text")
    return " ".join(captions[0].text.split()[:MAX_WORDS]).rstrip(",;:.") if captions else "a red fruit"


def _first(corpus: Corpus, modality: str) -> Any:
    """Return the first readable value of the first column of a modality, of the test rows if there are any."""
    name = next((name for name, kind in corpus.columns.items() if type(kind).__name__ == modality), None)
    split = next((split for split in ("test", "validation", "train") if len(corpus.splits.get(split, ()))), None)
    for row in corpus.rows(split)[:LOOKED_AT] if name and split else ():
        with suppress(UnreadableExample, UserError):
            if value := corpus.value(int(row), str(name)):
                return value
    return None


def _image(corpus: Corpus) -> str:
    """Return the path of an image of the data, if it has paths of files."""
    for name, kind in corpus.columns.items():
        if type(kind).__name__ in ("Image", "Video") and len(corpus):
            stored = corpus.raw(0, name)
            stored = stored.get("path") if isinstance(stored, dict) else stored
            if isinstance(stored, str) and (path := Path(getattr(kind, "root", None) or "") / stored).is_file():
                return str(path)
    return "IMAGE"
