"""Image-text matching (ITM): hard negatives from the batch (ALBEF, Li et al. 2021, section 3.2), or groups.

A pair is an example's index in each of two modalities, named image and text here whatever they are. The fusion of a
pair is the method's own:

    pairs = sample_itm_pairs(logit_scale * image @ text.T, labels)
    logits = itm_head(fuse(tokens[pairs.text], patches[pairs.image])[:, 0])
    loss = itm_loss(logits, pairs)

A group is a positive pair among random negatives of one text, or of one image (Unicoder-VL, Li et al. 2020; M3P):

    groups = sample_itm_groups(query, positive_mask(len(query), len(images), query, labels), uniform)
    loss = itm_group_loss(scores(images[groups.candidates]), groups)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather, rank, world_size
from polymodal.objectives.reduction import global_mean

MIN_WEIGHT = 1e-4  # added to every probability (released code), so that a row whose softmax is one-hot has negatives


@dataclass(frozen=True)
class ITMPairs:
    """The pairs that are classified: all positives, then all images' with a negative text, then all texts' with a
    negative image.

    image, text: indices of candidates: of this process's batch, or of the batch of all processes. labels: 1 for
    positives, 0 for negatives. valid: False for a negative that is none, because all candidates are positives; such a
    pair repeats the positive one and counts nothing.
    """

    image: Int[Tensor, " pairs"]
    text: Int[Tensor, " pairs"]
    labels: Int[Tensor, " pairs"]
    valid: Bool[Tensor, " pairs"]


def sample_itm_pairs(
    similarity: Float[Tensor, "batch candidates"],
    labels: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
    text_to_image: Float[Tensor, "batch candidates"] | None = None,
    uniform: Float[Tensor, "batch 2"] | None = None,
) -> ITMPairs:
    """Pair every image with its text, with a hard negative text, and every text with a hard negative image.

    similarity: logits of this process's images (rows) with texts. text_to_image: of its texts (rows) with images; by
    default `similarity` transposed, of this process's batch alone. Where both have the candidates of all processes
    (`layers.processes.gather`), negatives come from all of them, and indices are of their rows together.
    labels: equal for examples that are positives of each other, such as those with equal captions.
    uniform: two random numbers in [0, 1) of each example (`rng.uniform()` in the batch), with which the choice depends
    on nothing else; without, it is torch's.
    """
    count = len(similarity)
    if text_to_image is None:
        if similarity.shape[1] != count:
            raise UserError("Negatives from all processes need the similarities of both directions.")
        text_to_image = similarity.T
    own = torch.arange(count, device=similarity.device)
    if similarity.shape[1] == count * world_size():
        own = own + count * rank()
    positive = positive_mask(count, similarity.shape[1], own, labels)
    columns = (None, None) if uniform is None else uniform.unbind(1)
    text, has_text = sample_hard_negatives(similarity, positive, columns[0])
    image, has_image = sample_hard_negatives(text_to_image, positive, columns[1])
    text, image = torch.where(has_text, text, own), torch.where(has_image, image, own)
    return ITMPairs(
        image=torch.cat([own, own, image]),
        text=torch.cat([own, text, own]),
        labels=(torch.arange(3 * count, device=own.device) < count).long(),
        valid=torch.cat([torch.ones_like(has_text), has_text, has_image]),
    )


def sample_false_images(
    labels: Float[Tensor, " batch"], uniform: Float[Tensor, "batch 2"]
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Give each text a false image with probability 0.5, uniformly from those of other labels (ViLT, METER, MAP).

    labels: equal for examples that are positives of each other. uniform: two random numbers in [0, 1) of each example,
    which decide whether its image is false, and which one it is. Returns the index of each text's image among those of
    all processes, and True where it is false; a text without any negative keeps its own.
    """
    count = len(labels)
    places = torch.arange(count, device=labels.device) + count * rank()
    positive = positive_mask(count, count * world_size(), places, labels)
    same = torch.zeros_like(positive, dtype=torch.float32)
    false, is_there = sample_hard_negatives(same, positive, uniform[:, 1])
    is_false = (uniform[:, 0] < 0.5) & is_there
    return torch.where(is_false, false, places), is_false


def positive_mask(
    rows: int,
    candidates: int,
    own: Int[Tensor, " rows"],
    labels: Float[Tensor, " rows"] | Int[Tensor, " rows"] | None = None,
) -> Bool[Tensor, "rows candidates"]:
    """Return True where a candidate is a positive of a row: the row's own one, at index `own`, or one of equal label.

    labels: of this process's examples; those of all processes are gathered where candidates are.
    """
    if labels is None:
        return own[:, None] == torch.arange(candidates, device=own.device)
    all_labels = labels if candidates == rows else all_gather(labels.double())
    return labels.to(all_labels)[:, None] == all_labels


