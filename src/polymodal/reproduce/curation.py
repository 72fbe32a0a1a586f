"""Compare recipes of curation fairly: the same noise in the same pages, or the same model on what they make of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from polymodal.claim import CuratedTrainingClaim, CurationClaim
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import is_saved, open_saved
from polymodal.curation.noise import curation_scores
from polymodal.curation.page_sources import images_of, pages_of
from polymodal.curation.pipeline import curate_pages, plain_texts
from polymodal.curation.web import visible
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.evaluation import Score, validation
from polymodal.evaluation.interleaved_documents import ParagraphChoice, document_reading_scores, image_paragraph_choice
from polymodal.modalities import Interleaved
from polymodal.reproduce.compare import RESULTS, kept_scores, trained_start
from polymodal.reproduce.display import Display
from polymodal.reproduce.metrics import score_untrained
from polymodal.reproduce.result import Arm, ComparisonResult, Trial
from polymodal.reproduce.timing import START, TimedArm, budgets_in_steps
from polymodal.training import Interrupted, Run, train
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import write_json
from polymodal.types import Budget


def compare_curations(
    arms: list[Arm], claim: CurationClaim, corpus: Corpus, budget: Budget, seeds: int, out: Path | str
) -> ComparisonResult:
    """Curate as many pages as the budget has examples, at every seed; writes `results.json`."""
    if budget.examples is None:
        raise UserError("A claim about curation trains nothing; its budget is a number of pages: 40examples.")
    max_pages = budget.examples
    return score_untrained(
        arms,
        corpus,
        budget,
        seeds,
        out,
        lambda recipe, seed: curation_scores(recipe, corpus, claim.language, max_pages, seed),
    )


def compare_training_on_curated(
    arms: list[Arm],
    claim: CuratedTrainingClaim,
    corpus: Corpus,
    budget: Budget,
    seeds: int,
    out: Path | str,
    display: Display | None = None,
    trust_code: bool = False,
) -> ComparisonResult:
    """Curate all pages with every arm, and train the claim's model on each at every seed; writes `results.json`.

    Documents and runs in `out` are not made again. Which text belongs to an image is taken from the second arm's
    documents, where images stand in their place, and so is what the claim's `start` is trained on, once a seed, with
    whose weights all arms begin. All arms are scored on the test documents that every arm has, so that their
    differences are paired. trust_code: of finished runs in `out`, see `load_run`.
    """
    directory, every = Path(out), list(range(seeds))
    curated = directory / "curated"
    made = {arm: _curated(arm, corpus, curated / arm.folder) for arm in arms}
    common = common_documents({curated / arm.folder: made[arm] for arm in arms}, "test")
    questions = [one for one in image_paragraph_choice(made[arms[1]], "test") if one.key in common]
    display = display or Display([START] * (claim.start is not None) + [arm.label for arm in arms], every, budget)
    trials = []
    with display:
        timed = [TimedArm(arm.label, claim.model, made[arm]) for arm in arms]
        budgets = budgets_in_steps(timed, budget, every, directory, display)
        for seed in every:
            start = None
            if claim.start is not None:
                start = directory / "runs" / START / f"seed-{seed}"
                start_budget = claim.start_budget or budget
                trained_start(claim.start, made[arms[1]], start_budget, seed, start, display, trust_code)
                display.finished(START, seed, {})
            for arm in arms:
                folder = directory / "runs" / arm.folder / f"seed-{seed}"
                try:
                    run = train(
                        claim.model,
                        made[arm],
                        budgets[arm.label],
                        seed=seed,
                        out=folder,
                        name=arm.label,
                        init=start,
                        validate=validation(made[arm]),
                        on_step=display.on_step(arm.label, seed),
                        trust_code=trust_code,
                    )
                except Interrupted as stopped:
                    raise Interrupted("Stopped and saved; the same command goes on where it was.") from stopped
                display.scoring(arm.label, seed)
                scores = kept_scores(folder, partial(_reading, run, made[arm], curated / arm.folder, questions, common))
                run = replace(run, record=run.record | {"recipe": recipe_record(arm.recipe)})
                trials.append(Trial(arm, seed, run, {score.name: score for score in scores}))
                display.finished(arm.label, seed, trials[-1].scores)
    comparison = ComparisonResult(arms, corpus, budget, every, trials, directory)
    write_json(directory / RESULTS, comparison.to_json())
    return comparison


def _curated(arm: Arm, corpus: Corpus, folder: Path) -> Corpus:
    if is_saved(folder):
        return open_saved(folder)
    rows = [int(row) for split in corpus.splits.values() for row in split]
    pages, fitted = pages_of(corpus, rows), arm.recipe.fit(())
    folder.parent.mkdir(parents=True, exist_ok=True)
    return curate_pages(arm.recipe, pages, folder, fitted, source=corpus.name, figures=images_of(corpus))[0]


def common_documents(folders: Mapping[Path, Corpus], split: str) -> set[str]:
    """The keys of the documents with texts and the same number of images that every folder has, of its corpus.

    Raises UserError where there is none.
    """
    documents = []
    for folder, corpus in folders.items():
        column, texts = corpus.column_with(Interleaved), plain_texts(folder)
        rows = {corpus.key(row): corpus.raw(row, column) for row in corpus.rows(split).tolist()}
        images = {key: sum(piece["figure"] is not None for piece in row) for key, row in rows.items()}
        documents.append({(key, count) for key, count in images.items() if texts[key]})
    common = {key for key, _ in set.intersection(*documents)}
    if not common:
        raise UserError(f"No document of the split '{split}' is left by every arm, so that nothing can be compared.")
    return common


def _reading(
    run: Run, corpus: Corpus, folder: Path, questions: list[ParagraphChoice], common: Collection[str]
) -> list[Score]:
    assert isinstance(run.processor, Processor)
    left_out = {corpus.key(row) for row in corpus.rows("test").tolist()} - {*common}
    plain = {key: [] if key in left_out else texts for key, texts in plain_texts(folder).items()}
    return document_reading_scores(run.model, run.processor, corpus, plain, visible, questions, "test")
