"""The types that every folder shares. Importing this module is cheap: torch is imported only for type checkers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from polymodal.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from polymodal.corpora.corpus import Corpus
    from polymodal.rng import ExampleRNG

Example = dict[str, Any]  # column name -> decoded value of a modality
Batch = dict[str, Any]  # what a method sees: column name -> Tensor or polymodal.modalities.text.Tokens


@dataclass(frozen=True)
class Paper:
    """The publication that a recipe implements. Written as a literal, so that listings need not import torch."""

    slug: str
    title: str
    year: int
    arxiv: str
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """How long a run may train; exactly one of them is set.

    tokens: of sequences, without padding. flops: floating-point operations, counted on the first batch.
    seconds: wall-clock seconds of training; validation and checkpoints do not count.
    """

    steps: int | None = None
    examples: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    flops: float | None = None

    UNITS: ClassVar[Mapping[str, tuple[str, float]]] = {
        "steps": ("steps", 1),
        "step": ("steps", 1),
        "examples": ("examples", 1),
        "s": ("seconds", 1),
        "seconds": ("seconds", 1),
        "m": ("seconds", 60),
        "min": ("seconds", 60),
        "h": ("seconds", 3600),
        "tokens": ("tokens", 1),
        "flops": ("flops", 1),
    }

    def __post_init__(self) -> None:
        if len(self._given) != 1 or not next(iter(self._given.values())) > 0:
            raise UserError(
                "A budget is one positive number of steps, examples, tokens, flops or seconds, such as 200steps or 60s."
            )

    @property
    def _given(self) -> dict[str, float]:
        amounts = {name: getattr(self, name) for name in ("steps", "examples", "seconds", "tokens", "flops")}
        return {name: amount for name, amount in amounts.items() if amount is not None}

    @property
    def unit(self) -> str:
        """steps, examples, seconds, tokens or flops."""
        return next(iter(self._given))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read '200steps', '5000examples', '1e6tokens', '1e15flops', '60s', '20m' or '1.5h'; else raises UserError."""
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+]?[0-9]+)?)\s*([a-z]+)\s*", text.lower())
        if match is None or match[2] not in cls.UNITS:
            raise UserError(f"'{text}' is not a budget; write for example 200steps, 5000examples, 60s, 20m or 2h.")
        unit, factor = cls.UNITS[match[2]]
        amount = float(match[1]) * factor
        whole = unit not in ("seconds", "flops")
        if whole and amount != int(amount):
            raise UserError(f"'{text}' is not a budget; {unit} are whole numbers.")
        given: dict[str, Any] = {unit: int(amount) if whole else amount}
        return cls(**given)

    def fraction(self, **used: float) -> float:
        """The share of the budget that is used, from 0 to 1. used: how much of each unit."""
        return min(used[self.unit] / self._given[self.unit], 1.0)

    def __str__(self) -> str:
        return f"{self._given[self.unit]:.12g}{'s' if self.unit == 'seconds' else self.unit}"


@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own data, losses and trainable parameters.

    fraction: of the budget, relative to the other stages. trainable: shell patterns of parameter names; all others are
    frozen: no gradient, no optimizer state. loss_weights: factors of named losses, 1 where not named; 0 leaves a loss
    out. lr_scale: factor of the recipe's learning rate. lr_scales: further factors by shell patterns of names, of
    which the first that fits counts. corpus: opens the stage's data, by default the run's. training_batch: makes the
    stage's batches in place of the recipe's; a method computes the losses that a batch has the columns for.
    on_start: changes the method before the stage's first step, such as `training.initialization.from_run("runs/clip")`.
    """

    name: str
    fraction: float = 1.0
    trainable: tuple[str, ...] = ("*",)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    lr_scale: float = 1.0
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    corpus: Callable[[], Corpus] | None = None
    training_batch: Callable[..., Batch] | None = None
    on_start: Callable[[nn.Module], object] | None = None


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper that `polymodal reproduce` tests: treatment against baseline, paired seeds.

    baseline, treatment and further arms are recipes that differ only in the idea; the first metric decides. start: a
    recipe that is trained first, once a seed and for `start_budget`, whose weights all arms begin with, such as a
    language model that is to learn to see. start_makes: from the run of `start`, the corpus, a folder and the seed, the
    corpus that arms are trained on, which it writes there, such as preferences between the model's own answers.
    languages: of the corpus, these only; empty means all.
    """

    sentence: str
    baseline: Any
    treatment: Any
    corpus: str
    budget: Budget
    seeds: int
    metrics: tuple[str, ...]
    further: Mapping[str, Any] = field(default_factory=dict)
    start: Any = None
    start_budget: Budget | None = None
    start_makes: Callable[[Any, Corpus, Path, int], Corpus] | None = None
    languages: tuple[str, ...] = ()
    paper_results: str = ""


