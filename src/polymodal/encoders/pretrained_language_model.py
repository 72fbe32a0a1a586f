"""Pretrained causal language models (LLMs) as the decoder of a multimodal method.

Llama, Mistral, Qwen 2 and models with the same architecture (SmolLM, InternLM as Llama ...) are converted to our own
decoder, so that a method can add experts; others (GPT-2, Qwen 3, Gemma ...) are used as they are.
"""

from __future__ import annotations

import dataclasses
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
from polymodal.layers.decoding import Decoding, Listener, current_listener, truncate_at_eos
from polymodal.modalities.text import Tokenizer, Tokens

LIKE_LLAMA = ("llama", "mistral", "qwen2")
MAX_CONTEXT_LENGTH = 2048  # maximum tokens per row, even where a source allows more: attention is quadratic


class DecoderTokenizer(PretrainedTokenizer):
    """Pretrained decoder's tokenizer, which adds start and end tokens even if the decoder has only an end token."""

    def __call__(self, texts: list[str]) -> Tokens:
        end = self.tokenizer.eos_token_id
        start = end if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokens = Tokens.of([[start, *ids[: self.context_length - 2], end] for ids in encoded])
        return dataclasses.replace(tokens, ids=self.without_special_ids(tokens.ids, tokens.content_mask))


@dataclass(frozen=True)
class PretrainedDecoderConfig(PretrainedConfig, LanguageModelConfig):
    """Configuration of a pretrained decoder; `read_language_model` fills in everything."""

    def tokenizer(self, texts: Iterable[str], marks: Sequence[str] = ()) -> Tokenizer:
        """Return the pretrained tokenizer; `texts` are ignored, and `marks` are tokenized as plain text."""
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
        """Load the pretrained weights; all experts are initialized with the pretrained MLP.

        Raises UserError when the source lacks some.
        """
        tensors = pretrained_weights(self.source)
        sources = {"embedding.weight": ["model.embed_tokens.weight"], "decoder.norm_post.weight": ["model.norm.weight"]}
        if self.head is not None:
            sources["head.weight"] = ["lm_head.weight"]
        for index, experts in enumerate(self.decoder.experts()):
            prefix, source_prefix = f"decoder.blocks.{index}.", f"model.layers.{index}."
            for kind in ("weight", "bias") if self.config.attention_bias else ("weight",):
                sources[f"{prefix}attention.qkv.{kind}"] = [
                    f"{source_prefix}self_attn.{part}_proj.{kind}" for part in "qkv"
                ]
            sources[f"{prefix}attention.out.weight"] = [f"{source_prefix}self_attn.o_proj.weight"]
            sources[f"{prefix}norm1.weight"] = [f"{source_prefix}input_layernorm.weight"]
            sources[f"{prefix}norm2.weight"] = [f"{source_prefix}post_attention_layernorm.weight"]
            for expert in experts.modalities:
                parts = [f"{source_prefix}mlp.{part}_proj.weight" for part in ("gate", "up")]
                sources[f"{prefix}feed_forward.{expert}.gate_up.weight"] = parts
                sources[f"{prefix}feed_forward.{expert}.down.weight"] = [f"{source_prefix}mlp.down_proj.weight"]
        for name, parameter in self.named_parameters():
            missing = [part for part in sources[name] if part not in tensors]
            if missing:
                raise UserError(f"'{self.source}' does not fit: no weights are there for {missing[0]}.")
            joined = torch.cat([tensors[part] for part in sources[name]])
            if joined.shape != parameter.shape:
                raise UserError(f"'{self.source}' does not fit: {sources[name][0]} is of another shape.")
            parameter.copy_(joined)


@dataclass(frozen=True)
class PretrainedLanguageModelConfig(PretrainedDecoderConfig):
    """Configuration of a transformers decoder that is used as it is."""

    def build(self, vocab_size: int, experts: Sequence[str] = (TEXT,)) -> Any:
        """Build the model. Raises UserError for experts, which the pretrained architecture does not support."""
        if len(experts) > 1:
            raise UserError(
                f"'{self.source}' has no place for experts by modality; Llama, Mistral, Qwen 2 and their like have."
            )
        return PretrainedLanguageModel(self)


