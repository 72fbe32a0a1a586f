"""Write the generated tables of the README and of the documentation: recipes, tasks, capabilities, corpora.

`python tools/tables.py` rewrites what stands between `<!-- NAME -->` and `<!-- /NAME -->` in every page, and
`python tools/tables.py --check` lists the pages that are out of date, and exits with 1 if there are any.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from polymodal import recipes
from polymodal.claim import TO_BE_MEASURED_AGAIN, is_current, recorded_results
from polymodal.corpora import registry

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"<!-- (?P<name>[a-z][a-z -]*) -->\n.*?<!-- /(?P=name) -->", re.S)


@dataclass(frozen=True)
class Task:
    """A task of the documentation, with what makes a recipe one of its methods."""

    page: str
    title: str
    capabilities: tuple[str, ...]
    """Names of methods; a recipe that has one of them is listed."""
    columns: str
    metrics: str
    modalities: frozenset[str] = frozenset()
    """The recipe takes all of these."""


TASKS = (
    Task(
        "retrieval", "Retrieval", ("embed", "itm_logits"), "image, video, audio or points; text",
        "R@1, R@5, R@10, MRR, median rank", frozenset({"text"}),
    ),
    Task(
        "zero-shot-classification", "Zero-shot classification", ("embed",), "image, video or points; text; label",
        "top-1 accuracy", frozenset({"text"}),
    ),
    Task(
        "vqa-and-captioning", "VQA and captioning", ("generate_text", "answer_logits", "score"),
        "image or video; questions or captions", "accuracy, bits per byte, CHAIR_i, object recall",
    ),
    Task(
        "grounding", "Grounding", ("predict_boxes", "encode_patches", "classify_regions"),
        "image; expressions, mask or regions", "acc@0.5, mIoU, pointing accuracy, R@1",
    ),
    Task("documents", "Documents", ("classify_tokens", "token_nll"), "image; words or document", "entity F1, bits"),
    Task("speech", "Speech", ("transcribe",), "audio; text", "WER, CER, language accuracy"),
    Task("generation", "Image generation", ("generate_images",), "image; category or text", "Fréchet distance, KID"),
    Task(
        "duplicate-detection", "Duplicate detection", ("duplicate_logits",), "posts of text and code; labeled pairs",
        "macro F1, R@10",
    ),
    Task("medical-reports", "Medical reports", ("finding_logits",), "volume; findings", "AUC, macro F1, tail recall"),
    Task("recommendation", "Recommendation", ("recommend",), "history", "Recall@20, NDCG@20"),
    Task("missing-modalities", "Missing modalities", ("impute",), "image; table; label", "AUC vs. missing rate"),
    Task("score-prediction", "Score prediction", ("predict_scores",), "image; scores; text", "SRCC, PLCC"),
    Task(
        "curation", "Curation", ("steps", "pair_documents"), "HTML pages or interleaved documents",
        "fraction kept, fraction of noise dropped",
    ),
    Task("attacks", "Attacks", ("attack",), "image; text", "attack success rate"),
)  # fmt: skip


def tasks_of(entry: recipes.Entry) -> list[Task]:
    return [
        task
        for task in TASKS
        if task.modalities <= set(entry.modalities) and recipes.has_capability(entry, *task.capabilities)
    ]


def link(text: str, target: Path, page: Path) -> str:
    return f"[{text}]({Path(os.path.relpath(target, page.parent)).as_posix()})"


def recipe_link(name: str, page: Path) -> str:
    return link(f"`{name}`", DOCS / "recipes" / f"{name}.md", page)


def task_link(task: Task, page: Path) -> str:
    return link(task.title, DOCS / "tasks" / f"{task.page}.md", page)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(cells)} |".replace("| --- | --- |", "|---|---|").replace(" --- ", "---") for cells in lines]


def recipe_rows(page: Path) -> list[str]:
    rows = [
        (
            recipe_link(name, page),
            f"{entry.idea[0].upper()}{entry.idea[1:].rstrip('.')}",
            ", ".join(entry.modalities),
            ", ".join(task_link(task, page) for task in tasks_of(entry)),
            f"[{entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})",
        )
        for name, entry in recipes.entries().items()
    ]
    return table(("recipe", "idea", "modalities", "tasks", "paper"), rows)


def task_rows(page: Path) -> list[str]:
    entries = recipes.entries().values()
    rows = [
        (
            task_link(task, page),
            task.columns,
            task.metrics,
            ", ".join(recipe_link(entry.name, page) for entry in entries if task in tasks_of(entry)),
        )
        for task in TASKS
    ]
    return table(("task", "columns", "metrics", "methods"), rows)


def recipe_group_rows(page: Path) -> list[str]:
    """One row per family, for the README."""
    groups: dict[str, list[str]] = {}
    for name, entry in recipes.entries().items():
        groups.setdefault(entry.family.replace("_", " "), []).append(recipe_link(name, page))
    return table(("family", "methods"), several_or_one(groups))


def task_summary_rows(page: Path) -> list[str]:
    """Every task without its methods, for the README."""
    rows = [(task_link(task, page), task.columns, task.metrics) for task in TASKS]
    return table(("task", "columns", "metrics"), rows)


def method_rows(task: Task, page: Path) -> list[str]:
    rows = [
        (
            recipe_link(entry.name, page),
            f"{entry.idea[0].upper()}{entry.idea[1:].rstrip('.')}",
            ", ".join(entry.modalities),
            ", ".join(f"`{name}`" for name in task.capabilities if recipes.has_capability(entry, name)),
        )
        for entry in recipes.entries().values()
        if task in tasks_of(entry)
    ]
    return table(("method", "idea", "modalities", "capability"), rows)


def capability_rows(page: Path) -> list[str]:
    entries = recipes.entries().values()
    names = list(dict.fromkeys(name for task in TASKS for name in task.capabilities))
    rows = [
        (
            f"`{name}`",
            ", ".join(task_link(task, page) for task in TASKS if name in task.capabilities),
            ", ".join(recipe_link(entry.name, page) for entry in entries if recipes.has_capability(entry, name)),
        )
        for name in names
    ]
    return table(("capability", "tasks", "methods"), rows)


def corpus_rows(page: Path) -> list[str]:
    rows = [
        (f"`{name}`", f"{about.description[0].upper()}{about.description[1:]}", ", ".join(about.modalities))
        for name, about in registry.built_in().items()
    ]
    return table(("corpus", "content", "modalities"), rows)


def corpus_group_rows(page: Path) -> list[str]:
    """One row per main modality, for the README."""
    groups: dict[str, list[str]] = {}
    for name, about in registry.built_in().items():
        groups.setdefault(about.modalities[0], []).append(f"`{name}`")
    return table(("modality", "corpora"), several_or_one(dict(sorted(groups.items()))))


def several_or_one(groups: dict[str, list[str]]) -> list[tuple[str, str]]:
    """A row for each group of several members, and one for all groups of a single one."""
    several = [(name, ", ".join(members)) for name, members in groups.items() if len(members) > 1]
    single = ", ".join(f"{members[0]} ({name})" for name, members in groups.items() if len(members) == 1)
    return [*several, *([("others", single)] if single else [])]


def claim_rows(page: Path) -> list[str]:
    """Every claim of every recipe, with what came out."""
    from polymodal.reproduce.claim_text import decision_sentence

    results = recorded_results()
    rows = []
    for name, entry in recipes.entries().items():
        if not entry.has_claim:
            continue
        about = recipes.describe(name)
        for key, sentence in {"": about["claim"], **about["further_claims"]}.items():
            outcome, how = "**to be measured**", ""
            if result := results.get(f"{name}-{key}" if key else name):
                outcome = decision_sentence(result) if is_current(result) else f"**{TO_BE_MEASURED_AGAIN}**"
                how = f"`{result['corpus']}`, {result['budget']}, {len(result['seeds'])} seeds"
            title = recipe_link(name, page) + (f" `--claim {key}`" if key else "")
            rows.append((title, sentence, how, outcome.replace("|", "\\|")))
    return table(("recipe", "claim", "measured on", "what came out"), rows)


def verdicts_of(name: str) -> str:
    """The recorded verdict of each claim of a recipe; '' where none is recorded that counts."""
    verdicts = []
    for recorded, result in recorded_results().items():
        recipe, _, key = recorded.partition("-")
        if recipe == name and is_current(result):
            verdicts.append(result["verdict"] + f" ({key})" * bool(key))
    return ", ".join(verdicts)


def family_rows(page: Path) -> list[str]:
    rows = [
        (
            recipe_link(name, page),
            entry.family.replace("_", " "),
            f"[{entry.title}](https://arxiv.org/abs/{entry.arxiv}), {entry.year}" if entry.arxiv else entry.title,
            ", ".join(entry.modalities),
            verdicts_of(name) or ("to be measured" if entry.has_claim else "no claim"),
            f"`{entry.checked.partition('@')[0]}`" if entry.checked else "the paper alone",
        )
        for name, entry in sorted(recipes.entries().items(), key=lambda one: (one[1].family, one[1].year, one[0]))
    ]
    return table(("method", "family", "paper", "modalities", "verdict", "checked against"), rows)


def result_lines(page: Path) -> list[str]:
    """One recorded result: a claim that is supported and, of several, the one with most seeds, first by name."""
    from polymodal.reproduce.claim_text import claim_rows as measured_rows
    from polymodal.reproduce.claim_text import decision_sentence

    current = [result for result in recorded_results().values() if is_current(result)]
    first = max(current, key=lambda one: (one["verdict"] == "supported", len(one["seeds"])))
    about = f"on `{first['corpus']}`, {first['budget']}, {len(first['seeds'])} paired seeds"
    deciding = {one["metric"] for one in first["deciding"]}
    arms = [str(arm) for arm in first["cost"]]
    kept = [2 + arms.index(arm) for arm in ("baseline", "treatment")]
    rows = [(*row[:2], *(row[index] for index in kept), row[-1]) for row in measured_rows(first) if row[0] in deciding]
    return [
        f"{recipe_link(first['recipe'], page)}, {about}. {first['claim']}",
        "",
        f"Measured: {decision_sentence(first)}",
        "",
        *table(("metric", "chance", "baseline", "treatment", "difference"), rows),
    ]


def extra_rows(page: Path) -> list[str]:
    from polymodal.serving.installation import WHAT_FOR

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = []
    for name, packages in extras.items():
        names = [re.split(r"[<>=~!; ]", one)[0] for one in packages]
        rows.append((f"`{name}`", WHAT_FOR[name], ", ".join(f"`{one}`" for one in names)))
    return table(("extra", "for", "packages"), rows)


def content(name: str, page: Path) -> list[str]:
    """The lines of the table of that name. Raises KeyError for a name that has none."""
    if name.startswith("methods "):
        return method_rows({task.page: task for task in TASKS}[name.removeprefix("methods ")], page)
    tables = {
        "recipes": recipe_rows,
        "recipes by family": recipe_group_rows,
        "claims": claim_rows,
        "families": family_rows,
        "one result": result_lines,
        "extras": extra_rows,
        "tasks": task_rows,
        "tasks in short": task_summary_rows,
        "capabilities": capability_rows,
        "corpora": corpus_rows,
        "corpora by modality": corpus_group_rows,
    }
    return tables[name](page)


def rewritten(page: Path) -> str:
    """The text of the page with its tables as they should be."""

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        return "\n".join([f"<!-- {name} -->", *content(name, page), f"<!-- /{name} -->"])

    return BLOCK.sub(block, page.read_text(encoding="utf-8"))


def pages() -> list[Path]:
    """The pages that have a generated table."""
    files = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "tasks").glob("*.md"))]
    return [file for file in files if BLOCK.search(file.read_text(encoding="utf-8"))]


def main() -> int:
    stale = [page for page in pages() if rewritten(page) != page.read_text(encoding="utf-8")]
    for page in stale:
        if "--check" in sys.argv:
            print(f"{page.relative_to(ROOT)} is out of date; run `make pages`.")
        else:
            page.write_text(rewritten(page), encoding="utf-8")
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
