"""MovieLens 100k by person: the films that each of 900 people liked, oldest first, and what is known of the films.

The same ratings as in `movies`; a film is liked with four or five stars, and people with fewer than ten such films are
left out. The catalogue says title, genres, decade and linked entities of every film. Splits are by person: what a test
person chose was never seen in training.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.movies import about as about_movies
from polymodal.corpora.movies import movies
from polymodal.modalities import History
from polymodal.modalities.history import Item

LIKED = 4  # stars from which on a film counts
MIN_INTERACTIONS = 10  # films of a person

about = About(
    name="viewers",
    description="films that 900 people liked, in the order of time, with words and facts of 1,682 films",
    license=about_movies.license,
    source=about_movies.source,
    modalities=("history", "text"),
    download_bytes=about_movies.download_bytes,
)


def viewers() -> Corpus:
    """Open the corpus, fetching and preparing it once (2 MB). Raises UserError when that is not possible."""
    corpus = open_prepared(about, {"liked": History()}, _rows)
    return dataclasses.replace(corpus, columns={"liked": History(_catalogue(movies()))})


def _rows(prepare: Preparation) -> Iterator[Row]:
    films = movies()
    liked = defaultdict(list)
    for film, ratings in enumerate(films.table.column("ratings").to_pylist()):
        for rating in ratings:
            if rating["rating"] >= LIKED:
                liked[rating["user"]].append((-rating["rank"], film))
    people = [person for person in sorted(liked) if len(liked[person]) >= MIN_INTERACTIONS]
    keys = [f"person {person + 1}" for person in people]
    split_of = split_groups(["" for _ in people], keys)
    for person, key in zip(people, keys, strict=True):
        yield {"key": key, "split": split_of[key], "liked": [film for _, film in sorted(liked[person])]}


def _catalogue(films: Corpus) -> tuple[Item, ...]:
    columns = (films.table.column(name).to_pylist() for name in ("title", "genres", "released", "knowledge"))
    items = []
    for titles, genres, released, knowledge in zip(*columns, strict=True):
        title, year = titles[0]["text"], released["year"]
        words = [re.sub(r"\(\d{4}\)", "", title), *genres, f"{int(year) // 10 * 10}s" if year else ""]
        facts = tuple(knowledge["nodes"][1:]) if knowledge else ()
        items.append(Item(title, " ".join(word for word in words if word), facts, tuple(genres)))
    return tuple(items)
