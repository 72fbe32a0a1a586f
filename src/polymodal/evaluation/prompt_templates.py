"""Prompt templates of zero-shot classification: the 80 of CLIP for ImageNet, or the user's."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from polymodal.errors import UserError

IMAGENET = "CLIP's 80 ImageNet templates"
CORPUS = "the corpus's own prompts"


@functools.cache
def imagenet_templates() -> tuple[str, ...]:
    """Return the 80 templates that CLIP was evaluated with (github.com/openai/CLIP, notebook on prompt engineering)."""
    return tuple(Path(__file__).with_name("imagenet_templates.txt").read_text(encoding="utf-8").splitlines())


def prompts_of(name: str, templates: Iterable[str]) -> tuple[str, ...]:
    """Return the prompts of a class name; {} and {c} in a template stand for the name."""
    return tuple(template.replace("{c}", name).replace("{}", name) for template in templates)


def checked_templates(templates: Iterable[str], file: str | None = None) -> tuple[str, ...]:
    """Return the templates and those of a file, one a line.

    Raises UserError for a file that cannot be read, and for a template without a place for the class name.
    """
    lines = [*templates]
    if file is not None:
        try:
            lines += [line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The templates {file} cannot be read: give a text file with one template a line."
            ) from error
        lines = [line for line in lines if line]
        if not lines:
            raise UserError(f"The file {file} has no template; write one a line, such as: a photo of a {{}}.")
    for line in lines:
        if "{}" not in line and "{c}" not in line:
            raise UserError(f"The template '{line}' has no {{}} for the class name; write it as: a photo of a {{}}.")
    return tuple(lines)