@dataclass(frozen=True)
class AttackClaim(Claim):
    """A claim about attacks, which baseline, treatment and further arms are.

    victims: recipes that are trained first, each from seeds of its own. An attack knows one of them and is tried on
    all; the figures of models that it did not know are averaged. split: whose examples are attacked, at most so many.
    """

    victims: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    examples: int = 300


@dataclass(frozen=True)
class MetricClaim(Claim):
    """A claim about metrics of captions, which baseline, treatment and further arms are; nothing is trained.

    The budget is the number of images whose captions are judged; a seed draws what is exchanged in them.
    """


@dataclass(frozen=True)
class CurationClaim(Claim):
    """A claim about recipes of curation, which baseline, treatment and further arms are; nothing is trained.

    The budget is the largest number of pages that noise is put into; a seed draws it. language: of the good texts.
    """

    language: str = "en"


@dataclass(frozen=True)
class CuratedTrainingClaim(Claim):
    """A claim about recipes of curation by what a model learns from the documents that each of them makes.

    model: the recipe that is trained on them, for the budget.
    """

    model: Any = None


@dataclass(frozen=True)
class CaptionScore:
    """What a metric says of a caption. value: 1 is right. objects: what the caption speaks of, each with its score."""

    value: float
    objects: Mapping[str, float]


class Recipe(Protocol):
    """A frozen dataclass of hyper-parameters that builds a method (see CONTRIBUTING for how to write one)."""

    def columns(self) -> Mapping[str, Any]:
        """What is read of an example, by name (`data.processor.Declared`), from which the processor is made."""
        ...

    def build(self, processor: Processor) -> nn.Module:
        """The method: an nn.Module with `losses` and the capabilities it has."""
        ...

    def stages(self) -> tuple[Stage, ...]:
        """What is trained, one after the other; `OptimizerConfig` has a single stage."""
        ...

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> Batch:
        """Examples to a batch, with this recipe's augmentation; every random choice comes from `example_rng`."""
        ...


@runtime_checkable
class Processor(Protocol):
    """Examples to tensors without augmentation; saved with the run."""

    def load_example(self, corpus: Corpus, row: int) -> Example:
        """One example, decoded. Raises UnreadableExample."""
        ...

    def __call__(self, **columns: list[Any]) -> Batch:
        """Values of some columns, as `load_example` or a user gives them, to tensors."""
        ...

    def save(self, directory: Path) -> None: ...


@runtime_checkable
class Method(Protocol):
    """What the trainer needs: named losses, already weighted; the trainer adds them up."""

    def losses(self, batch: Batch) -> dict[str, Tensor]: ...


@runtime_checkable
class CanEmbed(Protocol):
    """Capability: one L2-normalised vector a modality, comparable by inner product."""

    def embed(self, batch: Batch) -> dict[str, Tensor]: ...


