"""Composed questions about programming tasks, each asked twice in other words, as threads with answers.

A task is an action, an object and a manner, each of which has two synonyms in text and two forms in code. All parts of
both threads of a task choose synonyms, forms and templates at random, so that neither the form nor the length of a post
says what it is a duplicate of, and shared words alone do not tell it from similar posts. Each first post has three
negative pairs, with second posts of other tasks of the split: the most similar by BM25 (`similar_text`), one with the
same object (`similar_tags`), and one that differs in everything (`different`). Splits are by task; all synonyms are in
all splits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.bm25 import BM25
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Modality, Text, Threads
from polymodal.modalities.text import stored_texts
from polymodal.modalities.thread import stored_thread

# Two synonyms in text: two forms in code.
ACTIONS = {
    "sort order": "sorted sort_values",
    "filter select": "filter where",
    "count tally": "len size",
    "reverse flip": "reversed flipud",
    "merge join": "concat hstack",
    "split divide": "split partition",
    "remove delete": "pop discard",
    "copy duplicate": "deepcopy copyto",
    "load read": "read_csv loads",
    "save write": "dump to_csv",
    "print show": "print echo",
    "compare match": "cmp equals",
}
OBJECTS = {
    "rows records": "df table",
    "words terms": "text doc",
    "images photos": "img pixels",
    "dates days": "when dt",
    "users accounts": "users profile",
    "files documents": "fs path",
    "prices costs": "price usd",
    "nodes vertices": "tree graph",
    "bytes bits": "buf raw",
    "threads workers": "pool queue",
    "letters characters": "chars s",
    "matrices grids": "mat arr",
}
MANNERS = {
    "quickly fast": "n_jobs=8 fast=True",
    "safely securely": "strict=True retry=3",
    "randomly arbitrarily": "seed=0 rng=rng",
    "lazily gradually": "chunks=9 stream=True",
    "recursively deeply": "depth=-1 walk=True",
    "quietly silently": "verbose=0 log=None",
    "remotely online": "host=url ssh=True",
    "daily regularly": "cron=1 every=24",
}
QUESTIONS = ("How do I {} {} {}?", "What is a way to {} {} {}", "I need to {} my {} {}.", "Can Python {} these {} {}?")
ANSWERS = ("You can {} the {} {}.", "To {} {} {}, call this.", "Here is how to {} {} {}.", "Just {} all {} {}:")
QUESTION_CODE = ("{0}({1}, {2})", "x = {0}({1}, {2})", "{1}.{0}({2})", "try: {0}({1}, {2})")
ANSWER_CODE = ("return {0}({1}, {2})", "y = {1}.{0}({2})", "print({0}({1}, {2}))", "assert {0}({1}, {2})")
SPLITS = {"train": 852, "validation": 100, "test": 200}

about = About(
    name="coding_posts",
    description="2,304 composed questions and answers about 1,152 programming tasks, with duplicates in other words",
    license="CC0-1.0 (composed here)",
    source="composed",
    modalities=("threads", "text", "category"),
    composed="every text and all code is composed",
)


def coding_posts() -> Corpus:
    """Open the corpus, composing it once (some seconds)."""
    columns: dict[str, Modality] = {"thread": Threads(), "text": Text({"en": 1.0}), "object": Category()}
    return open_prepared(about, columns, _rows)


Task = tuple[int, int, int]
"""Numbers of an action, an object and a manner."""


def composed_thread(task: Task, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Return text and code of a question about a task and of its answer."""

    def part(templates: tuple[str, ...], side: int) -> str:
        """side: 0 for text, 1 for code."""
        kinds = ([*kind.items()][number][side] for kind, number in zip((ACTIONS, OBJECTS, MANNERS), task, strict=True))
        return str(rng.choice(templates)).format(*(rng.choice(words.split()) for words in kinds))

    return part(QUESTIONS, 0), part(QUESTION_CODE, 1), part(ANSWERS, 0), part(ANSWER_CODE, 1)


def _rows(prepare: Preparation) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    tasks = [*itertools.product(range(len(ACTIONS)), range(len(OBJECTS)), range(len(MANNERS)))]
    order, start = rng.permutation(len(tasks)), 0
    for split, count in SPLITS.items():
        chosen = [tasks[number] for number in order[start : start + count]]
        start += count
        threads = [[composed_thread(task, rng) for _ in range(2)] for task in chosen]
        links = labelled_links(chosen, [[" ".join(thread[:2]) for thread in both] for both in threads], rng)
        for number, task in enumerate(prepare.track(chosen, f"Composing posts, {split}")):
            for second in range(2):
                linked = [] if second else [(f"{split}/{n}/1", label) for label, n in links[number]]
                yield {
                    "key": f"{split}/{number}/{second}",
                    "split": split,
                    "thread": stored_thread(threads[number][second], linked),
                    "text": stored_texts(threads[number][second][0]),
                    "object": [*OBJECTS][task[1]].split()[0],
                }


def labelled_links(tasks: list[Task], posts: list[list[str]], rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Return label and task of the pairs of each task's first post: the duplicate, and a negative of each kind.

    tasks: of one split. posts: the two of each task, text and code together.
    """
    index, links = BM25([both[1] for both in posts]), []
    for number, task in enumerate(tasks):
        equal = [[sum(a == b for a, b in zip(task, other, strict=True)), task[1] == other[1]] for other in tasks]
        similar = index.top(posts[number][0], 1, [number]).tolist()
        siblings = [n for n, (count, of_object) in enumerate(equal) if of_object and n not in (number, *similar)]
        others = [n for n, (count, _) in enumerate(equal) if not count and n not in similar]
        # In the order of `LABELS`.
        chosen = ([number], similar, *([int(rng.choice(some))] if some else [] for some in (siblings, others)))
        links.append([(label, n) for label, some in enumerate(chosen) for n in some])
    return links
