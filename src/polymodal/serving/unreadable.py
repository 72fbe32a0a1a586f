"""Files some of which cannot be read: the others are used all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polymodal.errors import UnreadableExample, UserError, unusable
from polymodal.training.run import Run

CHUNK = 16  # files of a batch


def each_readable(
    run: Run,
    files: Sequence[str],
    column_of: Callable[[str], str],
    work: Callable[[list[str]], Sequence[Any]],
    **further: Any,
) -> list[Any]:
    """Return what `work` makes of every file, in batches of one modality; for one that cannot be read, the UserError.

    further: values of other columns of the processor, the same for every file.
    """
    processor: Any = run.processor
    results: dict[int, Any] = {}
    readable: dict[str, list[int]] = {}
    for number, file in enumerate(files):
        column = column_of(file)
        if column not in processor.columns:
            results[number] = UserError(f"The run '{run.name}' takes no {column}.")
            continue
        try:
            processor(**{column: [file]}, **{name: [value] for name, value in further.items()})
        except UnreadableExample as error:
            results[number] = unusable(error)
        else:
            readable.setdefault(column, []).append(number)
    for numbers in readable.values():
        for start in range(0, len(numbers), CHUNK):
            some = numbers[start : start + CHUNK]
            results |= dict(zip(some, work([files[number] for number in some]), strict=True))
    return [results[number] for number in range(len(files))]
