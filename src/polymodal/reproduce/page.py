"""A page of documentation for a recipe, made of what its file says and of what its claim measured.

`python -m polymodal.reproduce.page docs/recipes` writes one page for every recipe of the package,
and beside the folder `tasks.md`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from polymodal import recipes
from polymodal.claim import is_current, recorded_results
from polymodal.evaluation import tasks
from polymodal.evaluation.statistics import MetricKind, number
from polymodal.reproduce.claim import recorded_result
from polymodal.reproduce.claim_text import (
    chance_of,
    decision_sentence,
    how_often,
    how_tuned,
    measured,
    secondary_sentence,
)
from polymodal.reproduce.curves import plot_curves
from polymodal.training.run import write_text

TASK_PLOTS = "tasks/plots"  # beside the page of tasks
PLOTS_NOTE = (
    "`polymodal evaluate RUN --plot FOLDER` writes an image for every task of the run. These are of small methods that "
    "were trained for a minute or a few on built-in corpora (`python tools/task_plots.py RUNS`), so they make mistakes."
)


def recipe_page(name: str, image: str | None = None) -> str:
    """Markdown. image: a link to one that shows the recipe at work."""
    description, entry, result = recipes.describe(name), recipes.entries()[name], result_of(name)
    about, terms = split_terms(description["about"])
    lines = [
        f"# `{name}`",
        "",
        f"*{description['title']}* ({description['year']}), [arXiv {description['arxiv']}](https://arxiv.org/abs/{description['arxiv']})",
        "",
        f"Takes {' and '.join(entry.modalities)}; family `{entry.family}`, "
        f"[`{name}.py`](../../src/polymodal/recipes/{entry.family}/{name}.py).",
        "",
        _code(description["code"]),
        "",
        about,
        "",
    ]
    if image:
        lines += [f"![{name} at work]({image})", ""]
    lines += ["## Run it on your data", "", *own_data(entry), ""]
    lines += ["## From the paper to the code", ""]
    if terms:
        lines += ["| in the paper | in the code |", "|---|---|"]
        lines += [*(f"| {term} | `{code}` |" for term, code in terms.items()), ""]
    if parts := [f"| `{part}` | {first_line} |" for part, first_line in _parts(entry.file)]:
        lines += ["| in the file | what it is |", "|---|---|", *parts, ""]
    again = f"polymodal reproduce {name}"
    lines += ["## Measured", "", *_measured(again, description["claim"], result), "", *_curves(name, result)]
    for claim, sentence in description["further_claims"].items():
        result = result_of(name, claim)
        lines += [*_measured(f"{again} --claim {claim}", sentence, result), "", *_curves(f"{name}-{claim}", result)]
    lines += ["## Hyper-parameters", "", "| flag | default | meaning and source |", "|---|---|---|"]
    lines += [f"| `{row['flag']}` | {row['default']} | {row['meaning']} |" for row in description["hyper_parameters"]]
    return "\n".join(lines) + "\n"


def _code(code: str) -> str:
    repository, _, commit = code.partition("@")
    if not code:
        return "Written from the paper; not compared with official code."
    return f"Checked against [{repository}](https://github.com/{repository}/tree/{commit}) at commit `{commit[:10]}`."


TERMS = re.compile(r"\n*^Terms: (?P<terms>.*?)(?=\n\n|\Z)", re.M | re.S)


def split_terms(docstring: str) -> tuple[str, dict[str, str]]:
    """A recipe's docstring without its paragraph `Terms: ITC = losses.itc, PEM = pem_loss`, and those terms."""
    match = TERMS.search(docstring)
    if match is None:
        return docstring, {}
    pairs = [pair.split(" = ") for pair in " ".join(match["terms"].split()).rstrip(".").split(", ")]
    return (docstring[: match.start()] + docstring[match.end() :]).strip(), {pair[0]: pair[1] for pair in pairs}