@torch.no_grad()
def sample_hard_negatives(
    similarity: Float[Tensor, "rows candidates"],
    positive: Bool[Tensor, "rows candidates"],
    uniform: Float[Tensor, " rows"] | None = None,
) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Sample a hard negative for each row, with probability softmax(similarity) over the negatives.

    positive: candidates that are never sampled. uniform: one random number in [0, 1) per row, which alone determines
    the choice; by default torch.multinomial. Returns the candidates' indices, and False for rows that have no negative.
    """
    # Harder negatives (higher similarity) are sampled more often; positives never.
    weights = (similarity.float().softmax(1) + MIN_WEIGHT).masked_fill(positive, 0.0)
    valid = (~positive).any(1)
    if uniform is None:
        return torch.multinomial(weights + ~valid[:, None], 1).squeeze(1), valid
    # Inverse transform sampling: the first candidate whose cumulative probability exceeds the uniform number.
    mass = weights.double().cumsum(1)
    index = torch.searchsorted(mass, uniform.to(mass)[:, None] * mass[:, -1:], right=True).squeeze(1)
    # Rounding may end beyond the last negative.
    last = (~positive).long().cumsum(1).argmax(1)
    return index.minimum(last), valid


def itm_loss(logits: Float[Tensor, "pairs 2"], pairs: ITMPairs) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of "does not match" (class 0) and "matches" (class 1) over all valid pairs."""
    losses = F.cross_entropy(logits, pairs.labels, reduction="none")
    return global_mean(losses[pairs.valid].sum(), pairs.valid.sum())


@dataclass(frozen=True)
class ITMGroups:
    """Groups of candidates of one query, of which one is its positive.

    candidates: their indices. slot: the place of the positive, uniformly random. valid: False for a negative that is
    none, because fewer candidates are negatives; it repeats the positive and counts nothing.
    """

    candidates: Int[Tensor, "groups size"]
    slot: Int[Tensor, " groups"]
    valid: Bool[Tensor, "groups size"]

    @property
    def positive(self) -> Bool[Tensor, "groups size"]:
        """True at the positive of each group."""
        return torch.arange(self.candidates.shape[1], device=self.slot.device) == self.slot[:, None]


def sample_itm_groups(
    query: Int[Tensor, " groups"], positive: Bool[Tensor, "groups all"], uniform: Float[Tensor, "groups size"]
) -> ITMGroups:
    """Sample the negatives of each query uniformly, without replacement, and put its positive in a random slot.

    query: the index of each query's positive. positive: all candidates that are no negatives of it (`positive_mask`).
    uniform: in [0, 1), which alone determine slot and negatives.
    """
    groups, size = uniform.shape
    slot = (uniform[:, 0] * size).long().clamp(max=size - 1)
    allowed = ~positive
    negatives, there = [], []
    for numbers in uniform.unbind(1)[1:]:
        left = allowed.sum(1)
        # The candidate of rank floor(u * left) among those that are left.
        rank_of = (numbers * left).long().minimum((left - 1).clamp(min=0))
        chosen = ((allowed.cumsum(1) == rank_of[:, None] + 1) & allowed).int().argmax(1)
        there.append(left > 0)
        negatives.append(torch.where(left > 0, chosen, query))
        allowed = allowed.scatter(1, chosen[:, None], False)
    columns = torch.arange(size, device=slot.device).expand(groups, -1)
    # Slot s has the positive, earlier slots the first negatives, later ones the rest.
    order = columns - (columns > slot[:, None]).long()
    is_positive = columns == slot[:, None]
    chosen_negatives = torch.stack([*negatives, query], dim=1).gather(1, order.clamp(max=max(size - 2, 0)))
    real = torch.stack([*there, torch.ones_like(query, dtype=torch.bool)], dim=1).gather(
        1, order.clamp(max=max(size - 2, 0))
    )
    return ITMGroups(torch.where(is_positive, query[:, None], chosen_negatives), slot, real | is_positive)


def itm_group_loss(
    scores: Float[Tensor, "groups size"],
    groups: ITMGroups,
    multi_cls_loss_weight: float = 1.0,
    bin_cls_loss_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the positive among a group's candidates, plus the binary one of each pair.

    multi_cls_loss_weight, bin_cls_loss_weight: of the two; M3P fine-tunes with 0 and 1.
    """
    among = F.cross_entropy(scores.masked_fill(~groups.valid, -torch.inf), groups.slot, reduction="sum")
    each = F.binary_cross_entropy_with_logits(scores, groups.positive.to(scores), reduction="none")
    multiclass = global_mean(among, len(scores))
    return multi_cls_loss_weight * multiclass + bin_cls_loss_weight * global_mean(
        each[groups.valid].sum(), groups.valid.sum()
    )
