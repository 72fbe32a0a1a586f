"""MedTrinity-25M and LLaVA-Tri: triplets of image, regions and description, for images without paired text.

Metadata of a data set give a coarse caption, masks or expert models the regions of interest (ROI), and a knowledge base
retrieved facts; a generator writes a description of five fields from these three sources, from the whole image to
relations of regions (section 3: `polymodal curate medtrinity IMAGES`). A captioner that learned from such descriptions
describes further images. LLaVA-Tri, the MLLM here, learns from the triplets in LLaVA's stages (section 4): the
connector alone, connector and language model, and fine-tuning on questions.

Differs from the paper in: the generator is a rule-based writer or a chat model that gets the sources as text, in place
of GPT-4V with the image; reformatting puts the fields in order by their headings, and rejects incomplete texts, in
place of a tuned Llama 3; the dense retriever is a run's text encoder, or TF-IDF; without masks or boxes, regions are
detected by color, in place of segmentation models by modality; positions are words of a 3 x 3 grid. Without a
pretrained language model, a stage teaches it language first; without a pretrained vision encoder, which the paper
freezes (--freeze 'image_encoder.encoder.*'), it is trained with the connector; its last layer is read, not the last but
one. All stages have one batch size, where the scripts have 64 in stage 1 and 256 after it. Left out: multi-scale image
features, which are optional, and the scores of descriptions by GPT-4V and physicians, in whose place the precision of
stated facts is measured against scenes that are known.

The claim's scenes are composed of emoji, and its detector errs. Retrieved facts are kinds of things, for which
questions in training ask of half of the objects alone. All arms begin with a model that names the objects of an image,
in place of CLIP and LLaVA-Med's alignment: its visual tokens are trained to have the embeddings of their names, then
all of it to write labels. In a first run of 400 steps the treatment stayed at chance on all kinds of questions (places:
12 %, chance 20 %), so that the claim is not decided within twelve minutes on two cores.

Terms: metadata integration = Metadata.coarse_caption, ROI locating = regions_of_mask, expert model = ColorDetector,
medical knowledge retrieval = KnowledgeBase, multigranular description = multigranular.Description, generation prompt =
multigranular.prompt, reformat = multigranular.reformat, provenance B1 and B3 = triplets.PROVENANCES, LLaVA-Tri stages 1
and 2 = description_batch, fine-tuning on VQA = training_batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.constraints import NonNegativeFloat, PositiveFloat, PositiveInt
from polymodal.corpora.corpus import Corpus
from polymodal.curation.triplets import write_triplets
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.conversation import DESCRIBE, IMAGE, MESSAGES, Turn
from polymodal.data.conversation_batches import image_conversations, text_conversations
from polymodal.data.instructions import longest_caption, question_turns
from polymodal.data.processor import Declared, Processor
from polymodal.data.sequence import SequenceBatch
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.presets import vit
from polymodal.errors import UserError
from polymodal.modalities import Conversations, Image, Questions, Text
from polymodal.models.connector import ConnectorConfig
from polymodal.models.vision_language_model import LossReduction, VisionLanguageModel, VisionLanguageModelConfig
from polymodal.recipes.language_models._base import ConversationRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="medtrinity",
    title="MedTrinity-25M: A Large-scale Multimodal Dataset with Multigranular Annotations for Medicine",
    year=2024,
    arxiv="2408.02900",
    modalities=("image", "text"),
    code="UCSC-VLAA/MedTrinity-25M@79b1b030676047161d17164a1ba1da5e76b815a0",
    parameters={"language_model.*": 8.03e9, "image_encoder.encoder.*": 303.5e6},  # Llama 3 8B; CLIP ViT-L/14-336
)

VISION = "image_encoder.encoder.*"


@dataclass(frozen=True)
class Recipe(ConversationRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    language_model: LanguageModelConfig = LanguageModelConfig()
    image: ImageEncoderConfig = ImageEncoderConfig(image_size=64, patch_size=8, stem=(16, 32))
    connector: ConnectorConfig = ConnectorConfig("mlp")
    loss_reduction: LossReduction = "token"
    """Weight of a token in the loss: token: all alike; sample: those of a text together as much as those of another."""
    max_turns: PositiveInt = 8
    """Maximum number of questions about an image in one conversation."""
    tuning_lr_scale: PositiveFloat = 0.5
    """Factor of the learning rate where the language model is trained with images; 0.01 in the paper."""
    stage_fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (
        0.2,
        0.2,
        0.3,
        0.3,
    )
    """Fractions of the budget: language, stage 1 (connector), stage 2 (and language model), questions."""

    @classmethod
    def annotate_images(cls, corpus: Corpus, out: Path | str, *options: Any) -> tuple[Corpus, Any]:
        """Write triplets of a corpus's images; see `curation.triplets.write_triplets`."""
        return write_triplets(corpus, out, *options)

    def __post_init__(self) -> None:
        super().__post_init__()
        side = math.isqrt(self.tokens)
        if side**2 != self.tokens or self.image.image_size % side:
            raise UserError(
                f"{self.tokens} visual tokens are no square grid over an image of {self.image.image_size} px; choose "
                "another connector or --image.image-size."
            )

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        side = self.image.image_size // self.image.patch_size
        return self.connector.num_tokens((side, side))

    def stages(self) -> tuple[Stage, ...]:
        language, *others = self.stage_fractions
        visual, everything = ("image_encoder.*",), ("image_encoder.*", "language_model.*")
        scale = self.tuning_lr_scale
        return (
            Stage("language", language, ("language_model.*",), batch="text_batch"),
            Stage("connector", others[0], visual, batch="description_batch"),
            Stage("descriptions", others[1], everything, lr_scale=scale, batch="description_batch"),
            Stage("questions", others[2], everything, lr_scale=scale, rows="question_rows"),
        )

    def question_rows(self, corpus: Corpus, processor: Processor) -> np.ndarray:
        """Return the training rows that have questions; all where none has."""
        rows = corpus.rows("train")
        if not corpus.has_modality(Questions):
            return rows
        with_questions = rows[corpus.has(corpus.column_with(Questions))[rows]]
        return with_questions if len(with_questions) else rows

    def columns(self) -> Declared:
        side, statistics = self.image.image_size, self.image.image_mean_std
        cell = side // math.isqrt(self.tokens)
        image = TiledImageColumn(side, cell, 1, side)
        if statistics is not None:
            image = replace(image, mean=statistics[0], std=statistics[1], pretrained=True)
        return self.conversation(image)

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError when the corpus lacks what a stage needs."""
        if not corpus.has_modality(Conversations):
            corpus.column_with(Image)
            if any(self.stage_fractions[1:3]):
                corpus.require(
                    Text,
                    "descriptions",
                    "make some with: polymodal curate medtrinity IMAGES --out triplets; or leave their stages out with "
                    "--stage-fractions 0 0 0 1",
                )
            if not any(map(corpus.has_modality, (Text, Questions))):
                corpus.column_with(Questions)
        return [corpus]

    def build(self, processor: Processor) -> VisionLanguageModel:
        config = VisionLanguageModelConfig(self.connector, self.loss_reduction)
        language_model = self.language_model.build(processor.tokenizer.vocab_size)
        return config.build(self.image.build(), language_model, processor.conversation.end)

    def description(self, example: Example) -> str:
        """The description that an example is learned from."""
        return longest_caption(example)

    def text_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Texts without images: what is written about an example, then questions that it answers."""
        return text_conversations(examples, processor, self.max_turns, 0.0, example_rng)

    def description_batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> SequenceBatch:
        """Images and their descriptions, which are asked for; of examples without one, questions."""

        def turns(one: Example, rng: np.random.Generator) -> list[Turn]:
            has_text = "text" in one
            return self._described(one) if has_text else question_turns(one, rng, self.max_turns, 0.0)

        return self._conversations(examples, processor, example_rng, turns)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Images and questions about them; of examples without any, the description."""

        def turns(one: Example, rng: np.random.Generator) -> list[Turn]:
            return question_turns(one, rng, self.max_turns) if "questions" in one else self._described(one)

        return self._conversations(examples, processor, example_rng, turns)

    def _described(self, example: Example) -> list[Turn]:
        return [Turn(self.description(example), DESCRIBE)]

    def _conversations(
        self,
        examples: list[Example],
        processor: Processor,
        example_rng: ExampleRNG,
        turns_of: Callable[[Example, np.random.Generator], list[Turn]],
    ) -> SequenceBatch:
        each = enumerate(zip(examples, example_rng.generators, strict=True))
        turns = {n: (one[IMAGE], turns_of(one, rng)) for n, (one, rng) in each if MESSAGES not in one}
        return image_conversations(examples, processor, turns, [1] * len(examples))

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            language_model=LanguageModelConfig(
                vocab_size=300, context_length=96, width=16, depth=1, num_heads=2, num_kv_heads=1, mlp_dim=32
            ),
            image=ImageEncoderConfig(image_size=32, patch_size=16, width=16, depth=1, num_heads=2),
            batch_size=4,
            max_turns=2,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """LLaVA-Tri (scripts/med): CLIP ViT-L/14-336, MLP of two layers, Llama 3 8B; stage 2's batch size."""
        return cls(
            language_model=LanguageModelConfig(
                vocab_size=128_256,
                context_length=4096,
                width=4096,
                depth=32,
                num_heads=32,
                num_kv_heads=8,
                mlp_dim=14_336,
                rope_theta=5e5,
                norm_eps=1e-5,
                tie_word_embeddings=False,
            ),
            image=vit("L", 14, 336),
            freeze=(VISION,),
            tuning_lr_scale=0.01,
            stage_fractions=(0.0, 1.0, 1.0, 1.0),
            batch_size=256,
            optimizer=OptimizerConfig(
                learning_rate=2e-3, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, warmup_ratio=0.03
            ),
        )
