"""Encoders of `modeling_polymodal.py`, beside which this file is written; it needs only torch and transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, causal: bool):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Causal: right padding comes after every key that a real token attends to.
        attn_mask = None if mask is None or self.causal else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, causal: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, num_heads: int, causal: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, num_heads, causal) for _ in range(depth)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class ConvolutionalStem(nn.Module):
    """3 x 3 convolutions of stride 2, each with layer norm over its channels and ReLU."""

    def __init__(self, channels: list[int]):
        super().__init__()
        ends = zip([3, *channels[:-1]], channels, strict=True)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False) for into, out in ends
        )
        self.norms = nn.ModuleList(nn.LayerNorm(out) for out in channels)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x


class CrossAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        key, value = self.key_value(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """Attention pooling by one learned query."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, width))
        self.attention = CrossAttention(width, num_heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.attention(self.queries.expand(len(tokens), -1, -1), tokens)
        return x + self.mlp(self.norm(x))


class MAPHead(nn.Module):
    """Multihead attention pooling (MAP) to one vector."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.pool = AttentionPool(width, num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.pool(tokens)[:, 0]


class ImageEncoder(nn.Module):
    """Polymodal's vision transformer; returns the pooled vector."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        stem: list[int],
        pool_type: str,
        pos_embed: str,
        registers: int,
    ):
        super().__init__()
        self.patch_size = patch_size // 2 ** len(stem)
        self.pool_type = pool_type
        with_class = pool_type in ("cls", "avg_all")
        self.stem = ConvolutionalStem(stem) if stem else nn.Identity()
        self.patch_embedding = nn.Linear((stem[-1] if stem else 3) * self.patch_size**2, width, bias=False)
        self.class_token = nn.Parameter(torch.zeros(width)) if with_class else None
        self.positions = nn.Parameter(torch.zeros((image_size // patch_size) ** 2 + with_class, width))  # or sines
        self.registers = nn.Parameter(torch.zeros(registers, width)) if registers else None
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, num_heads)
        self.norm_post = nn.LayerNorm(width)
        self.map_head = MAPHead(width, num_heads) if pool_type == "map" else None

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        batch, channels, height, width = x.shape
        p = self.patch_size
        x = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        x = self.patch_embedding(x.reshape(batch, -1, channels * p * p))
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(batch, 1, -1), x], dim=1)
        x = x + self.positions
        if self.registers is not None:
            x = torch.cat([x, self.registers.expand(batch, -1, -1)], dim=1)
        x = self.norm_post(self.transformer(self.norm_pre(x)))[:, : len(self.positions)]
        if self.pool_type == "cls":
            return x[:, 0]
        if self.map_head is not None:
            return self.map_head(x)
        return x.amax(1) if self.pool_type == "max" else x.mean(1)


class TextEncoder(nn.Module):
    """Polymodal's text transformer; returns all tokens."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        width: int,
        depth: int,
        num_heads: int,
        causal: bool,
        pool_type: str = "avg",
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.zeros(context_length, width))
        self.transformer = Transformer(width, depth, num_heads, causal)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids) + self.positions[: input_ids.shape[1]]
        return self.norm_post(self.transformer(x, attention_mask.bool()))


class Pretrained(nn.Module):
    """A transformers model as an encoder."""

    def __init__(self, settings: dict[str, Any], class_name: str, options: dict[str, Any]):
        super().__init__()
        values = dict(settings)
        configuration = AutoConfig.for_model(values.pop("model_type"), **values)
        kind = getattr(transformers, class_name)
        self.model = kind._from_config(configuration, **options)


def tower(kind: type[nn.Module], sizes: dict[str, Any]) -> nn.Module:
    return Pretrained(**sizes["pretrained"]) if "pretrained" in sizes else kind(**sizes)


def pool(tokens: Tensor, attention_mask: Tensor, pool_type: str) -> Tensor:
    """Pool tokens: the mean over real tokens (avg), the last (eos), or the first (cls)."""
    if pool_type == "cls":
        return tokens[:, 0]
    if pool_type == "eos":
        last = attention_mask.sum(1).long() - 1
        return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)
    weights = attention_mask.to(tokens.dtype)[:, :, None]
    return (tokens * weights).sum(1) / weights.sum(1)
