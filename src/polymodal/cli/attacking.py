"""Commands that examine what runs and captions get wrong: attack, score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polymodal import source
from polymodal.cli._flags import Arguments, RunOptions, leading_words, positional, recipe_that, run_and_corpus
from polymodal.cli._output_files import output_file
from polymodal.cli._printing import print_table, terminal
from polymodal.cli._recipe_flags import parse_with_recipe
from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.errors import UserError


def attack(arguments: Arguments) -> None:
    """attack runs by adversarial images and captions, and evaluate all of them on these (transfer)"""
    usage = "attack RECIPE RUN [RUN ...] [--split test] [--examples 300] [--out attack] [--eps 4 ...]"
    spec, rest = positional(arguments, usage)
    paths = leading_words(rest)
    if not paths:
        raise UserError(f"Usage: polymodal {usage}")

    @dataclass(frozen=True)
    class Options(RunOptions):
        split: str = "test"
        """Split whose images and captions are attacked."""
        examples: PositiveInt = 300
        """Maximum number of attacked examples."""
        seed: NonNegativeInt = 0
        """Random seed of the attack."""
        out: str = "attack"
        """Folder for attack.json and perturbed images."""

    kind = recipe_that("attack", spec, "no attack", "security")
    flags = rest[len(paths) :]
    parsed = parse_with_recipe({"options": Options}, kind, flags, f"attack {spec} RUN [RUN ...]", attack)
    from polymodal.serving.attack import attack_runs

    options = parsed.options
    opened = [run_and_corpus(path, options) for path in dict.fromkeys(paths)]
    names = [run.name for run, _ in opened]
    runs = {run.name if names.count(run.name) == 1 else str(run.directory): run for run, _ in opened}
    recipe = source.real(parsed.recipe)
    scores = attack_runs(recipe, runs, opened[0][1], options.split, options.examples, options.seed, options.out)
    print_table(
        ["made on", "tried on", "search", "R@10 before", "not found any more", "95 % interval"],
        [
            [source, "itself" if target == source else target, way, before.shown()[0], *after.shown()[:2]]
            for source, target, way, before, after in scores
        ],
        right=(3, 4, 5),
    )
    terminal().print(f"Figures and images are in {options.out}/.", highlight=False)


def score(arguments: Arguments) -> None:
    """score captions against reference captions of their images, and detect hallucinated objects (ALOHa)"""
    usage = "score RECIPE CAPTIONS.jsonl [--out scores.jsonl]"
    spec, rest = positional(arguments, usage)
    captions, rest = positional(rest, usage)

    @dataclass(frozen=True)
    class Options:
        out: str | None = None
        """Output file; by default scores.jsonl, or scores-2.jsonl and so on where that is taken."""

    kind = recipe_that("score", spec, "no metric of captions", "metrics")
    parsed = parse_with_recipe({"options": Options}, kind, rest, f"score {spec} CAPTIONS.jsonl", score)
    from polymodal.serving.scoring import score_captions

    out = output_file(parsed.options.out, "scores.jsonl")
    scored = score_captions(source.real(parsed.recipe), Path(captions), out.path)
    worst = sorted(scored, key=lambda result: result[1].value)[:8]
    print_table(
        ["score", "worst object", "caption"],
        [
            [f"{result.value:.3f}", min(result.objects, key=result.objects.__getitem__, default="-"), note]
            for note, result in worst
        ],
        right=(0,),
    )
    mean = sum(result.value for _, result in scored) / len(scored)
    without = sum(not result.objects for _, result in scored)
    note = f"; {without} of them speak of no object" if without else ""
    terminal().print(f"Mean {mean:.3f} over {len(scored):,} captions{note}. All are in {out}.", highlight=False)
