"""Forms that hold records of a data set, and letters that describe it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from polymodal.corpora._data_sets import DataSet, read_table
from polymodal.corpora._html import parse_html, words
from polymodal.corpora._layout import Page, Style
from polymodal.corpora._letterhead import DATES, Asked, address_lines, random_day
from polymodal.modalities.document import NO_LINK, OTHER

FORMS_OF_A_DATA_SET = 3


def forms(data_set: DataSet, people: Any, rng: np.random.Generator) -> Iterator[tuple[Page, Asked]]:
    """Lay out records of a dataset as forms, one per page: label and value per column; few levels become checkboxes."""
    table = read_table(data_set.csv)
    names = [name for name in table if len(set(table[name])) > 1 and max(len(said_value(v)) for v in table[name]) <= 30]
    if len(names) < 4:
        return
    records = rng.choice(len(table[names[0]]), min(FORMS_OF_A_DATA_SET, len(table[names[0]])), replace=False)
    for record in records:
        chosen = [
            names[n] for n in sorted(rng.choice(len(names), min(len(names), int(rng.integers(4, 15))), replace=False))
        ]
        style = Style.sample(rng)
        page = Page(794, 1123, style)
        left, right, y = 64, 730, 56
        y = page.write(data_set.title, left, y, field="header", bold=True, scale=1.35, width=right - left,
                       ink=style.accent).bottom + style.line  # fmt: skip
        person = page.write("Recorded by:", left, y, field="label", bold=True)
        name = people.name()
        page.write(name, left + 150, y, field="person", link=person.segment)
        y = page.write(f"No. {record + 1}", right, y, field="number", right=True).bottom + style.line
        two = rng.random() < 0.5
        columns = 2 if two else 1
        pitch = (right - left) // columns
        for place, column in enumerate(chosen):
            x = left + place % columns * pitch
            low = _entry(page, table, column, int(record), x, y, pitch - 20, rng.random() < 0.5)
            if place % columns == columns - 1 or place == len(chosen) - 1:
                y = low + 10
        chosen_questions = rng.choice(len(chosen), min(3, len(chosen)), replace=False)
        if page.full:
            continue
        yield (
            page,
            [
                ("Who recorded this?", name, "person"),
                *(
                    (f"What is the value of {chosen[n]}?", said_value(table[chosen[n]][record]), "value")
                    for n in sorted(chosen_questions)
                ),
            ],
        )


def said_value(value: Any) -> str:
    """Format numbers without superfluous digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _entry(
    page: Page, table: dict[str, list[Any]], column: str, record: int, x: int, y: int, width: int, boxed: bool
) -> int:
    """Write a label with its value on a line, in a box, or checked among all levels; return the y coordinate below."""
    style, value = page.style, said_value(table[column][record])
    label = page.write(f"{column}:", x, y, field="label", bold=True, width=width)
    levels = sorted(set(map(said_value, table[column])))
    if not isinstance(table[column][record], float) and len(levels) <= 4 and sum(map(len, levels)) <= 24:
        low, side = label.bottom, style.size - 2
        for level in levels:
            box = (x + 2, low + 3, x + 2 + side, low + 3 + side)
            page.drawing.rectangle(box, outline=(60, 60, 66), width=1)
            ticked = level == value
            if ticked:
                page.drawing.line((box[0] + 2, box[1] + 2, box[2] - 2, box[3] - 2), fill=style.accent, width=2)
                page.drawing.line((box[0] + 2, box[3] - 2, box[2] - 2, box[1] + 2), fill=style.accent, width=2)
            field, link = ("value", label.segment) if ticked else (OTHER, NO_LINK)
            low = page.write(level, x + side + 12, low, field=field, link=link).bottom
        return low
    low = page.write(value, x + 6, label.bottom + 3, field="value", link=label.segment, ink=(20, 40, 110)).bottom
    if boxed:
        page.drawing.rectangle((x, label.bottom, x + width, low), outline=(150, 150, 156), width=1)
    else:
        page.rule(x, low, x + width)
    return low


def letter(data_set: DataSet, people: Any, rng: np.random.Generator) -> tuple[Page, Asked] | None:
    """Lay out a letter that describes a dataset by its documentation; None for too few paragraphs."""
    paragraphs = description(data_set.html)
    if sum(map(len, paragraphs)) < 200:
        return None
    style = Style.sample(rng)
    page = Page(794, 1123, style)
    left, right, y = 90, 704, 70
    sender, receiver, written = people.name(), people.name(), random_day(rng).strftime(DATES["en"])
    place = people.city()
    y = page.write(sender, left, y, field="sender", bold=True).bottom
    for line in address_lines(people):
        y = page.write(line, left, y).bottom
    y = page.write(receiver, left, y + 2 * style.line, field="receiver").bottom
    y = page.write(place, left, y, field="place").bottom
    y = page.write(written, right, y, field="date", right=True).bottom + style.line
    label = page.write("Subject:", left, y, field="label", bold=True)
    y = page.write(data_set.title, left + 100, y, field="subject", link=label.segment, bold=True,
                   width=right - left - 100).bottom + style.line  # fmt: skip
    y = page.write(f"Dear {receiver},", left, y).bottom + style.line // 2
    for paragraph in paragraphs:
        lines = -(-len(paragraph) * style.size // 2 // (right - left)) + 1
        if y + lines * style.line > 960:
            break
        y = page.write(paragraph, left, y, width=right - left).bottom + style.line // 2
    y = page.write("Yours sincerely,", left, y + style.line).bottom + style.line
    page.write(sender, left, y, field="sender")
    return None if page.full else (page, [
        ("Who wrote the letter?", sender, "sender"),
        ("To whom is the letter addressed?", receiver, "receiver"),
        ("What is the date of the letter?", written, "date"),
        ("What is the letter about?", data_set.title, "subject"),
    ])  # fmt: skip


def description(html: str) -> list[str]:
    """Return the paragraphs of a dataset's documentation."""
    paragraphs = [words(node.text()) for node in parse_html(html).css("p")]
    return [paragraph for paragraph in paragraphs if len(paragraph) > 40]
