"""Texts, and what stands among their words, to the next word: a decoder with its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveFloat, PositiveInt
from polymodal.data.sequence import TEXT
from polymodal.layers.decoder import Decoder, DecoderBlock, ExpertAssignment, KVCache, ModalityExperts, SwiGLU
from polymodal.layers.decoding import Beams, Decoding, sample, truncate_at_eos
from polymodal.modalities.text import TextTokenizer, Tokenizer


@dataclass(frozen=True)
class LanguageModelConfig:
    """A decoder of text."""

    vocab_size: PositiveInt = 2000
    """Entries of the byte-level BPE that is learned on the corpus."""
    context_length: PositiveInt = 256
    """Longest sequence in tokens, of all modalities together."""
    width: PositiveInt = 128
    """Channels of every token."""
    depth: NonNegativeInt = 4
    """Blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    num_kv_heads: PositiveInt = 2
    """Heads of keys and values, which the attention heads share evenly."""
    mlp_dim: PositiveInt = 352
    """Channels inside an MLP."""
    rope_theta: PositiveFloat = 10_000.0
    """Of the wave lengths of positions."""
    norm_eps: PositiveFloat = 1e-6
    """Of the norms."""
    tie_word_embeddings: bool = True
    """Whether words are read and written by the same vectors."""
    attention_bias: bool = False
    """Whether queries, keys and values have biases, as in Qwen 2."""

    def tokenizer(self, texts: Iterable[str], marks: Sequence[str] = ()) -> Tokenizer:
        """One for these texts: a byte-level BPE that is learned on them. marks: further ones beside start and end."""
        return TextTokenizer.train(texts, self.vocab_size, self.context_length, marks)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """The one that `save` wrote into a run."""
        return TextTokenizer.load(directory, self.context_length)

    def build(self, vocab_size: int, experts: Sequence[str] = (TEXT,)) -> LanguageModel:
        """vocab_size: entries of the tokenizer. experts: modalities with an MLP each; one serves all."""
        return LanguageModel(self, vocab_size, experts)


class LanguageModel(nn.Module):
    """A decoder that reads vectors, so that other modalities can stand among its words, and tells the next word."""

    def __init__(
        self,
        config: LanguageModelConfig,
        vocab_size: int,
        experts: Sequence[str] = (TEXT,),
        mlp: Callable[[str], nn.Module] | None = None,
        block: type[DecoderBlock] = DecoderBlock,
    ):
        """experts: modalities with an MLP each; one serves all. mlp: makes that of a modality."""
        super().__init__()
        self.config = config

        def plain(modality: str) -> nn.Module:
            return SwiGLU(config.width, config.mlp_dim)

        def feed_forward() -> ModalityExperts:
            return ModalityExperts({name: (mlp or plain)(name) for name in experts})

        self.embedding = nn.Embedding(vocab_size, config.width)
        self.decoder = Decoder(
            config.width,
            config.depth,
            config.num_heads,
            config.num_kv_heads,
            feed_forward,
            config.rope_theta,
            config.norm_eps,
            config.attention_bias,
            block,
        )
        self.head = None if config.tie_word_embeddings else nn.Linear(config.width, vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(
        self,
        vectors: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: ExpertAssignment | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """What every place knows (`layers.decoder.Decoder`), for `logits`."""
        return self.decoder(vectors, position, document, routes, cache)

    def logits(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Of the next word; of those places only that anyone asks, for the vocabulary is wide."""
        return F.linear(states, self.embedding.weight if self.head is None else self.head.weight)

    @torch.no_grad()
    def copy_experts(self, source: str) -> None:
        """Every block's MLPs become copies of one modality's."""
        for experts in self.decoder.experts():
            given = experts.get_submodule(source).state_dict()
            for name in experts.modalities:
                experts.get_submodule(name).load_state_dict(given)

    @torch.no_grad()
    def generate(
        self,
        vectors: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: ExpertAssignment | None,
        end: int,
        decoding: Decoding,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Tokens that go on from each row's last place, up to the end mark, which is not among them."""
        batch, length = position.shape
        cache = self.decoder.cache(batch, length + decoding.max_new_tokens)
        logits = self.logits(self(vectors, position, document, routes, cache)[:, -1])
        after, document = position[:, -1] + 1, document[:, -1:]
        if decoding.num_beams > 1:
            return self._search(logits, after, document, cache, end, decoding)
        finished = torch.zeros(batch, dtype=torch.bool, device=logits.device)
        written: list[Tensor] = []
        while True:
            token = sample(logits, decoding, generator).masked_fill(finished, end)
            written.append(token)
            finished |= token == end
            if len(written) == decoding.max_new_tokens or bool(finished.all()):
                return truncate_at_eos(torch.stack(written, dim=1), end)
            logits = self._next(token, after, document, cache)
            after = after + 1

    def _next(self, token: Tensor, position: Tensor, document: Tensor, cache: KVCache) -> Tensor:
        vectors = self.embedding(token)[:, None]
        return self.logits(self(vectors, position[:, None], document, None, cache)[:, 0])

    def _search(
        self, logits: Tensor, after: Tensor, document: Tensor, cache: KVCache, end: int, decoding: Decoding
    ) -> list[list[int]]:
        """Beam search: of each row, the text of the largest score."""
        rows, beams = len(logits), decoding.num_beams
        row = torch.arange(rows, device=logits.device).repeat_interleave(beams)
        cache, after, document, logits = cache.select(row), after[row], document[row], logits[row]
        search = Beams(rows, decoding, end, logits)
        first = beams * torch.arange(rows, device=logits.device)[:, None]
        for _ in range(decoding.max_new_tokens - 1):
            origin, token = search.advance(logits.unflatten(0, (rows, beams)))
            if bool(search.done.all()):
                break
            cache = cache.select((first + origin).flatten())
            logits = self._next(token.flatten(), after, document, cache)
            after = after + 1
        else:
            search.advance(logits.unflatten(0, (rows, beams)))
        return truncate_at_eos(search.best, end)
