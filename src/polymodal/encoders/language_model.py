"""Causal language model: a Llama-style decoder with token embedding and language modeling head."""

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
from polymodal.layers.decoding import Decoding
from polymodal.layers.generation import generate_tokens
from polymodal.modalities.text import TextTokenizer, Tokenizer


@dataclass(frozen=True)
class LanguageModelConfig:
    """Configuration of a causal language model."""

    vocab_size: PositiveInt = 2000
    """Vocabulary size of the byte-level BPE tokenizer, which is trained on the corpus."""
    context_length: PositiveInt = 256
    """Maximum sequence length in tokens, over all modalities."""
    width: PositiveInt = 128
    """Embedding width of tokens."""
    depth: NonNegativeInt = 4
    """Number of decoder blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    num_kv_heads: PositiveInt = 2
    """Key-value heads of grouped-query attention (GQA); must divide the attention heads."""
    mlp_dim: PositiveInt = 352
    """Hidden width of the SwiGLU MLPs."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary position embeddings (RoPE)."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the RMSNorms."""
    tie_word_embeddings: bool = True
    """Share the weights of token embedding and language modeling head."""
    attention_bias: bool = False
    """Biases of the query, key and value projections, as in Qwen 2."""

    def tokenizer(self, texts: Iterable[str], marks: Sequence[str] = ()) -> Tokenizer:
        """Train a byte-level BPE tokenizer on these texts. marks: special tokens in addition to start and end."""
        return TextTokenizer.train(texts, self.vocab_size, self.context_length, marks)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Load the tokenizer that was saved in a run."""
        return TextTokenizer.load(directory, self.context_length)

    def build(self, vocab_size: int, experts: Sequence[str] = (TEXT,)) -> LanguageModel:
        """Build the model. vocab_size: entries of the tokenizer. experts: modalities with an MLP each; a single one
        serves all tokens."""
        return LanguageModel(self, vocab_size, experts)


class LanguageModel(nn.Module):
    """Decoder on embeddings, so that other modalities may be interleaved with text; predicts the next token."""

    def __init__(
        self,
        config: LanguageModelConfig,
        vocab_size: int,
        experts: Sequence[str] = (TEXT,),
        mlp: Callable[[str], nn.Module] | None = None,
        block: type[DecoderBlock] = DecoderBlock,
    ):
        """Build the model. experts: modalities with an MLP each. mlp: factory of the MLP of a modality."""
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
        """Return hidden states (see `layers.decoder.Decoder`), the input of `logits`."""
        return self.decoder(vectors, position, document, routes, cache)

    def logits(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Return next-token logits; apply it to the needed positions only, as the vocabulary is large."""
        return F.linear(states, self.embedding.weight if self.head is None else self.head.weight)

    @torch.no_grad()
    def copy_experts(self, source: str) -> None:
        """Initialize the experts of every block with the weights of one modality's expert."""
        for experts in self.decoder.experts():
            weights = experts.get_submodule(source).state_dict()
            for name in experts.modalities:
                experts.get_submodule(name).load_state_dict(weights)

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
        """Generate tokens after each row's last position, up to the end token (excluded), with a KV cache."""
        batch, length = position.shape
        cache = self.decoder.cache(batch, length + decoding.max_new_tokens)
        logits = self.logits(self(vectors, position, document, routes, cache)[:, -1])
        next_position, document = position[:, -1] + 1, document[:, -1:]

        def step(token: Tensor) -> Tensor:
            nonlocal next_position
            vectors = self.embedding(token)[:, None]
            states = self(vectors, next_position[:, None], document, None, cache)
            next_position = next_position + 1
            return self.logits(states[:, 0])

        def select(rows: Tensor) -> None:
            nonlocal cache, next_position, document
            cache, next_position, document = cache.select(rows), next_position[rows], document[rows]

        return generate_tokens(logits, step, select, end, decoding, generator)
