"""Words and flags of a command: options as dataclasses, recipes with their hyper-parameters, runs with their data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polymodal import source
from polymodal.constraints import validate_constraints
from polymodal.errors import UserError

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus


Arguments = list[str]
HELP = {"-h", "--help"}


@dataclass(frozen=True)
class DataOptions:
    """Which data: a built-in corpus, or your own files."""

    corpus: str | None = None
    """A built-in corpus (`polymodal corpora` lists them), or a mixture with weights, such as emoji:3,scenes:1."""
    data: str | None = None
    """Your pairs: a .parquet, .csv, .jsonl or webdataset .tar file, or a folder with such files."""
    image_column: str | None = None
    """The column of images or clips of --data, when it cannot be told by its type."""
    text_column: str | None = None
    """The caption column of --data, when it cannot be told by its type."""
    stream: bool = False
    """Read the .parquet or .tar shards of --data where they lie, for data larger than memory; URLs always are."""
    language: str | None = None
    """Captions in these languages only, such as de or de,fr; examples that have none are left out."""
    language_temperature: float | None = None
    """Draw languages in shares of (captions in the language)^(1 / temperature): 1 as they are, 100 all alike."""

    def open(self) -> Corpus:
        from polymodal.corpora.languages import in_languages, with_language_temperature

        corpus = self._open()
        if self.language is not None:
            corpus = in_languages(corpus, self.language.split(","))
        if self.language_temperature is not None:
            corpus = with_language_temperature(corpus, self.language_temperature)
        return corpus

    def check(self) -> None:
        """Raises UserError where the data that are asked for cannot be there. Nothing slow is imported for it."""
        if self.corpus and self.data:
            raise UserError("Give --corpus or --data, not both.")
        if not self.data and (self.image_column or self.text_column):
            raise UserError(
                "--image-column and --text-column name columns of your own data; give its path with --data."
            )
        if not self.given:
            raise UserError("Say which data to use: --corpus NAME (`polymodal corpora` lists them) or --data PATH.")
        if self.corpus:
            from polymodal.corpora.registry import parts_of_mixture

            parts_of_mixture(self.corpus)

    def _open(self) -> Corpus:
        self.check()
        from polymodal.corpora.registry import load_mixture
        from polymodal.corpora.stream import from_shards
        from polymodal.corpora.user_files import from_path

        if self.corpus:
            return load_mixture(self.corpus)
        assert self.data is not None
        if self.stream or "://" in self.data:
            return from_shards(self.data, self.image_column, self.text_column)
        return from_path(self.data, self.image_column, self.text_column)

    @property
    def given(self) -> bool:
        return bool(self.corpus or self.data)


@dataclass(frozen=True)
class PresetOptions:
    """Where hyper-parameters start from."""

    paper: bool = False
    """The paper's hyper-parameters where no flag says otherwise; without it, those of the small preset."""


@dataclass(frozen=True)
class TowerOptions:
    """Pretrained towers in place of the recipe's own."""

    vision: str | None = None
    """hf:NAME or hf:PATH: a pretrained image tower (CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, ViT, AIMv2)."""
    text_encoder: str | None = None
    """hf:NAME or hf:PATH: a pretrained text tower (CLIP, SigLIP, BERT, MiniLM, ModernBERT, any decoder)."""
    audio: str | None = None
    """hf:NAME or hf:PATH: a pretrained audio tower (Whisper, wav2vec 2.0, HuBERT, WavLM, w2v-BERT)."""
    lm: str | None = None
    """hf:NAME or hf:PATH: a pretrained language model (Qwen, Llama, SmolLM, GPT-2 ...)."""

    def applied(self, recipe: Any) -> Any:
        """The recipe with these towers."""
        towers = dataclasses.asdict(self)
        if not any(towers.values()):
            return recipe
        from polymodal.training.initialization import with_encoders

        return with_encoders(recipe, towers)


@dataclass(frozen=True)
class TrustOptions:
    trust_code: bool = False
    """Execute the code that a run brings or names, though it was not trained with on this machine. It can do all that
    you can."""


@dataclass(frozen=True)
class JsonOptions:
    json: bool = False
    """Print JSON for scripts."""


@dataclass(frozen=True)
class NoOptions:
    pass


def parse(
    options: Any, arguments: Arguments, usage: str, command: Callable[[Arguments], None], default: Any = None
) -> Any:
    """A dataclass from flags, and from words where a field has no default.

    default: an instance whose values stand where no flag is given. Raises UserError for a number outside its range.
    """
    found = _from_flags(options, arguments, usage, command, default)
    validate_constraints(found)
    return found


def _from_flags(
    options: Any, arguments: Arguments, usage: str, command: Callable[[Arguments], None], default: Any = None
) -> Any:
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


def parse_together(
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
    together = _from_flags(dataclasses.make_dataclass("Together", fields), arguments, usage, command)
    for name in kinds:
        validate_constraints(getattr(together, name))
    return together


def parse_with_recipe(
    kinds: dict[str, Any], kind: Any, arguments: Arguments, usage: str, command: Callable[[Arguments], None]
) -> Any:
    """As `parse_together`, and a recipe of this kind, from the paper's preset with --paper.

    kind: may be a stand-in, of which `source.real` makes the recipe.
    """
    if "--paper" in arguments and not hasattr(kind, "paper"):
        raise UserError("This recipe has no preset of a paper; leave --paper out.")
    try:
        recipe = kind.paper() if "--paper" in arguments else kind
        return parse_together(kinds | {"preset": PresetOptions, "recipe": recipe}, arguments, usage, command)
    except source.NotReadable:  # a method of the stand-in needs what is not imported yet
        return parse_with_recipe(kinds, source.imported(kind), arguments, usage, command)


def leading_words(arguments: Arguments) -> Arguments:
    """The words before the first flag."""
    first = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:first]


def positional(arguments: Arguments, usage: str) -> tuple[str, Arguments]:
    """The first word, and what follows it. Raises UserError with the usage where there is none."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    raise UserError(f"Usage: polymodal {usage}")


def recipe_that(does: str, spec: str, otherwise: str, family: str) -> type[Any]:
    """The stand-in of the recipe class with this method. Raises UserError for others, with those of the family."""
    from polymodal import recipes

    kind = recipes.stand_in(spec)
    if not hasattr(kind, does):
        known = ", ".join(name for name, entry in recipes.entries().items() if entry.family == family)
        raise UserError(f"The recipe '{spec}' is {otherwise}; these are: {known}.")
    return kind


def short_name(spec: str) -> str:
    """'./my_method.py:Mine' -> 'my_method:Mine'; 'package.module:Recipe' -> 'module:Recipe'."""
    place, colon, name = spec.partition(":")
    return (Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]) + colon + name


@dataclass(frozen=True)
class RunOptions(DataOptions, TrustOptions):
    """For commands that use a run on data."""


def run_and_corpus(place: str, options: RunOptions) -> tuple[Any, Corpus]:
    """A run, and the data that the options name, or else its own."""
    from polymodal.corpora.registry import reopen
    from polymodal.training import load_run

    run = load_run(place, options.trust_code)
    return run, options.open() if options.given else reopen(run.record["corpus"])
