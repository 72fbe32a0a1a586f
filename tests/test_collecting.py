"""`collect` and `review` as a user types them: from a list of concepts and images to validated pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import open_saved
from polymodal.curation.annotation import ANSWERS, Judgement, Judgements
from polymodal.curation.concepts import CollectOptions, Concept, open_images, read_concepts, write_candidates

LIST = """concept,aliases,category,specific,description,culture
Karnak,Al-Karnak,landmarks,1,A temple complex near Luxor,egypt
Koshari,Koshary; Kushari,food,1,,egypt
Pizza,,food,0,,egypt
Dog,,animals,0,,
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of three concepts, a mirrored copy, and images that each step leaves out."""
    rng, lines = np.random.default_rng(0), ["image,concept,source,license"]
    (tmp_path / "photos").mkdir()
    names = {"k0": "Karnak", "k1": "el karnak", "o0": "Koshary", "d0": "Dog", "p0": "Pizza", "x": "Karnak", "s": "Dog"}
    for name, concept in names.items():
        side = 90 if name == "s" else 240
        image = PILImage.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((side, side))
        image.save(tmp_path / "photos" / f"{name}.png")
        if name == "k0":
            ImageOps.mirror(image).resize((210, 220)).save(tmp_path / "photos" / "copy.png")
            image.save(tmp_path / "photos" / "other.png")
        lines.append(f"{name}.png,{concept},site {name},{'' if name == 'x' else 'CC0'}")
    lines += ["copy.png,Karnak,site,CC0", "other.png,Kushari,site,CC0", "broken.png,Dog,site,CC0"]
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    (tmp_path / "photos" / "images.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "concepts.csv").write_text(LIST)
    return tmp_path


def test_a_list_and_images_become_validated_pairs(folder: Path, polymodal) -> None:
    done = polymodal("collect", "concepts.csv", "photos", "--out", "collected")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    whys = ("no concept of the list 1", "unreadable 1", "too small 1", "no license 1", "copy 1", "6 → 5")
    assert [why for why in whys if why not in done.stdout] == [], done.stdout
    corpus = open_saved(folder / "collected")
    keys = [corpus.key(row) for row in range(len(corpus))]
    # What is under two names is checked first, and both annotators are told.
    assert {*keys[:2]} == {"Karnak/k0.png", "Koshari/other.png"}
    assert [corpus.raw(row, "note") for row in (0, 1)] == ["also collected as: Koshari", "also collected as: Karnak"]
    assert {corpus.raw(row, "culture") for row in range(len(corpus))} == {"egypt", "general"}
    nobody = polymodal("review", "collected", "--out", "validated")
    assert nobody.returncode == 2
    assert "No pair is validated so far" in nobody.stderr
    judgements = Judgements(folder / "collected" / ANSWERS)
    for key in keys:
        for name in ("Amal", "Omar"):
            judgements.add(Judgement(key, name, key != "Koshari/other.png", True))
    written = polymodal("review", "collected", "--out", "validated")
    assert written.returncode == 0, written.stderr
    validated = open_saved(folder / "validated")
    assert {validated.key(row) for row in range(len(validated))} == {*keys} - {"Koshari/other.png"}
    assert {validated.raw(row, "status") for row in range(len(validated))} == {"validated"}
    card = (folder / "validated" / "README.md").read_text()
    assert "| landmarks | 1 | 2 | 2 to 2 |" in card
    assert "Cohen's kappa: authentic 1.0, coherent -, accepts 1.0" in card


def test_a_score_orders_the_queue_and_drops_nothing(folder: Path) -> None:
    def written(name: str, fit=None) -> Corpus:
        concepts, images = read_concepts(folder / "concepts.csv"), open_images(str(folder / "photos"))
        return write_candidates(concepts, images, folder / name, CollectOptions(), fit)[0]

    scores = {"Karnak": 0.9, "Koshari": -0.5, "Dog": 0.1}
    plain, ordered = written("plain"), written("ordered", lambda _, names: np.array([scores[name] for name in names]))
    keys = [[corpus.key(row) for row in range(len(corpus))] for corpus in (plain, ordered)]
    assert {*keys[0]} == {*keys[1]}
    assert keys[1] == ["Koshari/other.png", "Karnak/k0.png", "Koshari/o0.png", "Dog/d0.png", "Karnak/k1.png"]


def test_copies_under_several_names_are_in_one_split(tmp_path: Path) -> None:
    """A chain: two sources have one image under two names, and a third one shares an image with the second."""
    rng, lines = np.random.default_rng(0), ["image,concept,source,license"]
    for n in range(30):
        images = [PILImage.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((240, 220)) for _ in "ab"]
        placed = (("a", "Karnak", images[0]), ("b", "Koshari", images[0]), ("b", "Karnak", images[1]),
                  ("c", "Zar", images[1]))  # fmt: skip
        for m, (site, concept, image) in enumerate(placed):
            image.save(tmp_path / f"{n}_{m}.png")
            lines.append(f"{n}_{m}.png,{concept},{site}{n},CC0")
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    concepts = [Concept("Karnak"), Concept("Koshari"), Concept("Zar")]
    corpus, _ = write_candidates(concepts, open_images(str(tmp_path)), tmp_path / "out", CollectOptions())
    split = {int(row): name for name, rows in corpus.splits.items() for row in rows}
    of_chain = [{split[row] for row in split if corpus.key(row).split("/")[1].startswith(f"{n}_")} for n in range(30)]
    assert len(split) == 120
    assert all(len(splits) == 1 for splits in of_chain)
    assert {name for splits in of_chain for name in splits} == {"train", "validation", "test"}


def test_a_single_source_leaves_splits_without_pairs_which_is_said(folder: Path, polymodal) -> None:
    table = folder / "photos" / "images.csv"
    table.write_text(re.sub(r",site[^,]*,", ",Commons,", table.read_text()))
    done = polymodal("collect", "concepts.csv", "photos", "--out", "collected")
    assert "images of one source are in one split, and there is one. Give each image" in " ".join(done.stdout.split())
    assert len(open_saved(folder / "collected").splits) == 1


def test_lists_of_aliases_are_read_and_rows_without_a_name_left_out(tmp_path: Path) -> None:
    rows = [{"concept": "Karnak", "aliases": ["Ipet", "Opet"]}, {"concept": "--"}, {"concept": ""}, {"concept": None}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_concepts(tmp_path / "list.jsonl") == [Concept("Karnak", ("Ipet", "Opet"))]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("collect", "nothing.csv", "photos"), "There is no file nothing.csv; give a CSV file of concepts"),
        (("collect", "empty.csv", "photos"), "empty.csv has no concept; write one a line"),
        (("collect", "photos.csv", "photos"), "photos.csv has no column 'concept' with the names of concepts"),
        (("collect", "typo.csv", "photos"), "The column 'alias' of typo.csv is not read; did you mean 'aliases'?"),
        (("collect", "concepts.csv", "nowhere"), "nowhere"),
        (("collect", "concepts.csv", "photos", "--min-side", "500"), "is left for a concept of the list (too small"),
        (("collect", "concepts.csv", "photos", "--min-sid", "5"), "did you mean --min-side?"),
        (("collect", "concepts.csv"), "Usage: polymodal collect CONCEPTS.csv IMAGES"),
        (("review", "photos"), "photos is no folder that polymodal wrote"),
    ],
)
def test_what_a_user_may_get_wrong_ends_in_a_sentence(folder: Path, polymodal, words, sentence: str) -> None:
    (folder / "empty.csv").write_text("concept\n")
    (folder / "photos.csv").write_text("name\nKarnak\n")
    (folder / "typo.csv").write_text("concept,alias\nKarnak,Ipet\n")
    done = polymodal(*words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
