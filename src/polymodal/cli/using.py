"""Commands that use a run: generate, ground, extract, export, serve."""

from __future__ import annotations

import errno
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
from polymodal.cli._output_files import output_file
from polymodal.cli._printing import print_json, print_table, say_which_weights, terminal, waiting
from polymodal.constraints import NonNegativeInt, Port, PositiveInt
from polymodal.errors import UserError, needs

if TYPE_CHECKING:
    import socket

    from polymodal.serving.limits import Limits

DEFAULT_PORT = 8000


def generate(arguments: Arguments) -> None:
    """generate images with a run: of every class, or from text prompts"""
    usage = 'generate RUN [CLASS | "WORDS" ...] [--steps 8] [--count 8] [--out generated.png]'
    path, rest = positional(arguments, usage)
    words = leading_words(rest)

    @dataclass(frozen=True)
    class Options(TrustOptions):
        steps: PositiveInt = 8
        """Number of sampling steps (network evaluations) per image."""
        count: PositiveInt = 8
        """Number of images per class or prompt."""
        seed: NonNegativeInt = 0
        """Random seed of the initial noise."""
        out: str | None = None
        """Output file of the sheet of images; by default generated.png, or a free name like it."""

    options = parse(Options, rest[len(words) :], 'generate RUN [CLASS | "WORDS" ...]', generate)
    from polymodal.serving.image_generation import generate_images, image_sheet, known_classes
    from polymodal.serving.images import save_image
    from polymodal.training import load_run

    run = load_run(path, options.trust_code)
    targets = words or known_classes(run)
    rows = generate_images(run, targets, options.count, options.steps, options.seed)
    out = output_file(options.out, "generated.png")
    save_image(image_sheet(rows, targets), str(out.path))
    terminal().print(f"Wrote {len(rows)} x {options.count} images to {out}.", highlight=False)


def ground(arguments: Arguments) -> None:
    """ground texts in an image (referring expressions, phrase grounding): boxes, and the image with them"""
    usage = 'ground RUN IMAGE "TEXT" ["TEXT" ...] [--out located.png]'
    path, rest = positional(arguments, usage)
    image, rest = positional(rest, usage)
    texts = leading_words(rest)
    if not texts:
        raise UserError(f"Say what to look for: polymodal {usage}.")

    @dataclass(frozen=True)
    class Options(JsonOptions, TrustOptions):
        branch: str = ""
        """Prediction branch of the method, such as token or decoder; by default the first."""
        out: str | None = None
        """Output file of the image with the boxes; by default located.png, or a free name like it."""

    options = parse(Options, rest[len(texts) :], 'ground RUN IMAGE "TEXT" ["TEXT" ...]', ground)
    from polymodal.serving.grounding import draw_grounded_boxes
    from polymodal.serving.grounding import ground as find
    from polymodal.serving.images import save_image
    from polymodal.training import load_run

    image_array, boxes = find(load_run(path, options.trust_code), image, texts, options.branch)
    out = output_file(options.out, "located.png")
    save_image(draw_grounded_boxes(image_array, boxes), str(out.path))
    if options.json:
        print_json([grounded._asdict() for grounded in boxes])
        return
    print_table(
        ["text", "left", "top", "right", "bottom", "sure"],
        [[grounded.text, *map(str, grounded.box), f"{grounded.sure:.2f}"] for grounded in boxes],
        right=(1, 2, 3, 4, 5),
    )
    terminal().print(f"The image with the boxes is {out}.", highlight=False)


def extract(arguments: Arguments) -> None:
    """extract the entities of document pages: the field of each word, as JSON lines"""
    path, rest = positional(arguments, "extract RUN [--data PATH] [--split test] [--out fields.jsonl]")

    @dataclass(frozen=True)
    class Options(RunOptions):
        split: str = "test"
        """Split of the pages; `all` takes every page."""
        out: str | None = None
        """Output file; by default fields.jsonl, or a free name like it."""

    options = parse(Options, rest, "extract RUN", extract)
    from polymodal.serving.token_classification import write_fields

    run, corpus = run_and_corpus(path, options)
    out = output_file(options.out, "fields.jsonl")
    count = write_fields(run, corpus, options.split, out.path)
    terminal().print(f"Wrote the fields of {count:,} pages to {out}.", highlight=False)


