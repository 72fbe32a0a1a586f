"""Contrastive losses with several positives or soft targets per example.

Logits are computed in blocks of rows and recomputed in the backward pass, so that the rows x candidates matrix is never
held. Rows are this process's, and losses means over the rows of all processes (`objectives.reduction`). Computed at
least in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather, all_gather_with_grad, rank, world_size
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.reduction import global_mean

BLOCK = 4_194_304  # logits in memory at once: 16 MiB of float32


def supcon_loss(
    features: Float[Tensor, "batch dim"],
    labels: Float[Tensor, " batch"] | Int[Tensor, " batch"],
    logit_scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Return the supervised contrastive loss L_out (Khosla et al. 2020, equation 2), the mean over anchors.

    Every row is an anchor; all other rows, of all processes, are candidates, and those with its label its positives.
    Anchors without a positive do not count. features: L2-normalized, of all views of the examples. logit_scale: inverse
    temperature.
    """
    every_label, first = all_gather(labels.double()), rank() * len(features)

    def targets(rows: slice) -> Tensor:
        return _same(labels[rows], every_label)

    return _cross_entropy(features, all_gather_with_grad(features), logit_scale, targets, exclude=first)


def multi_positive_info_nce(
    a: Float[Tensor, "batch dim"],
    b: Float[Tensor, "batch dim"],
    labels: Float[Tensor, " batch"] | Int[Tensor, " batch"],
    logit_scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Return symmetric InfoNCE in which all candidates with a row's label are its positives.

    The logarithm is inside the mean over positives (L_out; UniCL, Yang et al. 2022, equations 3 and 4). With labels
    that all differ it is InfoNCE.
    """
    return info_nce(a, b, torch.as_tensor(logit_scale, dtype=a.dtype, device=a.device), 0.0, labels.double())


def multi_positive_cross_entropy(
    queries: Float[Tensor, "rows dim"],
    keys: Float[Tensor, "candidates dim"],
    labels: Float[Tensor, " rows"] | Int[Tensor, " rows"],
    key_labels: Float[Tensor, " candidates"] | Int[Tensor, " candidates"],
    logit_scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Return InfoNCE of queries against keys in one direction; keys with a query's label are its positives.

    keys: all candidates, such as momentum features of the batch followed by those of a `FeatureQueue` (MoCo, equation 1
    with a single positive). Queries without a positive do not count.
    """
    return _cross_entropy(queries, keys, logit_scale, lambda rows: _same(labels[rows], key_labels))


def entity_targets(
    rows: Float[Tensor, "rows entities"], candidates: Float[Tensor, "rows entities"], scale: float = 1.0
) -> Float[Tensor, "rows candidates"]:
    """Return the target distribution of each row over the candidates of all processes, by entities of both.

    The softmax of scaled, raw inner products (MedCLIP, Wang et al. 2022, released code); one-hot, at its own pair, for
    a row of which nothing is known. Entities are -1 (absent), 0 (unknown) or 1 (present).
    """
    every = all_gather(candidates)
    one_hot = F.one_hot(rank() * len(rows) + torch.arange(len(rows), device=rows.device), len(every)).to(rows)
    return torch.where(rows.any(1, keepdim=True), (scale * rows @ every.T).softmax(1), one_hot)


def soft_target_contrastive(
    a: Float[Tensor, "a_rows dim"],
    b: Float[Tensor, "b_rows dim"],
    targets: Float[Tensor, "a_rows b_candidates"],
    logit_scale: Float[Tensor, ""] | float,
    targets_b_to_a: Float[Tensor, "b_rows a_candidates"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of the cross-entropies from a to b and from b to a against target distributions.

    targets: of this process's rows of `a` over the rows of `b` of all processes; nonnegative, normalized per row here;
    a row of zeros does not count. They may be the weights of a bipartite graph, such as of images and captions that
    describe several of them; `a` and `b` then may differ in their number of rows. targets_b_to_a: likewise for `b`; by
    default `targets` transposed, for one process only. Identity matrices give InfoNCE. Raises UserError where several
    processes lack `targets_b_to_a`.
    """
    if targets_b_to_a is None:
        if world_size() > 1:
            raise UserError("With several processes, give soft targets for both directions (targets_b_to_a).")
        targets_b_to_a = targets.T
    a_to_b = soft_target_cross_entropy(a, all_gather_with_grad(b), targets, logit_scale)
    return (a_to_b + soft_target_cross_entropy(b, all_gather_with_grad(a), targets_b_to_a, logit_scale)) / 2


def semantic_matching_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    image_entities: Float[Tensor, "batch entities"],
    text_entities: Float[Tensor, "batch entities"],
    logit_scale: Float[Tensor, ""],
    target_scale: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the semantic matching loss of MedCLIP: `soft_target_contrastive` with `entity_targets` of both directions.

    Without entities, it is InfoNCE of the pairs. target_scale: of the entities' inner products.
    """
    if not image_entities.shape[1]:
        return info_nce(image, text, logit_scale)
    of_image, of_text = image_entities.detach(), text_entities.detach()  # gradient caching looks for gradients
    to_text, to_image = entity_targets(of_image, of_text, target_scale), entity_targets(of_text, of_image, target_scale)
    return soft_target_contrastive(image, text, to_text, logit_scale, to_image)


def soft_target_cross_entropy(
    queries: Float[Tensor, "rows dim"],
    keys: Float[Tensor, "candidates dim"],
    targets: Float[Tensor, "rows candidates"],
    logit_scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of queries with keys against target distributions, as in `soft_target_contrastive`.

    keys: all candidates, such as momentum features of the batch followed by those of a queue (ALBEF, equation 7 with
    `objectives.distillation.momentum_soft_targets`).
    """
    return _cross_entropy(queries, keys, logit_scale, lambda rows: targets[rows])


def masked_info_nce(
    a: Float[Tensor, "batch dim"],
    b: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""] | float,
    valid: Bool[Tensor, " batch"],
    masked: Bool[Tensor, "batch candidates"],
    masked_b_to_a: Bool[Tensor, "batch candidates"],
) -> Float[Tensor, ""]:
    """Return symmetric InfoNCE of rows without some of their negatives, such as neighbors in a graph (UKnow).

    valid: rows that are a pair; the others are neither queries nor candidates. masked: candidates of `b`, of all
    processes, that are no negatives of a row of `a`; its own pair stays whatever this says. masked_b_to_a: likewise
    for `b`. With all rows valid and nothing masked it is InfoNCE. 0 without a valid row in any process.
    """
    every, index = all_gather(valid.float()).bool(), torch.arange(len(a), device=a.device)
    pair = F.one_hot(rank() * len(a) + index, len(every)).bool()

    def one_way(queries: Tensor, keys: Tensor, masked: Tensor) -> Tensor:
        left_out = (masked | ~every) & ~pair
        targets = (pair & valid[:, None]).to(queries)
        every_key = all_gather_with_grad(keys)
        return _cross_entropy(
            queries, every_key, logit_scale, lambda rows: targets[rows], masked=lambda rows: left_out[rows]
        )

    return (one_way(a, b, masked) + one_way(b, a, masked_b_to_a)) / 2


def mil_nce(
    a: Float[Tensor, "batch dim"],
    b: Float[Tensor, "batch positives dim"],
    logit_scale: Float[Tensor, ""] | float,
    valid: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return MIL-NCE (Miech et al. 2020, equation 1): the positives of a row are a bag, of which any may match.

    -log(sum of exp over the row's own bag / sum of exp over all bags from the row and over all rows from its bag), as
    in the released code of VATT, where a row's own bag stands once in each of the two sums. a, b: L2-normalized.
    logit_scale: inverse temperature. valid: False for rows that lack a or b; they are neither rows nor candidates.
    """
    with torch.autocast(a.device.type, enabled=False):
        dtype = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(dtype) * logit_scale, b.to(dtype)
        valid = a.new_ones(len(a), dtype=torch.bool) if valid is None else valid
        every_a, every_b = all_gather_with_grad(a), all_gather_with_grad(b)
        missing = ~all_gather(valid.to(dtype)).bool()
        a_to_b = torch.einsum("id,jpd->ijp", a, every_b).masked_fill(missing[:, None], -torch.inf).flatten(1)
        b_to_a = torch.einsum("jd,ipd->ijp", every_a, b).masked_fill(missing[:, None], -torch.inf).flatten(1)
        positive = torch.einsum("id,ipd->ip", a, b).logsumexp(1)
        # Rows that are left out would have no candidate, and a gradient that is not a number.
        logits = torch.cat([a_to_b, b_to_a], 1)[valid]
        return global_mean((logits.logsumexp(1) - positive[valid]).sum(), valid.sum())


def _same(labels: Tensor, candidates: Tensor) -> Tensor:
    """Return 1 where a candidate has a row's label, else 0."""
    return (labels.double()[:, None] == candidates.double()).float()


def _cross_entropy(
    queries: Tensor,
    keys: Tensor,
    logit_scale: Tensor | float,
    targets: Callable[[slice], Tensor],
    exclude: int | None = None,
    masked: Callable[[slice], Tensor] | None = None,
) -> Tensor:
    """Return the mean cross-entropy over rows with targets.

    targets: of a slice of rows; normalized here. exclude: candidate exclude + i is excluded for row i (itself). masked:
    of a slice of rows, True for candidates that are excluded, of which some have to be left.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)

    def block_loss(queries: Tensor, keys: Tensor, scale: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        # Block of rows; recomputed in the backward pass by checkpointing.
        logits, target = (queries[start:stop] * scale) @ keys.T, targets(slice(start, stop)).to(dtype)
        if exclude is not None:
            index = torch.arange(stop - start, device=logits.device)
            logits = logits.index_put((index, index + exclude + start), logits.new_tensor(-torch.inf))
            target = target.index_put((index, index + exclude + start), target.new_tensor(0.0))
        if masked is not None:
            logits = logits.masked_fill(masked(slice(start, stop)), -torch.inf)
        mass = target.sum(1)
        # sum_j t_j (logsumexp - logit_j) / sum_j t_j, in which 0 times a logit of -inf is 0.
        matching = torch.where(target > 0, target * logits, 0.0).sum(1) / torch.where(mass > 0, mass, 1.0)
        losses = torch.where(mass > 0, logits.logsumexp(1) - matching, 0.0)
        return losses.sum(), (mass > 0).sum()

    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = queries.to(dtype), keys.to(dtype)
        scale = torch.as_tensor(logit_scale, dtype=dtype, device=queries.device)
        size = max(1, BLOCK // max(len(keys), 1))
        blocks = [
            checkpoint(
                block_loss, queries, keys, scale, start, min(start + size, len(queries)),
                use_reentrant=False, preserve_rng_state=False,
            )
            for start in range(0, len(queries), size)
        ]  # fmt: skip
        return global_mean(torch.stack([loss for loss, _ in blocks]).sum(), torch.stack([n for _, n in blocks]).sum())
