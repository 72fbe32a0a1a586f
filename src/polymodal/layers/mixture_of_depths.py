"""Mixture of depths (MoD): blocks that a fraction of tokens goes through (Raposo et al. 2024; MoMa, section 2.3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polymodal.layers.decoder import Decoder, DecoderBlock, ExpertAssignment, LayerKVCache
from polymodal.layers.expert_choice import BatchRouter


class MixtureOfDepths(BatchRouter):
    """A block applied to the top-scoring tokens of the batch; the others skip it by the residual connection.

    y = x + sigmoid(score) * (block(x) - x) for the selected tokens, which attend to each other alone; the others are
    not computed.
    """

    def __init__(self, block: DecoderBlock, width: int, capacity: float):
        """Wrap a block. capacity: fraction of all tokens that go through it."""
        super().__init__(width, 1)
        self.block, self.capacity = block, capacity

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Bool[Tensor, "batch 1 length keys"],
        routes: ExpertAssignment | None,
        kv_cache: LayerKVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Apply the block. routes: indices of the real tokens by modality, as padding is never selected; None: all are
        real."""
        score = self.router(x)
        chosen = self._chosen(x, score, routes)
        if kv_cache is not None:
            return self._incremental(x, score, chosen, angles, visible, routes, kv_cache)
        return self._together(x, score, chosen, angles, visible, routes)

    def _chosen(self, x: Tensor, score: Tensor, routes: ExpertAssignment | None) -> Bool[Tensor, "batch length"]:
        flat, real = x.flatten(0, 1), torch.arange(x.shape[0] * x.shape[1], device=x.device)
        if routes is not None:
            real = torch.cat(list(routes))
        chosen = torch.zeros(len(flat), dtype=torch.bool, device=x.device)
        self.auxiliary_loss = None
        if self.use_predictor and not self.training:
            chosen[real] = self.auxiliary(flat[real])[:, 0] > 0
        else:
            # Router: top-k over all real tokens of the batch, k = ceil(capacity * tokens).
            best = score.flatten()[real].topk(math.ceil(self.capacity * len(real))).indices
            chosen[real[best]] = True
            self.auxiliary_loss = self.auxiliary.loss(flat[real], chosen[real, None])
        return chosen.view(x.shape[:2])

    def _together(
        self,
        x: Tensor,
        score: Tensor,
        chosen: Tensor,
        angles: tuple[Tensor, Tensor],
        visible: Tensor,
        routes: ExpertAssignment | None,
    ) -> Tensor:
        """Gather the selected tokens of each row, apply the block, and scatter them back."""
        length = int(chosen.sum(1).max())
        if length == 0:
            return x
        indices = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
        real = chosen.gather(1, indices)
        selected, weight = _at(x, indices), _at(score, indices).sigmoid()
        rotation = tuple(
            angle.gather(2, indices[:, None, :, None].expand(-1, -1, -1, angle.shape[3])) for angle in angles
        )
        allowed = visible.gather(2, indices[:, None, :, None].expand(-1, -1, -1, visible.shape[3]))
        allowed = allowed.gather(3, indices[:, None, None, :].expand(-1, -1, length, -1)) & real[:, None, None, :]
        # A padding query attends to itself, else its softmax is NaN.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=x.device)
        output = self.block(selected, rotation, allowed, _routes_of(routes, indices, real, chosen.shape[1]))
        flat_indices = indices + chosen.shape[1] * torch.arange(len(x), device=x.device)[:, None]
        # x + sigmoid(r) * (block(x) - x): the router gets a gradient through its weight.
        mixed = selected + weight * (output - selected)
        return x.flatten(0, 1).index_copy(0, flat_indices[real], mixed[real].to(x.dtype)).view_as(x)

    def _incremental(
        self,
        x: Tensor,
        score: Tensor,
        chosen: Tensor,
        angles: tuple[Tensor, Tensor],
        visible: Tensor,
        routes: ExpertAssignment | None,
        kv_cache: LayerKVCache,
    ) -> Tensor:
        """Apply the block to all tokens with a KV cache; unselected tokens are neither attended to nor changed."""
        until = kv_cache.length + x.shape[1]
        kv_cache.key_mask[:, kv_cache.length : until] = chosen
        output = self.block(x, angles, visible & kv_cache.key_mask[:, None, None, :until], routes, kv_cache)
        return torch.where(chosen[..., None], x + score.sigmoid() * (output - x), x)


def route_alternate_blocks(decoder: Decoder, capacity: float) -> None:
    """Wrap every other block of a decoder, beginning with the first (MoMa, section 2.3)."""
    width = decoder.norm_post.weight.numel()
    for index in range(0, len(decoder.blocks), 2):
        block = decoder.blocks[index]
        assert isinstance(block, DecoderBlock)
        decoder.blocks[index] = MixtureOfDepths(block, width, capacity)


def _at(values: Float[Tensor, "batch length channels"], indices: Tensor) -> Float[Tensor, "batch some channels"]:
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[2]))


def _routes_of(routes: ExpertAssignment | None, indices: Tensor, real: Tensor, length: int) -> ExpertAssignment | None:
    """Return the expert assignment of the gathered tokens."""
    if routes is None:
        return None
    modality = torch.full((len(indices) * length,), -1, device=indices.device)
    for index, tokens in enumerate(routes):
        modality[tokens] = index
    gathered = modality.view(len(indices), length).gather(1, indices).masked_fill(~real, -1).flatten()
    return [(gathered == index).nonzero().squeeze(1) for index in range(len(routes))]
