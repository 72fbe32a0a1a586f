"""Losses of improved CLIP ("CLIP-rocket"), between a global and several local views of image and caption."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.layers.distributed import all_gather_with_grad
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.non_contrastive import barlow_twins, negative_cosine_similarity, sinkhorn, swav_loss

Views = Sequence[Float[Tensor, "batch dim"]]  # of one modality; those of added losses begin with the global view
BARLIP_SCALE = 0.025  # barlip_scale_loss of the released code


def cl2l_loss(
    z: tuple[Tensor, Tensor], h: tuple[Views, Views], scale: Tensor, local_scale: Tensor, label_smoothing: float
) -> Float[Tensor, ""]:
    """The CL2L loss, (L_global + K L_local) / (1 + K); L_local is the mean over all pairs of local views.

    z: global embeddings of images and captions. h: local ones, K views of each. All are L2-normalized. label_smoothing:
    of the local terms only.
    """
    loss, views = info_nce(*z, scale), len(h[0])
    if views:
        pairs = itertools.product(*h)
        local = torch.stack([info_nce(image, text, local_scale, label_smoothing) for image, text in pairs]).mean()
        loss = (loss + views * local) / (1 + views)
    return loss


def siamlip_loss(p: tuple[Views, Views], v: tuple[Views, Views]) -> Float[Tensor, ""]:
    """The prediction p of one modality against v of the other, which gets no gradient (SiamLIP, BYOLIP)."""
    directions = ((p[0], v[1]), (p[1], v[0]))
    pairs = [(ours[i], theirs[j]) for ours, theirs in directions for i, j in pairs_of_views(len(ours))]
    return torch.stack([negative_cosine_similarity(ours, theirs) for ours, theirs in pairs]).mean()


def barlip_loss(v: tuple[Views, Views]) -> Float[Tensor, ""]:
    """The cross-correlation of image and text dimensions against the identity (BarLIP)."""
    return BARLIP_SCALE * torch.stack([barlow_twins(v[0][i], v[1][j]) for i, j in pairs_of_views(len(v[0]))]).mean()


def swalip_loss(h: tuple[Views, Views], local_scale: Tensor) -> Float[Tensor, ""]:
    """Each pair of local views predicts the balanced assignment of the other views of the same examples (SwALIP).

    An assignment is balanced over the whole batch, so that every process looks at all of it.
    """
    images, texts = ([all_gather_with_grad(view) for view in views] for views in h)
    count, terms = len(images), []
    for i, j in itertools.product(range(count), repeat=2):
        target = (images[(i + 1) % count] @ texts[(j + 1) % count].T).detach()  # of other views, swapped if K is 2
        logits = local_scale * images[i] @ texts[j].T
        terms.append((swav_loss(logits, sinkhorn(target)) + swav_loss(logits.T, sinkhorn(target.T))) / 2)
    return torch.stack(terms).mean()


def pairs_of_views(count: int) -> list[tuple[int, int]]:
    """Global with global, and all local with all local."""
    return [(0, 0), *((i, j) for i in range(1, count) for j in range(1, count))]
