"""Pictures of recipes at work, drawn from what `polymodal reproduce` left in a folder.

python docs/recipes/pictures.py tip reproduce/tip
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from polymodal import corpora
from polymodal.training import load_run

HERE = Path(__file__).parent
RATES = (0, 30, 50, 70, 90)


def tip(results: Path) -> None:
    """Area under the ROC curve by the share of missing cells, for every arm; a bar is a 95 % interval."""
    scores = json.loads((results / "results.json").read_text())["scores"]
    task = next("/".join(name.split("/")[:2]) for name in scores if name.startswith("test/linear_probe"))
    names = [f"{task}/AUC", *(f"{task}/random_values_{rate}%/AUC" for rate in RATES[1:])]
    figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for place, arm in enumerate(scores[names[0]]["arms"]):
        found = [scores[name]["arms"][arm] for name in names]
        values = [100 * one["value"] for one in found]
        errors = [
            [100 * (one["value"] - one["low"]) for one in found],
            [100 * (one["high"] - one["value"]) for one in found],
        ]
        axes.errorbar([rate + 0.8 * place for rate in RATES], values, errors, marker="o", capsize=2, lw=1.4, label=arm)
    image = scores[f"{task}/image/AUC"]["arms"]["treatment"]["value"]
    axes.axhline(100 * image, color="#888888", ls=":", lw=1, label="picture alone (treatment)")
    axes.set(xlabel="table cells that are missing, %", ylabel="AUC of a linear probe, %", xticks=RATES)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(HERE / "tip.png", dpi=130)


def dgvae(results: Path) -> None:
    """What each prototype of one person recommends, and the words that explain it."""
    run: Any = load_run(results / "runs" / "treatment" / "seed-0")
    viewers = corpora.viewers()
    row = max(viewers.rows("test").tolist(), key=lambda row: -abs(len(viewers.value(row, "liked")) - 40))
    history = viewers.value(row, "liked")
    catalogue = run.processor.catalogue
    (prototypes,) = run.model.eval().explain(run.processor(history=[history]), count=6)
    columns = [("liked before", [catalogue[item].title for item in history[-12:]], [])]
    columns += [
        (f"prototype {number}", [catalogue[item].title for item in items], words)
        for number, (items, words) in enumerate(prototypes, start=1)
    ]
    figure, every = plt.subplots(1, len(columns), figsize=(11, 2.5), layout="constrained")
    for axes, (title, films, words) in zip(every, columns, strict=True):
        axes.axis("off")
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        lines = [line for film in films for line in textwrap.wrap(film, 28, subsequent_indent="   ")[:2]]
        axes.text(0, 1, "\n".join(lines), va="top", fontsize=7.5, transform=axes.transAxes)
        axes.text(
            0,
            0,
            textwrap.fill(", ".join(words), 28),
            va="bottom",
            fontsize=8,
            color="#a03a13",
            transform=axes.transAxes,
        )
    figure.savefig(HERE / "dgvae.png", dpi=130)


def inductive_moment_matching(results: Path) -> None:
    """The same noise for all arms: four pictures of each class in 1, 4 and 32 steps."""
    steps, each = (1, 4, 32), 4
    runs = {path.name: load_run(path / "seed-0") for path in sorted((results / "runs").iterdir())}
    figure, every = plt.subplots(len(runs), len(steps), figsize=(9.5, 1.35 * len(runs)), layout="constrained")
    for axes_row, (arm, run) in zip(every, runs.items(), strict=True):
        model: Any = run.model.eval()
        processor: Any = run.processor
        labels = torch.arange(len(processor.label.names)).repeat(each)
        for axes, count in zip(axes_row, steps, strict=True):
            made = processor.image.shown(model.generate({"label": labels}, count, torch.Generator().manual_seed(0)))
            grid = made.unflatten(0, (each, -1)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
            axes.imshow((grid * 255).byte().numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if arm == next(iter(runs)):
                axes.set_title(f"{count} step{'s' * (count > 1)}", fontsize=9)
        name = {"baseline": "flow matching", "treatment": "four particles"}.get(arm, arm.replace("_", " "))
        axes_row[0].set_ylabel(name.replace(" ", "\n", 1), fontsize=8, rotation=0, ha="right", va="center")
    figure.savefig(HERE / "inductive_moment_matching.png", dpi=130)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
