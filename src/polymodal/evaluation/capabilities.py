"""Capabilities that several tasks or commands require of a method; one of a single task stands in its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polymodal.types import Batch


@runtime_checkable
class CanEmbed(Protocol):
    """Capability: one L2-normalized vector per modality, comparable by inner product."""

    def embed(self, batch: Batch) -> dict[str, Tensor]: ...


@runtime_checkable
class CanGenerateText(Protocol):
    """Capability: the continuation of each prompt of a batch, as token ids."""

    def generate_text(
        self, batch: Batch, decoding: Any = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Generate token ids. decoding: a `layers.decoding.Decoding`; greedy by default."""
        ...


@runtime_checkable
class CanClassifyAnswers(Protocol):
    """Capability: logits of the processor's `answers` to one question about each example."""

    def answer_logits(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class CanScorePairs(Protocol):
    """Capability: a logit for every item and every text of a batch that the two belong together: (items, texts)."""

    def itm_logits(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class HasLikelihood(Protocol):
    """Capability: the log-probability of each answer of a batch."""

    def log_likelihood(self, batch: Batch) -> Tensor: ...
