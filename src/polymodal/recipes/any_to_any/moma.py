"""MoMa: pictures and words are tokens of one sequence, and each modality has experts of its own to choose among them.

A frozen tokenizer turns pictures into codes, which stand among the words of one vocabulary; a decoder foretells the
next token, whichever it is. In every block a token can go only to its own modality's experts, and each of these takes
the tokens that it scores highest in the whole batch (section 2.2), so that a token costs as much as in a dense model.
Since such a choice sees the future, small routers learn at the end to foretell it from a token alone (section 2.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.conversation import DOCUMENT, IMAGE, ConversationProcessor, PictureColumn
from polymodal.data.instructions import one_of
from polymodal.data.sequence import TEXT, PackedSequences
from polymodal.draws import Draws
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.errors import UserError
from polymodal.layers.decoder import DecoderBlock, OutputNormBlock, Routes, SwiGLU
from polymodal.layers.decoding import Decoding, choose
from polymodal.layers.expert_choice import ExpertChoice
from polymodal.layers.mixture_of_depths import MixtureOfDepths
from polymodal.modalities.image import unpatchify
from polymodal.objectives.autoregressive import asked_places, next_token_losses, sum_by_sequence
from polymodal.ranges import Count, NotNegative, Share, Whole
from polymodal.recipes.language_models._base import ConversationRecipe
from polymodal.types import Batch, Budget, Claim, Example, Paper, Stage

paper = Paper(
    slug="moma",
    title="MoMa: Efficient Early-Fusion Pre-training with Mixture of Modality-Aware Experts",
    year=2024,
    arxiv="2407.21770",
    modalities=("image", "text"),
)

LEARNED = tuple(  # the parameters of the language model but for the auxiliary routers
    f"language_model.{part}"
    for part in ("embedding.*", "head.*", "*.attention.*", "*norm_*", "*.router.*", "*.gate_up*", "*.down*")
)


class MoMa(nn.Module):
    """A tokenizer of pictures, and a decoder of one vocabulary of words and codes."""

    def __init__(self, recipe: Recipe, vocabulary: int, end: int):
        """vocabulary: of words; codes come after them. end: the mark after a document."""
        super().__init__()
        self.recipe, self.vocabulary, self.end = recipe, vocabulary, end
        self.tokenizer = recipe.tokenizer.build(recipe.patch)
        config, counts = recipe.language_model, recipe.experts

        def perceptron(modality: str) -> nn.Module:
            if counts[modality] == 1:
                return SwiGLU(config.width, config.hidden)
            return ExpertChoice(config.width, config.hidden, counts[modality], recipe.noise)

        whole = vocabulary + recipe.tokenizer.codes
        self.language_model = LanguageModel(config, whole, tuple(counts), perceptron, OutputNormBlock)
        # What a block adds has been normalised to 1 already: beside it, shorter vectors of tokens would go under.
        nn.init.normal_(self.language_model.embedding.weight)
        blocks = self.language_model.decoder.blocks
        for number, block in enumerate(blocks):
            if recipe.depths and number % 2 == 0:
                assert isinstance(block, DecoderBlock)
                blocks[number] = MixtureOfDepths(block, config.width, recipe.depths)
        self.choices: Mapping[str, int] = {TEXT: vocabulary, IMAGE: recipe.tokenizer.codes, "all": whole}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the tokenizer for pictures alone; else text and image, which add up to the mean over all tokens, and
        routers, while they learn to foretell."""
        if IMAGE in batch:
            return self.tokenizer.losses(batch[IMAGE])
        nats, pictured, _ = self._token_losses(batch["sequences"])
        losses = {TEXT: nats[~pictured].sum() / len(nats), IMAGE: nats[pictured].sum() / len(nats)}
        foretold = [one.auxiliary_loss for one in self.choosing() if one.auxiliary_loss is not None]
        return losses | ({"routers": torch.stack(foretold).mean()} if foretold else {})

    def predicted(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums of -log p and counts by row, of text, image and all; and where experts chose by foretelling, of the same
        with the choice among the whole batch."""
        sequences: PackedSequences = batch["sequences"]
        found = self._sums(sequences)
        foretelling = [one for one in self.choosing() if one.foretold]
        if foretelling:
            for one in foretelling:
                one.foretold.fill_(False)
            found |= {f"{name}_by_whole_batch": sums for name, sums in self._sums(sequences).items()}
            for one in foretelling:
                one.foretold.fill_(True)
        return found

    def write(
        self, batch: Batch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """The words that follow each prompt, such as a picture's caption, without the end mark."""
        prompts: PackedSequences = batch["prompts"]
        vectors, routes, _ = self._read(prompts)
        decoding = decoding or Decoding()
        return self.language_model.write(
            vectors, prompts.position, prompts.document, routes, self.end, decoding, generator
        )

    @torch.no_grad()
    def generate(
        self, batch: Batch, steps: int = 0, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 3 size size"]:
        """Normalised pictures that follow each prompt's text, drawn code by code. steps: there is no choice of them."""
        prompts: PackedSequences = batch["prompts"]
        vectors, routes, _ = self._read(prompts)
        rows, length = prompts.position.shape
        cache = self.language_model.decoder.cache(rows, length + self.recipe.cells)
        position, document = prompts.position[:, -1:], prompts.document[:, -1:]
        states = self.language_model(vectors, prompts.position, prompts.document, routes, cache)[:, -1]
        every = torch.arange(rows, device=vectors.device)
        routes = [every[:0], every] if self.recipe.by_modality else [every]
        codes: list[Tensor] = []
        while len(codes) < self.recipe.cells:
            if codes:
                vectors, position = self.language_model.embedding(codes[-1] + self.vocabulary)[:, None], position + 1
                states = self.language_model(vectors, position, document, routes, cache)[:, 0]
            logits = self.language_model.logits(states)[:, self.vocabulary :]
            drawn = choose(logits.to(generator.device) if generator else logits, self.recipe.painting, generator)
            codes.append(drawn.to(vectors.device))
        return self.tokenizer.decode(torch.stack(codes, dim=1))

    def choosing(self) -> list[ExpertChoice | MixtureOfDepths]:
        """All that choose tokens among a batch."""
        return [module for module in self.modules() if isinstance(module, ExpertChoice | MixtureOfDepths)]

    def _sums(self, sequences: PackedSequences) -> dict[str, tuple[Tensor, Tensor]]:
        nats, pictured, row = self._token_losses(sequences)
        rows, one = len(sequences), torch.ones_like(nats)
        of = {TEXT: ~pictured, IMAGE: pictured, "all": torch.ones_like(pictured)}
        return {
            name: (sum_by_sequence(nats[there], row[there], rows), sum_by_sequence(one[there], row[there], rows))
            for name, there in of.items()
        }

    def _token_losses(
        self, sequences: PackedSequences
    ) -> tuple[Float[Tensor, " asked"], Bool[Tensor, " asked"], Int[Tensor, " asked"]]:
        """-log p of every token, whether it is a picture's, and its row."""
        vectors, routes, ids = self._read(sequences)
        states = self.language_model(vectors, sequences.position, sequences.document, routes)
        rows, places = asked_places(sequences.document, sequences.predicted)
        logits = self.language_model.logits(states[rows, places - 1])
        tokens = ids[rows, places]
        return next_token_losses(logits, tokens), tokens >= self.vocabulary, rows

    def _read(self, sequences: PackedSequences) -> tuple[Tensor, Routes, Int[Tensor, "rows length"]]:
        """Vectors of all places, which of them each modality's experts may choose, and their tokens."""
        ids, there = sequences.ids, sequences.document > 0
        pictured = torch.zeros_like(there)
        if IMAGE in sequences.features:
            pictured = sequences.of(IMAGE)
            cells = sequences.features[IMAGE].unflatten(0, (-1, self.recipe.cells))
            codes = self.tokenizer.encode(unpatchify(cells, self.recipe.patch))
            ids = ids.masked_scatter(pictured, codes + self.vocabulary)
        kinds = [there & ~pictured, pictured] if self.recipe.by_modality else [there]
        routes = [kind.flatten().nonzero().squeeze(1) for kind in kinds]
        return self.language_model.embedding(ids), routes, ids


@dataclass(frozen=True)
class Recipe(ConversationRecipe):
    batch_size: Count = 32
    learning_rate: NotNegative = 1e-2
    language_model: LanguageModelConfig = LanguageModelConfig(vocabulary=1000, groups=4, tied=False)
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    tile: Count = 64
    """Side of a picture in pixels."""
    patch: Count = 8
    """Side in pixels of what a code stands for."""
    text_experts: Count = 2
    """Experts of the words; one is a plain perceptron, for there is nothing to choose."""
    image_experts: Whole = 2
    """Experts of the codes."""
    by_modality: bool = True
    """Whether a token may go to its own modality's experts only; without, all experts choose among all tokens."""
    noise: bool = True
    """Whether scores get Gumbel noise while training (equation 5)."""
    depths: Share = 0.0
    """Share of the tokens that go through every other block, from the first; 0 is all (section 2.3: 0.25)."""
    upcycling: Share = 0.0
    """Share of the main stage in which one expert a modality learns alone, before all become its copies (section
    2.5)."""
    shares: tuple[NotNegative, NotNegative, NotNegative] = (0.15, 0.75, 0.1)
    """Of the budget: tokenizer, language model, auxiliary routers."""
    painting: Decoding = Decoding(top_p=0.95, temperature=1.0)
    """How codes of pictures are drawn."""

    def __post_init__(self) -> None:
        if self.by_modality and not self.image_experts:
            raise UserError("--image-experts is at least 1, but with --no-by-modality, where all experts are together.")

    @property
    def cells(self) -> int:
        """Codes of a picture."""
        return (self.tile // self.patch) ** 2

    @property
    def experts(self) -> dict[str, int]:
        """How many there are of each modality, text first; or of all together."""
        if self.by_modality:
            return {TEXT: self.text_experts, IMAGE: self.image_experts}
        return {"all": self.text_experts + self.image_experts}

    def stages(self) -> tuple[Stage, ...]:
        tokenizer, main, routers = self.shares
        alone = self.upcycling * main
        choosing = max(self.experts.values()) > 1 or self.depths > 0
        stages = [
            Stage("image tokenizer", tokenizer, ("tokenizer.*",), learning_rate=0.3, training_batch=self.picture_batch),
            Stage("one expert", alone, LEARNED, start=_leave_alone),
            Stage("experts", main - alone, LEARNED, start=_upcycle if alone else None),
        ]
        if choosing:
            only = {TEXT: 0.0, IMAGE: 0.0}
            stages.append(Stage("routers", routers, ("*.auxiliary.*",), only, start=_foretell))
        return tuple(stage for stage in stages if stage.share > 0)

    def processor(self, corpus: Corpus) -> ConversationProcessor:
        return self.fitted([corpus], PictureColumn(self.tile, self.patch, 1, self.tile))

    def build(self, processor: ConversationProcessor) -> MoMa:
        return MoMa(self, processor.tokenizer.vocabulary, processor.end)

    def picture_batch(self, examples: list[Example], processor: ConversationProcessor, draws: Draws) -> Batch:
        """Whole pictures, for the tokenizer: those of the examples, or of their documents, one of each that has any."""
        pictures = []
        for example, rng in zip(examples, draws.generators, strict=True):
            figures = [part for part in example.get(DOCUMENT, ()) if not isinstance(part, str)]
            pictures += [example[IMAGE]] if IMAGE in example else [one_of(figures, rng)] if figures else []
        blank = np.full((self.tile, self.tile, 3), 255, np.uint8)
        cells = [processor.image.cells_of(picture, 1) for picture in pictures or [blank]]
        return {IMAGE: unpatchify(torch.stack(cells), self.patch)}

    def training_batch(self, examples: list[Example], processor: ConversationProcessor, draws: Draws) -> Batch:
        """Documents, packed: the examples' own, or of a picture and one of its captions in either order."""
        documents = []
        for example, rng in zip(examples, draws.generators, strict=True):
            parts = example.get(DOCUMENT)
            if parts is None:
                parts = [one_of(example["text"], rng).text, example[IMAGE]][:: 1 if rng.random() < 0.5 else -1]
            documents.append(processor.document(parts))
        return {"sequences": processor.pack(documents)}

    @classmethod
    def paper(cls) -> Recipe:
        """The 1.4B model with four experts of each modality, 7.1B parameters in all (section 3.1, table 1).

        The table's 8192 channels inside a perceptron are those of one without gate: SwiGLU's 5504 give its sizes.
        """
        return cls(
            language_model=LanguageModelConfig(
                vocabulary=65_536 - 8192,
                context=4096,
                width=2048,
                depth=24,
                heads=16,
                groups=16,
                hidden=5504,
                tied=False,
            ),
            tokenizer=ImageTokenizerConfig(codes=8192, dim=256, width=128),
            tile=512,
            patch=16,
            text_experts=4,
            image_experts=4,
            upcycling=0.02,
            shares=(0.0, 0.95, 0.05),
            batch_size=1536,
            learning_rate=1e-4,
            warmup=0.008,
        )


def _leave_alone(model: nn.Module) -> None:
    assert isinstance(model, MoMa)
    for one in model.choosing():
        if isinstance(one, ExpertChoice):
            one.alone.fill_(True)


def _upcycle(model: nn.Module) -> None:
    assert isinstance(model, MoMa)
    for one in model.choosing():
        if isinstance(one, ExpertChoice):
            one.upcycle()


def _foretell(model: nn.Module) -> None:
    assert isinstance(model, MoMa)
    for one in model.choosing():
        one.foretold.fill_(True)


_moma = Recipe(shares=(0.0, 0.95, 0.05))
claim = Claim(
    sentence="Experts that choose among the tokens of their own modality reach a lower loss than a dense model of as "
    "many operations a token, above all on pictures.",
    baseline=dataclasses.replace(_moma, by_modality=False, text_experts=1, image_experts=0),
    treatment=_moma,
    further={
        "one expert each": dataclasses.replace(_moma, text_experts=1, image_experts=1),
        "mixed experts": dataclasses.replace(_moma, by_modality=False),
    },
    start=dataclasses.replace(_moma, shares=(1.0, 0.0, 0.0)),
    start_budget=Budget(steps=300),
    corpus="scenes",
    budget=Budget(steps=400),
    seeds=3,
    metrics=(
        "test/all/nats_a_token",
        "test/image/nats_a_token",
        "test/text/nats_a_token",
        "test_twitter/image/nats_a_token",
        "test_twitter/text/nats_a_token",
    ),
    paper_figures="at 1.4B, the loss of a dense model with 3.7 times fewer operations (text 2.6, image 5.2) with four "
    "experts each; 3 times with eight mixed ones",
)
