"""Condition of image generation: class label, text, or both, as one vector."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.conditions import ConditionBatch
from polymodal.encoders.text import TextEncoderConfig
from polymodal.types import Batch


class ConditionEncoder(nn.Module):
    """Sum of a label embedding and a projected text; a learned null vector replaces what is absent or dropped.

    The null vectors make classifier-free guidance (CFG) possible. With neither labels nor texts, the condition is 0.
    """

    zero: Tensor

    def __init__(self, width: int, text: TextEncoderConfig, num_classes: int, vocab_size: int):
        """Build the encoder. num_classes, vocab_size: 0 where there are no labels or no texts."""
        super().__init__()
        self.register_buffer("zero", torch.zeros(width), persistent=False)
        names = [name for name, count in (("label", num_classes), ("text", vocab_size)) if count]
        self.nothing = nn.ParameterDict({name: nn.Parameter(torch.randn(width)) for name in names})
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.text_encoder = text.build(vocab_size) if vocab_size else None
        self.projection = nn.Linear(text.width, width) if vocab_size else None

    def forward(self, batch: ConditionBatch) -> Float[Tensor, "*batch width"]:
        """Encode the conditions of a batch.

        Without any, the result is the sum of the null vectors, which has no batch axis.
        """
        if not self.nothing:
            return self.zero
        embeddings = list(torch.broadcast_tensors(*(self._part(name, batch) for name in self.nothing)))
        return torch.stack(embeddings).sum(0)

    def _part(self, name: str, batch: Batch) -> Tensor:
        null = self.nothing[name]
        if name not in batch:
            return null
        if name == "label":
            assert self.label is not None
            embedding = self.label(batch["label"])
        else:
            assert self.text_encoder is not None
            assert self.projection is not None
            embedding = self.projection(self.text_encoder.pooled(batch["text"]))
        present = batch.get(f"{name}_shown")
        return embedding if present is None else torch.where(present[:, None], embedding, null)
