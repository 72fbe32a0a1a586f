"""Names, help texts, error messages and documentation use the terms of the field.

Words of the deny list are allowed only as often as `vocabulary_allowed.json` says, file by file; the numbers may fall
and not grow. After a file was rewritten, `python tests/test_vocabulary.py` lowers them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "polymodal"
ALLOWED = Path(__file__).with_name("vocabulary_allowed.json")

# Parts of identifiers, split at underscores and capitals; and the term to use.
IDENTIFIER_PARTS = {
    "picture": "image",
    "pictures": "images",
    "perceptron": "mlp",
    "foretell": "predict",
    "foretold": "predicted",
    "share": "fraction, ratio or probability",
    "figure": "metric",
    "figures": "metrics",
    "hide": "mask",
    "most": "max_",
    "longest": "max_",
    "fewest": "min_",
    "least": "min_",
    "lot": "random",
}
# Whole identifiers: what the value is, instead.
IDENTIFIERS = {"asked", "said", "seen", "known", "found", "told", "own", "draws", "hidden"}
IDENTIFIERS_ALLOWED = {
    "share_memory",
    "most_common",
    "most_frequent_answers",
    "plot",
    "most_important",
    "least_important",
    "most_popular",
}

TEXT = {
    r"\bpictures?\b": "image",
    r"\bperceptrons?\b": "MLP",
    r"\bforet(ell|old)\w*\b": "predict",
    r"\bby lot\b": "sampled at random",
    r"\b(the|a|an|its|of|in|what|whose|which|each|equal) shares?\b|\bshares of\b": "fraction, ratio or probability",
    r"\b(the|best|these|all|its|such|measured|many|more|same|every) figures?\b(?! \d)": "metric or score",
    r"\bfigures (on|of|for|with|measured)\b": "metric or score",
    r"\bhidden (words?|patch(es)?|cells?|spans?|speech|characters?|tokens?|columns?|values?)\b": "masked",
    r"\bwho falls\b|\bno match of\b|\bthat nobody reads\b": "plain words",
    r"\blook-?alikes?\b": "near-duplicates",
    r"\bworkings?\b(?! (folder|directory|tree|files))": "rationale or chain of thought",
}


def parts_of(name: str) -> list[str]:
    """The words of an identifier in lower case."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name that the file defines: functions, classes, parameters, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def texts(tree: ast.AST) -> Iterator[str]:
    """Help of flags (the string below a field), and messages of errors that a user causes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    yield from strings(text)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
            yield " ".join(text for argument in node.args for text in strings(argument))


def strings(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield " ".join(part.value.split())


def hits_in_text(text: str) -> list[str]:
    """What a text says of the deny list, with the term to use."""
    return [f"{found[0]} -> {term}" for word, term in TEXT.items() for found in re.finditer(word, text, re.I)]


def hits_in_identifier(name: str) -> list[str]:
    """What an identifier has of the deny list, with the term to use."""
    if name in IDENTIFIERS_ALLOWED:
        return []
    if name in IDENTIFIERS:
        return [f"{name} -> what the value is"]
    return [f"{name} -> {IDENTIFIER_PARTS[part]}" for part in parts_of(name) if part in IDENTIFIER_PARTS]


def hits_of(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        tables = r"<!-- (?P<name>[a-z -]+) -->.*?<!-- /(?P=name) -->"  # of texts in the source
        return hits_in_text(re.sub(rf"```.*?```|{tables}", "", text, flags=re.S))
    tree = ast.parse(text)
    return [hit for name in identifiers(tree) for hit in hits_in_identifier(name)] + [
        hit for message in texts(tree) for hit in hits_in_text(message)
    ]


def files() -> list[Path]:
    """Source, and pages that are written by hand: those of recipes are made of docstrings."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SOURCE.rglob("README.md"), *(ROOT / "docs").rglob("*.md")]
    return [*sorted(SOURCE.rglob("*.py")), *sorted(page for page in pages if page.parent.name != "recipes")]


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_no_file_has_more_home_made_words_than_it_had() -> None:
    allowed = json.loads(ALLOWED.read_text(encoding="utf-8"))
    more = {}
    for file in files():
        hits = hits_of(file)
        if len(hits) > allowed.get(relative(file), 0):
            more[relative(file)] = (allowed.get(relative(file), 0), len(hits), sorted(set(hits)))
    assert not more


def test_pages_have_none() -> None:
    allowed = json.loads(ALLOWED.read_text(encoding="utf-8"))
    assert not [name for name in allowed if name.endswith(".md")]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The picture is damaged.", 1),
        ("the share of hidden words", 2),
        ("rows share an image; the shared encoder of figure 3", 0),
        ("drawn by lot", 1),
        ("the best figures, and figures for a run", 2),
        ("Text and figures in reading order", 0),
    ],
)
def test_texts_are_judged_by_their_words(text: str, count: int) -> None:
    assert len(hits_in_text(text)) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [("MOST_ROWS", 1), ("said", 1), ("text_share", 1), ("PictureColumn", 1), ("image_size", 0), ("found_text", 0)],
)
def test_identifiers_are_judged_by_their_parts(name: str, count: int) -> None:
    assert len(hits_in_identifier(name)) == count


def test_the_terms_of_the_field_are_in_the_source() -> None:
    """What a reader of the papers searches for."""
    everything = "\n".join(file.read_text(encoding="utf-8").lower() for file in files())
    terms = ["mask_ratio", "mlm", "itm", "itc", "logit_scale", "num_heads", "num_kv_heads", "projection_head"]
    terms += ["embed_dim", "encode_image", "encode_text", "activation_checkpointing", "lr_scheduler", "ema_decay"]
    terms += ["max_grad_norm", "bits_per_byte", "mlp_dim", "warmup_ratio", "pos_embed"]
    terms += ["vector quantization", "expert choice", "momentum encoder", "sequence packing", "exponential moving"]
    terms += ["image-text matching", "masked language model", "referring-expression", "phrase grounding", "vqa"]
    terms += ["gradient accumulation", "activation checkpointing", "rotary", "retrieval", "zero-shot"]
    assert not [term for term in terms if term not in everything]


def rewrite() -> None:
    """Lower the numbers to what there is."""
    before = json.loads(ALLOWED.read_text(encoding="utf-8")) if ALLOWED.is_file() else None
    counts = {relative(file): len(hits_of(file)) for file in files()}
    kept = {name: count if before is None else min(count, before.get(name, 0)) for name, count in counts.items()}
    text = json.dumps({name: count for name, count in kept.items() if count}, indent=2)
    ALLOWED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--list" in sys.argv:
        for page in files():
            for line in hits_of(page):
                print(relative(page), line)
    else:
        rewrite()
