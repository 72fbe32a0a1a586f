"""Findings of studies: how well their presence is predicted and written, also of rare ones, and how good reports are.

Scores are macro-averages over findings, so that the frequent sentences of absence do not hide missed findings. What a
method writes is read by one rule, whether it writes a sentence for each finding or a whole report: a finding is stated
by a sentence that has all words of its name and denies nothing (`data.reports.states`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.reports import NO_ABNORMAL, report_of, split_sentences, states
from polymodal.evaluation.caption_metrics import bleu, bleu_statistics, caption_tokens, cider
from polymodal.evaluation.classification import area_under_curve
from polymodal.evaluation.head_tail import tier_scores, tiers
from polymodal.evaluation.panels import CORRECT, NOTE, WRONG, Line, Panels, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score, ratio
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Findings, Volume
from polymodal.training.run import answers
from polymodal.types import Batch, Example

BATCH = 16
VALIDATION_STUDIES = 60
PLOT_STUDIES = 4


@runtime_checkable
class CanReportFindings(Protocol):
    """Capability: logits of presence of the processor's findings, and texts about a volume as token ids: a sentence of
    each finding, or one report."""

    def finding_logits(self, batch: Batch) -> Tensor: ...

    def write_findings(self, batch: Batch) -> list[list[list[int]]]: ...


def written_sentences(method: nn.Module, processor: Any, examples: Sequence[Example]) -> list[list[str]]:
    """The sentences that a method writes about each study, without those of absence."""
    columns = {"volume": [example["volume"] for example in examples]}
    studies = [study for part in answers(method, processor, "write_findings", columns, BATCH) for study in part]
    split = [[one for text in processor.texts(study) for one in split_sentences(text)] for study in studies]
    return [[one for one in study if NO_ABNORMAL not in one.lower()] for study in split]


def stated(sentences: Sequence[Sequence[str]], names: Sequence[str]) -> Bool[np.ndarray, "studies findings"]:
    """Whether any sentence about a study states each finding."""
    return np.array([[any(states(one, name) for one in study) for name in names] for study in sentences], dtype=bool)


def finding_scores(
    method: nn.Module, processor: Any, reader: Reader, split: str, max_examples: int | None = None
) -> list[Score]:
    """Presence by the classifier (AUC, F1, recall of head and tail) and by what is written, and the reports.

    The gain of the image is the macro F1 of reports minus that of the reports of other studies. The unit is a study.
    Chance of F1 is that of stating every finding, the best that no study's scan is needed for;
    findings that no study of the split has are left out.
    """
    _, examples = reader.read_split(split, max_examples)
    if not examples:
        return []
    column, truth = processor.findings, np.array([[bool(one) for one in example["findings"]] for example in examples])
    logits = answers(method, processor, "finding_logits", {"volume": [one["volume"] for one in examples]}, BATCH)
    likely = torch.cat(logits).numpy()
    sentences = written_sentences(method, processor, examples)
    counts = dict(zip(column.names, column.counts, strict=True))
    scores = [macro_auc(f"{split}/presence/AUC", likely, truth)]
    scores += presence_panel(f"{split}/presence", np.nan_to_num(likely, nan=-1.0) > 0, truth, counts)
    written = stated(sentences, column.names)
    panel = presence_panel(f"{split}/report", written, truth, counts)
    other = presence_panel("", np.roll(written, 1, axis=0), truth, counts)  # what is written about another study
    gain = panel[0].value - other[0].value, panel[0].influence() - other[0].influence()
    scores += [*panel, Score.from_influence(f"{split}/report/image_gain", *gain, 0.0)]
    scores += report_scores(f"{split}/report", sentences, [example["findings"] for example in examples])
    return [score for score in scores if len(score.clusters)]  # such as AUC where all studies have the same findings


def macro_auc(
    name: str, likely: Float[np.ndarray, "studies findings"], truth: Bool[np.ndarray, "studies findings"]
) -> Score:
    """The mean over findings of the area under the ROC curve; those that all or no studies have are left out."""
    areas = [
        area_under_curve(name, np.stack([-values, values], 1), labels.astype(int))
        for values, labels in zip(likely.T, truth.T, strict=True)
        if 0 < labels.sum() < len(labels)
    ]
    return _mean_of(name, areas, 0.5)


def presence_panel(
    name: str,
    predicted: Bool[np.ndarray, "studies findings"],
    truth: Bool[np.ndarray, "studies findings"],
    counts: dict[str, int],
) -> list[Score]:
    """Macro F1 of all findings and of the rarest third, and recall of head, tail and all.

    counts: by name, in the order of the columns, how many training studies have each finding.
    """
    names, members = list(counts), tiers(counts)
    scores = []
    for tier, chosen in (("", {*names}), ("tail/", members["tail"])):
        columns = [number for number, one in enumerate(names) if one in chosen and truth[:, number].any()]
        rate = truth[:, columns].mean(0)
        each = [f1(name, predicted[:, number], truth[:, number]) for number in columns]
        scores.append(_mean_of(f"{name}/{tier}macro_F1", each, float(np.mean(2 * rate / (1 + rate))) if each else 0.0))
    unit, number = np.nonzero(truth)
    tags = [names[one] for one in number]
    if len(unit):
        scores += tier_scores(name, "recall", predicted[truth].astype(float), tags, unit, len(truth), counts)
    return scores


def f1(name: str, predicted: Bool[np.ndarray, " studies"], truth: Bool[np.ndarray, " studies"]) -> Score:
    """F1 of one finding, with the influence of each study by leaving it out."""
    right, both = (predicted & truth).astype(float), predicted.astype(float) + truth
    left_out = ratio(2 * (right.sum() - right), both.sum() - both)
    return Score.from_jackknife(name, float(ratio(2 * right.sum(), both.sum())), left_out)


def _mean_of(name: str, scores: Sequence[Score], chance: float) -> Score:
    if not scores:
        return Score(name, np.zeros(0), chance)
    influence = np.mean([score.influence() for score in scores], axis=0)
    return Score.from_influence(name, float(np.mean([score.value for score in scores])), influence, chance)


def report_scores(name: str, sentences: Sequence[Sequence[str]], studies: Sequence[Sequence[str]]) -> list[Score]:
    """BLEU-4 and CIDEr-D of reports, and which of the reference sentences are written word for word.

    The unit is a study; what its report shares with the reference is weighted by its sentences.
    """
    written = [caption_tokens(report_of(study)) for study in sentences]
    references = [[caption_tokens(report_of(study))] for study in studies]
    statistics = np.stack([bleu_statistics(*pair) for pair in zip(written, references, strict=True)])
    total = statistics.sum(0)
    bleu_4 = Score.from_jackknife(f"{name}/BLEU-4", float(bleu(total, 4)), bleu(total - statistics, 4))
    present = [{tuple(caption_tokens(one)) for one in study if one} for study in studies]
    exact = [
        (len(reference & {tuple(caption_tokens(one)) for one in study}), len(reference))
        for reference, study in zip(present, sentences, strict=True)
    ]
    right, of = np.array(exact, dtype=float).T
    return [
        bleu_4,
        Score(f"{name}/CIDEr", cider(written, references), 0.0),
        Score(f"{name}/sentence_accuracy", ratio(right, of), weights=of),
    ]


def plot(inputs: TaskInputs) -> Panels:
    """Scans with the sentences that are written: green where the finding is there, and what is missed."""
    rows, examples = inputs.test_examples(PLOT_STUDIES)
    names = inputs.processor.findings.names
    panels = []
    for row, example, written in zip(
        rows.tolist(), examples, written_sentences(inputs.method, inputs.processor, examples), strict=True
    ):
        lines: list[Line] = []
        for sentence in written:
            right = any(states(sentence, name) and bool(t) for name, t in zip(names, example["findings"], strict=True))
            lines.append((sentence, CORRECT if right else WRONG))
        (is_written,) = stated([written], names)
        missed = [
            t for t, is_stated in zip(example["findings"], is_written.tolist(), strict=True) if t and not is_stated
        ]
        lines += [(f"missed: {sentence}", NOTE) for sentence in missed]
        scan = value_panel(inputs.corpus, row, inputs.corpus.column_with(Volume))
        panels.append([scan, text_panel(lines or ["no finding"])])
    return Panels(panels, "Written findings; green: present, red: not present", (2.0, 4.0))


task = Task(
    capability=CanReportFindings,
    requires=((Volume, Findings),),
    order=95,
    score=lambda inputs: inputs.over_test_splits(finding_scores),
    validate=lambda inputs: finding_scores(
        inputs.method, inputs.processor, inputs.reader, "validation", VALIDATION_STUDIES
    ),
    plot=plot,
    metrics={
        "AUC": MetricKind(),
        "macro_F1": MetricKind(),
        "image_gain": MetricKind(is_fraction=False),
        "tail_minus_head/recall": MetricKind(is_fraction=False),
        "disparity/recall": MetricKind(higher_is_better=False),
        "recall": MetricKind(),
        "BLEU-4": MetricKind(),
        "CIDEr": MetricKind("CIDEr"),
        "sentence_accuracy": MetricKind(),
    },
    headline=("report/macro_F1", "report/tail/recall", "presence/AUC", "report/sentence_accuracy"),
    forward_methods=("finding_logits", "write_findings"),
)