class PretrainedLanguageModel(PretrainedModel):
    """A transformers decoder with the interface of `LanguageModel`."""

    def __init__(self, config: PretrainedLanguageModelConfig):
        super().__init__(config.source, config.settings, "AutoModelForCausalLM")
        self.config = config

    @property
    def embedding(self) -> nn.Module:
        """Token embedding."""
        return self.model.get_input_embeddings()

    def forward(
        self,
        vectors: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: ExpertAssignment | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Return the hidden states of all positions; attention is causal within each document."""
        visible = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        attention_bias = torch.zeros_like(visible, dtype=vectors.dtype).masked_fill(
            ~visible, torch.finfo(vectors.dtype).min
        )
        body = self.model.base_model
        return body(inputs_embeds=vectors, attention_mask=attention_bias, position_ids=position).last_hidden_state

    def logits(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Return next-token logits."""
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
        """Generate tokens after each row's last position, by transformers' own `generate`."""
        if generator is not None:  # transformers takes no generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p} if decoding.temperature else {}
        listener = current_listener()
        generated = self.model.generate(
            inputs_embeds=vectors,
            attention_mask=(document > 0).long(),
            max_new_tokens=decoding.max_new_tokens,
            do_sample=decoding.temperature > 0,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            eos_token_id=end,
            pad_token_id=end,
            streamer=_Streamer(end, listener) if listener is not None and decoding.num_beams == 1 else None,
            **sampling,
        )
        return truncate_at_eos(generated, end)


class _Streamer:
    """What transformers' `generate` gives its tokens to; the first call has the prompt, which is left out."""

    def __init__(self, end: int, listener: Listener):
        self.eos_id, self.listener = end, listener
        self.steps: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.steps.append(value)
        if len(self.steps) > 1:
            self.listener(truncate_at_eos(torch.stack(self.steps[1:], dim=1), self.eos_id))

    def end(self) -> None:
        """Do nothing."""


def read_language_model(name: str) -> PretrainedDecoderConfig:
    """Read the decoder of a model on the hub or in a folder. Raises UserError when it is no causal language model."""
    configuration = read_configuration(name)
    supported = transformers().MODEL_FOR_CAUSAL_LM_MAPPING
    decoder = (
        configuration if type(configuration) in supported else getattr(configuration, "text_config", configuration)
    )
    if type(decoder) not in supported:
        raise UserError(f"'{name}' ({configuration.model_type}) is no causal language model.")
    context_length = min(getattr(decoder, "max_position_embeddings", None) or MAX_CONTEXT_LENGTH, MAX_CONTEXT_LENGTH)
    sizes: Mapping[str, Any] = {
        "vocab_size": decoder.vocab_size,
        "context_length": context_length,
        "width": decoder.hidden_size,
    }
    source: Mapping[str, Any] = {"source": name, "settings": settings_of(decoder)}
    return (_as_own(decoder, sizes, source) if decoder is configuration else None) or PretrainedLanguageModelConfig(
        **sizes, **source
    )


def _as_own(configuration: Any, sizes: Mapping[str, Any], source: Mapping[str, Any]) -> PretrainedDecoderConfig | None:
    """Return the configuration as our own decoder; None where the architecture is not supported."""
    rotary = getattr(configuration, "rope_parameters", None) or {}
    size = getattr(configuration, "head_dim", None) or configuration.hidden_size // configuration.num_attention_heads
    like_ours = (
        configuration.model_type in LIKE_LLAMA
        and rotary.get("rope_type", "default") == "default"
        and size * configuration.num_attention_heads == configuration.hidden_size
        and configuration.hidden_act == "silu"
        and not getattr(configuration, "attention_bias", False)
        and not getattr(configuration, "mlp_bias", False)
        and (getattr(configuration, "sliding_window", None) or sizes["context_length"]) >= sizes["context_length"]
    )
    if not like_ours:
        return None
    return PretrainedDecoderConfig(
        **sizes,
        **source,
        depth=configuration.num_hidden_layers,
        num_heads=configuration.num_attention_heads,
        num_kv_heads=configuration.num_key_value_heads or configuration.num_attention_heads,
        mlp_dim=configuration.intermediate_size,
        rope_theta=float(rotary.get("rope_theta", 10_000.0)),
        norm_eps=configuration.rms_norm_eps,
        tie_word_embeddings=configuration.tie_word_embeddings,
        attention_bias=configuration.model_type == "qwen2",
    )
