"""Contrastive loss of wav2vec 2.0: identify the quantized target of a masked frame among distractors."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.objectives.reduction import global_mean


def wav2vec2_contrastive_loss(
    context: Float[Tensor, "masked dim"],
    targets: Float[Tensor, "masked dim"],
    counts: Int[Tensor, " batch"],
    num_negatives: int = 100,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of each masked frame's target against distractors of the same sequence.

    Cosine similarity / temperature; negatives are sampled with replacement from the other masked frames (Baevski et al.
    2020, equation 3), and those equal to the target are ignored. context, targets: of all masked frames, sequence after
    sequence. counts: masked frames per sequence. The mean over frames of all processes; 0 for a sequence with a single
    one, and for none.
    """
    if not len(context):
        return global_mean(context.sum(), 0)
    size = counts.repeat_interleave(counts)  # masked frames in the sequence of every frame
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    index = torch.arange(len(context), device=context.device) - first
    others = (torch.rand(len(context), num_negatives, device=context.device) * (size - 1)[:, None]).long()
    # Skip the frame itself, unless it is the only one.
    others = (others + (others >= index[:, None])).minimum(size[:, None] - 1)
    negatives = F.normalize(targets, dim=1)[first[:, None] + others]
    query, target = F.normalize(context, dim=1), F.normalize(targets, dim=1)
    # Cosine similarities with the true target and with the distractors.
    positive = torch.linalg.vecdot(query, target)[:, None]
    negative = torch.einsum("nd,nkd->nk", query, negatives)
    same = (negatives == target[:, None]).all(-1)
    # -log softmax of the true target (index 0) at the temperature.
    logits = torch.cat([positive, negative.masked_fill(same, -torch.inf)], dim=1) / temperature
    return global_mean(-logits.float().log_softmax(1)[:, 0].sum(), len(context))
