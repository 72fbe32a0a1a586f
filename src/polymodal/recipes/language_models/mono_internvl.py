"""Mono-InternVL: a language model learns to see by new parameters of its own, and keeps its language meanwhile.

There is no vision encoder: squares of pixels become tokens through two linear layers and stand among the words. In
every block they go through a perceptron of their own, a visual expert, which begins as a copy of the text's; attention
is shared. While the text's parameters are frozen, only experts and embedding learn, first from many short and noisy
captions (concepts), then from long ones (semantics); then attention joins them on tasks (alignment), and at the end
all parameters on instructions (section 3.3). Before that, a language model that is not published learns its language.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.registry import named_mixture
from polymodal.data.conversation import IMAGE, ConversationProcessor, Saying
from polymodal.data.instructions import TASKS, asked, described, longest_caption, one_of, written_words
from polymodal.data.sequence import TEXT
from polymodal.draws import Draws
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.modalities import Image, Text
from polymodal.ranges import Count, NotNegative, Share
from polymodal.recipes.language_models._base import MonolithRecipe, MultimodalLanguageModel
from polymodal.types import Batch, Budget, Claim, Example, Paper, Stage

paper = Paper(
    slug="mono-internvl",
    title="Mono-InternVL: Pushing the Boundaries of Monolithic Multimodal LLMs with Endogenous Visual Pre-training",
    year=2024,
    arxiv="2410.08202",
    modalities=("image", "text"),
)


@dataclass(frozen=True)
class Recipe(MonolithRecipe):
    batch_size: Count = 32
    learning_rate: NotNegative = 2e-3
    most_tiles: tuple[Count, Count, Count, Count] = (1, 1, 1, 1)
    """Largest number of tiles of a picture in the four stages that see; the whole is added where there are several."""
    keep_language: bool = True
    """Whether the text's parameters are frozen while concepts and semantics are learned, and all but attention while
    tasks are."""
    language_data: str = ""
    """Built-in corpus whose texts the language model learns from first; by default the run's own."""
    concept_data: str = ""
    """Built-in corpus whose pictures and short captions teach concepts; by default the run's own."""
    wrong_captions: Share = 0.0
    """Share of the concepts' captions that are exchanged, to imitate pairs from the web."""
    turns: Count = 8
    """Most questions about a picture in one conversation."""
    workings: Share = 0.5
    """Share of the questions whose working is known that are answered with it."""
    shares: tuple[NotNegative, NotNegative, NotNegative, NotNegative, NotNegative] = (0.2, 0.2, 0.3, 0.2, 0.1)
    """Of the budget: language, concepts, semantics, alignment, instructions."""

    def stages(self) -> tuple[Stage, ...]:
        seeing: tuple[str, ...] = ("image_encoder.*", "*.feed_forward.image.*")
        tasks = (*seeing, "*.attention.*")
        if not self.keep_language:
            seeing = tasks = ("*",)
        language, concepts, semantics, alignment, instructions = self.shares
        stages = (
            Stage(
                "language",
                language,
                ("language_model.*",),
                corpus=partial(_opened, self.language_data) if self.language_data else None,
                training_batch=self.text_batch,
            ),
            Stage(
                "concepts",
                concepts,
                seeing,
                corpus=partial(_opened, self.concept_data) if self.concept_data else None,
                training_batch=self.concept_batch,
                start=_copy_experts if self.visual_experts else None,
            ),
            Stage("semantics", semantics, seeing, training_batch=self.semantic_batch),
            Stage("alignment", alignment, tasks, training_batch=self.task_batch),
            Stage("instructions", instructions, learning_rate=0.3),
        )
        return tuple(stage for stage in stages if stage.share > 0)

    def language(self) -> Corpus | None:
        """What the language model learns from first; None for the run's own corpus."""
        return _opened(self.language_data) if self.language_data else None

    def processor(self, corpus: Corpus) -> ConversationProcessor:
        corpus.column_of(Text)
        if any(self.shares[2:]):
            corpus.column_of(Image)
        others = [_opened(name) for name in dict.fromkeys((self.language_data, self.concept_data)) if name]
        return self.fitted([corpus, *others], self.pictures(self.most_tiles[-1], max(self.most_tiles)))

    def text_batch(self, examples: list[Example], processor: ConversationProcessor, draws: Draws) -> Batch:
        """Texts without pictures: what there is about an example in any order, then questions that it answers."""
        said = []
        for example, rng in zip(examples, draws.generators, strict=True):
            texts = [Saying(example["text"][number].text) for number in rng.permutation(len(example["text"]))]
            said.append(texts + (asked(example, rng, self.turns, self.workings) if "questions" in example else []))
        return {"sequences": processor.pack([processor.sequence(None, one) for one in said])}

    def concept_batch(self, examples: list[Example], processor: ConversationProcessor, draws: Draws) -> Batch:
        """A caption of each picture, some of which belong to another one."""
        captions = [one_of(e["text"], rng).text for e, rng in zip(examples, draws.generators, strict=True)]
        said = [[Saying(caption)] for caption in exchanged(captions, self.wrong_captions, draws)]
        return self._shown([example[IMAGE] for example in examples], said, processor, self.most_tiles[0])

    def semantic_batch(self, examples: list[Example], processor: ConversationProcessor, draws: Draws) -> Batch:
        """The longest caption of each picture."""
        said = [[Saying(longest_caption(example))] for example in examples]
        return self._shown([example[IMAGE] for example in examples], said, processor, self.most_tiles[1])

    def task_batch(self, examples: list[Example], processor: ConversationProcessor, draws: Draws) -> Batch:
        """Captions, questions, boxes of objects and written words, whichever there are, each as often."""
        pictures, said = [], []
        for example, rng in zip(examples, draws.generators, strict=True):
            tasks = [ask for name, ask in TASKS.items() if name in example]
            number = int(rng.integers(len(tasks) + 1))
            if number == len(tasks):
                picture, words = written_words(example, rng)
                pictures.append(picture)
                said.append([Saying(words, "What is written there?")])
            else:
                pictures.append(example[IMAGE])
                said.append(tasks[number](example, rng, self.turns))
        return self._shown(pictures, said, processor, self.most_tiles[2])

    def training_batch(self, examples: list[Example], processor: ConversationProcessor, draws: Draws) -> Batch:
        """Questions about three pictures of four, and captions that are asked for."""
        said = [
            asked(example, rng, self.turns, self.workings)
            if "questions" in example and rng.random() < 0.75
            else described(example, rng, self.turns)
            for example, rng in zip(examples, draws.generators, strict=True)
        ]
        return self._shown([example[IMAGE] for example in examples], said, processor, self.most_tiles[3])

    def _shown(
        self,
        pictures: Sequence[np.ndarray],
        said: Sequence[list[Saying]],
        processor: ConversationProcessor,
        most_tiles: int,
    ) -> Batch:
        pairs = zip(pictures, said, strict=True)
        return {"sequences": processor.pack([processor.sequence(*pair, most_tiles) for pair in pairs])}

    @classmethod
    def paper(cls) -> Recipe:
        """InternLM2-1.8B with visual experts (section 4.1; released model configuration)."""
        return cls(
            language_model=LanguageModelConfig(
                vocabulary=92_553,
                context=8192,
                width=2048,
                depth=24,
                heads=16,
                groups=8,
                hidden=8192,
                rotary_base=1e6,
                epsilon=1e-5,
                tied=False,
            ),
            tile=448,
            patch=14,
            patch_width=1024,
            most_tiles=(4, 6, 11, 24),  # 1,280 to 6,400 tokens with the whole picture
            shares=(0.0, 0.696, 0.195, 0.104, 0.005),
            batch_size=128,
            learning_rate=1e-4,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            warmup=0.03,
        )


