"""Commands that use a run: evaluate, generate, ask, locate, tag, export, serve."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal import source
from polymodal.cli._flags import (
    Arguments,
    JsonOptions,
    RunOptions,
    TrustOptions,
    leading_words,
    parse,
    parse_together,
    positional,
    run_and_corpus,
)
from polymodal.cli._printing import print_json, print_table, terminal, waiting
from polymodal.errors import UserError, needs
from polymodal.ranges import Count, Port, Whole

if TYPE_CHECKING:
    from polymodal.evaluation import Score
    from polymodal.serving.limits import Limits


def evaluate(arguments: Arguments) -> None:
    """score a run on the test splits of its corpus, or of another"""
    place, rest = positional(arguments, "evaluate RUN [--corpus NAME | --data PATH] [--json]")

    @dataclass(frozen=True)
    class Options(RunOptions, JsonOptions):
        pass

    options = parse(Options, rest, "evaluate RUN", evaluate)
    from polymodal import evaluation

    run, corpus = run_and_corpus(place, options)
    with waiting(f"Scoring {place} on {corpus.name}"):
        scores = evaluation.evaluate(run, corpus)
    if not scores:
        raise UserError(f"The run {place} has no capability that can be tested on '{corpus.name}'.")
    if options.json:
        print_json([_score_record(score) for score in scores])
        return
    print_table(
        ["score", "value", "95 % interval", "chance"],
        [[score.name, *score.shown()] for score in scores],
        right=(1, 2, 3),
    )


def _score_record(score: Score) -> dict[str, Any]:
    return {"name": score.name, "chance": score.chance, "test_units": len(score.units)} | score.estimate()._asdict()


def generate(arguments: Arguments) -> None:
    """make pictures with a run that generates: of every class, or of what is said"""
    usage = 'generate RUN [CLASS | "WORDS" ...] [--steps 8] [--count 8] [--out generated.png]'
    place, rest = positional(arguments, usage)
    words = leading_words(rest)

    @dataclass(frozen=True)
    class Options(TrustOptions):
        steps: Count = 8
        """Evaluations of the network a picture; more take longer and may be better."""
        count: Count = 8
        """Pictures of each."""
        seed: Whole = 0
        """Of the noise that the pictures begin with."""
        out: str = "generated.png"
        """Where to save the sheet of pictures."""

    options = parse(Options, rest[len(words) :], 'generate RUN [CLASS | "WORDS" ...]', generate)
    from polymodal.serving.generation import generate_pictures, known_classes, sheet
    from polymodal.serving.pictures import save_picture
    from polymodal.training import load_run

    run = load_run(place, options.trust_code)
    wanted = words or known_classes(run)
    rows = generate_pictures(run, wanted, options.count, options.steps, options.seed)
    save_picture(sheet(rows, wanted), options.out)
    terminal().print(f"Wrote {len(rows)} x {options.count} pictures to {options.out}.", highlight=False)


def ask(arguments: Arguments) -> None:
    """what a run says of pictures or clips: captions, or answers to a question"""
    place, rest = positional(arguments, 'ask RUN PICTURE [PICTURE ...] [--question "How many things are there?"]')
    pictures = leading_words(rest)
    if not pictures:
        raise UserError("Say which pictures: polymodal ask RUN PICTURE [PICTURE ...].")
    decoding_class: Any = source.find("polymodal.layers.decoding", "Decoding")

    @dataclass(frozen=True)
    class Options(decoding_class, JsonOptions, TrustOptions):
        question: str = ""
        """About every picture; without, each gets a caption."""
        seed: Whole = 0
        """Of words that are drawn by lot (--temperature)."""

    options = parse(Options, rest[len(pictures) :], "ask RUN PICTURE [PICTURE ...]", ask)
    from polymodal.serving.asking import ask_about
    from polymodal.training import load_run

    decoding = decoding_class(**{name: getattr(options, name) for name in decoding_class.__dataclass_fields__})
    run = load_run(place, options.trust_code)
    said = ask_about(run, pictures, options.question, source.real(decoding), options.seed)
    if options.json:
        print_json([{"picture": picture, "text": text} for picture, text in zip(pictures, said, strict=True)])
    else:
        print_table(
            ["picture", "answer" if options.question else "caption"],
            [[picture, text] for picture, text in zip(pictures, said, strict=True)],
        )


def locate(arguments: Arguments) -> None:
    """where in a picture is what a text means: boxes, and the picture with them"""
    usage = 'locate RUN PICTURE "TEXT" ["TEXT" ...] [--out located.png]'
    place, rest = positional(arguments, usage)
    picture, rest = positional(rest, usage)
    texts = leading_words(rest)
    if not texts:
        raise UserError(f"Say what to look for: polymodal {usage}.")

    @dataclass(frozen=True)
    class Options(JsonOptions, TrustOptions):
        branch: str = ""
        """Which of the method's ways to find boxes, such as token or decoder; by default the first."""
        out: str = "located.png"
        """Where to save the picture with the boxes."""

    options = parse(Options, rest[len(texts) :], 'locate RUN PICTURE "TEXT" ["TEXT" ...]', locate)
    from polymodal.serving.locating import drawn
    from polymodal.serving.locating import locate as find
    from polymodal.serving.pictures import save_picture
    from polymodal.training import load_run

    shown, found = find(load_run(place, options.trust_code), picture, texts, options.branch)
    save_picture(drawn(shown, found), options.out)
    if options.json:
        print_json([one._asdict() for one in found])
        return
    print_table(
        ["text", "left", "top", "right", "bottom", "sure"],
        [[one.text, *map(str, one.box), f"{one.sure:.2f}"] for one in found],
        right=(1, 2, 3, 4, 5),
    )
    terminal().print(f"The picture with the boxes is {options.out}.", highlight=False)


