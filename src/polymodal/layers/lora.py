"""LoRA: low-rank adaptation of linear layers, with frozen base weights (Hu et al. 2021, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.errors import UserError


class LoRALinear(nn.Module):
    """base(x) + x A^T B^T, with A (rank x in) random and B (out x rank) zero at initialization.

    The paper's factor alpha / rank is left at 1: it only rescales the learning rate of B.
    """

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return self.base(x) + (x @ self.lora_a.T) @ self.lora_b.T

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the plain linear layer, with the update merged into its weight."""
        # W + B A (section 4.1).
        self.base.weight += self.lora_b @ self.lora_a
        return self.base


@runtime_checkable
class HasOwnLoRA(Protocol):
    """A module with a LoRA implementation of its own, such as peft's in pretrained models."""

    def add_lora(self, rank: int, name: str, targets: tuple[str, ...]) -> int: ...

    def merge_lora(self) -> None: ...


def add_lora(model: nn.Module, rank: int, targets: tuple[str, ...] = ("*",)) -> int:
    """Freeze a model and add LoRA to the linear layers whose names match; return how many there are.

    Layers whose weights are frozen already, such as those of a reference model or a momentum encoder, get none: there
    is nothing that LoRA would train instead. targets: shell patterns of module names, such as `*.attention.qkv`. Raises
    UserError when none matches.
    """
    trained = {name for name, module in model.named_modules() if any(p.requires_grad for p in module.parameters())}
    model.requires_grad_(False)
    others = [
        (name, module) for name, module in model.named_modules() if isinstance(module, HasOwnLoRA) and name in trained
    ]
    count = sum(module.add_lora(rank, name, targets) for name, module in others)
    inside = tuple(f"{name}." for name, _ in others)
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name in trained
        and not name.startswith(inside)
        and any(fnmatchcase(name, pattern) for pattern in targets)
    ]
    if not linears and not count:
        raise UserError(f"No linear layer has a name like {' or '.join(targets)}; see model.named_modules().")
    for name, module in linears:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRALinear(module, rank))
    return len(linears) + count


def merge_lora(model: nn.Module) -> None:
    """Replace LoRA layers by plain linear layers with merged weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, HasOwnLoRA):
            module.merge_lora()
        elif isinstance(module, LoRALinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.merged())


def merged_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a module as they are once LoRA, ours or peft's, is merged, with their names then."""
    layers: dict[str, tuple[str, Tensor]] = {}  # name of an adapted layer -> name of its base, update of the weight
    for name, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            layers[f"{name}."] = "base.", layer.lora_b @ layer.lora_a
        elif (of_adapter := getattr(layer, "get_delta_weight", None)) is not None:
            layers[f"{name}."] = "base_layer.", sum(map(of_adapter, layer.active_adapters))
    for name, parameter in module.named_parameters():
        layer = next((one for one in layers if name.startswith(one)), "")
        if not layer:
            yield name, parameter
            continue
        base, update = layers[layer]
        if name.startswith(layer + base):
            kind = name.removeprefix(layer + base)
            yield layer + kind, parameter + update if kind == "weight" else parameter
