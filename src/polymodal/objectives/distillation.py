"""Knowledge distillation of a teacher's logits, features, or similarities; no gradient reaches the teacher."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather, all_gather_with_grad
from polymodal.objectives.reduction import global_mean


def logit_distillation(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Return T^2 KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over rows (Hinton et al. 2015, section 2).

    T^2 keeps the scale of the gradient independent of the temperature. 0 for no rows.
    """
    # KL(p || q) for the teacher's p and the student's q, both at temperature T.
    log_p, log_q = (teacher.detach() / temperature).log_softmax(1), (student / temperature).log_softmax(1)
    divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return global_mean(temperature**2 * divergence, len(student))


def confident_cross_entropy(
    logits: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"], threshold: float = 0.0
) -> Float[Tensor, ""]:
    """Return the cross-entropy with the teacher's probabilities, the mean over rows where it is confident.

    threshold: minimum probability of the teacher's most likely class; 0 where no row has it. Computed in float32, also
    under autocast.
    """
    logits, teacher = logits.float(), teacher.detach().float()
    confident = teacher.amax(1) >= threshold
    cross_entropy = -(teacher * logits.log_softmax(1)).sum(1)
    return global_mean((cross_entropy * confident).sum(), confident.sum())


def soft_and_hard_distillation(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " rows"],
    alpha: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return alpha * logit distillation + (1 - alpha) * cross-entropy with the labels. alpha: in [0, 1]."""
    soft = logit_distillation(student, teacher, temperature)
    return alpha * soft + (1 - alpha) * F.cross_entropy(student, labels)


def feature_distillation(
    student: Float[Tensor, "*shape dim"],
    teacher: Float[Tensor, "*shape dim"],
    kind: Literal["cosine", "smooth_l1", "mse"] = "cosine",
    beta: float = 1.0,
    normalize_teacher: bool = False,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """Return the distance between features, the mean over positions; 0 for no positions.

    kind: "cosine" is 1 - cosine similarity; "smooth_l1" is quadratic below `beta` (data2vec, equation 2); "mse" is the
    squared error. normalize_teacher: apply a layer norm without weights to the targets (data2vec 2.0; `layer_average`).
    mask: positions that count, such as those masked for the student.
    """
    student, teacher = student.flatten(0, -2), teacher.detach().flatten(0, -2)
    if mask is not None:
        student, teacher = student[mask.flatten()], teacher[mask.flatten()]
    if normalize_teacher:
        teacher = F.layer_norm(teacher.float(), teacher.shape[-1:]).to(student)
    if kind == "cosine":
        distance = 1 - F.cosine_similarity(student, teacher, dim=1)
    elif kind == "smooth_l1":
        distance = F.smooth_l1_loss(student, teacher, reduction="none", beta=beta).mean(1)
    else:
        distance = (student - teacher).square().mean(1)
    return global_mean(distance.sum(), len(distance))


@torch.no_grad()
def layer_average(layers: list[Float[Tensor, "*shape dim"]]) -> Float[Tensor, "*shape dim"]:
    """Return the mean of a teacher's top layers, each normalized as by a layer norm (data2vec, section 3.3)."""
    return torch.stack([F.layer_norm(layer.float(), layer.shape[-1:]) for layer in layers]).mean(0)


def relational_distillation(
    student: tuple[Float[Tensor, "batch student_dim"], Float[Tensor, "batch student_dim"]],
    teacher: tuple[Float[Tensor, "batch teacher_dim"], Float[Tensor, "batch teacher_dim"]],
    student_scale: Float[Tensor, ""] | float,
    teacher_scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Return the KL divergence of the student's similarity matrix from the teacher's, in both directions.

    The interactive form of CLIP distillation (CLIP-KD, Yang et al. 2024, contrastive relational distillation): the two
    modalities' L2-normalized features of student and teacher may differ in dimension. With the same features in both
    places of a tuple, it is relational distillation within a modality. Rows are this process's; candidates those of
    all processes.
    """
    total = student[0].new_zeros(())
    for query, key in ((0, 1), (1, 0)):
        student_logits = student_scale * student[query] @ all_gather_with_grad(student[key]).T
        with torch.no_grad():
            teacher_logits = teacher_scale * teacher[query] @ all_gather(teacher[key]).T
        total = total + logit_distillation(student_logits, teacher_logits)
    return total / 2


@torch.no_grad()
def momentum_soft_targets(
    similarity: Float[Tensor, "rows candidates"],
    alpha: float,
    positive: Bool[Tensor, "rows candidates"] | None = None,
) -> Float[Tensor, "rows candidates"]:
    """Return alpha * softmax(similarity) + (1 - alpha) * targets, ALBEF's momentum distillation (equation 6).

    similarity: logits of the momentum encoders, such as with the batch and then a queue. alpha: in [0, 1]; 0 leaves the
    hard targets. positive: the candidates that share a row's hard target in equal parts; by default candidate i is row
    i's. Rows sum to 1. `objectives.multi_positive.soft_target_cross_entropy` has the loss.
    """
    hard = torch.eye(*similarity.shape, device=similarity.device) if positive is None else positive.float()
    hard = hard / hard.sum(1, keepdim=True)
    return alpha * similarity.float().softmax(1) + (1 - alpha) * hard
