"""Pretrained causal language models as the decoder of a multimodal method.

Llama, Mistral and Qwen 2, and what is built like them (SmolLM, InternLM as Llama ...), become our own decoder, so that
a method can put experts into it; any other of transformers (GPT-2, Qwen 3, Gemma ...) is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.data.sequence import TEXT
from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.encoders.pretrained import (
    PretrainedConfig,
    PretrainedModel,
    folder_of,
    pretrained_weights,
    read_configuration,
    settings_of,
    transformers,
)
from polymodal.encoders.pretrained_text import PretrainedTokenizer
from polymodal.errors import UserError
from polymodal.layers.decoder import ExpertAssignment, KVCache
from polymodal.layers.decoding import Decoding, truncate_at_eos
from polymodal.modalities.text import Tokenizer, Tokens

LIKE_LLAMA = ("llama", "mistral", "qwen2")
MAX_CONTEXT_LENGTH = 2048  # tokens of a row, where a source allows more: what attention costs grows with the square


class DecoderTokenizer(PretrainedTokenizer):
    """A pretrained decoder's tokenizer, whose texts begin and end with a mark, also where the decoder has but one."""

    def __call__(self, texts: list[str]) -> Tokens:
        end = self.tokenizer.eos_token_id
        start = end if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return Tokens.of([[start, *ids[: self.context_length - 2], end] for ids in encoded])


@dataclass(frozen=True)
class PretrainedDecoderConfig(PretrainedConfig, LanguageModelConfig):
    """A decoder with pretrained weights; `read_language_model` fills in everything."""

    def tokenizer(self, texts: Iterable[str], marks: Sequence[str] = ()) -> Tokenizer:
        """The pretrained one, whatever the texts; marks are spelt."""
        return DecoderTokenizer.read(folder_of(self.source), self.context_length)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        return DecoderTokenizer.load(directory, self.context_length)

    def build(self, vocab_size: int, experts: Sequence[str] = (TEXT,)) -> Any:
        return PretrainedDecoder(self, experts)


class PretrainedDecoder(LanguageModel):
    """Our own decoder with the weights of Llama, Mistral or Qwen 2."""

    def __init__(self, config: PretrainedDecoderConfig, experts: Sequence[str] = (TEXT,)):
        super().__init__(config, config.vocab_size, experts)
        self.source = config.source

    @torch.no_grad()
    def load_pretrained(self) -> None:
        """Take the pretrained weights; all experts begin as the pretrained MLP.

        Raises UserError when the source lacks some.
        """
        given = pretrained_weights(self.source)
        wanted = {"embedding.weight": ["model.embed_tokens.weight"], "decoder.norm_post.weight": ["model.norm.weight"]}
        if self.head is not None:
            wanted["head.weight"] = ["lm_head.weight"]
        for number, experts in enumerate(self.decoder.experts()):
            own, there = f"decoder.blocks.{number}.", f"model.layers.{number}."
            for kind in ("weight", "bias") if self.config.attention_bias else ("weight",):
                wanted[f"{own}attention.qkv.{kind}"] = [f"{there}self_attn.{part}_proj.{kind}" for part in "qkv"]
            wanted[f"{own}attention.out.weight"] = [f"{there}self_attn.o_proj.weight"]
            wanted[f"{own}norm1.weight"] = [f"{there}input_layernorm.weight"]
            wanted[f"{own}norm2.weight"] = [f"{there}post_attention_layernorm.weight"]
            for expert in experts.modalities:
                parts = [f"{there}mlp.{part}_proj.weight" for part in ("gate", "up")]
                wanted[f"{own}feed_forward.{expert}.gate_up.weight"] = parts
                wanted[f"{own}feed_forward.{expert}.down.weight"] = [f"{there}mlp.down_proj.weight"]
        for name, parameter in self.named_parameters():
            lacking = [part for part in wanted[name] if part not in given]
            if lacking:
                raise UserError(f"'{self.source}' does not fit: no weights are there for {lacking[0]}.")
            joined = torch.cat([given[part] for part in wanted[name]])
            if joined.shape != parameter.shape:
                raise UserError(f"'{self.source}' does not fit: {wanted[name][0]} is of another shape.")
            parameter.copy_(joined)


