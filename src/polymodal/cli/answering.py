"""Commands about single images or clips: ask, classify."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from polymodal import source
from polymodal.cli._flags import HELP, Arguments, JsonOptions, TrustOptions, leading_words, parse, positional
from polymodal.cli._media_paths import media_files
from polymodal.cli._printing import print_json, print_table, terminal
from polymodal.constraints import NonNegativeInt
from polymodal.errors import UserError

MAX_OTHERS = 2  # further classes that the table shows


def ask(arguments: Arguments) -> None:
    """generate text about images, clips or folders of them: captions, or answers to a question (VQA)"""
    path, rest = positional(arguments, 'ask RUN IMAGE [IMAGE ...] [--question "How many things are there?"] [-i]')
    images = leading_words(rest)
    if not images:
        raise UserError("Say which images: polymodal ask RUN IMAGE [IMAGE ...].")
    decoding_class: Any = source.find("polymodal.layers.decoding", "Decoding")

    @dataclass(frozen=True)
    class Options(decoding_class, JsonOptions, TrustOptions):
        question: str = ""
        """Question about every image (VQA); without it, each gets a caption."""
        interactive: bool = False
        """Ask question after question about the images, in the terminal (-i)."""
        seed: NonNegativeInt = 0
        """Random seed for sampling (used with --temperature)."""

    flags = ["--interactive" if word == "-i" else word for word in rest[len(images) :]]
    options = parse(Options, flags, "ask RUN IMAGE [IMAGE ...]", ask)
    from polymodal.serving.vqa import answer_each
    from polymodal.training import load_run

    files = media_files(images)
    decoding = source.real(
        decoding_class(**{name: getattr(options, name) for name in decoding_class.__dataclass_fields__})
    )
    run = load_run(path, options.trust_code)

    def answer(question: str) -> list[Any]:
        return answer_each(run, files, question, decoding, options.seed)

    if options.interactive:
        _chat(answer, files)
        return
    _print_results(files, answer(options.question), "answer" if options.question else "caption", options.json)


def _chat(answer: Callable[[str], list[Any]], files: list[str]) -> None:
    """Answer questions from standard input until it ends, or a line is empty."""
    about = files[0] if len(files) == 1 else f"{len(files)} images"
    terminal().print(
        f"Questions about {about}, each by itself: the method does not see earlier ones. An empty line ends.",
        highlight=False,
    )
    while question := _asked():
        try:
            answers = answer(question)
        except UserError as error:
            print(f"polymodal: {error}", file=sys.stderr)
            continue
        for file, text in zip(files, answers, strict=True):
            prefix = "" if len(files) == 1 else f"{file}: "
            print(f"{prefix}{text}")


def _asked() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _print_results(files: list[str], results: list[Any], heading: str, as_json: bool) -> None:
    """Print a text per file, and name the files that cannot be read. Raises UserError when there is no other."""
    broken = {file: error for file, error in zip(files, results, strict=True) if isinstance(error, Exception)}
    if as_json:
        print_json(
            [
                {"image": file} | ({"error": str(result)} if file in broken else {"text": result})
                for file, result in zip(files, results, strict=True)
            ]
        )
    elif len(broken) < len(files):
        print_table(
            ["image", heading],
            [[file, text] for file, text in zip(files, results, strict=True) if file not in broken],
        )
    name_broken(broken, len(files))


def name_broken(broken: Mapping[str, Exception], count: int) -> None:
    """Print which files cannot be read, and why. Raises UserError when all of them cannot."""
    lines = [f"{file}: {error}" for file, error in broken.items()]
    if len(broken) == count:
        raise UserError("\n".join(lines))
    for line in lines:
        print(f"polymodal: {line}", file=sys.stderr)


def classify(arguments: Arguments) -> None:
    """classify images or clips zero-shot: the probability of each of your labels"""
    usage = 'classify RUN IMAGE [IMAGE ...] --labels dog,cat [--template "a photo of a {}."]'
    path, rest = positional(arguments, usage)
    images = leading_words(rest)
    if not images and not HELP & {*rest}:
        raise UserError(f"Say which images: polymodal {usage}.")

    @dataclass(frozen=True)
    class Options(JsonOptions, TrustOptions):
        labels: str = ""
        """Names of the classes, separated by commas."""
        template: str = "{}"
        """Prompt for a class, such as "a photo of a {}."; {} stands for its name."""

    options = parse(Options, rest[len(images) :], "classify RUN IMAGE [IMAGE ...]", classify)
    labels = [*dict.fromkeys(filter(None, map(str.strip, options.labels.split(","))))]
    if len(labels) < 2:
        raise UserError("Name two or more classes, separated by commas: --labels dog,cat.")
    source.find("polymodal.evaluation.prompt_templates", "checked_templates")([options.template])
    from polymodal.serving.zero_shot import classify_each
    from polymodal.training import load_run

    files = media_files(images)
    results = classify_each(load_run(path, options.trust_code), files, labels, options.template)
    broken = {file: error for file, error in zip(files, results, strict=True) if isinstance(error, Exception)}
    if options.json:
        print_json(
            [
                {"image": file} | ({"error": str(result)} if file in broken else {"probabilities": result})
                for file, result in zip(files, results, strict=True)
            ]
        )
    elif len(broken) < len(files):
        rows = [[file, *_best(result)] for file, result in zip(files, results, strict=True) if isinstance(result, dict)]
        print_table(["image", "label", "probability", "then"], rows, right=(2,))
    name_broken(broken, len(files))


def _best(probabilities: dict[str, float]) -> list[str]:
    """Return the best label, its probability, and those that come after it."""
    (label, value), *others = sorted(probabilities.items(), key=lambda pair: -pair[1])
    rest = ", ".join(f"{name} {100 * other:.1f} %" for name, other in others[:MAX_OTHERS])
    return [label, f"{100 * value:.1f} %", rest]
