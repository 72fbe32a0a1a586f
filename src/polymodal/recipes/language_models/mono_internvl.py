"""Mono-InternVL: a vision-language model without a vision encoder, with visual experts in a frozen language model.

There is no vision encoder: squares of pixels become tokens through two linear layers and stand among the words. In
every block they go through an MLP of their own, a visual expert, which begins as a copy of the text's; attention
is shared. While the text's parameters are frozen, only experts and embedding learn, first from many short and noisy
captions (concepts), then from long ones (semantics); then attention joins them on tasks (alignment), and at the end
all parameters on instructions (section 3.3). Before that, a language model that is not pretrained learns its language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from polymodal.constraints import NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.registry import load_mixture
from polymodal.data.conversation import IMAGE, Turn
from polymodal.data.instructions import TASKS, caption_turns, choice, longest_caption, ocr_turn, question_turns
from polymodal.data.processor import Declared, Processor
from polymodal.data.sequence import SequenceBatch
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.modalities import Image, Text
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
)


@dataclass(frozen=True)
class Recipe(MonolithRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    max_tiles: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1, 1)
    """Largest number of tiles of an image in the four stages that see; the whole is added where there are several."""
    freeze_llm: bool = True
    """Whether the text's parameters are frozen while concepts and semantics are learned, and all but attention while
    tasks are."""
    text_corpus: str = ""
    """Built-in corpus whose texts the language model learns from first; by default the run's own."""
    concept_corpus: str = ""
    """Built-in corpus whose images and short captions teach concepts; by default the run's own."""
    caption_noise: UnitInterval = 0.0
    """Share of the concepts' captions that are exchanged, to imitate pairs from the web."""
    max_turns: PositiveInt = 8
    """Most questions about an image in one conversation."""
    cot_fraction: UnitInterval = 0.5
    """Share of the questions whose working is known that are answered with it."""
    stage_fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (
        0.2,
        0.2,
        0.3,
        0.2,
        0.1,
    )
    """Of the budget: language, concepts, semantics, alignment, instructions."""

    def stages(self) -> tuple[Stage, ...]:
        seeing: tuple[str, ...] = ("image_encoder.*", "*.feed_forward.image.*")
        tasks = (*seeing, "*.attention.*")
        if not self.freeze_llm:
            seeing = tasks = ("*",)
        language, concepts, semantics, alignment, instructions = self.stage_fractions
        return (
            Stage(
                "language",
                language,
                ("language_model.*",),
                corpus=partial(_opened, self.text_corpus) if self.text_corpus else None,
                batch="text_batch",
            ),
            Stage(
                "concepts",
                concepts,
                seeing,
                corpus=partial(_opened, self.concept_corpus) if self.concept_corpus else None,
                batch="concept_batch",
                on_start="copy_experts" if self.visual_experts else None,
            ),
            Stage("semantics", semantics, seeing, batch="semantic_batch"),
            Stage("alignment", alignment, tasks, batch="task_batch"),
            Stage("instructions", instructions, lr_scale=0.3),
        )

    def open_text_corpus(self) -> Corpus | None:
        """What the language model learns from first; None for the run's own corpus."""
        return _opened(self.text_corpus) if self.text_corpus else None

    def columns(self) -> Declared:
        return self.conversation(self.images(self.max_tiles[-1], max(self.max_tiles)))

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """All corpora that stages learn from. Raises UserError when the corpus lacks what a stage needs."""
        corpus.column_with(Text)
        if any(self.stage_fractions[2:]):
            corpus.column_with(Image)
        others = [_opened(name) for name in dict.fromkeys((self.text_corpus, self.concept_corpus)) if name]
        return [corpus, *others]

    def text_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Texts without images: what there is about an example in any order, then questions that it answers."""
        said = []
        for example, rng in zip(examples, example_rng.generators, strict=True):
            texts = [Turn(example["text"][number].text) for number in rng.permutation(len(example["text"]))]
            said.append(
                texts
                + (question_turns(example, rng, self.max_turns, self.cot_fraction) if "questions" in example else [])
            )
        return {"sequences": processor.conversation.pack([processor.conversation.sequence(None, one) for one in said])}

    def concept_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """A caption of each image, some of which belong to another one."""
        captions = [choice(e["text"], rng).text for e, rng in zip(examples, example_rng.generators, strict=True)]
        said = [[Turn(caption)] for caption in exchanged(captions, self.caption_noise, example_rng)]
        return self._shown([example[IMAGE] for example in examples], said, processor, self.max_tiles[0])

    def semantic_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """The longest caption of each image."""
        said = [[Turn(longest_caption(example))] for example in examples]
        return self._shown([example[IMAGE] for example in examples], said, processor, self.max_tiles[1])

    def task_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Captions, questions, boxes of objects and written words, whichever there are, each as often."""
        images, said = [], []
        for example, rng in zip(examples, example_rng.generators, strict=True):
            tasks = [ask for name, ask in TASKS.items() if name in example]
            number = int(rng.integers(len(tasks) + 1))
            if number == len(tasks):
                image, words = ocr_turn(example, rng)
                images.append(image)
                said.append([Turn(words, "What is written there?")])
            else:
                images.append(example[IMAGE])
                said.append(tasks[number](example, rng, self.max_turns))
        return self._shown(images, said, processor, self.max_tiles[2])

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Questions about three images of four, and captions that are asked for."""
        said = [
            question_turns(example, rng, self.max_turns, self.cot_fraction)
            if "questions" in example and rng.random() < 0.75
            else caption_turns(example, rng, self.max_turns)
            for example, rng in zip(examples, example_rng.generators, strict=True)
        ]
        return self._shown([example[IMAGE] for example in examples], said, processor, self.max_tiles[3])

    def _shown(
        self,
        images: Sequence[np.ndarray],
        said: Sequence[list[Turn]],
        processor: Processor,
        max_tiles: int,
    ) -> SequenceBatch:
        pairs = zip(images, said, strict=True)
        form = processor.conversation
        return {"sequences": form.pack([form.sequence(*pair, max_tiles) for pair in pairs])}

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
            language_model=LanguageModelConfig(
                vocab_size=92_553,
                context_length=8192,
                width=2048,
                depth=24,
                num_heads=16,
                num_kv_heads=8,
                mlp_dim=8192,
                rope_theta=1e6,
                norm_eps=1e-5,
                tie_word_embeddings=False,
            ),
            tile_size=448,
            patch_size=14,
            patch_embed_dim=1024,
            max_tiles=(4, 6, 11, 24),  # 1,280 to 6,400 tokens with the whole image
            stage_fractions=(0.0, 0.696, 0.195, 0.104, 0.005),
            batch_size=128,
            optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, betas=(0.9, 0.999), warmup_ratio=0.03),
        )


def exchanged(captions: list[str], fraction: float, example_rng: ExampleRNG) -> list[str]:
    """Captions of a batch, of which a share is replaced by the one before."""
    wrong = (example_rng.uniform() < fraction).tolist()
    return [captions[number - 1] if wrong[number] else own for number, own in enumerate(captions)]


def _opened(name: str) -> Corpus:
    return load_mixture(name, every_column=True)
