"""What an image is generated from, a class or words or both, as one vector."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.encoders.text import TextEncoderConfig
from polymodal.types import Batch


class ConditionEncoder(nn.Module):
    """The sum of an embedded label and a projected text; a learned vector stands for what is not given or shown."""

    def __init__(self, width: int, text: TextEncoderConfig, num_classes: int, vocab_size: int):
        """num_classes, vocab_size: 0 where there are no labels or no texts."""
        super().__init__()
        given = [name for name, count in (("label", num_classes), ("text", vocab_size)) if count]
        self.nothing = nn.ParameterDict({name: nn.Parameter(torch.randn(width)) for name in given})
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.text_encoder = text.build(vocab_size) if vocab_size else None
        self.projection = nn.Linear(text.width, width) if vocab_size else None

    def forward(self, batch: Batch) -> Float[Tensor, "*batch width"]:
        """batch: "label" (numbers) and "text" (Tokens), with "label_shown" and "text_shown" where some are hidden.

        Without either, the vector of nothing alone, which has no batch axis.
        """
        parts = list(torch.broadcast_tensors(*(self._part(name, batch) for name in self.nothing)))
        return torch.stack(parts).sum(0)

    def _part(self, name: str, batch: Batch) -> Tensor:
        nothing = self.nothing[name]
        if name not in batch:
            return nothing
        if name == "label":
            assert self.label is not None
            part = self.label(batch["label"])
        else:
            assert self.text_encoder is not None
            assert self.projection is not None
            part = self.projection(self.text_encoder.pooled(batch["text"]))
        shown = batch.get(f"{name}_shown")
        return part if shown is None else torch.where(shown[:, None], part, nothing)