def tag(arguments: Arguments) -> None:
    """write which field each word of the pages is part of, as JSON lines"""
    place, rest = positional(arguments, "tag RUN [--data PATH] [--split test] [--out fields.jsonl]")

    @dataclass(frozen=True)
    class Options(RunOptions):
        split: str = "test"
        """Whose pages; `all` takes every one."""
        out: str = "fields.jsonl"
        """The file to write."""

    options = parse(Options, rest, "tag RUN", tag)
    from polymodal.serving.tagging import write_fields

    run, corpus = run_and_corpus(place, options)
    count = write_fields(run, corpus, options.split, Path(options.out))
    terminal().print(f"Wrote the fields of {count:,} pages to {options.out}.", highlight=False)


def export(arguments: Arguments) -> None:
    """write a run for transformers, onnxruntime or sentence-transformers, or upload it to the hub"""
    place, rest = positional(arguments, "export RUN --to transformers|onnx|sentence-transformers OUT [--push NAME]")

    @dataclass(frozen=True)
    class Options(TrustOptions):
        out: str = field(kw_only=True)
        """The folder to write."""
        to: str = "transformers"
        """transformers, onnx or sentence-transformers."""
        push: str | None = None
        """Also upload the folder to the hub under this name, such as my-name/my-model."""

    options = parse(Options, rest, "export RUN", export)
    from polymodal.serving import export as exports
    from polymodal.training import load_run
    from polymodal.training.trainer import command_line

    with waiting(f"Writing {options.out} and scoring the run for its card"):
        written = exports.export(load_run(place, options.trust_code), options.to, Path(options.out), command_line())
    console = terminal()
    console.print(
        f"Wrote {written.folder}: {written.what}; its outputs differ from the run's by at most "
        f"{written.difference:.1e}. {written.folder}/README.md says how to load it.",
        highlight=False,
    )
    if options.push:
        console.print(f"Uploaded: {exports.push(written.folder, options.push)}", highlight=False)


def serve(arguments: Arguments) -> None:
    """answer over HTTP: vectors, search, scores, classes, and what the run generates"""
    place, rest = positional(arguments, "serve RUN [--index DIR] [--port 8000]")

    @dataclass(frozen=True)
    class Options(TrustOptions):
        index: str | None = None
        """An index that the run has made, for /search."""
        host: str = "127.0.0.1"
        """The address to listen at; 0.0.0.0 is every one of this machine."""
        port: Port = 8000
        """The port to listen at."""
        api_key: str | None = None
        """What clients have to send as their key; POLYMODAL_API_KEY does the same. Without it, everybody may ask."""
        largest_batch: Count = 64
        """Texts, pictures or sounds that are computed together, at most."""
        room: Count = 1024
        """Of them, how many may wait; more are answered with 429."""
        page: bool = False
        """Also show a page to click in, at /page."""
        beside: tuple[str, ...] = ()
        """Indexes of other runs, which answer beside this one on the page."""

    kinds = {"options": Options, "limits": source.find("polymodal.serving.limits", "Limits")}
    given = parse_together(kinds, rest, "serve RUN", serve)
    options, limits = given.options, source.real(given.limits)
    try:
        from polymodal.serving.limits import usable_key
        from polymodal.serving.server import create_app
    except ImportError as error:
        raise needs(error.name or "fastapi", "serve", "A server") from error
    key = usable_key(os.environ.get("POLYMODAL_API_KEY") if options.api_key is None else options.api_key)
    from polymodal.serving.index import Index
    from polymodal.training import load_run

    run, index = load_run(place, options.trust_code), None
    if options.index is not None:
        index = Index(options.index)
        index.check(run)
    others = [Index(other) for other in options.beside]
    beside = [(other.run(trust_code=options.trust_code), other) for other in others]
    try:
        app = create_app(run, index, limits, key, options.largest_batch, options.room, options.page, beside)
    except ImportError as error:
        raise needs(error.name or "gradio", "page", "A page") from error
    _listen(app, run.name, options.host, options.port, limits)


def _listen(app: Any, name: str, host: str, port: int, limits: Limits) -> None:
    """Until Ctrl-C or SIGTERM; requests that are being answered are answered first."""
    import socket

    from polymodal.serving.protocol import answer_at

    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"Nothing can listen at {host}:{port}: {error}; choose another --port.") from error
    address = f"http://{host}:{listener.getsockname()[1]}"
    terminal().print(f"{name} answers at {address} (requests to try: {address}/docs). Ctrl-C ends it.", highlight=False)
    answer_at(listener, app, limits)
