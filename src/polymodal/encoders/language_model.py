"""Texts, and what stands among their words, to the next word: a decoder with its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.sequence import TEXT
from polymodal.layers.decoder import Cache, Decoder, DecoderBlock, ModalityExperts, Routes, SwiGLU
from polymodal.layers.decoding import Beams, Decoding, choose, until
from polymodal.modalities.text import TextTokenizer, Tokenizer
from polymodal.ranges import Count, Positive, Whole


@dataclass(frozen=True)
class LanguageModelConfig:
    """A decoder of text."""

    vocabulary: Count = 2000
    """Entries of the byte-level BPE that is learned on the corpus."""
    context: Count = 256
    """Longest sequence in tokens, of all modalities together."""
    width: Count = 128
    """Channels of every token."""
    depth: Whole = 4
    """Blocks."""
    heads: Count = 4
    """Attention heads of a block."""
    groups: Count = 2
    """Heads of keys and values, which the attention heads share evenly."""
    hidden: Count = 352
    """Channels inside a perceptron."""
    rotary_base: Positive = 10_000.0
    """Of the wave lengths of positions."""
    epsilon: Positive = 1e-6
    """Of the norms."""
    tied: bool = True
    """Whether words are read and written by the same vectors."""
    attention_bias: bool = False
    """Whether queries, keys and values have biases, as in Qwen 2."""

    def tokenizer(self, texts: Iterable[str], marks: Sequence[str] = ()) -> Tokenizer:
        """One for these texts: a byte-level BPE that is learned on them. marks: further ones beside start and end."""
        return TextTokenizer.train(texts, self.vocabulary, self.context, marks)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """The one that `save` wrote into a run."""
        return TextTokenizer.load(directory, self.context)

    def build(self, vocabulary: int, experts: Sequence[str] = (TEXT,)) -> LanguageModel:
        """vocabulary: entries of the tokenizer. experts: modalities with a perceptron each; one serves all."""
        return LanguageModel(self, vocabulary, experts)


class LanguageModel(nn.Module):
    """A decoder that reads vectors, so that other modalities can stand among its words, and tells the next word."""

    def __init__(
        self,
        config: LanguageModelConfig,
        vocabulary: int,
        experts: Sequence[str] = (TEXT,),
        perceptron: Callable[[str], nn.Module] | None = None,
        block: type[DecoderBlock] = DecoderBlock,
    ):
        """experts: modalities with a perceptron each; one serves all. perceptron: makes that of a modality."""
        super().__init__()
        self.config = config

        def plain(modality: str) -> nn.Module:
            return SwiGLU(config.width, config.hidden)

        def feed_forward() -> ModalityExperts:
            return ModalityExperts({name: (perceptron or plain)(name) for name in experts})

        self.embedding = nn.Embedding(vocabulary, config.width)
        self.decoder = Decoder(
            config.width,
            config.depth,
            config.heads,
            config.groups,
            feed_forward,
            config.rotary_base,
            config.epsilon,
            config.attention_bias,
            block,
        )
        self.head = None if config.tied else nn.Linear(config.width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(
        self,
        vectors: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: Routes | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """What every place knows (`layers.decoder.Decoder`), for `logits`."""
        return self.decoder(vectors, position, document, routes, cache)

    def logits(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Of the next word; of those places only that anyone asks, for the vocabulary is wide."""
        return F.linear(states, self.embedding.weight if self.head is None else self.head.weight)

    @torch.no_grad()
    def copy_experts(self, source: str) -> None:
        """Every block's perceptrons become copies of one modality's."""
        for experts in self.decoder.experts():
            given = experts.get_submodule(source).state_dict()
            for name in experts.modalities:
                experts.get_submodule(name).load_state_dict(given)

    @torch.no_grad()
    def write(
        self,
        vectors: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: Routes | None,
        end: int,
        decoding: Decoding,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Tokens that go on from each row's last place, up to the end mark, which is not among them."""
        batch, length = position.shape
        cache = self.decoder.cache(batch, length + decoding.longest)
        logits = self.logits(self(vectors, position, document, routes, cache)[:, -1])
        after, document = position[:, -1] + 1, document[:, -1:]
        if decoding.beams > 1:
            return self._search(logits, after, document, cache, end, decoding)
        finished = torch.zeros(batch, dtype=torch.bool, device=logits.device)
        written: list[Tensor] = []
        while True:
            token = choose(logits, decoding, generator).masked_fill(finished, end)
            written.append(token)
            finished |= token == end
            if len(written) == decoding.longest or bool(finished.all()):
                return until(torch.stack(written, dim=1), end)
            logits = self._next(token, after, document, cache)
            after = after + 1

    def _next(self, token: Tensor, position: Tensor, document: Tensor, cache: Cache) -> Tensor:
        vectors = self.embedding(token)[:, None]
        return self.logits(self(vectors, position[:, None], document, None, cache)[:, 0])

    def _search(
        self, logits: Tensor, after: Tensor, document: Tensor, cache: Cache, end: int, decoding: Decoding
    ) -> list[list[int]]:
        """Beam search: of each row, the text of the largest score."""
        rows, beams = len(logits), decoding.beams
        row = torch.arange(rows, device=logits.device).repeat_interleave(beams)
        cache, after, document, logits = cache.select(row), after[row], document[row], logits[row]
        search = Beams(rows, decoding, end, logits)
        first = beams * torch.arange(rows, device=logits.device)[:, None]
        for _ in range(decoding.longest - 1):
            origin, token = search.advance(logits.unflatten(0, (rows, beams)))
            if bool(search.done.all()):
                break
            cache = cache.select((first + origin).flatten())
            logits = self._next(token.flatten(), after, document, cache)
            after = after + 1
        else:
            search.advance(logits.unflatten(0, (rows, beams)))
        return until(search.best, end)
