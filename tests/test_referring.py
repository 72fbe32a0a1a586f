"""Referring expressions: the corpus, scores, and boxes found by a trained method, also of one's own images."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import polymodal as pm
from polymodal.corpora import Corpus, from_path
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.tasks.referring import CanDetect, all_matched, referring_scores
from polymodal.recipes.grounding import simvg
from polymodal.serving.grounding import draw_grounded_boxes, ground
from polymodal.training import Run, train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
SMALL = simvg.Recipe.tiny()
TINY = dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, image_size=48, vocab_size=400))


@pytest.fixture(scope="module")
def referring() -> Corpus:
    corpus = pm.corpora.referring()
    return corpus.with_splits(
        {name: rows[: 160 if name == "train" else 16] for name, rows in corpus.splits.items() if name != "test_twitter"}
    )


@pytest.fixture(scope="module")
def processor(referring: Corpus) -> Processor:
    return fit_processor(TINY, referring)


@pytest.fixture(scope="module")
def run(referring: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(TINY, referring, Budget(steps=6), out=tmp_path_factory.mktemp("simvg") / "run", runtime=QUIET)


def stands(box: tuple, relation: str, other: tuple) -> bool:
    return {
        "left of": box[2] <= other[0],
        "right of": box[0] >= other[2],
        "above": box[3] <= other[1],
        "below": box[1] >= other[3],
    }[relation]


def stands_at(box: tuple, place: str) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across = {"left": x < 32, "right": x > 64}
    down = {"top": y < 32, "bottom": y > 64}
    words = set(place.split()[2:]) - {"centre"}
    return all(there == (word in words) for word, there in (across | down).items())


SAID = re.compile(
    r"(?:the|every) (?P<size>large |small )?(?P<name>\S+?)(?P<place> (?:at the|in the)(?: top| bottom)?"
    r"(?: left| right| centre)?)?(?:, (?P<relation>left of|right of|above|below) the (?P<other>\S+))?"
)


def test_expressions_mean_what_they_say_and_nothing_else() -> None:
    """Read again by rules of this test's own, from boxes and names alone."""
    corpus, kinds = pm.corpora.referring(), Counter()
    for row in corpus.rows("test")[:150].tolist():
        things = [(*region.name.split(), region.box) for region in corpus.value(row, "regions")]
        names = Counter(name for _, name, _ in things)
        assert names.most_common(1)[0][1] >= 2, "something else of its kind is there"
        for text, boxes, clauses in corpus.value(row, "expressions"):
            said = SAID.fullmatch(text)
            assert said is not None, text
            assert clauses == 1 + sum(said[part] is not None for part in ("size", "place", "relation"))
            others = [box for _, name, box in things if name == said["other"]]
            assert said["other"] is None or len(others) == 1
            true = [
                box
                for size, name, box in things
                if name == said["name"]
                and (said["size"] is None or said["size"].strip() == size)
                and (said["place"] is None or stands_at(box, said["place"]))
                and (said["relation"] is None or stands(box, said["relation"], others[0]))
            ]
            assert sorted(true) == sorted(boxes), text
            kinds[min(len(boxes), 2), clauses] += 1
    assert all(kinds[1, clauses] > 30 for clauses in (1, 2, 3, 4))
    assert kinds[0, 2] == 150
    assert sum(count for (many, _), count in kinds.items() if many == 2) == 150


