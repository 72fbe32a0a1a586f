"""A page of documentation for a recipe, made of what its file says and of what its claim measured.

`python -m polymodal.reproduce.page docs/recipes` writes one page for every recipe of the package,
and beside the folder `tasks.md`.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polymodal import recipes
from polymodal.evaluation import tasks
from polymodal.evaluation.statistics import Estimate, MetricKind, number
from polymodal.reproduce.curves import plot_curves
from polymodal.reproduce.leaderboard import format_difference, format_metric

RESULTS = Path(__file__).with_name("results")


def recipe_page(name: str, image: str | None = None) -> str:
    """Markdown. image: a link to one that shows the recipe at work."""
    found, entry, result = recipes.describe(name), recipes.entries()[name], result_of(name)
    lines = [
        f"# `{name}`",
        "",
        f"*{found['title']}* ({found['year']}), [arXiv {found['arxiv']}](https://arxiv.org/abs/{found['arxiv']})",
        "",
        f"Takes {' and '.join(entry.modalities)}; family `{entry.family}`, "
        f"[`{name}.py`](../../src/polymodal/recipes/{entry.family}/{name}.py).",
        "",
        found["about"],
        "",
    ]
    if image:
        lines += [f"![{name} at work]({image})", ""]
    lines += ["## From the paper to the code", "", "| in the file | what it is |", "|---|---|"]
    lines += [f"| `{part}` | {said} |" for part, said in _parts(entry.file)]
    again = f"polymodal reproduce {name}"
    lines += ["", "## Measured", "", *_measured(again, found["claim"], result), "", *_curves(name, result)]
    for claim, sentence in found["further_claims"].items():
        result = result_of(name, claim)
        lines += [*_measured(f"{again} --claim {claim}", sentence, result), "", *_curves(f"{name}-{claim}", result)]
    lines += ["## Hyper-parameters", "", "| flag | default | meaning and source |", "|---|---|---|"]
    lines += [f"| `{row['flag']}` | {row['default']} | {row['meaning']} |" for row in found["hyper_parameters"]]
    return "\n".join(lines) + "\n"


def _parts(file: Path) -> Iterator[tuple[str, str]]:
    """The functions and classes of a recipe's file, and the public methods of its classes, with their first line."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name == "Recipe":
            continue
        inner = node.body if isinstance(node, ast.ClassDef) else []
        methods = [part for part in inner if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]
        every = [(node.name, node), *((f"{node.name}.{method.name}", method) for method in methods)]
        yield from ((name, said) for name, part in every if (said := _first_line(part)))


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()).replace("|", "\\|")


def result_of(name: str, claim: str = recipes.FIRST_CLAIM) -> dict[str, Any] | None:
    """What `reproduce` wrote of a recipe's claim, and the package keeps: of further claims as RECIPE-CLAIM."""
    path = RESULTS / (f"{name}.json" if claim == recipes.FIRST_CLAIM else f"{name}-{claim}.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _curves(name: str, result: dict[str, Any] | None) -> list[str]:
    shown = f"![What the arms had learned after so many steps]({name}-curves.svg)"
    return [shown, ""] if result and result.get("curves") else []


def _measured(again: str, claim: str | None, result: dict[str, Any] | None) -> list[str]:
    """again: the command that measures it."""
    if result is None:
        return [f"Claim: {claim} It has not been run yet: `{again}`." if claim else "No claim."]
    arms = list(result["cost"])
    languages = f" in {', '.join(result['languages'])}" if result.get("languages") else ""
    lines = [
        f"Claim: {result['claim']}",
        "",
        f"In the paper: {result['paper']}.",
        "",
        f"Here, on `{result['corpus']}`{languages} with {result['budget']} and {len(result['seeds'])} paired seeds: "
        f"**{result['verdict']}**, by {result['metric']}: "
        f"{format_difference(result['units'][result['metric']], Estimate(**result['difference']))}"
        + (
            f" (chance {number(result['units'][result['metric']], result['chance'])})"
            if result["chance"] is not None
            else ""
        )
        + ".",
        "",
        f"| metric | {' | '.join(arms)} |",
        "|---|" + "---|" * len(arms),
    ]
    for metric, by_arm in result["metrics"].items():
        lines.append(
            f"| {metric} | {' | '.join(_estimate(result['units'][metric], by_arm.get(arm)) for arm in arms)} |"
        )
    seconds = " | ".join(f"{result['cost'][arm]['seconds']:.0f} s" for arm in arms)
    return [*lines, f"| training | {seconds} |", "", f"Brackets: 95 % intervals. Again: `{again}`."]


def _estimate(unit: str, record: dict[str, Any] | None) -> str:
    """Nothing for an arm that has no such score."""
    if record is None:
        return "–"
    return format_metric(unit, Estimate(*(record[end] for end in ("value", "low", "high"))))


def tasks_page() -> str:
    """Markdown: every task with what it asks of a method and a corpus, and the metrics that it gives."""
    lines = [
        "# Tasks",
        "",
        "`polymodal evaluate` scores a run by every task whose capability the method has and whose modalities the "
        "corpus has. A capability is a method of this name. Arrows say whether higher (↑) or lower (↓) is better.",
        "",
        "| task | what it asks | capability | modalities | metrics |",
        "|---|---|---|---|---|",
    ]
    for name, task in tasks.entries().items():
        module = sys.modules[f"{tasks.__name__}.{name}"]
        about = " ".join((module.__doc__ or "").partition("\n\n")[0].split())
        calls = ", ".join(f"`{method}`" for method in task.forward_methods)
        kinds = " or ".join(" + ".join(kind.__name__ for kind in kinds) for kinds in task.requires) or "any"
        metrics = ", ".join(_metric(pattern, kind) for pattern, kind in task.metrics.items())
        link = f"[`{name}`](../src/polymodal/evaluation/tasks/{name}.py)"
        lines.append(f"| {link} | {about} | {calls} | {kinds} | {metrics} |")
    return "\n".join(lines) + "\n"


def _metric(pattern: str, kind: MetricKind) -> str:
    return f"{pattern.replace('*', '…')} ({'↑' if kind.higher_is_better else '↓'}, {kind.unit})"


def write_pages(folder: Path) -> list[Path]:
    """A page for every recipe, and its learning curves; an image of the same name in the folder is shown on it."""
    written = []
    for name in recipes.entries():
        image = f"{name}.png" if (folder / f"{name}.png").is_file() else None
        path = folder / f"{name}.md"
        path.write_text(recipe_page(name, image), encoding="utf-8")
        written.append(path)
    for result in RESULTS.glob("*.json"):
        if curves := json.loads(result.read_text(encoding="utf-8")).get("curves"):
            (folder / f"{result.stem}-curves.svg").write_text(plot_curves(curves), encoding="utf-8")
    return written


def write_tasks(path: Path) -> None:
    """The page of all tasks."""
    path.write_text(tasks_page(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
    write_tasks(Path(sys.argv[1]).parent / "tasks.md")