@dataclass(frozen=True)
class PretrainedLanguageModelConfig(PretrainedDecoderConfig):
    """A decoder of transformers, taken as it is."""

    def build(self, vocab_size: int, experts: Sequence[str] = (TEXT,)) -> Any:
        """Raises UserError for experts, which the pretrained architecture has no place for."""
        if len(experts) > 1:
            raise UserError(
                f"'{self.source}' has no place for experts by modality; Llama, Mistral, Qwen 2 and their like have."
            )
        return PretrainedLanguageModel(self)


class PretrainedLanguageModel(PretrainedModel):
    """A decoder of transformers in the place of a `LanguageModel`."""

    def __init__(self, config: PretrainedLanguageModelConfig):
        super().__init__(config.source, config.settings, "AutoModelForCausalLM")
        self.config = config

    @property
    def embedding(self) -> nn.Module:
        """The vectors of words."""
        return self.model.get_input_embeddings()

    def forward(
        self,
        vectors: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: ExpertAssignment | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """What every place knows of its document up to itself."""
        same = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        hidden = torch.zeros_like(same, dtype=vectors.dtype).masked_fill(~same, torch.finfo(vectors.dtype).min)
        body = self.model.base_model
        return body(inputs_embeds=vectors, attention_mask=hidden, position_ids=position).last_hidden_state

    def logits(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Of the next word."""
        return self.model.get_output_embeddings()(states)

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
        """Tokens that go on from each row's last place, by transformers' own `generate`."""
        if generator is not None:  # which transformers does not take
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p} if decoding.temperature else {}
        written = self.model.generate(
            inputs_embeds=vectors,
            attention_mask=(document > 0).long(),
            max_new_tokens=decoding.max_new_tokens,
            do_sample=decoding.temperature > 0,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            eos_token_id=end,
            pad_token_id=end,
            **drawn,
        )
        return truncate_at_eos(written, end)


def read_language_model(name: str) -> PretrainedDecoderConfig:
    """The decoder of a model on the hub, or in a folder. Raises UserError when it is no causal language model."""
    whole = read_configuration(name)
    known = transformers().MODEL_FOR_CAUSAL_LM_MAPPING
    own = whole if type(whole) in known else getattr(whole, "text_config", whole)
    if type(own) not in known:
        raise UserError(f"'{name}' ({whole.model_type}) is no causal language model.")
    places = min(getattr(own, "max_position_embeddings", None) or MAX_CONTEXT_LENGTH, MAX_CONTEXT_LENGTH)
    sizes: Mapping[str, Any] = {"vocab_size": own.vocab_size, "context_length": places, "width": own.hidden_size}
    source: Mapping[str, Any] = {"source": name, "settings": settings_of(own)}
    return (_as_own(own, sizes, source) if own is whole else None) or PretrainedLanguageModelConfig(**sizes, **source)


def _as_own(own: Any, sizes: Mapping[str, Any], source: Mapping[str, Any]) -> PretrainedDecoderConfig | None:
    """As our own decoder; None where the architecture has what ours has not."""
    rotary = getattr(own, "rope_parameters", None) or {}
    size = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    like_ours = (
        own.model_type in LIKE_LLAMA
        and rotary.get("rope_type", "default") == "default"
        and size * own.num_attention_heads == own.hidden_size
        and own.hidden_act == "silu"
        and not getattr(own, "attention_bias", False)
        and not getattr(own, "mlp_bias", False)
        and (getattr(own, "sliding_window", None) or sizes["context_length"]) >= sizes["context_length"]
    )
    if not like_ours:
        return None
    return PretrainedDecoderConfig(
        **sizes,
        **source,
        depth=own.num_hidden_layers,
        num_heads=own.num_attention_heads,
        num_kv_heads=own.num_key_value_heads or own.num_attention_heads,
        mlp_dim=own.intermediate_size,
        rope_theta=float(rotary.get("rope_theta", 10_000.0)),
        norm_eps=own.rms_norm_eps,
        tie_word_embeddings=own.tie_word_embeddings,
        attention_bias=own.model_type == "qwen2",
    )
