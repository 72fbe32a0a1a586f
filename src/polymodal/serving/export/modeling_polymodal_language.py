"""A vision-language model trained by polymodal, for transformers.

AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

This file is written beside the exported weights and needs only torch and transformers. Its modules have the names of
polymodal's, so the weights load directly. An image is one tile: in the text, `image_tokens` times `cell_id` are its
placeholder, between the tokens `<image>` and `</image>`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class PolymodalLanguageConfig(PretrainedConfig):
    """Configuration.

    cell_id: id of the image placeholder, beyond the vocabulary. image_size, patch_size: sides of a tile and of a patch
    in pixels; a token is made of four patches. patch_embed_dim: width of a patch embedding. visual_experts: whether
    image tokens have MLPs of their own. pretrained: configuration of a causal language model of transformers, used in
    place of the decoder of this file.
    """

    model_type = "polymodal_language_model"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
    }

    def __init__(
        self,
        vocab_size: int = 2000,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        mlp_dim: int = 352,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-6,
        tied: bool = True,
        attention_bias: bool = False,
        cell_id: int = 2000,
        image_size: int = 96,
        patch_size: int = 8,
        patch_embed_dim: int = 64,
        visual_experts: bool = True,
        pretrained: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.vocab_size, self.width, self.depth = vocab_size, width, depth
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.mlp_dim, self.rope_theta, self.norm_eps, self.tied = mlp_dim, rope_theta, norm_eps, tied
        self.attention_bias, self.cell_id, self.image_size = attention_bias, cell_id, image_size
        self.patch_size, self.patch_embed_dim, self.visual_experts = patch_size, patch_embed_dim, visual_experts
        self.pretrained = pretrained
        super().__init__(**({"use_cache": False, "tie_word_embeddings": False} | kwargs))

    @property
    def image_tokens(self) -> int:
        """Number of tokens per image."""
        return (self.image_size // (2 * self.patch_size)) ** 2


class Attention(nn.Module):
    """Causal grouped-query attention (GQA) with rotary positions (RoPE)."""

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.head_dim = config.width // config.num_heads
        self.sizes = [config.width, config.num_kv_heads * self.head_dim, config.num_kv_heads * self.head_dim]
        self.shared = config.num_heads // config.num_kv_heads
        self.qkv = nn.Linear(config.width, sum(self.sizes), bias=config.attention_bias)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, angle: Tensor, visible: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(x).split(self.sizes, dim=2)
        )
        query, key = _turned(query, angle), _turned(key, angle)
        key, value = (part.repeat_interleave(self.shared, 1) for part in (key, value))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out(y.transpose(1, 2).flatten(2))


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos().to(x.dtype) + torch.cat([-second, first], dim=-1) * angle.sin().to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Experts(nn.Module):
    """Modality experts: an MLP for text and, optionally, another for image tokens."""

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.text = SwiGLU(config.width, config.mlp_dim)
        if config.visual_experts:
            self.image = SwiGLU(config.width, config.mlp_dim)

    def forward(self, x: Tensor, imaged: Tensor) -> Tensor:
        if not hasattr(self, "image"):
            return self.text(x)
        y = torch.empty_like(x)
        y[~imaged], y[imaged] = self.text(x[~imaged]), self.image(x[imaged])
        return y


class Block(nn.Module):
    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.RMSNorm(config.width, config.norm_eps)
        self.feed_forward = Experts(config)

    def forward(self, x: Tensor, angle: Tensor, visible: Tensor, imaged: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), angle, visible)
        return x + self.feed_forward(self.norm2(x), imaged)


def causal_mask(real: Tensor) -> Tensor:
    """Return which tokens each token attends to. Padding attends to itself, else its softmax is NaN."""
    diagonal = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    return (real[:, None, None, :] & diagonal.new_ones(diagonal.shape).tril()) | diagonal


class Decoder(nn.Module):
    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.head_dim, self.rope_theta = config.width // config.num_heads, config.rope_theta
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_post = nn.RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, real: Tensor, imaged: Tensor) -> Tensor:
        position = (real.long().cumsum(1) - 1).clamp(min=0)
        rate = self.rope_theta ** (-torch.arange(0, self.head_dim, 2, device=x.device) / self.head_dim)
        angle = (position[:, None, :, None] * rate).repeat(1, 1, 1, 2)
        visible = causal_mask(real)
        for block in self.blocks:
            x = block(x, angle, visible, imaged)
        return self.norm_post(x)


class LanguageModel(nn.Module):
    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.decoder = Decoder(config)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embedding.weight if self.head is None else self.head.weight)


class PretrainedLanguageModel(nn.Module):
    """A causal language model of transformers."""

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        assert config.pretrained is not None
        self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.pretrained))

    @property
    def embedding(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def decoder(self, x: Tensor, real: Tensor, imaged: Tensor) -> Tensor:
        position = (real.long().cumsum(1) - 1).clamp(min=0)
        visible = causal_mask(real)
        bias = torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, torch.finfo(x.dtype).min)
        return self.model.base_model(inputs_embeds=x, attention_mask=bias, position_ids=position).last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(states)


class ImageEmbedding(nn.Module):
    """Embeds tiles as tokens of four patches each."""

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.patch, dim, width = config.patch_size, config.patch_embed_dim, config.width
        self.patches = nn.Linear(3 * config.patch_size**2, dim)
        self.positions = nn.Parameter(torch.zeros(config.image_tokens, 4, dim))
        self.project = nn.Sequential(
            nn.LayerNorm(4 * dim), nn.Linear(4 * dim, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        four = _cut(_cut(pixel_values, 2 * self.patch).flatten(0, 1), self.patch)
        placed = self.patches(four.flatten(2)).unflatten(0, (-1, len(self.positions))) + self.positions
        return self.project(placed.flatten(2).flatten(0, 1))


def _cut(images: Tensor, side: int) -> Tensor:
    """Cut images: [batch, 3, height, width] to [batch, squares, 3, side, side], row-major."""
    x = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


class PolymodalLanguageModel(PreTrainedModel, GenerationMixin):
    """Vision-language model that predicts the next token. Generation has no KV cache: it recomputes all tokens."""

    config_class = PolymodalLanguageConfig
    main_input_name = "input_ids"
    _tied_weights_keys: Any = None

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__(config)
        self.image_encoder = ImageEmbedding(config)
        self.language_model = (PretrainedLanguageModel if config.pretrained else LanguageModel)(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Skip initialization: all weights are in the file."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Compute logits [batch, length, vocab_size].

        input_ids, attention_mask: [batch, length]. pixel_values: [images, 3, image_size, image_size], normalized, in
        the order of their placeholders.
        """
        real = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        imaged = (input_ids == self.config.cell_id) & real
        x = self.language_model.embedding(input_ids.masked_fill(input_ids >= self.config.vocab_size, 0))
        if pixel_values is not None:
            x = x.masked_scatter(imaged[..., None], self.image_encoder(pixel_values).to(x.dtype))
        return CausalLMOutput(logits=self.language_model.logits(self.language_model.decoder(x, real, imaged)))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        names = ("attention_mask", "pixel_values")
        return {"input_ids": input_ids, **{name: kwargs.get(name) for name in names}}


AutoConfig.register(PolymodalLanguageConfig.model_type, PolymodalLanguageConfig, exist_ok=True)
AutoModelForCausalLM.register(PolymodalLanguageConfig, PolymodalLanguageModel, exist_ok=True)
