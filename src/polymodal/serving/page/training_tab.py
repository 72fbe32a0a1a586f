"""Training tab: how the runs were trained, and their curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd

from polymodal.serving.page.tab import PageTab
from polymodal.serving.service import Service

METRICS = ("R@10", "accuracy", "acc@0.5")  # of the validation split; others are in the history of the run


def _build(services: Sequence[Service]) -> None:
    losses, metrics = [], []
    for service in services:
        for entry in service.run.history:
            where = {"run": service.run.name, "step": entry["step"]}
            losses += [where | {"value": value, "name": name} for name, value in entry.get("losses", {}).items()]
            metrics += [where | {"value": value, "name": name} for name, value in entry.get("validation", {}).items()]
    _plot(losses, "Losses in training")
    _plot([one for one in metrics if one["name"].endswith(METRICS)], "On the validation split")
    if not losses:
        gr.Markdown("The history of this training is empty.")


def _plot(values: list[dict[str, Any]], title: str) -> None:
    """Plot values: run, step, name and value; one line per run and name."""
    if values:
        frame = pd.DataFrame(values)
        if frame["run"].nunique() > 1:
            frame["name"] = frame["run"] + " " + frame["name"]
        gr.LinePlot(frame, x="step", y="value", color="name", title=title, height=280)


tab = PageTab("Training", list, _build)
