"""Attacks on a user's own runs: transfer matrix of attack success (source x target), and images to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from polymodal.attacks.attack import Attack
from polymodal.attacks.evaluate import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Pairs, Ranks, attack_scores
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.evaluation.statistics import Score
from polymodal.modalities.image import open_image
from polymodal.serving.images import save_image
from polymodal.training.run import Run, write_json

SHOWN = 6  # images per sheet
WITHIN = 10  # k of R@k: a pair counts as retrieved in the top k


def attack_runs(
    attack: Attack, runs: Mapping[str, Run], corpus: Corpus, split: str, examples: int, seed: int, out: str
) -> list[tuple[str, str, str, Score, Score]]:
    """Attack every run and evaluate all runs; write `attack.json` and a sheet of images per run into `out`.

    Returns, per row, the attacked run (source), the evaluated run (target), the retrieval direction, R@10 before, and
    the attack success rate. Raises UserError for a split without examples, runs that do not embed, and a folder that
    cannot be written.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    rows, every = [], []
    for number, (source, run) in enumerate(runs.items()):
        pairs = Pairs.of(corpus, run, split, examples)
        before = {name: Ranks.of(target, pairs) for name, target in runs.items()}  # at the size that the source sees
        scores, changed = attack_scores(attack, source, runs, corpus, pairs, before, seed)
        save_image(attack_sheet(pairs, changed), str(folder / f"{number}-{run.name}.png"))
        every += scores
        by_name = {score.name: score for score in scores}
        for target in runs:
            for way in (IMAGE_TO_TEXT, TEXT_TO_IMAGE):
                task = f"{source}_to_{target}/{way}"
                found, lost = (by_name[f"{task}/{kind}"] for kind in (f"R@{WITHIN}_before", f"attack_success@{WITHIN}"))
                rows.append((source, target, way.replace("_", " "), found, lost))
    write_json(folder / "attack.json", [_record(score) for score in every])
    return rows


def _record(score: Score) -> dict[str, Any]:
    return {"name": score.name, "chance": score.chance} | score.estimate()._asdict()


def attack_sheet(pairs: Pairs, changed: Pairs) -> PILImage.Image:
    """Plot images before and after, their difference at full contrast, and the captions that lost a word."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = np.linspace(0, len(pairs.images) - 1, min(SHOWN, len(pairs.images))).astype(int)
    figure, axes = pyplot.subplots(
        len(shown), 4, figsize=(11, 1.9 * len(shown)), width_ratios=(1, 1, 1, 3), squeeze=False
    )
    for row, place in zip(axes, shown.tolist(), strict=True):
        before, after = (np.asarray(side.images[place], dtype=np.float32) for side in (pairs, changed))
        difference = after - before
        contrast = 0.5 + difference / (2 * max(np.abs(difference).max(), 1))
        for axis, image in zip(row, (before / 255, after / 255, contrast), strict=False):
            axis.imshow(image.clip(0, 1))
        told = zip(pairs.captions[place], changed.captions[place], strict=True)
        said = "\n".join(_shortened(old) + (f"\n   → {_shortened(new)}" if new != old else "") for old, new in told)
        row[3].text(0, 0.5, said, va="center", fontsize=8)
        for axis in row:
            axis.axis("off")
    for axis, title in zip(axes[0], ("before", "after", "difference", "captions"), strict=True):
        axis.set_title(title, fontsize=9)
    held = io.BytesIO()
    figure.savefig(held, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return open_image(held.getvalue())


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
