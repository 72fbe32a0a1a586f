"""Preference pairs between a model's own answers (MPO, Wang et al. 2024, section 3.2).

If the answer to a question is known, correct answers are preferred to incorrect ones. Otherwise, as for captions, a
caption is preferred to its own prefix continued without the image (DropoutNTP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polymodal.constraints import (
    AtLeastTwo,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
    validate_constraints,
)
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import check_empty, write_with_column
from polymodal.curation.resumable import generator_of, merge_counts, progress_file, run_resumably
from polymodal.data.conversation import DESCRIBE, IMAGE
from polymodal.data.instructions import chain_of_thought_prompt, choice, final_answer, normalized_answer
from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanGenerateText
from polymodal.layers.decoding import Decoding
from polymodal.modalities import Image, Preferences
from polymodal.modalities.preference import Preference
from polymodal.rng import ExampleRNG
from polymodal.training.feature_cache import weights_key
from polymodal.training.folder_lock import writes
from polymodal.training.run import Run, answers
from polymodal.types import Example

CHUNK = 16  # examples per resumable chunk
COLUMN = "preferences"


@dataclass(frozen=True)
class PairOptions:
    """Options of sampling preference pairs."""

    examples: PositiveInt = 1000
    """Maximum number of training examples."""
    num_return_sequences: AtLeastTwo = 16
    """Number of answers sampled per question; at most 32 in the paper."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of sampling."""
    max_new_tokens: PositiveInt = 64
    """Maximum number of tokens per answer."""
    max_pairs: PositiveInt = 15
    """Maximum number of pairs per question."""
    caption_fraction: UnitInterval = 0.5
    """Fraction of examples that also give a pair of captions."""
    prefix_fraction: PositiveUnitInterval = 0.5
    """Fraction of a caption's words that is kept before continuing without the image; 0.25 and 0.75 were worse."""
    seed: NonNegativeInt = 0
    """Random seed for sampling."""

    def __post_init__(self) -> None:
        validate_constraints(self)


@dataclass
class PairCounts:
    """Statistics of sampling. right: number of correct answers; pairs: by kind."""

    questions: int = 0
    answers: int = 0
    right: int = 0
    without_answer: int = 0
    questions_with_pairs: int = 0
    pairs: dict[str, int] = field(default_factory=dict)
    words_of_chosen: int = 0
    words_of_rejected: int = 0

    def add(self, pairs: Iterable[Preference]) -> None:
        for pair in pairs:
            self.pairs[pair.kind] = self.pairs.get(pair.kind, 0) + 1
            self.words_of_chosen += len(pair.chosen.split())
            self.words_of_rejected += len(pair.rejected.split())


@writes("folder")
def write_preferences(
    run: Run,
    corpus: Corpus,
    folder: Path | str,
    options: PairOptions | None = None,
    track: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]] = iter,
) -> Corpus:
    """Write a corpus of the training examples that have pairs, with them, and of all other splits unchanged.

    track: wraps the chunks to report progress. The same call resumes after a stop. Raises UserError for a run that
    cannot generate text, a corpus without images, a folder that is not empty, and when there are no pairs.
    """
    options = options or PairOptions()
    folder = Path(folder)
    check_empty(folder)
    if not isinstance(run.model, CanGenerateText):
        raise UserError(f"The run '{run.name}' does not generate text; a method that does is mono_internvl.")
    corpus.column_with(Image)
    counts, unfinished = PairCounts(), progress_file(folder)

    def training() -> Iterator[tuple[int, list[dict[str, str]]]]:
        for row, pairs in _pairs(run, corpus, options, counts, track, unfinished):
            yield row, [pair._asdict() for pair in pairs]
        if not counts.pairs:
            unfinished.unlink()
            raise UserError(
                f"No pair came out of {counts.questions:,} questions: {counts.right:,} of {counts.answers:,} answers "
                "are right. Pairs need a run that answers some of its questions, and more --num-return-sequences."
            )

    def made() -> dict[str, Any]:
        source = {"run": str(run.directory or run.name), "corpus": corpus.name}
        return source | {"options": dataclasses.asdict(options), "counts": dataclasses.asdict(counts)}

    about = dataclasses.replace(
        corpus.about,
        name=f"{corpus.name}-preferences",
        description=f"{corpus.about.description}; with preferences between answers of the run {run.name}",
        modalities=(*corpus.about.modalities, COLUMN),
        composed="preferences are between a model's own answers",
    )
    written = write_with_column(corpus, folder, about, COLUMN, Preferences(), training(), made)
    unfinished.unlink()
    return written


