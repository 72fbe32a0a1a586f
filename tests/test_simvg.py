"""SimVG: boxes and their matching, fusion in the encoder, a branch that teaches the other, and its corpus."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import polymodal as pm
from polymodal.corpora import Corpus, from_path
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation.tasks.referring import CanDetect, all_matched, referring_scores
from polymodal.modalities.boxes import (
    PaddedBoxes,
    cxcywh_to_xyxy,
    generalized_iou,
    intersection_over_union,
    xyxy_to_cxcywh,
)
from polymodal.modalities.text import Tokens
from polymodal.objectives.detection import EOS_COEF, detection_loss, hungarian_match
from polymodal.recipes.grounding import simvg
from polymodal.rng import ExampleRNG
from polymodal.serving.grounding import draw_grounded_boxes, ground
from polymodal.training import Run, load_run, train
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.stages import active_stages
from polymodal.types import Budget, Stage

QUIET = RuntimeConfig(logger="none")
SMALL = MultiwayEncoderConfig(image_size=48, patch_size=16, vocab_size=400, context_length=24, width=32, depth=2)
TINY = simvg.Recipe(
    encoder=SMALL,
    embed_dim=32,
    decoder_layers=2,
    decoder_ffn_dim=32,
    batch_size=16,
    optimizer=dataclasses.replace(simvg.Recipe.optimizer, learning_rate=3e-3),
)
corner = st.floats(0, 1, width=32)
corners = st.tuples(corner, corner, corner, corner).map(
    lambda edges: (min(edges[0], edges[2]), min(edges[1], edges[3]), max(edges[0], edges[2]), max(edges[1], edges[3]))
)


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
    return train(TINY, referring, Budget(steps=60), out=tmp_path_factory.mktemp("simvg") / "run", runtime=QUIET)


def method(processor: Processor, **changes: object) -> simvg.SimVG:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, recipe: simvg.Recipe = TINY, count: int = 8) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train")[:count].tolist()]
    return recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, count))


# Boxes


@given(corners, corners)
@settings(max_examples=60, deadline=None)
def test_overlap_is_that_of_counted_cells(one: tuple, other: tuple) -> None:
    """On a grid of whole numbers, IoU and GIoU are numbers of cells."""
    grid = 12
    a, b = (torch.tensor([round(edge * grid) for edge in box], dtype=torch.float32) for box in (one, other))

    def cells(box: torch.Tensor) -> set:
        left, top, right, bottom = box.int().tolist()
        return set(itertools.product(range(left, right), range(top, bottom)))

    overlap, _ = intersection_over_union(a, b)
    both, either = cells(a) & cells(b), cells(a) | cells(b)
    around = torch.cat([torch.minimum(a[:2], b[:2]), torch.maximum(a[2:], b[2:])])
    assert float(overlap) == pytest.approx(len(both) / len(either) if either else 0, abs=1e-6)
    whole = len(cells(around))
    wanted = float(overlap) - (whole - len(either)) / whole if whole else 0.0
    assert float(generalized_iou(a, b)) == pytest.approx(wanted, abs=1e-5)
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(a)), a, atol=1e-5)


def test_boxes_without_area_have_finite_overlaps_and_gradients() -> None:
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    overlap = generalized_iou(cxcywh_to_xyxy(point), torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    overlap.sum().backward()
    assert torch.isfinite(overlap).all()
    assert torch.isfinite(point.grad).all()


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_matching_is_the_cheapest_of_all(queries: int, objects: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, boxes = torch.randn(1, queries, 2, generator=generator), torch.rand(1, queries, 4, generator=generator)
    truth = cxcywh_to_xyxy(torch.rand(objects, 4, generator=generator))
    targets = PaddedBoxes.of([truth.tolist()])

    def cost(query: int, target: int) -> float:
        apart = (boxes[0, query] - targets.boxes[0, target]).abs().sum()
        overlap = generalized_iou(cxcywh_to_xyxy(boxes[0, query]), cxcywh_to_xyxy(targets.boxes[0, target]))
        return float(5 * apart - 2 * overlap - logits[0, query].softmax(-1)[0])

    pairs = min(queries, objects)
    found = hungarian_match(logits, boxes, targets)
    assert len(found.query) == pairs
    assert len(set(found.query.tolist())) == len(set(found.target.tolist())) == pairs
    own = sum(cost(query, target) for query, target in zip(found.query.tolist(), found.target.tolist(), strict=True))
    every = [
        sum(cost(query, target) for query, target in zip(some, others, strict=True))
        for some in itertools.permutations(range(queries), pairs)
        for others in itertools.combinations(range(objects), pairs)
    ]
    assert own == pytest.approx(min(every), abs=1e-5)


def test_the_loss_is_nothing_for_the_truth_and_by_hand_otherwise() -> None:
    targets = PaddedBoxes.of([[(0.1, 0.2, 0.3, 0.6)], []])
    sure = torch.tensor([[[20.0, -20.0], [-20.0, 20.0]], [[-20.0, 20.0], [-20.0, 20.0]]])
    boxes = torch.rand(2, 2, 4)
    boxes[0, 0] = targets.boxes[0, 0]
    assert float(detection_loss(sure, boxes, targets)) == pytest.approx(0, abs=1e-5)
    flat = torch.zeros(2, 2, 2)
    boxes[0, 0, 0] += 0.1  # half of its width
    boxes[0, 1] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    overlap = 0.1 / 0.3
    by_hand = np.log(2) + 5 * 0.1 + 2 * (1 - overlap)
    assert float(detection_loss(flat, boxes, targets)) == pytest.approx(by_hand, abs=1e-5)
    wrong = torch.tensor([[[-1.0, 1.0], [1.0, -1.0]], [[-1.0, 1.0], [-1.0, 1.0]]])  # the far box is the surer one
    miss, right = np.log1p(np.exp(2)), np.log1p(np.exp(-2))
    classes = (miss + EOS_COEF * (miss + 2 * right)) / (1 + 3 * EOS_COEF)
    assert float(detection_loss(wrong, boxes, targets)) == pytest.approx(classes + by_hand - np.log(2), abs=1e-5)
    nothing = PaddedBoxes.of([[], []])
    assert float(detection_loss(sure.flip(-1), boxes, nothing)) > 5


# Distillation


def test_a_perfect_teacher_replaces_the_truth_and_one_without_objects_says_nothing() -> None:
    targets = PaddedBoxes.of([[(0.1, 0.2, 0.3, 0.6)], [(0.5, 0.5, 0.9, 0.8)]])
    sure = torch.tensor([[[200.0, -200.0]]]).expand(2, 1, 2)
    own, quality = simvg.distillation_targets(sure, targets.boxes, targets)
    assert float(quality) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(own.boxes, targets.boxes)
    own, quality = simvg.distillation_targets(sure, targets.boxes, PaddedBoxes.of([[], []]))
    assert float(quality) == 0.0
    assert own.counts.tolist() == [0, 0]


def test_the_teacher_teaches_the_boxes_that_stand_for_objects() -> None:
    """Two queries for three objects: both have an object of their own, and the third is left to the truth."""
    truth = [(0.0, 0.0, 0.2, 0.2), (0.4, 0.4, 0.6, 0.6), (0.8, 0.8, 1.0, 1.0)]
    targets = PaddedBoxes.of([truth, truth[:1]])
    boxes = xyxy_to_cxcywh(torch.tensor([[truth[2], truth[0]], [(0.5, 0.5, 0.7, 0.7), (0.0, 0.0, 0.2, 0.4)]]))
    logits = torch.zeros(2, 2, 2)
    own, quality = simvg.distillation_targets(logits, boxes, targets)
    assert own.counts.tolist() == [2, 1]
    assert torch.equal(own.boxes[0, :2], boxes[0])
    assert torch.equal(own.boxes[1, 0], boxes[1, 1])
    assert float(quality) == pytest.approx((0.5 + 0.5 + 0.5 * 0.5) / 3)


def test_what_the_decoder_teaches_changes_nothing_in_the_decoder(processor: Processor, referring: Corpus) -> None:
    model = method(processor)
    losses = model.losses(batch_of(processor, referring))
    (losses["token_branch"] + losses["distillation"]).backward()
    decoder = [*model.decoder.parameters(), *model.decoder_head.parameters(), *model.memory.parameters()]
    assert all(parameter.grad is None for parameter in decoder)
    assert all(parameter.grad is not None for parameter in model.token_head.parameters())


def test_the_weights_of_truth_and_teacher_add_up(processor: Processor, referring: Corpus) -> None:
    batch = batch_of(processor, referring)
    model = method(processor)
    losses = model.losses(batch)
    o, memory = model.fused(batch["image"], batch["text"])
    logits, boxes = (found.detach() for found in model.decoder_head(model.decoder(o, memory, model.places)))
    teacher, quality = simvg.distillation_targets(logits[-1], boxes[-1], batch["expressions"])
    token = [found.detach() for found in model.token_head(model.token(o))]
    assert 0 < float(quality) < 1
    losses = {name: loss.detach() for name, loss in losses.items()}
    truth = 2 * (1 - quality) * detection_loss(*token, batch["expressions"])
    assert float(losses["token_branch"]) == pytest.approx(float(truth), rel=1e-5)
    assert float(losses["distillation"]) == pytest.approx(float(quality * detection_loss(*token, teacher)), rel=1e-5)
    deep = sum(float(detection_loss(*layer, batch["expressions"])) for layer in zip(logits, boxes, strict=True))
    assert float(losses["decoder_branch"]) == pytest.approx(deep, rel=1e-5)
    assert set(method(processor, distill_type="none").losses(batch)) == {"token_branch"}


# Fusion


def longer(text: Tokens, by: int) -> Tokens:
    return Tokens(torch.nn.functional.pad(text.ids, (0, by), value=7), text.lengths)


def test_padding_changes_nothing(processor: Processor, referring: Corpus) -> None:
    model = method(processor)
    batch = batch_of(processor, referring)
    plain = model.predict_boxes(batch)
    padded = model.predict_boxes(batch | {"text": longer(batch["text"], 5)})
    for branch, (boxes, sure) in plain.items():
        assert torch.allclose(boxes, padded[branch][0], atol=1e-5)
        assert torch.allclose(sure, padded[branch][1], atol=1e-5)


def test_words_reach_patches_only_where_the_encoder_fuses(processor: Processor, referring: Corpus) -> None:
    batch = batch_of(processor, referring)
    others = Tokens(batch["text"].ids.flip(0), batch["text"].lengths.flip(0))
    for fusion, told in (("encoder", True), ("head", False)):
        model = method(processor, fusion=fusion)
        one, other = (model.encoder(batch["image"], text, fusion == "encoder") for text in (batch["text"], others))
        assert torch.allclose(one[0], other[0], atol=1e-6) is not told
        assert torch.allclose(one[1], other[1], atol=1e-6) is not told
        found = [model.predict_boxes(batch | {"text": text})["token"][0] for text in (batch["text"], others)]
        assert not torch.allclose(*found, atol=1e-6), "the queries read the words in any case"


def test_norms_and_mlps_are_each_modalitys_own(processor: Processor, referring: Corpus) -> None:
    """Without attention between them, a change of the text's parameters leaves the image's tokens as they are."""
    model, batch = method(processor), batch_of(processor, referring)
    before = model.encoder(batch["image"], batch["text"], joint=False)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "text_" in name:
                parameter.add_(0.3)
    after = model.encoder(batch["image"], batch["text"], joint=False)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])


def test_dropped_paths_keep_the_mean() -> None:
    from polymodal.layers.multiway import MultiwayTransformer
    from polymodal.layers.transformer import Transformer

    torch.manual_seed(0)
    for transformer in (MultiwayTransformer(8, 2, 2, drop_path_rate=0.5), Transformer(8, 2, 2, drop_path_rate=0.5)):
        assert [block.drop_path.rate for block in transformer.blocks] == [0.0, 0.5]
        drop_path = transformer.blocks[1].drop_path.train()
        kept = torch.stack([drop_path(torch.ones(400, 1, 1)) for _ in range(5)])
        assert set(kept.unique().tolist()) == {0.0, 2.0}
        assert float(kept.mean()) == pytest.approx(1, abs=0.1)
        assert torch.equal(drop_path.eval()(torch.ones(4, 1, 1)), torch.ones(4, 1, 1))


def test_queries_come_from_all_words_and_no_other(processor: Processor) -> None:
    torch.manual_seed(0)
    guided = simvg.TextGuidedQueries(16, 3, 4).eval()
    words, mask = torch.randn(2, 5, 16), torch.tensor([[True] * 5, [True, True, False, False, False]])
    queries = guided(words, mask)
    words[1, 2:] = 99.0
    assert torch.allclose(guided(words, mask), queries)
    words[1, 1] += 1.0
    assert not torch.allclose(guided(words, mask)[1], queries[1])
    assert torch.allclose(guided(words, mask)[0], queries[0])


# The corpus


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


# Scores


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


def test_a_set_is_found_when_every_object_has_a_box_of_its_own() -> None:
    one, other = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)
    near = (0.0, 0.0, 0.4, 0.3)
    assert all_matched(torch.tensor([other, near]), [one, other])
    assert not all_matched(torch.tensor([near, one]), [one, other])
    assert not all_matched(torch.tensor([one]), [one, other])
    assert all_matched(torch.zeros(0, 4), [])
    assert not all_matched(torch.tensor([one]), [])


# Training, commands, one's own data


def test_losses_fall_and_boxes_are_found(run: Run, referring: Corpus) -> None:
    assert isinstance(run.model, CanDetect)
    losses: dict[str, list[float]] = {}
    for entry in run.history:
        for name, loss in entry.get("losses", {}).items():
            losses.setdefault(name, []).append(loss)
    assert set(losses) == {"itc", "mlm", "decoder_branch", "token_branch", "distillation"}
    assert losses["decoder_branch"][-1] < losses["decoder_branch"][0]
    assert losses["mlm"][-1] < losses["mlm"][0]
    assert run.directory is not None
    again = load_run(run.directory)
    batch = batch_of(run.processor, referring)
    for branch, (boxes, sure) in run.model.eval().predict_boxes(batch).items():
        assert torch.equal(boxes, again.model.predict_boxes(batch)[branch][0])
        assert boxes.shape == (8, 1, 4)
        assert (boxes[..., 2:] >= boxes[..., :2]).all()
        assert ((sure > 0) & (sure < 1)).all()


def test_stages_are_those_of_the_paper() -> None:
    names = [stage.name for stage in dataclasses.replace(TINY, decoder_warmup_fraction=0.3).stages()]
    assert names == ["captions", "decoder", "grounding"]
    stage: Stage = active_stages(dataclasses.replace(TINY, caption_fraction=0.0, decoder_warmup_fraction=0.5))[0]
    assert stage.loss_weights == {"token_branch": 0.0, "distillation": 0.0}
    with pytest.raises(UserError, match="decoder"):
        dataclasses.replace(TINY, distill_type="none", decoder_warmup_fraction=0.3)
    with pytest.raises(UserError, match=r"'captions' .0.8., 'decoder' .0.4. leave less than nothing for 'grounding'"):
        active_stages(dataclasses.replace(TINY, caption_fraction=0.8, decoder_warmup_fraction=0.4))


def test_several_queries_learn_from_all_expressions(processor: Processor, referring: Corpus) -> None:
    recipe = dataclasses.replace(TINY, num_queries=3)
    counts = Counter(batch_of(processor, referring, recipe, 64)["expressions"].counts.tolist())
    assert set(counts) >= {0, 1, 2}
    assert set(batch_of(processor, referring, TINY, 64)["expressions"].counts.tolist()) == {1}
    found = train(recipe, referring, Budget(steps=4), runtime=QUIET)
    boxes, _ = found.model.eval().predict_boxes(batch_of(processor, referring, recipe))["token"]
    assert boxes.shape == (8, 3, 4)


def test_a_image_with_its_boxes(run: Run, referring: Corpus, tmp_path: Path) -> None:
    row = int(referring.rows("test")[0])
    path = tmp_path / "scene.png"
    referring.value(row, "image").save(path)
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
    found = train(dataclasses.replace(TINY, batch_size=8), corpus, Budget(steps=3), runtime=QUIET)
    example = found.processor.load_example(corpus, 0)
    assert [one.text for one in example["text"]] == [one.text for one in example["expressions"]]
    (first, *_) = records[0]["said"][0]["boxes"]
    assert example["expressions"][0].boxes[0] == pytest.approx([edge / 96 for edge in first])


def test_a_corpus_without_expressions_is_one_sentence(scenes: Corpus) -> None:
    with pytest.raises(UserError, match="has no expressions column"):
        fit_processor(TINY, scenes)


def test_the_paper_s_size() -> None:
    recipe = simvg.Recipe.paper()
    with torch.device("meta"):
        model = simvg.SimVG(recipe, recipe.encoder.vocab_size)
    branches = ("guided", "decoder", "token", "token_head", "decoder_head")
    counts = Counter()
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    assert counts["encoder"] == pytest.approx(193e6, rel=0.03)
    assert sum(counts[name] for name in branches) == pytest.approx(7e6, rel=0.15)