class Oracle(torch.nn.Module):
    """Finds the true boxes of an expression, or those of another one."""

    num_queries = 3

    def __init__(self, processor: Processor, corpus: Corpus, knows: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.processor, self.knows = processor, knows
        self.truth = {}
        for row in corpus.rows("test").tolist():
            example = processor.load_example(corpus, row)
            for one in example["expressions"]:
                self.truth[self._image(processor(image=[example["image"]])["image"][0]), one.text] = one.boxes

    @staticmethod
    def _image(pixels: torch.Tensor) -> float:
        return round(float(pixels.double().sum()), 3)

    def predict_boxes(self, batch: dict) -> dict:
        texts = self.processor.text.tokenizer.decode(batch["text"])
        boxes, sure = torch.zeros(len(texts), 3, 4), torch.zeros(len(texts), 3)
        for number, (image, text) in enumerate(zip(batch["image"], texts, strict=True)):
            own = self.truth.get((self._image(image), text), ((0.0, 0.0, 0.01, 0.01),))
            for place, box in enumerate(own if self.knows else ()):
                boxes[number, place], sure[number, place] = torch.tensor(box), 0.9
        return {"oracle": (boxes, sure)}


def test_who_knows_all_has_everything_and_who_knows_nothing_has_nothing(
    processor: Processor, referring: Corpus
) -> None:
    reader = Reader(referring, processor)
    scores = {}
    for knows in (True, False):
        found = referring_scores(Oracle(processor, referring, knows), processor, reader, "test")
        scores[knows] = {score.name.removeprefix("test/referring/oracle/"): score for score in found}
    assert [score.value for score in scores[True].values()] == pytest.approx([1.0] * len(scores[True]))
    none = {name: score.value for name, score in scores[False].items()}
    assert none.pop("none/accuracy") == 1.0
    assert 0 < none.pop("sets") < 0.3, "those that mean nothing"
    assert max(none.values()) == 0.0
    asked = [one for row in referring.rows("test") for one in referring.value(row, "expressions")]
    weights = scores[True]["acc@0.5"].weights
    assert weights is not None
    assert weights.sum() == sum(len(one.boxes) == 1 for one in asked)
    assert 0.2 < (scores[True]["acc@0.5"].chance or 0) < 0.4


def test_gains_are_of_so_many_expressions_at_most(
    processor: Processor, referring: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polymodal.evaluation.tasks.referring.MAX_MISLED", 5)
    found = referring_scores(Oracle(processor, referring, True), processor, Reader(referring, processor), "test")
    scores = {score.name.rpartition("/")[2]: score for score in found if "clauses" not in score.name}
    assert scores["acc@0.5"].weights is not None
    assert scores["acc@0.5"].weights.sum() > 5
    for name in ("text_gain", "image_gain"):
        weights = scores[name].weights
        assert weights is None or weights.sum() == 5
        assert scores[name].value == pytest.approx(1.0)


def test_expressions_for_one_object_or_for_none_may_be_missing(
    processor: Processor, referring: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in generalized or phrase grounding; what nothing is asked about has no score."""
    oracle, reader = Oracle(processor, referring, knows=True), Reader(referring, processor)
    rows, examples = reader.read_split("test")

    def names(keep: Callable[[int], bool], num_queries: int) -> set[str]:
        kept = [[one for one in example["expressions"] if keep(len(one.boxes))] for example in examples]
        found = [
            example | {"expressions": of_image} for example, of_image in zip(examples, kept, strict=True) if of_image
        ]
        oracle.num_queries = num_queries
        monkeypatch.setattr(reader, "read_split", lambda _: (rows[: len(found)], found))
        scores = referring_scores(oracle, processor, reader, "test")
        assert all(score.value == 1 for score in scores if not score.name.endswith("gain"))
        return {score.name.removeprefix("test/referring/oracle/") for score in scores}

    with pytest.warns(UserWarning, match="train with --num-queries above 1"):
        assert names(lambda count: count > 1, 1) == set()
    assert names(lambda count: count > 1, 3) == {"sets"}
    assert names(lambda count: count == 0, 3) == {"sets", "none/accuracy"}
    assert "acc@0.5" in names(lambda count: count == 1, 1)


def test_a_set_is_found_when_every_object_has_a_box_of_its_own() -> None:
    one, other = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)
    near = (0.0, 0.0, 0.4, 0.3)
    assert all_matched(torch.tensor([other, near]), [one, other])
    assert not all_matched(torch.tensor([near, one]), [one, other])
    assert not all_matched(torch.tensor([one]), [one, other])
    assert all_matched(torch.zeros(0, 4), [])
    assert not all_matched(torch.tensor([one]), [])


def test_an_image_with_its_boxes(run: Run, referring: Corpus, tmp_path: Path) -> None:
    row = int(referring.rows("test")[0])
    path = tmp_path / "scene.png"
    referring.value(row, "image").save(path)
    assert isinstance(run.model, CanDetect)
    image, found = ground(run, str(path), ["the cat", "the large taxi"])
    assert [one.text for one in found] == ["the cat", "the large taxi"]
    assert all(0 <= edge <= 96 for one in found for edge in one.box)
    assert draw_grounded_boxes(image, found).size == (480, 480)
    (other,) = ground(run, str(path), ["the cat"], "decoder")[1]
    assert other.sure != found[0].sure, "each branch has a head of its own"
    with pytest.raises(UserError, match="no branch 'tokn'; it has token, decoder"):
        ground(run, str(path), ["the cat"], "tokn")


def test_the_command_and_its_mistakes(run: Run, referring: Corpus, polymodal, tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    referring.value(int(referring.rows("test")[0]), "image").save(path)
    done = polymodal("ground", str(run.directory), "scene.png", "the cat", "--json")
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)
    assert one["text"] == "the cat"
    assert (tmp_path / "located.png").is_file()
    (tmp_path / "broken.png").write_bytes(b"no image")
    for arguments, sentence in (
        (["scene.png"], "Say what to look for"),
        (["nowhere.png", "the cat"], "cannot be read"),
        (["broken.png", "the cat"], "in no format that Pillow reads"),
        (["scene.png", "the cat", "--out", "located.pnk"], "does not end like an image"),
    ):
        done = polymodal("ground", str(run.directory), *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_ones_own_expressions(referring: Corpus, tmp_path: Path) -> None:
    """JSON lines with images beside them, in the form that a user would write; there are no captions."""
    records = []
    for number, row in enumerate(referring.rows("train")[:40].tolist()):
        referring.value(row, "image").save(tmp_path / f"{number}.png")
        said = referring.value(row, "expressions")
        records.append(
            {"picture": f"{number}.png", "said": [{"text": one.text, "boxes": one.boxes} for one in said if one.boxes]}
        )
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    corpus = from_path(tmp_path / "mine.jsonl")
    assert {name: type(kind).__name__ for name, kind in corpus.columns.items()} == {
        "picture": "Image",
        "said": "Expressions",
    }
    found = train(TINY, corpus, Budget(steps=3), runtime=QUIET)
    example = found.processor.load_example(corpus, 0)
    assert [one.text for one in example["text"]] == [one.text for one in example["expressions"]]
    (first, *_) = records[0]["said"][0]["boxes"]
    assert example["expressions"][0].boxes[0] == pytest.approx([edge / 96 for edge in first])


def test_ones_own_boxes_that_are_none_are_one_sentence(referring: Corpus, tmp_path: Path) -> None:
    """Boxes of x, y, width, height in place of corners."""
    rows = []
    for number, row in enumerate(referring.rows("train")[:16].tolist()):
        referring.value(row, "image").save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "said": [{"text": "the cat", "boxes": [[50, 50, 20, 20]]}]})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="left, top, right, bottom in this order"):
        train(TINY, from_path(tmp_path / "mine.jsonl"), Budget(steps=2), runtime=QUIET)


def test_a_corpus_without_expressions_is_one_sentence(scenes: Corpus) -> None:
    with pytest.raises(UserError, match="has no expressions column"):
        fit_processor(TINY, scenes)
