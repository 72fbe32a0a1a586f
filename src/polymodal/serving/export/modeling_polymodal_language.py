"""A language model that sees, trained by polymodal, for transformers.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

This file is written beside the exported weights and needs torch and transformers alone. Its modules have the names of
polymodal's, so the weights load as they are. A picture is one tile: in the text stand `image_tokens` times
`cell_id` where it is read, between the marks `<image>` and `</image>`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class PolymodalLanguageConfig(PretrainedConfig):
    """cell_id: stands where a picture's tokens are, beyond the vocabulary. image_size: side of a tile in pixels,
    of which `patch` are the side of a patch; four patches are a token. patch_width: channels of a patch.

    visual_experts: whether picture tokens have perceptrons of their own.
    """

    model_type = "polymodal_language_model"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "num_key_value_heads": "groups",
    }

    def __init__(
        self,
        vocab_size: int = 2000,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        groups: int = 2,
        hidden: int = 352,
        rotary_base: float = 10_000.0,
        epsilon: float = 1e-6,
        tied: bool = True,
        attention_bias: bool = False,
        cell_id: int = 2000,
        image_size: int = 96,
        patch: int = 8,
        patch_width: int = 64,
        visual_experts: bool = True,
        **kwargs: Any,
    ):
        self.vocab_size, self.width, self.depth, self.heads, self.groups = vocab_size, width, depth, heads, groups
        self.hidden, self.rotary_base, self.epsilon, self.tied = hidden, rotary_base, epsilon, tied
        self.attention_bias, self.cell_id, self.image_size = attention_bias, cell_id, image_size
        self.patch, self.patch_width, self.visual_experts = patch, patch_width, visual_experts
        super().__init__(**({"use_cache": False, "tie_word_embeddings": False} | kwargs))

    @property
    def image_tokens(self) -> int:
        """Of a picture."""
        return (self.image_size // (2 * self.patch)) ** 2


class Attention(nn.Module):
    """Causal, with rotary positions; groups of heads share keys and values."""

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.size = config.width // config.heads
        self.sizes = [config.width, config.groups * self.size, config.groups * self.size]
        self.shared = config.heads // config.groups
        self.qkv = nn.Linear(config.width, sum(self.sizes), bias=config.attention_bias)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, angle: Tensor, visible: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (-1, self.size)).transpose(1, 2) for part in self.qkv(x).split(self.sizes, dim=2)
        )
        query, key = _turned(query, angle), _turned(key, angle)
        key, value = (part.repeat_interleave(self.shared, 1) for part in (key, value))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out(y.transpose(1, 2).flatten(2))


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos().to(x.dtype) + torch.cat([-second, first], dim=-1) * angle.sin().to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Experts(nn.Module):
    """A perceptron for words and, where there is one, another for picture tokens."""

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.text = SwiGLU(config.width, config.hidden)
        if config.visual_experts:
            self.image = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, pictured: Tensor) -> Tensor:
        if not hasattr(self, "image"):
            return self.text(x)
        y = torch.empty_like(x)
        y[~pictured], y[pictured] = self.text(x[~pictured]), self.image(x[pictured])
        return y


class Block(nn.Module):
    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.norm_1 = nn.RMSNorm(config.width, config.epsilon)
        self.attention = Attention(config)
        self.norm_2 = nn.RMSNorm(config.width, config.epsilon)
        self.feed_forward = Experts(config)

    def forward(self, x: Tensor, angle: Tensor, visible: Tensor, pictured: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x), angle, visible)
        return x + self.feed_forward(self.norm_2(x), pictured)


class Decoder(nn.Module):
    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.size, self.rotary_base = config.width // config.heads, config.rotary_base
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_after = nn.RMSNorm(config.width, config.epsilon)

    def forward(self, x: Tensor, real: Tensor, pictured: Tensor) -> Tensor:
        position = (real.long().cumsum(1) - 1).clamp(min=0)
        rate = self.rotary_base ** (-torch.arange(0, self.size, 2, device=x.device) / self.size)
        angle = (position[:, None, :, None] * rate).repeat(1, 1, 1, 2)
        # A place of padding sees itself: it must see something.
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        visible = (real[:, None, None, :] & own.new_ones(own.shape).tril()) | own
        for block in self.blocks:
            x = block(x, angle, visible, pictured)
        return self.norm_after(x)


class LanguageModel(nn.Module):
    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.decoder = Decoder(config)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embedding.weight if self.head is None else self.head.weight)


class ImageEmbedding(nn.Module):
    """Tiles to tokens of four patches each."""

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__()
        self.patch, dim, width = config.patch, config.patch_width, config.width
        self.patches = nn.Linear(3 * config.patch**2, dim)
        self.positions = nn.Parameter(torch.zeros(config.image_tokens, 4, dim))
        self.project = nn.Sequential(
            nn.LayerNorm(4 * dim), nn.Linear(4 * dim, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        four = _cut(_cut(pixel_values, 2 * self.patch).flatten(0, 1), self.patch)
        placed = self.patches(four.flatten(2)).unflatten(0, (-1, len(self.positions))) + self.positions
        return self.project(placed.flatten(2).flatten(0, 1))


def _cut(pictures: Tensor, side: int) -> Tensor:
    """[batch, 3, height, width] to [batch, squares, 3, side, side] in reading order."""
    x = pictures.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


class PolymodalLanguageModel(PreTrainedModel, GenerationMixin):
    """Words and pictures to the next word. It reads all of a text for every word that it writes."""

    config_class = PolymodalLanguageConfig
    main_input_name = "input_ids"
    _tied_weights_keys: Any = None

    def __init__(self, config: PolymodalLanguageConfig):
        super().__init__(config)
        self.image_encoder = ImageEmbedding(config)
        self.language_model = LanguageModel(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """They are loaded, never drawn."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """input_ids, attention_mask: [batch, length]. pixel_values: [pictures, 3, image_size, image_size], normalised,
        in the order in which they stand in the texts. The logits are [batch, length, vocab_size]."""
        real = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        pictured = (input_ids == self.config.cell_id) & real
        x = self.language_model.embedding(input_ids.masked_fill(input_ids >= self.config.vocab_size, 0))
        if pixel_values is not None:
            x = x.masked_scatter(pictured[..., None], self.image_encoder(pixel_values).to(x.dtype))
        return CausalLMOutput(logits=self.language_model.logits(self.language_model.decoder(x, real, pictured)))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        names = ("attention_mask", "pixel_values")
        return {"input_ids": input_ids, **{name: kwargs.get(name) for name in names}}


AutoConfig.register(PolymodalLanguageConfig.model_type, PolymodalLanguageConfig, exist_ok=True)
AutoModelForCausalLM.register(PolymodalLanguageConfig, PolymodalLanguageModel, exist_ok=True)