OWN_DATA = "../tutorials/own-data.md"
FORMATS = "../data-formats.md"
COLUMNS = f"[columns of files]({OWN_DATA}#columns-of-files)"
DECLARED = ("table", "words", "history", "points", "category", "audio")  # modalities that no file says by itself


def own_data(entry: recipes.Entry) -> list[str]:
    """Markdown: the columns that the recipe needs, and the command that trains it, or uses it, on a user's data."""
    kind, name = recipes.stand_in(entry.name), entry.name
    if hasattr(kind, "build"):
        needs, path = _training_data(entry, kind)
        command = f"train {name} --data {path} --budget 1h --out runs/{name}"
    else:
        needs, command = _input_of_a_tool(name, kind)
    return [needs, "", "```console", f"$ polymodal {command}", "```"]


def _input_of_a_tool(name: str, kind: Any) -> tuple[str, str]:
    """What a recipe without training reads, and its command."""
    uses = {
        "steps": (
            "A folder of HTML pages, and a text file of good quality.",
            f"curate {name} pages/ --good good.txt --out documents",
        ),
        "score": (
            'JSON lines of `{"caption": "...", "references": ["...", "..."]}`.',
            f"score {name} captions.jsonl",
        ),
        "attack": (
            f"Trained runs, and a file of images with captions ({COLUMNS}).",
            f"attack {name} runs/first runs/second --data pairs.parquet",
        ),
        "pair_documents": (
            f"Interleaved documents, as OBELICS or MMC4 have them ({COLUMNS}), and a run that embeds images and texts.",
            f"curate {name} documents/ --encoder runs/clip --out pairs",
        ),
    }
    return next(use for method, use in uses.items() if hasattr(kind, method))


def _training_data(entry: recipes.Entry, kind: Any) -> tuple[str, str]:
    """What a recipe trains on, and an example of its path."""
    of_modality = {
        "threads": (
            f"A table of posts with text and code, and one of labeled pairs ([posts]({FORMATS}#posts)).",
            "forum",
        ),
        "findings": (f"NIfTI scans, and a table of what their reports say ([nifti]({FORMATS}#nifti)).", "scans/"),
        "label": (f"A table with images, texts, and a label that records of one thing share ({COLUMNS}).", "records"),
        "boxes": (
            f"JSON lines with an image, a caption and a list of expressions with boxes ({COLUMNS}).",
            "expressions.jsonl",
        ),
        "regions": (
            f"JSON lines with an image, a caption and a list of regions, each with name and box ({COLUMNS}).",
            "regions.jsonl",
        ),
        "video": (f"A table with paths of clips and their captions ({COLUMNS}).", "clips.csv"),
    }
    declared = [modality for modality in entry.modalities if modality in DECLARED]
    if entry.family == "preference":
        needs = (
            "Pairs of a better and a worse answer: `polymodal sample-preferences runs/start --out pairs` writes them."
        )
        return needs, "pairs --init runs/start"
    if declared and not {"threads", "findings"} & {*entry.modalities}:
        needs = f"A corpus with {_listed(entry.modalities)}; declare it [in Python]({OWN_DATA}#other-modalities)."
        return needs, "corpus"
    if hasattr(kind, "pretrain_on"):
        return f"A table with images, a label of some of them, and captions of the others ({COLUMNS}).", "labelled.csv"
    if uses := [use for modality, use in of_modality.items() if modality in entry.modalities]:
        return uses[0]
    if hasattr(kind, "score_columns"):
        needs = f"A table with images and columns of numbers, such as `mos`; texts and `comments` if any ({COLUMNS})."
        return needs, "rated.csv"
    needs = f"A table with images and captions ({COLUMNS})"
    if hasattr(kind, "num_answers") or hasattr(kind, "language_model"):
        needs += "; a list of questions and answers is used where there is one"
    captions = f" `polymodal curate {entry.name} images` writes captions." if hasattr(kind, "annotate_images") else ""
    return f"{needs}.{captions}", "pairs.parquet"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _parts(file: Path) -> Iterator[tuple[str, str]]:
    """The functions and classes of a recipe's file, and the public methods of its classes, with their first line."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name == "Recipe":
            continue
        inner = node.body if isinstance(node, ast.ClassDef) else []
        methods = [part for part in inner if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]
        every = [(node.name, node), *((f"{node.name}.{method.name}", method) for method in methods)]
        yield from ((name, first_line) for name, part in every if (first_line := _first_line(part)))


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()).replace("|", "\\|")


def result_of(name: str, claim: str = recipes.FIRST_CLAIM) -> dict[str, Any] | None:
    """What `reproduce` wrote of a recipe's claim, and the package keeps: of further claims as RECIPE-CLAIM."""
    path = recorded_result(name, claim)
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
        f"{decision_sentence(result)}",
        "",
        f"| metric | chance | {' | '.join(arms)} |",
        "|---|---|" + "---|" * len(arms),
    ]
    for metric in result["metrics"]:
        cells = [chance_of(result, metric), *(measured(result, metric, arm) for arm in arms)]
        lines.append(f"| {metric} | {' | '.join(cells).replace('*', chr(92) + '*')} |")
    seconds = " | ".join(f"{result['cost'][arm]['seconds']:.0f} s" for arm in arms)
    lines += [f"| training | | {seconds} |", ""]
    notes = [_at_start(result), secondary_sentence(result).replace("*", "\\*"), how_tuned(result), how_often(result)]
    if is_current(result) and (committed := result.get("committed")):
        notes.append(f"Written down before: claim {committed['claim']}, code {committed['code']}.")
        again += " --again"
    return [*lines, " ".join(filter(None, [*notes, f"Again: `{again}`."]))]


