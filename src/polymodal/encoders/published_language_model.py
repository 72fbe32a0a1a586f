"""Any causal language model of transformers (Qwen, Llama, SmolLM, GPT-2 ...) as the decoder of a multimodal method."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.encoders.published import (
    PublishedConfig,
    PublishedModel,
    folder_of,
    read_configuration,
    settings_of,
    transformers,
)
from polymodal.encoders.published_text import PublishedTokenizer
from polymodal.errors import UserError


@dataclass(frozen=True)
class LanguageModelConfig:
    """A decoder of text."""

    context: int = 2048
    """Longest sequence in tokens, of all modalities together."""
    width: int = 64
    """Channels of every token."""


@dataclass(frozen=True)
class PublishedLanguageModelConfig(PublishedConfig, LanguageModelConfig):
    """A decoder with published weights; `read` fills in everything."""

    @classmethod
    def read(cls, name: str) -> PublishedLanguageModelConfig:
        """The decoder of a model on the hub, or in a folder. Raises UserError when it is no causal language model."""
        whole = read_configuration(name)
        own = (
            whole if type(whole) in transformers().MODEL_FOR_CAUSAL_LM_MAPPING else getattr(whole, "text_config", whole)
        )
        if type(own) not in transformers().MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(f"'{name}' ({whole.model_type}) is no causal language model.")
        places = getattr(own, "max_position_embeddings", None) or cls.context
        return cls(context=places, width=own.hidden_size, source=name, settings=settings_of(own))

    def tokenizer(self) -> PublishedTokenizer:
        return PublishedTokenizer.read(folder_of(self.source), self.context)

    def build(self) -> PublishedLanguageModel:
        return PublishedLanguageModel(self)


class PublishedLanguageModel(PublishedModel):
    """A published decoder that reads vectors, so that other modalities can stand among its words."""

    def __init__(self, config: PublishedLanguageModelConfig):
        super().__init__(config.source, config.settings, "AutoModelForCausalLM")
        self.config = config

    def embed_tokens(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """The vectors of words."""
        return self.model.get_input_embeddings()(ids)

    def forward(
        self, vectors: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of the next word at every place. mask: False where there is no token; padding stands on the right."""
        return self.model(inputs_embeds=vectors, attention_mask=None if mask is None else mask.long()).logits