def export(arguments: Arguments) -> None:
    """export a run for transformers, onnxruntime or sentence-transformers, or upload it to the hub"""
    path, rest = positional(arguments, "export RUN --to transformers|onnx|sentence-transformers OUT [--push NAME]")

    @dataclass(frozen=True)
    class Options(TrustOptions):
        out: str = field(kw_only=True)
        """Output folder."""
        to: str = "transformers"
        """Target format: transformers, onnx or sentence-transformers."""
        push: str | None = None
        """Also upload the folder to the hub under this name, such as my-name/my-model."""

    options = parse(Options, rest, "export RUN", export)
    from polymodal.serving import export as exports
    from polymodal.training import load_run
    from polymodal.training.trainer import command_line

    with waiting(f"Writing {options.out} and scoring the run for its card"):
        written = exports.export(load_run(path, options.trust_code), options.to, Path(options.out), command_line())
    console = terminal()
    console.print(
        f"Wrote {written.folder}: {written.what}; its outputs differ from the run's by at most "
        f"{written.difference:.1e}. {written.folder}/README.md says how to load it.",
        highlight=False,
    )
    if options.push:
        console.print(f"Uploaded: {exports.push(written.folder, options.push)}", highlight=False)


def serve(arguments: Arguments) -> None:
    """serve a run over HTTP: embeddings, search, scores, classes, and generation"""
    path, rest = positional(arguments, "serve RUN [--index DIR] [--port 8000]")

    @dataclass(frozen=True)
    class Options(TrustOptions):
        index: str | None = None
        """Vector index built by the run, for /search."""
        host: str = "127.0.0.1"
        """Host address to bind; 0.0.0.0 binds all interfaces."""
        port: Port = DEFAULT_PORT
        """Port to bind; if the default is in use, a free one is chosen."""
        api_key: str | None = None
        """API key that clients must send; POLYMODAL_API_KEY does the same. Without it, requests are not
        authenticated."""
        max_batch_size: PositiveInt = 64
        """Maximum number of texts, images or sounds per batch."""
        queue_size: PositiveInt = 1024
        """Maximum number of queued inputs; further requests get status 429."""
        page: bool = False
        """Also serve a web page (Gradio) at /page."""
        extra_index: tuple[str, ...] = ()
        """Indexes of other runs, shown beside this one on the page."""

    kinds = {"options": Options, "limits": source.find("polymodal.serving.limits", "Limits")}
    parsed = parse_together(kinds, rest, "serve RUN", serve)
    options, limits = parsed.options, source.real(parsed.limits)
    try:
        from polymodal.serving.request_guard import usable_key
        from polymodal.serving.server import create_app
    except ImportError as error:
        raise needs(error.name or "fastapi", "serve", "A server") from error
    key = usable_key(os.environ.get("POLYMODAL_API_KEY") if options.api_key is None else options.api_key)
    from polymodal.serving.index import Index
    from polymodal.training import load_run

    run, index = load_run(path, options.trust_code), None
    say_which_weights(run)
    if options.index is not None:
        index = Index(options.index)
        index.check(run)
    others = [Index(other) for other in options.extra_index]
    extra_indexes = [(other.run(trust_code=options.trust_code), other) for other in others]
    try:
        app = create_app(
            run, index, limits, key, options.max_batch_size, options.queue_size, options.page, extra_indexes
        )
    except ImportError as error:
        raise needs(error.name or "gradio", "page", "A page") from error
    _listen(app, run.name, options.host, options.port, limits, options.page)


def _listen(app: Any, name: str, host: str, port: int, limits: Limits, page: bool) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; requests in progress are completed first."""
    from polymodal.serving.protocol import answer_at

    listener = listener_at(host, port, DEFAULT_PORT)
    address = f"http://{host}:{listener.getsockname()[1]}"
    where = f"page: {address}/page, requests to try: {address}/docs" if page else f"requests to try: {address}/docs"
    terminal().print(f"{name} answers at {address} ({where}). Ctrl-C ends it.", highlight=False, soft_wrap=True)
    answer_at(listener, app, limits)


def listener_at(host: str, port: int, default: int) -> socket.socket:
    """Bind the port; a free one in place of the default port, if that is in use."""
    import socket

    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        if port == default and getattr(error, "errno", None) == errno.EADDRINUSE:
            return socket.create_server((host, 0))
        raise UserError(f"Nothing can listen at {host}:{port}: {error}; choose another --port.") from error
