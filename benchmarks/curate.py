"""Pages a second through the steps of wasm: Daft's native runner against a plain pool of processes.

python benchmarks/curate.py [pages]

Both run the same functions on the same pages of the corpus `manuals`, in turn, on all cores, with the time that their
processes take to start; the figure is the median of three rounds. What a step costs is measured by itself, on one core,
and so is the step that datatrove has, too, where that is installed (pip install datatrove spacy): limits of what a text
repeats and consists of. datatrove's are Gopher's, ours here OBELICS'; they ask for nearly the same.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polymodal as pm
from in_turn import median_ratio, seconds_in_turn
from polymodal.claims import wasm as claims
from polymodal.curation.noise import good_paragraphs, pages_in_language
from polymodal.curation.page_sources import pages_of
from polymodal.curation.pipeline import run_pipeline, steps_of_page
from polymodal.curation.quality import Judge, Knowledge
from polymodal.curation.steps import CurationStep
from polymodal.curation.web import blocks_of
from polymodal.recipes.data_curation import wasm

ROUNDS = 3
_steps: Mapping[str, CurationStep] = {}


def one_page(page: Mapping[str, str]) -> dict[str, Any]:
    return steps_of_page(page["html"], page["base"], _steps)


def pooled(pages: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    with multiprocessing.get_context("fork").Pool() as pool:
        return pool.map(one_page, pages, chunksize=16)


def pages_a_second(tables: Iterable[Any]) -> float:
    """Once the first have come out, when processes have started."""
    first, after = 0.0, 0
    for table in tables:
        if first:
            after += len(table)
        first = first or time.perf_counter()
    return after / (time.perf_counter() - first)


def against_datatrove(texts: Sequence[str]) -> None:
    """Texts a second of one core, through limits of repeated words and lines, of words, symbols and stop words."""
    try:
        from datatrove.data import Document
        from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

        filters = GopherRepetitionFilter(language="eng"), GopherQualityFilter(language="eng")
        filters[0].filter(Document(text="its tokenizer is loaded now", id=""))
    except ImportError as error:
        print(f"not compared with datatrove: {error}")
        return
    limits = replace(claims.OBELICS_DOCUMENT, language=0.0, perplexity=math.inf)
    judge = Judge(limits, Knowledge.of("en", texts, ()))
    kept: dict[str, int] = {}

    def theirs() -> None:
        kept["datatrove"] = sum(
            all(one.filter(Document(text=text, id="")) is True for one in filters) for text in texts
        )

    def ours() -> None:
        kept["ours"] = sum(judge.why_not(text) is None for text in texts)

    both = {"datatrove": theirs, "ours": ours}
    times = seconds_in_turn(both, ROUNDS)
    for name, values in times.items():
        rate = len(texts) / statistics.median(values)
        print(f"{name:10} {rate:8.1f} texts a second through limits of quality, {kept[name]} of {len(texts)} kept")
    print(f"ours does {median_ratio(times['datatrove'], times['ours']):.1f} times as many")


def main() -> None:
    global _steps
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    corpus = pm.corpora.manuals()
    rows = [row for row in range(len(corpus)) if "debian-handbook/" in corpus.key(row)][:: max(1, 2700 // count)]
    pages = list(pages_of(corpus, rows[:count]))
    recipe = wasm.Recipe()
    _steps = recipe.steps(recipe.fit(good_paragraphs(pages_in_language(corpus, "ar", ["train"]), "ar")))
    cores = multiprocessing.cpu_count()
    list(run_pipeline(pages[:20], _steps))  # Daft starts its threads
    started: list[float] = []
    times = seconds_in_turn(
        {"daft": lambda: started.append(pages_a_second(run_pipeline(pages, _steps))), "pool": lambda: pooled(pages)},
        ROUNDS,
    )
    for name, values in times.items():
        rate = len(pages) / statistics.median(values)
        print(f"{name:5} {rate:8.1f} pages a second, {rate / cores:8.1f} a core ({cores})")
    print(f"daft, once its processes have started: {statistics.median(started):.1f} pages a second")
    flowing = [len(pages) / rate for rate in started]
    print(
        f"Daft does {median_ratio(times['pool'], times['daft']):.2f} times as many pages as the pool, "
        f"{median_ratio(times['pool'], flowing):.2f} times once its processes have started"
    )
    began = time.perf_counter()
    blocks = [blocks_of(page["html"], page["base"]) for page in pages]
    print(f"read       {1000 * (time.perf_counter() - began) / len(pages):6.2f} ms a page")
    for name, step in _steps.items():
        began = time.perf_counter()
        blocks = [step(one).kept for one in blocks]
        print(f"{name:10} {1000 * (time.perf_counter() - began) / len(pages):6.2f} ms a page")
    english = [block for _, block in pages_in_language(corpus, "en", ["train"])]
    against_datatrove(["\n\n".join(one.text for one in page if not one.image) for page in english])


if __name__ == "__main__":
    main()
