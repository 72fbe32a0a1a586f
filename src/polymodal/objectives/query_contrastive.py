"""Contrastive losses of learned queries: by the most similar query of an image (BLIP-2, Li et al. 2023, section 3.1),
and attribute by attribute, with a query for each (Abn-BLIP).

With several processes, each passes its own rows of the batch and gets their mean loss against the rows of all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather_with_grad, rank

LABEL_SMOOTHING = 0.1  # of BLIP-2's released code


def max_query_similarity(
    image: Float[Tensor, "images queries dim"], text: Float[Tensor, "texts dim"]
) -> Float[Tensor, "images texts"]:
    """Return the similarity of each text with the query of an image that is most similar to it."""
    return torch.einsum("iqd,td->itq", image, text).amax(2)


def query_contrastive_loss(
    image: Float[Tensor, "batch queries dim"],
    text: Float[Tensor, "batch dim"],
    temperature: Float[Tensor, ""],
    label_smoothing: float = LABEL_SMOOTHING,
    labels: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return symmetric cross-entropy of images and texts, an image being similar by its best query.

    image, text: L2-normalized. temperature: divides the logits. labels: rows of equal labels, such as those with equal
    reports, share the target equally.
    """
    count = len(image)
    every_image, every_text = all_gather_with_grad(image), all_gather_with_grad(text)
    target = torch.eye(len(every_text), device=text.device)[rank() * count :][:count]
    if labels is not None:
        equal = labels[:, None] == all_gather_with_grad(labels)
        target = equal.to(text) / equal.sum(1, keepdim=True)
    logits = max_query_similarity(image, every_text), max_query_similarity(every_image, text).T
    both = [F.cross_entropy(one / temperature, target, label_smoothing=label_smoothing) for one in logits]
    return (both[0] + both[1]) / 2


def presence_targets(
    presence: Float[Tensor, "batch attributes"], every: Float[Tensor, "candidates attributes"], temperature: float = 1.0
) -> Float[Tensor, "attributes batch candidates"]:
    """Return for each attribute the softmax over candidates of the products of both probabilities of presence.

    temperature: divides the products, which are in [0, 1]. At 1 targets are almost uniform (no candidate has more than
    e times as much as another), and where a row has probability 0, they are uniform at any temperature.
    """
    return (torch.einsum("ba,ca->abc", presence, every) / temperature).softmax(2)


def attribute_contrastive_loss(
    image: Float[Tensor, "batch attributes dim"],
    text: Float[Tensor, "batch attributes dim"],
    temperature: Float[Tensor, ""],
    presence: Float[Tensor, "batch attributes"],
    target_temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the mean over attributes of the symmetric cross-entropy of the batch's images with its texts.

    image, text: L2-normalized; attribute k of an image is compared with attribute k of all texts, and with no other.
    presence: probability of each attribute, which the targets are made of (`presence_targets`), with gradient unless it
    is detached. Its minimum has similarities like the targets, whose diagonal is no larger than what else is present:
    at a target temperature of 1 it is almost log(candidates), and a pair that is alike alone has a larger loss.
    """
    every_image, every_text = all_gather_with_grad(image), all_gather_with_grad(text)
    target = presence_targets(presence, all_gather_with_grad(presence), target_temperature)
    # S_k = z[:, k] w[:, k]^T / tau; both directions have the same target.
    losses = [
        -(target * (torch.einsum("bkd,ckd->kbc", rows, others) / temperature).log_softmax(2)).sum()
        for rows, others in ((image, every_text), (text, every_image))
    ]
    return (losses[0] + losses[1]) / 2 / presence.numel()
