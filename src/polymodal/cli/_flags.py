"""Arguments and flags of commands: options as dataclasses, recipes with their hyper-parameters, runs with their
data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polymodal.cli._flag_errors import in_a_sentence
from polymodal.constraints import validate_constraints
from polymodal.encoders.size_names import Size
from polymodal.errors import UserError

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus


Arguments = list[str]
HELP = {"-h", "--help"}


@dataclass(frozen=True)
class DataOptions:
    """The data: a built-in corpus, or your own files."""

    corpus: str | None = None
    """Built-in corpus (dataset; `polymodal corpora` lists them), or a weighted mixture, such as emoji:3,scenes:1."""
    data: tuple[str, ...] = ()
    """Your own data: files or folders in any format that is read (`polymodal data --help`), URLs, or
    hf:OWNER/NAME[:CONFIG][@REVISION] of the hub."""
    format: str | None = None
    """Format of --data, instead of the one that is found by looking at it."""
    image_column: str | None = None
    """Column of images in --data, if it cannot be inferred."""
    text_column: str | None = None
    """Caption column in --data, if it cannot be inferred."""
    label_column: str | None = None
    """Column of class names in --data, if it cannot be inferred."""
    audio_column: str | None = None
    """Column of sounds in --data, if it cannot be inferred."""
    video_column: str | None = None
    """Column of clips in --data, if it cannot be inferred."""
    conversations_column: str | None = None
    """Column of messages in --data, if it cannot be inferred."""
    question_column: str | None = None
    """Column of questions in --data, if it cannot be inferred."""
    molecule_column: str | None = None
    """Column of SMILES strings in --data, if it cannot be inferred."""
    series_column: str | None = None
    """Column of series in --data, if it cannot be inferred."""
    stream: bool = False
    """Stream the .parquet or .tar shards of --data, for data larger than memory; shards at URLs are always streamed."""
    language: str | None = None
    """Use captions in these languages only, such as de or de,fr; examples without any are skipped."""
    language_temperature: float | None = None
    """Sample languages with probability proportional to (number of captions)^(1 / temperature): 1 as they are, 100
    almost uniform."""

    def open(self) -> Corpus:
        from polymodal.corpora.languages import in_languages, with_language_temperature

        corpus = self._open()
        if self.language is not None:
            corpus = in_languages(corpus, self.language.split(","))
        if self.language_temperature is not None:
            corpus = with_language_temperature(corpus, self.language_temperature)
        return corpus

    def check(self) -> None:
        """Raise UserError for missing or contradictory options, without slow imports."""
        if self.corpus and self.data:
            raise UserError("Give --corpus or --data, not both.")
        if not self.data and (self.named_columns or self.format):
            raise UserError("--format and --NAME-column describe your own data; give its path with --data.")
        if not self.given:
            raise UserError("Say which data to use: --corpus NAME (`polymodal corpora` lists them) or --data PATH.")
        if self.corpus:
            from polymodal.corpora.registry import parts_of_mixture

            parts_of_mixture(self.corpus)

    def _open(self) -> Corpus:
        self.check()
        from polymodal.corpora.registry import load_mixture
        from polymodal.corpora.sources import from_path

        if self.corpus:
            return load_mixture(self.corpus)
        corpus = from_path(self.data, self.format, stream=self.stream, **self.named_columns)
        for skipped in corpus.skipped:
            print(f"{skipped.count:,} left out: {skipped.reason} ({skipped.example}).", file=sys.stderr)
        return corpus

    @property
    def named_columns(self) -> dict[str, str]:
        """Columns that the user named, by modality."""
        suffix = "_column"
        values = {name: value for name, value in vars(self).items() if name.endswith(suffix) and value}
        return {name.removesuffix(suffix): value for name, value in values.items()}

    @property
    def given(self) -> bool:
        return bool(self.corpus or self.data)


@dataclass(frozen=True)
class PresetOptions:
    """Preset of hyper-parameters."""

    size: Size | None = None
    """Size of the model: tiny (icons, in a minute), small (photographs on a CPU, in half an hour), base (for one GPU),
    large (as --paper). By default chosen by data and machine. Other flags change single values of it."""
    paper: bool = False
    """Start from the paper's hyper-parameters instead of the small preset."""


@dataclass(frozen=True)
class TowerOptions:
    """Pretrained encoders instead of the recipe's own."""

    vision: str | None = None
    """hf:NAME or hf:PATH: pretrained image encoder (CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, ViT, AIMv2)."""
    text_encoder: str | None = None
    """hf:NAME or hf:PATH: pretrained text encoder (CLIP, SigLIP, BERT, MiniLM, ModernBERT, any decoder)."""
    audio: str | None = None
    """hf:NAME or hf:PATH: pretrained audio encoder (Whisper, wav2vec 2.0, HuBERT, WavLM, w2v-BERT)."""
    lm: str | None = None
    """hf:NAME or hf:PATH: pretrained language model (LLM: Qwen, Llama, SmolLM, GPT-2 ...)."""

    def applied(self, recipe: Any) -> Any:
        """Return the recipe with these encoders."""
        towers = dataclasses.asdict(self)
        if not any(towers.values()):
            return recipe
        from polymodal.training.initialization import with_encoders

        return with_encoders(recipe, towers)


