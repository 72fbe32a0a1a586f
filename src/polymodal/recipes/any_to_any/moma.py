"""MoMa: early-fusion pre-training on image and text tokens, with mixture-of-experts blocks specific to a modality.

A frozen tokenizer turns images into codes, which stand among the words of one vocabulary; a decoder predicts the
next token, whichever it is. In every block a token can go only to its own modality's experts, and each of these takes
the tokens that it scores highest in the whole batch (section 2.2), so that a token costs as much as in a dense model.
Since such a choice sees the future, small routers learn at the end to predict it from a token alone (section 2.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.conversation import DOCUMENT, IMAGE
from polymodal.data.instructions import choice
from polymodal.data.processor import Declared, Processor
from polymodal.data.sequence import TEXT, PackedSequences, PromptBatch, SequenceBatch
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.errors import UserError
from polymodal.layers.decoder import DecoderBlock, ExpertAssignment, PostSubLayerNormBlock, SwiGLU
from polymodal.layers.decoding import Decoding, sample
from polymodal.layers.expert_choice import ExpertChoice
from polymodal.layers.mixture_of_depths import MixtureOfDepths
from polymodal.modalities.image import unpatchify
from polymodal.objectives.autoregressive import next_token_losses, num_predicted, prediction_positions, segment_sum
from polymodal.objectives.reduction import global_mean, mean_over
from polymodal.recipes.language_models._base import ConversationRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="moma",
    title="MoMa: Efficient Early-Fusion Pre-training with Mixture of Modality-Aware Experts",
    year=2024,
    arxiv="2407.21770",
    modalities=("image", "text"),
    parameters={"language_model.*": 7.1e9},  # table 1: four experts of each modality
)

LEARNED = tuple(  # the parameters of the language model but for the auxiliary routers
    f"language_model.{part}"
    for part in ("embedding.*", "head.*", "*.attention.*", "*norm*", "*.router.*", "*.gate_up*", "*.down*")
)


class TokenizerBatch(TypedDict):
    image: Float[Tensor, "batch 3 size size"]


class MoMa(nn.Module):
    """A tokenizer of images, and a decoder of one vocabulary of words and codes."""

    def __init__(self, recipe: Recipe, vocabulary: int, end: int):
        """vocabulary: of words; codes come after them. end: the mark after a document."""
        super().__init__()
        self.recipe, self.vocabulary, self.end = recipe, vocabulary, end
        self.tokenizer = recipe.tokenizer.build(recipe.patch_size)
        config, counts = recipe.language_model, recipe.experts

        def mlp(modality: str) -> nn.Module:
            if counts[modality] == 1:
                return SwiGLU(config.width, config.mlp_dim)
            return ExpertChoice(config.width, config.mlp_dim, counts[modality], recipe.router_noise)

        whole = vocabulary + recipe.tokenizer.codebook_size
        self.language_model = LanguageModel(config, whole, tuple(counts), mlp, PostSubLayerNormBlock)
        # What a block adds has been normalised to 1 already: beside it, shorter vectors of tokens would go under.
        nn.init.normal_(self.language_model.embedding.weight)
        blocks = self.language_model.decoder.blocks
        for number, block in enumerate(blocks):
            if recipe.mod_capacity and number % 2 == 0:
                assert isinstance(block, DecoderBlock)
                blocks[number] = MixtureOfDepths(block, config.width, recipe.mod_capacity)
        self.vocab_sizes: Mapping[str, int] = {TEXT: vocabulary, IMAGE: recipe.tokenizer.codebook_size, "all": whole}

    def tokenizer_losses(self, batch: TokenizerBatch) -> dict[str, Tensor]:
        """Of the image tokenizer."""
        return self.tokenizer.losses(batch["image"])

    def loss_counts(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Predicted tokens of both modalities together."""
        count = num_predicted(batch["sequences"].document, batch["sequences"].predicted)
        return {TEXT: count, IMAGE: count}

    @mean_over("loss_counts")
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Text and image, which add up to the mean over all tokens, and routers, while they learn to predict."""
        nats, imaged, _ = self._token_losses(batch["sequences"])
        losses = {name: global_mean(nats[mask].sum(), len(nats)) for name, mask in ((TEXT, ~imaged), (IMAGE, imaged))}
        foretold = [one.auxiliary_loss for one in self.choosing() if one.auxiliary_loss is not None]
        return losses | ({"routers": torch.stack(foretold).mean()} if foretold else {})

    def token_nll(self, batch: SequenceBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums of -log p and counts by row, of text, image and all; and where experts chose by predicting, of the same
        with the choice among the whole batch."""
        sequences = batch["sequences"]
        found = self._sums(sequences)
        foretelling = [one for one in self.choosing() if one.use_predictor]
        if foretelling:
            for one in foretelling:
                one.use_predictor.fill_(False)
            found |= {f"{name}_by_whole_batch": sums for name, sums in self._sums(sequences).items()}
            for one in foretelling:
                one.use_predictor.fill_(True)
        return found

    def generate_text(
        self, batch: PromptBatch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """The words that follow each prompt, such as an image's caption, without the end mark."""
        prompts = batch["prompts"]
        vectors, routes, _ = self._read(prompts)
        decoding = decoding or Decoding()
        return self.language_model.generate(
            vectors, prompts.position, prompts.document, routes, self.end, decoding, generator
        )

    @torch.no_grad()
    def generate_images(
        self, batch: PromptBatch, steps: int = 0, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 3 size size"]:
        """Normalised images that follow each prompt's text, drawn code by code. steps: there is no choice of them."""
        prompts = batch["prompts"]
        vectors, routes, _ = self._read(prompts)
        rows, length = prompts.position.shape
        cache = self.language_model.decoder.cache(rows, length + self.recipe.tokens_per_tile)
        position, document = prompts.position[:, -1:], prompts.document[:, -1:]
        states = self.language_model(vectors, prompts.position, prompts.document, routes, cache)[:, -1]
        every = torch.arange(rows, device=vectors.device)
        routes = [every[:0], every] if self.recipe.modality_aware else [every]
        codes: list[Tensor] = []
        while len(codes) < self.recipe.tokens_per_tile:
            if codes:
                vectors, position = self.language_model.embedding(codes[-1] + self.vocabulary)[:, None], position + 1
                states = self.language_model(vectors, position, document, routes, cache)[:, 0]
            logits = self.language_model.logits(states)[:, self.vocabulary :]
            drawn = sample(logits.to(generator.device) if generator else logits, self.recipe.image_decoding, generator)
            codes.append(drawn.to(vectors.device))
        return self.tokenizer.decode(torch.stack(codes, dim=1))

    def choosing(self) -> list[ExpertChoice | MixtureOfDepths]:
        """All that choose tokens among a batch."""
        return [module for module in self.modules() if isinstance(module, ExpertChoice | MixtureOfDepths)]

    def use_single_expert(self) -> None:
        """Every token goes to its modality's first expert."""
        for one in self.choosing():
            if isinstance(one, ExpertChoice):
                one.single_expert.fill_(True)

    def upcycle(self) -> None:
        """All experts become copies of their modality's first one, and tokens are chosen among them (section 2.5)."""
        for one in self.choosing():
            if isinstance(one, ExpertChoice):
                one.upcycle()

    def use_auxiliary_routers(self) -> None:
        """Choices are predicted from a token alone, and the routers that do so learn (section 2.4)."""
        for one in self.choosing():
            one.use_predictor.fill_(True)

    def _sums(self, sequences: PackedSequences) -> dict[str, tuple[Tensor, Tensor]]:
        nats, imaged, row = self._token_losses(sequences)
        rows, one = len(sequences), torch.ones_like(nats)
        of = {TEXT: ~imaged, IMAGE: imaged, "all": torch.ones_like(imaged)}
        return {
            name: (segment_sum(nats[there], row[there], rows), segment_sum(one[there], row[there], rows))
            for name, there in of.items()
        }

    def _token_losses(
        self, sequences: PackedSequences
    ) -> tuple[Float[Tensor, " asked"], Bool[Tensor, " asked"], Int[Tensor, " asked"]]:
        """-log p of every token, whether it is an image's, and its row."""
        vectors, routes, ids = self._read(sequences)
        states = self.language_model(vectors, sequences.position, sequences.document, routes)
        rows, places = prediction_positions(sequences.document, sequences.predicted)
        logits = self.language_model.logits(states[rows, places - 1])
        tokens = ids[rows, places]
        return next_token_losses(logits, tokens), tokens >= self.vocabulary, rows

    def _read(self, sequences: PackedSequences) -> tuple[Tensor, ExpertAssignment, Int[Tensor, "rows length"]]:
        """Vectors of all places, which of them each modality's experts may choose, and their tokens."""
        ids, there = sequences.ids, sequences.document > 0
        imaged = torch.zeros_like(there)
        if IMAGE in sequences.features:
            imaged = sequences.of(IMAGE)
            cells = sequences.features[IMAGE].unflatten(0, (-1, self.recipe.tokens_per_tile))
            codes = self.tokenizer.encode(unpatchify(cells, self.recipe.patch_size))
            ids = ids.masked_scatter(imaged, codes + self.vocabulary)
        kinds = [there & ~imaged, imaged] if self.recipe.modality_aware else [there]
        routes = [kind.flatten().nonzero().squeeze(1) for kind in kinds]
        return self.language_model.embedding(ids), routes, ids


@dataclass(frozen=True)
class Recipe(ConversationRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-2)
    language_model: LanguageModelConfig = LanguageModelConfig(
        vocab_size=1000, num_kv_heads=4, tie_word_embeddings=False
    )
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    tile_size: PositiveInt = 64
    """Side of an image in pixels."""
    patch_size: PositiveInt = 8
    """Side in pixels of what a code stands for."""
    num_text_experts: PositiveInt = 2
    """Experts of the words; one is a plain MLP, for there is nothing to choose."""
    num_image_experts: NonNegativeInt = 2
    """Experts of the codes."""
    modality_aware: bool = True
    """Whether a token may go to its own modality's experts only; without, all experts choose among all tokens."""
    router_noise: bool = True
    """Whether scores get Gumbel noise while training (equation 5)."""
    mod_capacity: UnitInterval = 0.0
    """Share of the tokens that go through every other block, from the first; 0 is all (section 2.3: 0.25)."""
    upcycling_fraction: UnitInterval = 0.0
    """Share of the main stage in which one expert a modality learns alone, before all become its copies (section
    2.5)."""
    stage_fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.15, 0.75, 0.1)
    """Of the budget: tokenizer, language model, auxiliary routers."""
    image_decoding: Decoding = Decoding(top_p=0.95, temperature=1.0)
    """How codes of images are drawn."""

    def __post_init__(self) -> None:
        if self.modality_aware and not self.num_image_experts:
            raise UserError(
                "--num-image-experts is at least 1, but with --no-modality-aware, where all experts are together."
            )

    @property
    def tokens_per_tile(self) -> int:
        """Codes of an image."""
        return (self.tile_size // self.patch_size) ** 2

    @property
    def experts(self) -> dict[str, int]:
        """How many there are of each modality, text first; or of all together."""
        if self.modality_aware:
            return {TEXT: self.num_text_experts, IMAGE: self.num_image_experts}
        return {"all": self.num_text_experts + self.num_image_experts}

    def stages(self) -> tuple[Stage, ...]:
        tokenizer, main, routers = self.stage_fractions
        alone = self.upcycling_fraction * main
        choosing = max(self.experts.values()) > 1 or self.mod_capacity > 0
        stages = [
            Stage(
                "image tokenizer",
                tokenizer,
                ("tokenizer.*",),
                lr_scale=0.3,
                batch="image_batch",
                losses="tokenizer_losses",
            ),
            Stage("one expert", alone, LEARNED, on_start="use_single_expert"),
            Stage("experts", main - alone, LEARNED, on_start="upcycle" if alone else None),
        ]
        if choosing:
            only = {TEXT: 0.0, IMAGE: 0.0}
            stages.append(Stage("routers", routers, ("*.auxiliary.*",), only, on_start="use_auxiliary_routers"))
        return tuple(stages)

    def columns(self) -> Declared:
        return self.conversation(TiledImageColumn(self.tile_size, self.patch_size, 1, self.tile_size))

    def build(self, processor: Processor) -> MoMa:
        return MoMa(self, processor.tokenizer.vocab_size, processor.conversation.end)

    def image_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> TokenizerBatch:
        """Whole images, for the tokenizer: those of the examples, or of their documents, one of each that has any."""
        images = []
        for example, rng in zip(examples, example_rng.generators, strict=True):
            figures = [part for part in example.get(DOCUMENT, ()) if not isinstance(part, str)]
            images += [example[IMAGE]] if IMAGE in example else [choice(figures, rng)] if figures else []
        blank = np.full((self.tile_size, self.tile_size, 3), 255, np.uint8)
        cells = [processor.image.patchify_tiles(image, 1) for image in images or [blank]]
        return {"image": unpatchify(torch.stack(cells), self.patch_size)}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Documents, packed: the examples' own, or of an image and one of its captions in either order."""
        documents = []
        for example, rng in zip(examples, example_rng.generators, strict=True):
            parts = example.get(DOCUMENT)
            if parts is None:
                parts = [choice(example["text"], rng).text, example[IMAGE]][:: 1 if rng.random() < 0.5 else -1]
            documents.append(processor.conversation.document(parts))
        return {"sequences": processor.conversation.pack(documents)}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            language_model=LanguageModelConfig(
                vocab_size=300, context_length=96, width=16, depth=2, num_heads=2, num_kv_heads=2, mlp_dim=32
            ),
            tokenizer=ImageTokenizerConfig(codebook_size=16, codebook_dim=4, width=16),
            tile_size=32,
            patch_size=16,
            upcycling_fraction=0.5,
            stage_fractions=(0.25, 0.5, 0.25),
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """The 1.4B model with four experts of each modality, 7.1B parameters in all (section 3.1, table 1).

        The table's 8192 channels inside an MLP are those of one without gate: SwiGLU's 5504 give its sizes.
        """
        return cls(
            language_model=LanguageModelConfig(
                vocab_size=65_536 - 8192,
                context_length=4096,
                width=2048,
                depth=24,
                num_heads=16,
                num_kv_heads=16,
                mlp_dim=5504,
                tie_word_embeddings=False,
            ),
            tokenizer=ImageTokenizerConfig(codebook_size=8192, codebook_dim=256, width=128),
            tile_size=512,
            patch_size=16,
            num_text_experts=4,
            num_image_experts=4,
            upcycling_fraction=0.02,
            stage_fractions=(0.0, 0.95, 0.05),
            batch_size=1536,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_ratio=0.008),
        )
