"""A momentum encoder, whose weights are the exponential moving average of trained ones, and a queue of its features.

MoCo (He et al. 2020, section 3.2), BYOL (Grill et al. 2020, section 3.1) and ALBEF (Li et al. 2021, section 3.2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather
from polymodal.layers.lora import merged_parameters

NO_LABEL = -1  # of a feature that was enqueued without one


class MomentumEncoder(nn.Module):
    """Copies of trained modules that get no gradient; `update` moves them towards the modules.

    The copies are part of the state dict and, as none of their parameters requires a gradient, of no optimizer:

        self.momentum = MomentumEncoder({"encoder": self.encoder, "projection": self.projection})
        with self.momentum.momentum_forward():
            keys = self.momentum["projection"](self.momentum["encoder"].pooled(image))

    `update` belongs after an optimizer step (BYOL), where micro-batches cannot repeat it; MoCo's and ALBEF's update
    before the next forward pass gives the same weights. Where FSDP2 shards the weights, a forward pass cannot write to
    them: `before_training` comes before the sharding, and `update` between steps.
    """

    def __init__(
        self,
        online: Mapping[str, nn.Module],
        buffers: Literal["copy", "average", "keep"] = "copy",
        train_mode: bool = False,
    ):
        """Copy the modules.

        online: the trained modules by the names of their copies. buffers: what `update` does with buffers, such as the
        running statistics of batch norm: copy those of the modules, average them (floating-point ones), or keep the
        copies' own. train_mode: whether copies use the mode of their modules, with dropout and batch statistics (ALBEF,
        MoCo, BYOL), or always evaluation mode. Raises UserError for batch norms whose running statistics would stay at
        their initial values: buffers="keep" without train_mode.
        """
        super().__init__()
        batch_norms = any(isinstance(part, _BatchNorm) for module in online.values() for part in module.modules())
        if buffers == "keep" and not train_mode and batch_norms:
            raise UserError("A momentum encoder that keeps its own batch norm statistics needs train_mode=True.")
        for name, module in online.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False))
        # Not registered: the modules are in the state dict of the method that owns them.
        object.__setattr__(self, "_online", dict(online))
        self.buffer_update = buffers
        self.train_mode = train_mode
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(False))
        self.eval()

    def __getitem__(self, name: str) -> Any:
        """Return the copy of a module."""
        return self.get_submodule(name)

    @property
    def online(self) -> Mapping[str, nn.Module]:
        """The online (trained) modules."""
        return self.__dict__["_online"]

    @torch.no_grad()
    def initialize(self) -> None:
        """Copy the weights and buffers of the modules, such as pretrained ones that were loaded since."""
        for name, module in self.online.items():
            for own, online in self._pairs(name):
                own.copy_(online)
            for buffer, current in zip(self[name].buffers(), module.buffers(), strict=True):
                buffer.copy_(current)
        self.initialized.fill_(True)

    def before_training(self) -> None:
        """Initialize the copies if neither this nor a forward pass has done so, or a checkpoint holds them."""
        if not self.initialized:
            self.initialize()

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the copies to momentum * copy + (1 - momentum) * module; the first update copies the modules.

        momentum: in [0, 1]; see `cosine_momentum`.
        """
        if not self.initialized:
            self.initialize()
            return
        for name, module in self.online.items():
            for own, online in self._pairs(name):
                own.lerp_(online, 1 - momentum)
            if self.buffer_update == "keep":
                continue
            for buffer, current in zip(self[name].buffers(), module.buffers(), strict=True):
                if self.buffer_update == "average" and buffer.is_floating_point():
                    buffer.lerp_(current, 1 - momentum)
                else:
                    buffer.copy_(current)

    @contextmanager
    def momentum_forward(self) -> Iterator[None]:
        """Compute without gradients, in the mode given by `train_mode`, initializing the copies if needed.

        Forward passes before the first update see the current weights of the modules.
        """
        self.before_training()
        for name, module in self.online.items():
            online = dict(module.named_modules())
            for part, own in self[name].named_modules():  # one by one: frozen parts evaluate while the others train
                own.training = self.train_mode and online[part].training
        try:
            with torch.no_grad():
                yield
        finally:
            for name in self.online:
                self[name].eval()

    def _pairs(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the weights of a copy, each with that of its module, which may have LoRA."""
        online = dict(merged_parameters(self.online[name]))
        yield from ((weight, online[of]) for of, weight in self[name].named_parameters())

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Stay in evaluation mode; `momentum_forward` sets the mode of a forward pass."""
        return super().train(False)


def cosine_momentum(fraction: float, base: float = 0.996) -> float:
    """Return a momentum that rises from `base` to 1 along a cosine (BYOL, section 3.2).

    fraction: of the training that is done, from 0 to 1.
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(max(fraction, 0.0), 1.0)) + 1) / 2


class FeatureQueue(nn.Module):
    """The newest features of all processes, as further candidates of a contrastive loss (MoCo, section 3.1).

    A ring buffer in the state dict: a run that goes on has the queue that it would have had. It begins empty, not with
    random features. All processes hold the same queue.
    """

    buffer: Tensor
    buffer_labels: Tensor
    enqueued: Tensor

    def __init__(self, size: int, dim: int):
        """size: features that are kept; need not be a multiple of the batch size."""
        super().__init__()
        if size < 1:
            raise UserError(f"A feature queue keeps at least 1 feature, not {size}.")
        self.register_buffer("buffer", torch.zeros(size, dim))
        self.register_buffer("buffer_labels", torch.full((size,), NO_LABEL, dtype=torch.float64))
        self.register_buffer("enqueued", torch.tensor(0))

    @property
    def size(self) -> int:
        return len(self.buffer)

    def __len__(self) -> int:
        """Return the number of features in the queue, at most `size`."""
        return min(int(self.enqueued), self.size)

    @property
    def features(self) -> Float[Tensor, "kept dim"]:
        """A copy of the features, in no particular order."""
        return self.buffer[: len(self)].clone()

    @property
    def labels(self) -> Float[Tensor, " kept"]:
        """The labels of the features; equal labels are positives of each other, `NO_LABEL` is a positive of none."""
        return self.buffer_labels[: len(self)].clone()

    @torch.no_grad()
    def enqueue(
        self,
        features: Float[Tensor, "batch dim"],
        labels: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Enqueue the features of all ranks and dequeue the oldest ones.

        labels: of examples or of their captions. Every rank has the same number of features.
        """
        if labels is None:
            labels = torch.full((len(features),), NO_LABEL, device=features.device)
        features, labels = all_gather(features.detach()), all_gather(labels.to(self.buffer_labels))
        # If a batch exceeds the queue, keep its newest features.
        count, skipped = len(features), max(len(features) - self.size, 0)
        # Ring buffer: the oldest features are overwritten.
        slots = (self.enqueued + torch.arange(skipped, count, device=self.buffer.device)) % self.size
        self.buffer.index_copy_(0, slots, features[skipped:].to(self.buffer))
        self.buffer_labels.index_copy_(0, slots, labels[skipped:])
        self.enqueued += count

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.buffer.shape[1]}"
