"""Which recipes train on a corpus, and what it lacks for the others, without training or fitting anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal import recipes
from polymodal.corpora.corpus import Corpus
from polymodal.data.processor import fit_processor, reads_of, unavailable
from polymodal.errors import MissingModality, UserError, unknown
from polymodal.rng import ExampleRNG
from polymodal.training.stages import active_stages

FEW_ROWS = 8
MIN_ROWS = 2  # of the training split


def what_recipes_lack(corpus: Corpus, unreadable: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return what the corpus lacks for each recipe that trains a method: modalities, or a sentence; nothing if it fits.

    unreadable: columns too many of whose values cannot be decoded, with a clause about it.
    """
    return {name: what for name in sorted(recipes.entries()) if (what := _lacks(name, corpus, unreadable)) is not None}


def family_for(family: str, corpus: Corpus) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Return the recipes of a family that train on the corpus, and of the others what it lacks for them.

    Raises UserError for a family without recipes that train, and where the corpus suits none of them.
    """
    families: dict[str, list[str]] = {}
    for name, entry in recipes.entries().items():
        if hasattr(recipes.stand_in(name), "build"):
            families.setdefault(entry.family, []).append(name)
    if family not in families:
        raise unknown("family", family, families)
    lacking = {name: what for name in families[family] if (what := _lacks(name, corpus, {}))}
    fitting = [name for name in families[family] if name not in lacking]
    if not fitting:
        reasons = "; ".join(f"{name} needs {', '.join(what)}" for name, what in lacking.items())
        raise UserError(f"No recipe of {family} trains on this data: {reasons}.")
    return fitting, lacking


def _lacks(name: str, corpus: Corpus, unreadable: Mapping[str, str]) -> tuple[str, ...] | None:
    try:
        kind = recipes.find(name)
        if not hasattr(kind, "build"):
            return None
        recipe = kind()
        return _lacks_of(recipe, corpus, unreadable)
    except ImportError as error:
        return (f"the package {error.name} is not installed",)
    except Exception as error:  # of one recipe, which says nothing about the others
        return (f"it cannot be checked: {error}",)


def _lacks_of(recipe: Any, corpus: Corpus, unreadable: Mapping[str, str]) -> tuple[str, ...]:
    declared = recipe.columns()
    required, sparse = unavailable(declared, corpus)
    alternatives = [{kind.__name__.lower() for kind in reads_of(declared, name)} for name in required]
    missing = [" or ".join(sorted(one)) for one in alternatives if not any(other < one for other in alternatives)]
    missing = missing or _refusal(recipe, corpus)
    reads = reads_of(declared)
    unusable = [clause for name, clause in unreadable.items() if type(corpus.columns[name]) in reads]
    if len(corpus.splits.get("train", ())) < MIN_ROWS:
        unusable.append(f"{MIN_ROWS} rows to train on")
    if sparse and not missing and not unusable:
        missing = _lacks_in_a_batch(recipe, corpus)
    return tuple(missing or unusable)


def _refusal(recipe: Any, corpus: Corpus) -> list[str]:
    """What the recipe's own check says; it opens no other corpus unless a hyper-parameter names one."""
    if not hasattr(recipe, "training_corpora"):
        return []
    try:
        recipe.training_corpora(corpus)
    except MissingModality as error:
        return [error.modality]
    except UserError as error:
        return [str(error).removesuffix(corpus.hint)]
    return []


def _lacks_in_a_batch(recipe: Any, corpus: Corpus) -> list[str]:
    """Make a batch of a few rows for each stage: which sparse columns are read shows only there."""
    few = corpus.with_splits({"train": corpus.splits["train"][:FEW_ROWS]})
    try:
        processor = fit_processor(recipe, few)
        examples = [processor.load_example(few, int(row)) for row in few.splits["train"]]
        for stage in active_stages(recipe):
            if stage.corpus is None:
                getattr(recipe, stage.batch)(examples, processor, ExampleRNG.of(0, 0, len(examples)))
    except MissingModality as error:
        return [error.modality]
    except Exception:  # a few rows may be too few for a method, which says nothing of all of them
        return []
    return []
