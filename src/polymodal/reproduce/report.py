"""The report of a comparison: one HTML file that needs nothing else, with table, curves, images and bars."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
import numpy as np
from PIL import Image as PILImage

from polymodal.corpora.contact_sheet import has_images, image_of
from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.embeddings import ItemVectors, PairedTest, main_language
from polymodal.evaluation.retrieval import top
from polymodal.evaluation.task import ITEMS, available_modalities, item_of
from polymodal.evaluation.units import axis_label, scale
from polymodal.modalities import Text
from polymodal.reproduce import leaderboard
from polymodal.reproduce.curves import COLORS, axes_of, svg, validation_metric, validation_unit
from polymodal.reproduce.leaderboard import format_name
from polymodal.reproduce.result import ComparisonResult
from polymodal.training.trainer import LOG_EVERY, command_line

QUERIES, SHOWN, THUMBNAIL = 6, 5, 56


def report(comparison: ComparisonResult) -> str:
    """The page as text."""
    names = leaderboard.headline(comparison)
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    splits = [split for split in comparison.corpus.splits if split.startswith("test")]
    return page.render(
        c=comparison,
        board=leaderboard,
        names=names,
        rows=leaderboard.rows(comparison),
        verdict=leaderboard.comparison_verdict(comparison),
        command=command_line(),
        splits=[(split, len(comparison.corpus.rows(split))) for split in comparison.corpus.splits],
        colors=dict(zip((arm.label for arm in comparison.arms), COLORS * 9, strict=False)),
        curves=_curves(comparison),
        uncorrected=leaderboard.UNCORRECTED,
        languages=_bars_by_language(comparison),
        vendors=_bars_by_split(comparison, splits) if len(splits) > 1 else "",
        grids=_grids(comparison),
    )


def _curves(comparison: ComparisonResult) -> str:
    """The loss and a validation metric over steps of training; one line per seed."""
    name = validation_metric(comparison)
    unit = validation_unit(comparison, name)
    factor, _ = scale(unit, 0.0)
    fig, (losses, validation) = axes_of(2, 10, 3.1)
    for arm, color in zip(comparison.arms, COLORS * 9, strict=False):
        for number, trial in enumerate(comparison.of(arm)):
            style = {"color": color, "linewidth": 1.4, "alpha": 0.85, "label": arm.label if number == 0 else None}
            logged = [entry for entry in trial.run.history if "losses" in entry]
            # The last entry of a run may be the mean of a step or two, which would look like a jump.
            whole = [entry for entry in logged if entry["step"] % LOG_EVERY == 0] or logged
            losses.plot([e["step"] for e in whole], [sum(e["losses"].values()) for e in whole], **style)
            checked = [entry for entry in trial.run.history if "validation" in entry]
            points = [(e["step"], factor * e["validation"][name]) for e in checked if name in e["validation"]]
            validation.plot(*zip(*points, strict=True) if points else ((), ()), marker="o", markersize=3, **style)
    losses.set(xlabel="steps", ylabel="sum of the losses", title="Training loss (each method's own)")
    validation.set(
        xlabel="steps",
        ylabel=axis_label(unit),
        title=f"{format_name(name.replace('validation', 'test', 1))}, validation split",
    )
    validation.set_ylim(bottom=0)
    losses.legend(frameon=False)
    return svg(fig)


def _bars(comparison: ComparisonResult, names: Sequence[str], labels: Sequence[str], title: str) -> str:
    """One group of bars a score, one bar an arm, with its interval; chance as a line across the group."""
    fig, (axes,) = axes_of(1, max(4.5, 0.28 * len(names) * (1 + len(comparison.arms) / 2)), 3.0)
    width = 0.8 / len(comparison.arms)
    places = np.arange(len(names))
    for index, (arm, color) in enumerate(zip(comparison.arms, COLORS * 9, strict=False)):
        estimates = [comparison.estimate(arm, name) for name in names]
        values = np.array([100 * e.value for e in estimates])
        errors = np.array([[100 * (e.value - max(e.low, 0)), 100 * (e.high - e.value)] for e in estimates]).T
        axes.bar(
            places + (index - (len(comparison.arms) - 1) / 2) * width,
            values,
            width * 0.92,
            color=color,
            label=arm.label,
            yerr=errors,
            error_kw={"linewidth": 0.8, "alpha": 0.6},
        )
    for place, name in zip(places, names, strict=True):
        level = 100 * (comparison.chance(name) or 0)
        axes.hlines(level, place - 0.45, place + 0.45, color="#333333", linestyle=":", linewidth=1.2)
    axes.set(title=title, ylabel="%", xticks=places, xticklabels=labels)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.1))
    return svg(fig)


def _bars_by_language(comparison: ComparisonResult) -> str:
    prefix = "test/text_to_image_"
    names = [name for name in comparison.score_names if name.startswith(prefix)]
    labels = [name.removeprefix(prefix).split("/")[0] for name in names]
    title = "Text to image R@10 by language of the query (dotted: chance)"
    return _bars(comparison, names, labels, title) if names else ""


def _bars_by_split(comparison: ComparisonResult, splits: Sequence[str]) -> str:
    wanted = [f"{split}/text_to_{item}/R@10" for split in splits for item in ITEMS]
    names = [name for name in wanted if name in comparison.score_names]
    labels = [name.split("/")[0] for name in names]
    return _bars(comparison, names, labels, "R@10 of texts by test split (dotted: chance)") if names else ""


@dataclass(frozen=True)
class SearchGrid:
    """What every arm finds for one caption. images: label -> (data URL, right) in order of similarity."""

    query: str
    answer: str
    images: dict[str, list[tuple[str, bool]]]


def _grids(comparison: ComparisonResult) -> list[SearchGrid]:
    """Captions sampled at random from the test split, with the images that each arm's first run finds."""
    corpus = comparison.corpus
    runs = {arm.label: comparison.of(arm)[0].run for arm in comparison.arms}
    modalities = [
        available_modalities(corpus, run.processor) for run in runs.values() if isinstance(run.model, CanEmbed)
    ]
    items = {item_of(kinds) if Text in kinds else None for kinds in modalities}
    item = items.pop() if len(items) == 1 else None
    if len(modalities) < len(runs) or item is None or not has_images(corpus):
        return []
    language = main_language(corpus)
    tests = {}
    for label, run in runs.items():
        vectors = ItemVectors.of(run.model, run.processor, Reader(corpus, run.processor), "test", item)
        tests[label] = PairedTest.of(run.model, run.processor, vectors, language)
    one = next(iter(tests.values()))
    owners: dict[str, set[int]] = defaultdict(set)
    for text, owner in zip(one.texts, one.owner, strict=True):
        owners[text].add(int(owner))
    chosen = np.random.default_rng(0).choice(len(one.texts), size=min(QUERIES, len(one.texts)), replace=False)
    grids = []
    for place in chosen:
        text = one.texts[place]
        nearest = {
            label: top(test.text_vectors[place : place + 1], test.items, SHOWN)[0] for label, test in tests.items()
        }
        images = {
            label: [(thumbnail(corpus, int(one.rows[n])), int(n) in owners[text]) for n in numbers]
            for label, numbers in nearest.items()
        }
        grids.append(SearchGrid(text, thumbnail(corpus, int(one.rows[min(owners[text])])), images))
    return grids


def thumbnail(corpus: Corpus, row: int) -> str:
    """An image as a data URL."""
    image = image_of(corpus, row)
    image.thumbnail((THUMBNAIL * 2, THUMBNAIL * 2), PILImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