@dataclass(frozen=True)
class TrustOptions:
    trust_code: bool = False
    """Execute code that a run contains or names, although it was not used for training on this machine. It can do
    anything that you can."""


@dataclass(frozen=True)
class StartOptions(TrustOptions, TowerOptions, DataOptions):  # help begins with the last
    """The data, and what training starts from."""

    init: str | None = None
    """Initialize from a finished run, wherever name and shape match; or from hf:NAME, a pretrained model that the
    recipe supports."""

    @property
    def towers(self) -> TowerOptions:
        return TowerOptions(self.vision, self.text_encoder, self.audio, self.lm)

    def prepared(self, recipe: Any) -> Any:
        """Return the recipe with the pretrained encoders, or the pretrained model, to start from."""
        if self.init and self.init.startswith("hf:"):
            from polymodal.training.initialization import with_pretrained

            recipe = with_pretrained(recipe, self.init)
        return self.towers.applied(recipe)


@dataclass(frozen=True)
class JsonOptions:
    json: bool = False
    """Print JSON for scripts."""


@dataclass(frozen=True)
class NoOptions:
    pass


def parse(
    options: Any,
    arguments: Arguments,
    usage: str,
    command: Callable[[Arguments], None],
    default: Any = None,
    more_help: str = "",
) -> Any:
    """Parse flags to a dataclass; fields without a default are positional.

    default: instance with the default values. more_help: what help says after the command's docstring. Raises UserError
    for a number outside its range.
    """
    parsed = _from_flags(options, arguments, usage, command, default, more_help)
    validate_constraints(parsed)
    return parsed


def _from_flags(
    options: Any,
    arguments: Arguments,
    usage: str,
    command: Callable[[Arguments], None],
    default: Any = None,
    more_help: str = "",
) -> Any:
    import tyro

    keywords: dict[str, Any] = {} if default is None else {"default": default}
    with in_a_sentence(usage, with_help=bool(HELP & {*arguments})):
        return tyro.cli(
            options,
            args=arguments,
            prog=f"polymodal {usage}",
            description=f"{command.__doc__}{more_help}",
            config=(tyro.conf.PositionalRequiredArgs,),
            **keywords,
        )


def parse_together(
    kinds: dict[str, Any], arguments: Arguments, usage: str, command: Callable[[Arguments], None]
) -> Any:
    """Parse several dataclasses from one list of flags without prefixes; they are attributes of the result.

    kinds: classes, or instances with the default values.
    """
    import tyro

    classes = [(name, kind) for name, kind in kinds.items() if isinstance(kind, type)]
    instances = [(name, kind) for name, kind in kinds.items() if not isinstance(kind, type)]
    fields: list[Any] = [(name, Annotated[kind, tyro.conf.arg(name="")]) for name, kind in classes]
    fields += [(name, Annotated[type(held), tyro.conf.arg(name="")], held) for name, held in instances]
    together = _from_flags(dataclasses.make_dataclass("Together", fields), arguments, usage, command)
    for name in kinds:
        validate_constraints(getattr(together, name))
    return together


def leading_words(arguments: Arguments) -> Arguments:
    """Return the arguments before the first flag."""
    first = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:first]


def positional(arguments: Arguments, usage: str) -> tuple[str, Arguments]:
    """Return the first argument, and the rest. Raises UserError with the usage where there is none."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    raise UserError(f"Usage: polymodal {usage}")


def recipe_that(does: str, spec: str, otherwise: str, family: str) -> type[Any]:
    """Return the stand-in of the recipe class with this method. Raises UserError for others, listing the family's
    recipes."""
    from polymodal import recipes

    kind = recipes.stand_in(spec)
    if not hasattr(kind, does):
        available = ", ".join(name for name, entry in recipes.entries().items() if entry.family == family)
        raise UserError(f"The recipe '{spec}' is {otherwise}; these are: {available}.")
    return kind


def short_name(spec: str) -> str:
    """Shorten a spec: './my_method.py:Mine' -> 'my_method:Mine'; 'package.module:Recipe' -> 'module:Recipe'."""
    module, colon, name = spec.partition(":")
    return (Path(module).stem if module.endswith(".py") else module.rpartition(".")[2]) + colon + name


@dataclass(frozen=True)
class RunOptions(TrustOptions, DataOptions):
    """Options of commands that use a run on data."""


def run_and_corpus(path: str, options: RunOptions) -> tuple[Any, Corpus]:
    """Load a run, and the data that the options name, or else the run's own."""
    from polymodal.corpora.registry import reopen
    from polymodal.training import load_run

    run = load_run(path, options.trust_code)
    return run, options.open() if options.given else reopen(run.record["corpus"])