def exchanged(captions: list[str], share: float, draws: Draws) -> list[str]:
    """Captions of a batch, of which a share is replaced by the one before."""
    wrong = (draws.uniform() < share).tolist()
    return [captions[number - 1] if wrong[number] else own for number, own in enumerate(captions)]


def _copy_experts(model: nn.Module) -> None:
    assert isinstance(model, MultimodalLanguageModel)
    model.language_model.copy_experts(TEXT)


def _opened(name: str) -> Corpus:
    return named_mixture(name, every_column=True)


_seeing = Recipe(
    language_data="glosses,scenes", concept_data="emoji", wrong_captions=0.2, shares=(0.0, 0.1, 0.45, 0.25, 0.2)
)
claim = Claim(
    sentence="New visual parameters in a frozen language model learn to see, and less language is forgotten than when "
    "all of it is trained.",
    baseline=dataclasses.replace(_seeing, visual_experts=False, keep_language=False),
    treatment=_seeing,
    start=dataclasses.replace(_seeing, shares=(1.0, 0.0, 0.0, 0.0, 0.0)),
    start_budget=Budget(steps=600),
    corpus="scenes",
    budget=Budget(steps=900),
    seeds=3,
    metrics=(
        "test/texts_of_glosses/bits_a_byte",
        "test/texts_of_scenes/bits_a_byte",
        "test/captions/bits_a_byte",
        "test/captions/bits_saved_by_picture",
        "test/questions/accuracy",
        "test/questions/gain_by_picture",
        "test/questions/count/accuracy",
        "test/questions/presence/accuracy",
        "test/questions/place/accuracy",
        "test_twitter/questions/gain_by_picture",
    ),
    paper_figures="OCRBench 767 against 654 and VQA average 70.1 against 71.7 of a modular model with a vision "
    "encoder; text-only benchmarks as before",
)
