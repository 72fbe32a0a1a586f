"""The corpus of the pairs that annotators accepted, with a data card: what was collected, dropped, checked and kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import load_description, save_corpus
from polymodal.curation.annotation import Judgements
from polymodal.curation.concepts import FURTHER, STATUSES
from polymodal.errors import UserError
from polymodal.modalities import Category
from polymodal.training.folder_lock import writes

CARD = "README.md"


def is_collected(corpus: Corpus) -> bool:
    """Return whether a corpus is one of candidates that `curation.concepts.write_candidates` wrote."""
    return {"concept", "category", "status", "note"} <= {*corpus.table.column_names}


def review_counts(corpus: Corpus, judgements: Judgements) -> dict[str, Any]:
    """Return the numbers of pairs by status, the answers that were given, and the agreement of annotators."""
    status = {corpus.key(row): judgements.status(corpus.key(row)) for row in range(len(corpus))}
    looks = {key: len(judgements.of_key.get(key, {})) for key in status}
    validated = sum(one == "validated" for one in status.values())
    kappa = {name: None if math.isnan(value) else round(value, 3) for name, value in judgements.kappa().items()}
    return {
        "pairs": dict(Counter(status.values())),
        "annotators": sorted({name for of in judgements.of_key.values() for name in of}),
        "looks": sum(looks.values()),
        "looks a validated pair": round(sum(looks.values()) / validated, 2) if validated else None,
        "kappa": kappa,
    }


@writes("out")
def write_validated(corpus: Corpus, judgements: Judgements, out: Path | str) -> tuple[Corpus, dict[str, Any]]:
    """Write the validated pairs, and a data card, into a folder; return the corpus and the counts of the review.

    Raises UserError where no pair is validated, and for a folder that is not empty.
    """
    rows = [row for row in range(len(corpus)) if judgements.status(corpus.key(row)) == "validated"]
    counts = review_counts(corpus, judgements)
    if not rows:
        raise UserError(
            "No pair is validated so far: each needs two annotators, who say yes to both questions, or a third one."
        )
    of_row = {row: split for split, members in corpus.splits.items() for row in members.tolist()}
    left = {name: {corpus.raw(row, name) for row in rows} for name in ("concept", "category", "culture")}
    columns = {
        name: Category(tuple(sorted(left[name]))) if name in left else modality
        for name, modality in corpus.columns.items()
    } | {"status": Category(STATUSES)}

    def stored() -> Iterator[dict[str, Any]]:
        for row in rows:
            values = {name: corpus.raw(row, name) for name in (*columns, *FURTHER)}
            yield values | {"key": corpus.key(row), "split": of_row[row], "status": "validated"}

    about = replace(corpus.about, name=Path(out).name, description=f"{len(rows)} validated pairs of a list of concepts")
    made = load_description(corpus.choices["data"])["made"] | {"review": counts}
    written = save_corpus(out, about, columns, stored(), types=FURTHER, label="category", made=lambda: made)
    (Path(out) / CARD).write_text(data_card(written, made), encoding="utf-8")
    return written, counts


def data_card(corpus: Corpus, made: Mapping[str, Any]) -> str:
    """Return the data card of a corpus of validated pairs, as Markdown.

    made: provenance: the list of concepts, counts of the steps, and the review.
    """
    rows = range(len(corpus))
    concepts = Counter(corpus.raw(row, "concept") for row in rows)
    categories = {corpus.raw(row, "concept"): corpus.raw(row, "category") for row in rows}
    licenses = Counter(corpus.raw(row, "license") or "not stated" for row in rows)
    review, listed = made["review"], made["concepts"]
    backgrounds = {corpus.raw(row, "concept") for row in rows if corpus.raw(row, "background")}
    lines = [f"# {corpus.name}", "", f"{len(corpus):,} images with text for {len(concepts)} concepts.", ""]
    lines += ["## Balance", "", "| category | concepts | images | images a concept |", "|---|---|---|---|"]
    for category in sorted({*categories.values()}):
        members = [count for name, count in concepts.items() if categories[name] == category]
        spread = f"{min(members)} to {max(members)}"
        lines.append(f"| {category} | {len(members)} | {sum(members)} | {spread} |")
    lines += [
        "",
        f"Concepts with a background text: {len(backgrounds)}. Splits are by source: no source is in two.",
        "",
    ]
    lines += ["## Collection", "", "| step | in | out | why others went |", "|---|---|---|---|"]
    for one in made["counts"]:
        went = ", ".join(f"{reason} {times}" for reason, times in one["reasons"].items())
        lines.append(f"| {one['step']} | {one['taken']} | {one['left']} | {went} |")
    kappa = ", ".join(f"{name} {'-' if value is None else value}" for name, value in review["kappa"].items())
    lines += [
        "",
        f"The list has {len(listed['names'])} concepts (SHA-256 `{listed['sha256']}`); without a validated image: "
        f"{', '.join(name for name in listed['names'] if name not in concepts) or 'none'}.",
        "",
        "## Manual checks",
        "",
        "Two annotators answered of each pair whether the image is authentic and whether the text describes it; where "
        "their verdicts differ, a third one decided.",
        "",
        f"Pairs: {', '.join(f'{name} {count}' for name, count in review['pairs'].items())}. "
        f"Annotators: {len(review['annotators'])}. Answers a validated pair: {review['looks a validated pair']}. "
        f"Cohen's kappa: {kappa}.",
        "",
        "## Licenses",
        "",
        *(f"- {license}: {count} images" for license, count in licenses.most_common()),
        "",
        "Each row has its source and license. Images may show people: look at their rights before a release.",
        "",
    ]
    return "\n".join(lines)
