"""Mono-InternVL: a vision-language model without a vision encoder, with visual experts in a frozen language model.

Patches become visual tokens through a patch embedding, pixel shuffle and an MLP projector, and stand among the words.
In every block they go through an MLP of their own, a visual expert, which is initialized as a copy of the text's MLP;
attention is shared. Endogenous visual pre-training (EViP, section 3.3) has stages from much noisy to little good data:
with the language model frozen (delta tuning), embedding and experts learn from short noisy captions (S1.1, concepts)
and from long ones (S1.2, semantics); attention joins them on tasks (S1.3, alignment); all parameters learn from
instructions (S2). Before that, a language model that is not pretrained learns its language.

Terms: visual expert = feed_forward.image, patch embedding = ImageEmbedding, delta tuning = freeze_llm, concept learning
= concept_batch, semantic learning = semantic_batch, alignment learning = task_batch, instruction tuning =
training_batch, caption noise = exchanged, EViP = stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from polymodal.constraints import NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.registry import load_mixture
from polymodal.data.conversation import IMAGE, MESSAGES, Turn
from polymodal.data.conversation_batches import image_conversations, text_conversations
from polymodal.data.instructions import (
    any_task_turns,
    choice,
    exchanged,
    instruction_turns,
    longest_caption,
    task_conversation,
)
from polymodal.data.processor import Declared, Processor
from polymodal.data.sequence import SequenceBatch
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.presets import INTERNLM2_1_8B
from polymodal.modalities import Conversations, Image, Questions, Text
from polymodal.recipes.language_models._base import MonolithRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="mono-internvl",
    title="Mono-InternVL: Pushing the Boundaries of Monolithic Multimodal LLMs with Endogenous Visual Pre-training",
    year=2024,
    arxiv="2410.08202",
    modalities=("image", "text"),
    code="OpenGVLab/Mono-InternVL@5b17ab452759bcaefb514e1761d554d4daf09edd",
    parameters={"*": 3.1e9},  # the released 2B model: 1.8 billion active
)

CONCEPTS, SEMANTICS, TASK, INSTRUCTIONS = range(4)  # S1.1, S1.2, S1.3 and S2


@dataclass(frozen=True)
class Recipe(MonolithRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    max_tiles: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1, 1)
    """Maximum number of tiles of an image in S1.1, S1.2, S1.3 and S2; a thumbnail is added where there are several."""
    freeze_llm: bool = True
    """Freeze the language model while concepts and semantics are learned, and all of it but attention on tasks."""
    copy_llm_mlps: bool = True
    """Initialize visual experts as copies of the text's MLPs in the first stage with images; off when --init names a
    run that has trained them."""
    staged: bool = True
    """EViP's order of the data of S1.1 to S1.3; without, each of these stages mixes the data of all three at random in
    the same proportions, and trains what it trains with the order."""
    text_corpus: str = ""
    """Built-in corpus whose texts the language model learns from first; by default the run's own."""
    concept_corpus: str = ""
    """Built-in corpus whose images and short captions teach concepts; by default the run's own."""
    caption_noise: UnitInterval = 0.0
    """Fraction of captions that are exchanged while concepts are learned, to imitate pairs from the web."""
    max_turns: PositiveInt = 8
    """Maximum number of questions about an image in one conversation."""
    cot_fraction: UnitInterval = 0.5
    """Fraction of the questions with a known rationale that are answered with chain of thought."""
    stage_fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (
        0.2,
        0.2,
        0.3,
        0.2,
        0.1,
    )
    """Fractions of the budget: language, concepts, semantics, alignment, instructions."""

    def starting_from(self, source: Any) -> Recipe:
        """Return the recipe for a run of this family to start from, whose visual experts stay if they are trained."""
        if not isinstance(source, MonolithRecipe) or not source.visual_experts:
            return self
        # A run of language alone has them as they were, which are trained ones if it kept those of a run before it.
        untrained = isinstance(source, Recipe) and source.copy_llm_mlps and not any(source.stage_fractions[1:])
        return self if untrained else replace(self, copy_llm_mlps=False)

    def stages(self) -> tuple[Stage, ...]:
        visual: tuple[str, ...] = ("image_encoder.*", "*.feed_forward.image.*")
        tasks = (*visual, "*.attention.*")
        if not self.freeze_llm:
            visual = tasks = ("*",)
        language, *evip, instructions = self.stage_fractions
        named = (self.text_corpus, self.concept_corpus)
        text_corpus, concept_corpus = (partial(_opened, name) if name else None for name in named)
        stages = [
            Stage("concepts", evip[0], visual, corpus=concept_corpus, batch="concept_batch"),
            Stage("semantics", evip[1], visual, batch="semantic_batch"),
            Stage("alignment", evip[2], tasks, batch="task_batch"),
        ]
        if not self.staged:
            stages = [replace(stage, corpus=None, batch="mixed_batch") for stage in stages]
        stages.append(Stage("instructions", instructions, lr_scale=0.4))
        if self.visual_experts and self.copy_llm_mlps:  # in the first stage with images that has a share
            first = next((number for number, stage in enumerate(stages) if stage.fraction), 0)
            stages[first] = replace(stages[first], on_start="copy_experts")
        return (
            Stage("language", language, ("language_model.*",), corpus=text_corpus, batch="text_batch"),
            *stages,
        )

    def open_text_corpus(self) -> Corpus | None:
        """What the language model learns from first; None for the run's own corpus."""
        return _opened(self.text_corpus) if self.text_corpus else None

    def columns(self) -> Declared:
        return self.conversation(self.images(self.max_tiles[-1], max(self.max_tiles)))

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """All corpora that stages learn from. Raises UserError when the corpus lacks what a stage needs."""
        if not any(map(corpus.has_modality, (Questions, Conversations))):
            corpus.column_with(Text)
        if any(self.stage_fractions[2:]) and not corpus.has_modality(Conversations):
            corpus.column_with(Image)
        others = [_opened(name) for name in dict.fromkeys((self.text_corpus, self.concept_corpus)) if name]
        return [corpus, *others]

    def text_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Texts without images: conversations, or what there is about an example in any order, then questions that it
        answers."""
        return text_conversations(examples, processor, self.max_turns, self.cot_fraction, example_rng)

    def concept_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """A caption of each image, some of which belong to another one."""
        return self._batch(examples, processor, example_rng, [CONCEPTS] * len(examples))

    def semantic_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """The longest caption of each image."""
        return self._batch(examples, processor, example_rng, [SEMANTICS] * len(examples))

    def task_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Captions, questions, boxes of objects and rendered words, whichever there are, each as often."""
        return self._batch(examples, processor, example_rng, [TASK] * len(examples))

    def mixed_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Concepts, semantics and tasks, each example at random in the proportions of their stages."""
        until = np.cumsum(self.stage_fractions[1:4])
        stages = np.searchsorted(until, example_rng.uniform().numpy() * until[-1], side="right")
        return self._batch(examples, processor, example_rng, stages.tolist())

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Questions about three images of four, and captions that are asked for."""
        return self._batch(examples, processor, example_rng, [INSTRUCTIONS] * len(examples))

    def _batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG, stages: Sequence[int]
    ) -> SequenceBatch:
        """Each example as in its stage; conversations in every stage."""
        each = enumerate(zip(stages, examples, example_rng.generators, strict=True))
        said = {n: self._conversation(*one) for n, one in each if MESSAGES not in examples[n]}
        concepts = [n for n in said if stages[n] == CONCEPTS and "text" in examples[n]]
        wrong = (example_rng.uniform() < self.caption_noise).tolist()
        captions = exchanged([said[n][1][0].answer for n in concepts], [wrong[n] for n in concepts])
        said |= {n: (said[n][0], [Turn(caption)]) for n, caption in zip(concepts, captions, strict=True)}
        return image_conversations(examples, processor, said, [self.max_tiles[stage] for stage in stages])

    def _conversation(self, stage: int, example: Example, rng: np.random.Generator) -> tuple[np.ndarray, list[Turn]]:
        """An image, and what is said of it in this stage."""
        image = example[IMAGE]
        if "text" not in example:
            return image, any_task_turns(example, rng, self.max_turns)
        if stage == CONCEPTS:
            return image, [Turn(choice(example["text"], rng).text)]
        if stage == SEMANTICS:
            return image, [Turn(longest_caption(example))]
        if stage == INSTRUCTIONS:
            return image, instruction_turns(example, rng, self.max_turns, self.cot_fraction)
        return task_conversation(example, rng, self.max_turns)

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            language_model=LanguageModelConfig(
                vocab_size=300, context_length=96, width=16, depth=1, num_heads=2, num_kv_heads=1, mlp_dim=32
            ),
            tile_size=32,
            patch_size=8,
            patch_embed_dim=16,
            batch_size=4,
            max_turns=2,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """InternLM2-1.8B with visual experts (section 4.1; released model configuration)."""
        return cls(
            language_model=replace(INTERNLM2_1_8B, vocab_size=92_553, context_length=8192),
            tile_size=448,
            patch_size=14,
            patch_embed_dim=1024,
            max_tiles=(4, 6, 11, 24),  # 1,280 to 6,400 tokens with the whole image
            stage_fractions=(0.0, 0.696, 0.195, 0.104, 0.005),
            batch_size=128,
            optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, betas=(0.9, 0.999), warmup_ratio=0.03),
        )


def _opened(name: str) -> Corpus:
    return load_mixture(name, every_column=True)