def _pairs(
    run: Run,
    corpus: Corpus,
    options: PairOptions,
    counts: PairCounts,
    track: Callable[..., Iterable[np.ndarray]],
    unfinished: Path,
) -> Iterator[tuple[int, list[Preference]]]:
    """Yield the rows of training examples that have pairs, with them."""
    reader, device = Reader(corpus, run.processor), next(run.model.parameters()).device

    def asked_about(number: int, chunk: np.ndarray) -> dict[str, Any]:
        chunk_counts, rng = PairCounts(), ExampleRNG.of(options.seed, number, 1).generators[0]
        generator = generator_of(options.seed, number, device)
        rows, examples = reader.read_all(chunk)
        pairs = _pairs_of(run, examples, options, chunk_counts, rng, generator)
        for made in pairs:
            chunk_counts.add(made)
        rows_with_pairs = [(row, made) for row, made in zip(rows.tolist(), pairs, strict=True) if made]
        return {"pairs": rows_with_pairs, "counts": dataclasses.asdict(chunk_counts)}

    def asked() -> dict[str, Any]:
        options_said = dataclasses.asdict(options)
        return {"run": weights_key(run.model), "corpus": dict(corpus.choices), "options": options_said}

    sample = corpus.sample("train", options.examples)
    chunks = track([sample[start : start + CHUNK] for start in range(0, len(sample), CHUNK)])
    for made in run_resumably(chunks, asked_about, unfinished, asked):
        merge_counts(counts, PairCounts(**made["counts"]))
        yield from ((row, [Preference(*pair) for pair in pairs]) for row, pairs in made["pairs"])


def _pairs_of(
    run: Run,
    examples: list[Example],
    options: PairOptions,
    counts: PairCounts,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> list[list[Preference]]:
    """Sample the pairs of a few examples together."""
    decoding = Decoding(options.max_new_tokens, options.temperature)

    def drawn(**columns: list[Any]) -> list[str]:
        ids = answers(
            run.model,
            run.processor,
            "generate_text",
            columns,
            CHUNK * options.num_return_sequences,
            decoding=decoding,
            generator=generator,
        )
        return run.processor.texts([row for part in ids for row in part])

    pairs: list[list[Preference]] = [[] for _ in examples]
    asked = [number for number, example in enumerate(examples) if example.get("questions")]
    for number, own in zip(asked, _judged([examples[n] for n in asked], options, counts, drawn, rng), strict=True):
        pairs[number] += own
    seen = [number for number in range(len(examples)) if rng.random() < options.caption_fraction]
    for number, pair in zip(seen, _blind([examples[n] for n in seen], options, drawn), strict=True):
        pairs[number] += [pair] if pair else []
    return pairs


def _judged(
    examples: list[Example],
    options: PairOptions,
    counts: PairCounts,
    drawn: Callable[..., list[str]],
    rng: np.random.Generator,
) -> Iterator[list[Preference]]:
    """Yield pairs of correct and incorrect answers to one question per example, by chain-of-thought if its rationale
    is known."""
    if not examples:
        return
    chosen = [
        choice([q for q in example["questions"] if q.rationale] or example["questions"], rng) for example in examples
    ]
    prompts = [
        chain_of_thought_prompt(example.question) if example.rationale else example.question for example in chosen
    ]
    images = [example[IMAGE] for example in examples for _ in range(options.num_return_sequences)]
    texts = drawn(image=images, question=[prompt for prompt in prompts for _ in range(options.num_return_sequences)])
    for number, (question, prompt) in enumerate(zip(chosen, prompts, strict=True)):
        own = texts[number * options.num_return_sequences : (number + 1) * options.num_return_sequences]
        finals = [final_answer(text) if question.rationale else normalized_answer(text) for text in own]
        pairs = correctness_pairs(prompt, dict(zip(own, finals, strict=True)), question.answer, options.max_pairs, rng)
        counts.questions += 1
        counts.answers += len(own)
        counts.right += sum(final == normalized_answer(question.answer) for final in finals)
        counts.without_answer += finals.count(None)
        counts.questions_with_pairs += bool(pairs)
        yield pairs


def correctness_pairs(
    question: str, finals: dict[str, str | None], truth: str, most: int, rng: np.random.Generator
) -> list[Preference]:
    """Pair each correct with each incorrect answer; return at most `most` pairs at random.

    finals: answer -> final answer, None where there is none. An incorrect answer that contains the truth may be
    correct: it makes no pair.
    """
    truth = normalized_answer(truth)
    right = [text for text, final in finals.items() if final == truth]
    wrong = [text for text, final in finals.items() if truth not in (final or "")]
    pairs = [
        Preference(question, better, worse, "no answer" if finals[worse] is None else "correctness")
        for better in right
        for worse in wrong
    ]
    return [pairs[index] for index in rng.permutation(len(pairs))[:most]]


def _blind(
    examples: list[Example], options: PairOptions, drawn: Callable[..., list[str]]
) -> Iterator[Preference | None]:
    """Yield, per example, its caption preferred to one continued without the image (DropoutNTP); None where both are
    equal."""
    if not examples:
        return
    prompts = [DESCRIBE] * len(examples)
    captions = drawn(image=[example[IMAGE] for example in examples], question=prompts)
    # A caption of one word, as of languages without spaces, has no prefix: all of it is written without the image.
    begun = [" ".join(text.split()[: int(options.prefix_fraction * len(text.split()))]) for text in captions]
    for caption, start, rest in zip(captions, begun, drawn(question=prompts, begun=begun), strict=True):
        blind = f"{start} {rest}".strip()
        yield Preference(DESCRIBE, caption, blind, "dropout") if caption and blind != caption else None
