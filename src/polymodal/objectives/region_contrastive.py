"""Contrast of regions with their texts over all regions of a batch, without negatives that say the same."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polymodal.layers.distributed import all_gather, all_gather_with_grad, rank
from polymodal.objectives.reduction import global_mean


def region_text_contrastive(
    regions: Float[Tensor, "regions dim"],
    texts: Float[Tensor, "regions dim"],
    logit_scale: Float[Tensor, ""],
    mask: Bool[Tensor, " regions"],
    text_threshold: float | None = 0.9,
) -> Float[Tensor, ""]:
    """Return symmetric InfoNCE of regions and texts, the mean over regions (CLOC, Chen et al. 2024, equation 2).

    regions, texts: L2-normalized. mask: False for padding, which is no candidate either. text_threshold: a region is no
    negative of a text whose cosine with its own is above it, such as one of an equal phrase; None: all others are. The
    cosines have no gradient. With several processes, candidates are of all of them. Holds regions x candidates logits.
    """
    with torch.autocast(regions.device.type, enabled=False):
        regions, texts = regions.float(), texts.float()
        every_region, every_text = all_gather_with_grad(regions), all_gather_with_grad(texts)
        positive = torch.arange(len(regions), device=regions.device) + rank() * len(regions)
        ignored = ~all_gather(mask.to(regions.dtype)).bool()[None, :].expand(len(regions), -1)
        if text_threshold is not None:
            ignored = ignored | (texts.detach() @ every_text.detach().T > text_threshold)
        ignored = ignored.scatter(1, positive[:, None], False)  # the positive stays
        to_text = (logit_scale * regions @ every_text.T).masked_fill(ignored, -torch.inf)
        to_region = (logit_scale * texts @ every_region.T).masked_fill(ignored, -torch.inf)
        matching = (to_text.log_softmax(1) + to_region.log_softmax(1)).gather(1, positive[:, None])[:, 0] / 2
        return global_mean(-(matching.masked_fill(~mask, 0.0)).sum(), mask.sum())