def _at_start(result: dict[str, Any]) -> str:
    """Return what was measured before the arms were trained, if it was."""
    scores = (result.get("start_scores") or {}).items()
    listed = "; ".join(f"{metric} {number(result['units'][metric], mean(values))}" for metric, values in scores)
    return f"At the start, before all arms: {listed}." if listed else ""


def tasks_page(plots: Path) -> str:
    """Markdown: every task with the capability and modalities that it requires, its metrics, and its plot.

    plots: folder beside the page with images that are named like the tasks.
    """
    lines = [
        "# Tasks",
        "",
        "`polymodal evaluate` scores a run by every task whose capability the method has and whose modalities the "
        "corpus has. A capability is a method of this name. Arrows say whether higher (↑) or lower (↓) is better.",
        "",
        "| task | content | capability | modalities | metrics |",
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
    lines += ["", "## Examples", "", PLOTS_NOTE]
    for name in tasks.entries():
        if (plots / f"{name}.png").is_file():
            title = name.replace("_", " ").capitalize().replace("Vqa", "VQA")
            lines += ["", f"### {title}", "", f"![{title}: test examples and answers]({TASK_PLOTS}/{name}.png)"]
    return "\n".join(lines) + "\n"


def _metric(pattern: str, kind: MetricKind) -> str:
    return f"{pattern.replace('*', '…')} ({'↑' if kind.higher_is_better else '↓'}, {kind.unit})"


def write_pages(folder: Path) -> list[Path]:
    """A page for every recipe, and its learning curves; an image of the same name in the folder is shown on it."""
    written = []
    for name in recipes.entries():
        image = f"{name}.png" if (folder / f"{name}.png").is_file() else None
        path = folder / f"{name}.md"
        write_text(path, recipe_page(name, image))
        written.append(path)
    for name, result in recorded_results().items():
        if curves := result.get("curves"):
            write_text(folder / f"{name}-curves.svg", plot_curves(curves))
    return written


def write_tasks(path: Path) -> None:
    """The page of all tasks."""
    write_text(path, tasks_page(path.parent / TASK_PLOTS))


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
    write_tasks(Path(sys.argv[1]).parent / "tasks.md")
