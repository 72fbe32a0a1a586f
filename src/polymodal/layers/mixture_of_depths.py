"""Blocks that only some tokens go through (mixture of depths, Raposo et al. 2024; as MoMa has it, section 2.3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.layers.decoder import DecoderBlock, ExpertAssignment, LayerKVCache
from polymodal.layers.expert_choice import AuxiliaryRouter


class MixtureOfDepths(nn.Module):
    """A block for the tokens of the whole batch that score highest; all others pass it by.

    y = x + sigmoid(score) * (block(x) - x) for those that go in, among which alone attention looks; the others are left
    out of the computation. A choice among a batch sees what comes later in a text: what is written or measured word by
    word goes by an auxiliary router (`use_predictor`), which is trained afterwards.
    """

    def __init__(self, block: DecoderBlock, width: int, capacity: float):
        """capacity: fraction of all tokens that go in."""
        super().__init__()
        self.block, self.capacity = block, capacity
        self.router = nn.Linear(width, 1, bias=False)
        self.auxiliary = AuxiliaryRouter(width, 1)
        self.auxiliary_loss: Tensor | None = None
        self.use_predictor: Tensor
        self.register_buffer("use_predictor", torch.tensor(False))

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Bool[Tensor, "batch 1 length keys"],
        routes: ExpertAssignment | None,
        kv_cache: LayerKVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """routes: the tokens that there are, by modality, for padding never goes in; without any, all."""
        score = self.router(x)
        chosen = self._chosen(x, score, routes)
        if kv_cache is not None:
            return self._incremental(x, score, chosen, angles, visible, routes, kv_cache)
        return self._together(x, score, chosen, angles, visible, routes)

    def _chosen(self, x: Tensor, score: Tensor, routes: ExpertAssignment | None) -> Bool[Tensor, "batch length"]:
        flat, there = x.flatten(0, 1), torch.arange(x.shape[0] * x.shape[1], device=x.device)
        if routes is not None:
            there = torch.cat(list(routes))
        chosen = torch.zeros(len(flat), dtype=torch.bool, device=x.device)
        if self.use_predictor and not self.training:
            chosen[there] = self.auxiliary(flat[there])[:, 0] > 0
        else:
            best = score.flatten()[there].topk(math.ceil(self.capacity * len(there))).indices
            chosen[there[best]] = True
            self.auxiliary_loss = self.auxiliary.loss(flat[there], chosen[there, None])
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
        """The chosen tokens of each row, side by side, through the block, and back to their places."""
        most = int(chosen.sum(1).max())
        if most == 0:
            return x
        places = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        real = chosen.gather(1, places)
        some, weight = _at(x, places), _at(score, places).sigmoid()
        turned = tuple(angle.gather(2, places[:, None, :, None].expand(-1, -1, -1, angle.shape[3])) for angle in angles)
        seen = visible.gather(2, places[:, None, :, None].expand(-1, -1, -1, visible.shape[3]))
        seen = seen.gather(3, places[:, None, None, :].expand(-1, -1, most, -1)) & real[:, None, None, :]
        seen = seen | torch.eye(most, dtype=torch.bool, device=x.device)  # what is not real must see something
        done = self.block(some, turned, seen, _routes_of(routes, places, real, chosen.shape[1]))
        whole = places + chosen.shape[1] * torch.arange(len(x), device=x.device)[:, None]
        return x.flatten(0, 1).index_copy(0, whole[real], (some + weight * (done - some))[real].to(x.dtype)).view_as(x)

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
        """All tokens through the block, but what was not chosen is neither seen nor changed."""
        until = kv_cache.length + x.shape[1]
        kv_cache.key_mask[:, kv_cache.length : until] = chosen
        done = self.block(x, angles, visible & kv_cache.key_mask[:, None, None, :until], routes, kv_cache)
        return torch.where(chosen[..., None], x + score.sigmoid() * (done - x), x)


def _at(values: Float[Tensor, "batch length channels"], places: Tensor) -> Float[Tensor, "batch some channels"]:
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def _routes_of(routes: ExpertAssignment | None, places: Tensor, real: Tensor, length: int) -> ExpertAssignment | None:
    """Of the tokens at some places of each row, which go to which experts."""
    if routes is None:
        return None
    kind = torch.full((len(places) * length,), -1, device=places.device)
    for number, tokens in enumerate(routes):
        kind[tokens] = number
    found = kind.view(len(places), length).gather(1, places).masked_fill(~real, -1).flatten()
    return [(found == number).nonzero().squeeze(1) for number in range(len(routes))]