@runtime_checkable
class CanClassify(Protocol):
    """Capability: logits of the classes of the corpus's label."""

    def classify(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class HasFeatures(Protocol):
    """Capability: vectors of an example of several modalities, one or more, each for a linear probe of its own."""

    def features(self, batch: Batch) -> dict[str, Tensor]: ...


@runtime_checkable
class CanImputeTable(Protocol):
    """Capability: what a table row's missing values may be: numbers, and one distribution a category column."""

    def impute(self, batch: Batch) -> tuple[Tensor, list[Tensor]]: ...


@runtime_checkable
class CanClassifyTokens(Protocol):
    """Capability: logits of the fields of all words of a batch of pages, page by page: (words, fields)."""

    def classify_tokens(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class CanDetect(Protocol):
    """Capability: the boxes of what the texts of a batch mean in its images.

    num_queries: how many boxes are given for each.
    """

    num_queries: int

    def predict_boxes(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each way to find them, corners (left, top, right, bottom in shares of the image) and how sure it is."""
        ...


@runtime_checkable
class CanGenerateImages(Protocol):
    """Capability: images, normalised as the processor's, for the conditions of a batch, in so many steps."""

    def generate_images(self, batch: Batch, steps: int, generator: torch.Generator | None = None) -> Tensor: ...


@runtime_checkable
class CanGenerateText(Protocol):
    """Capability: what follows each prompt of a batch, as token numbers."""

    def generate_text(
        self, batch: Batch, decoding: Any = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """decoding: a `layers.decoding.Decoding`; by default the likeliest words."""
        ...


@runtime_checkable
class CanClassifyAnswers(Protocol):
    """Capability: logits of the answers that the processor knows (`answers`) to one question about each example."""

    def answer_logits(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class CanTranscribe(Protocol):
    """Capability: what is said in each sound, or what is heard in each text, as token numbers."""

    def transcribe(self, batch: Batch) -> list[list[int]]: ...


@runtime_checkable
class CanScorePairs(Protocol):
    """Capability: a logit for every item and every text of a batch that the two belong together: (items, texts)."""

    def itm_logits(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class CanClassifyRegions(Protocol):
    """Capability: for a box in each example, the probabilities of the names that the processor knows (`entities`)."""

    def classify_regions(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class HasLikelihood(Protocol):
    """Capability: the log-probability of each answer of a batch."""

    def log_likelihood(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class CanScoreTokens(Protocol):
    """Capability: how well the next token of documents is predicted, by modality.

    vocab_sizes: how many tokens there are of each modality.
    """

    vocab_sizes: Mapping[str, int]

    def token_nll(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each modality, the sum of -log p over a row's tokens, and how many they are."""
        ...


@runtime_checkable
class HasTextCorpus(Protocol):
    """Of a recipe: what its language model learned from before it saw images; None for the run's own corpus."""

    def open_text_corpus(self) -> Corpus | None: ...


@runtime_checkable
class CanRecommend(Protocol):
    """Capability: a score for every item of the catalogue, higher for what the person may choose next."""

    def recommend(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class HasPrototypes(Protocol):
    """Capability: how much each item of the catalogue belongs to each of a few prototypes; rows sum to 1."""

    def item_prototypes(self) -> Tensor: ...


@runtime_checkable
class Attack(Protocol):
    """What a recipe of an attack does: images and captions that a method takes for strangers."""

    def fit(self, corpus: Corpus, language: str | None, seed: int = 0) -> Any:
        """What it must know beforehand, such as a language model. language: of the captions."""
        ...

    def attack(
        self, method: Any, processor: Any, learned: Any, pixels: Tensor, captions: list[list[str]], seed: int = 0
    ) -> tuple[Tensor, list[list[str]]]:
        """Changed images on the scale 0-1, and changed captions of each."""
        ...


@runtime_checkable
class Metric(Protocol):
    """What a recipe of a metric does: judge a caption by other captions and by detected objects of its image."""

    def score(self, caption: str, references: Sequence[str], detections: Sequence[str] = ()) -> CaptionScore: ...


class Rejection(NamedTuple):
    """A text that a step of curation left out, and why."""

    reason: str
    text: str


class FilterResult(NamedTuple):
    """What a step of curation made of a page's blocks (`curation.web.Block`)."""

    kept: list[Any]
    dropped: list[Rejection]


CurationStep = Callable[[list[Any]], FilterResult]


@runtime_checkable
class Curation(Protocol):
    """What a recipe of curation does: pages to documents worth training on, step by step."""

    def fit(self, good: Iterable[str], flagged: Iterable[str] = ()) -> Any:
        """What it must know of the language beforehand, from good texts."""
        ...

    def steps(self, known: Any) -> Mapping[str, CurationStep]:
        """Name -> what happens to the blocks of a page; a page without blocks is dropped."""
        ...

    def documents(self, blocks: list[Any]) -> list[list[Any]]:
        """What the blocks that are left of a page are trained on as: one document, or several."""
        ...


@runtime_checkable
class CanEncodePatches(Protocol):
    """Capability: vectors of image patches in the space of the text embedding."""

    def encode_patches(self, image: torch.Tensor) -> Tensor: ...
