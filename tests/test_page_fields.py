"""Pages of words: masks of words and patches, windows, and fields that are scored as a whole; on real pages."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.data.columns.words import NO_FIELD, first_pieces, in_segment_boxes
from polymodal.data.loader import Reader
from polymodal.data.masks import in_masked_patch, mask_blocks, mask_spans
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.page import PageEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation import evaluate
from polymodal.evaluation.seeds import paired_difference
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.tasks.entity_extraction import _weighted, entities, field_scores
from polymodal.evaluation.tasks.page_patches import majority_fields, touched
from polymodal.layers.quantize import VectorQuantizer, perplexity
from polymodal.layers.transformer import PostNormBlock
from polymodal.modalities.document import Word
from polymodal.recipes.documents import layoutlmv3
from polymodal.rng import ExampleRNG
from polymodal.serving.token_classification import write_fields
from polymodal.training import Run, load_run, train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Batch, Budget

TINY = layoutlmv3.Recipe(
    encoder=PageEncoderConfig(context_length=64, image_size=32, patch_size=8, width=32, depth=1, num_heads=2),
    tokenizer=ImageTokenizerConfig(codebook_size=16, width=8),
    vocab_size=600,
    max_words=30,
    tokenizer_fraction=0.4,
    batch_size=16,
)


@pytest.fixture(scope="module")
def pages() -> Corpus:
    """Two hundred pages of the real corpus, every kind of them."""
    corpus = pm.corpora.documents()
    rng = np.random.default_rng(0)
    return corpus.with_splits({name: np.sort(rng.permutation(rows)[:70]) for name, rows in corpus.splits.items()})


@pytest.fixture(scope="module")
def processor(pages: Corpus) -> Processor:
    return fit_processor(TINY, pages)


def test_spans_hide_their_share_in_runs() -> None:
    lengths = [200] * 50 + [1, 0, 2]
    hidden = mask_spans(lengths, 0.3, ExampleRNG.of(0, 0, len(lengths)))
    assert (hidden[:50].sum(1) == 60).all()
    assert hidden[50:].sum(1).tolist() == [0, 0, 1]
    starts = hidden[:50] & ~F.pad(hidden[:50, :-1], (1, 0))
    assert 2.5 < 60 * 50 / starts.sum() < 6  # spans of Poisson(3), some of which touch
    again = mask_spans(lengths, 0.3, ExampleRNG.of(0, 0, len(lengths)))
    assert torch.equal(hidden, again)


@pytest.mark.parametrize("grid", [7, 14])
def test_blocks_hide_their_share_in_rectangles(grid: int) -> None:
    hidden = mask_blocks(grid, 0.4, ExampleRNG.of(0, 0, 200))
    shares = hidden.float().mean(1)
    assert shares.max() <= 0.41
    assert 0.38 < shares.mean() < 0.41
    squares = hidden.unflatten(1, (grid, grid))
    beside = (squares[:, :, 1:] == squares[:, :, :-1]).float().mean()
    assert beside > 0.75  # 0.52 if every patch were hidden by itself
    assert hidden.float().mean(0).std() < 0.2
    assert not mask_blocks(grid, 0.0, ExampleRNG.of(0, 0, 3)).any()


def test_patches_are_codes_on_the_unit_sphere() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(6, 4)
    x = torch.randn(3, 5, 4, requires_grad=True)
    found = quantizer(x)
    by_distance = torch.cdist(F.normalize(x, dim=-1), F.normalize(quantizer.codebook, dim=-1)[None]).argmin(-1)
    assert torch.equal(found.codes, by_distance)
    torch.testing.assert_close(found.vectors, quantizer.vectors(found.codes))
    found.vectors.sum().backward()
    assert quantizer.codebook.grad is None  # what is decoded teaches the encoder; the codebook has a loss of its own
    own = torch.autograd.grad(F.normalize(x, dim=-1).sum(), x)[0]
    torch.testing.assert_close(x.grad, own)
    found = quantizer(x)
    assert torch.autograd.grad(found.codebook, x, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(found.commitment, quantizer.codebook, allow_unused=True)[0] is None


def test_perplexity_counts_the_codes_in_use() -> None:
    assert perplexity(torch.arange(8), 16) == pytest.approx(8)
    assert perplexity(torch.zeros(8, dtype=torch.long), 16) == pytest.approx(1)


def test_hidden_patches_under_a_box_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 1001, (20, 30, 2, 2)), axis=2)  # page, word, (first, last), (x, y)
    boxes = torch.from_numpy(corners.reshape(20, 30, 4))
    hidden = torch.from_numpy(rng.random((20, 49)) < 0.1)
    found = in_masked_patch(boxes, hidden, 7)
    for page, word in np.ndindex(20, 30):
        left, top, right, bottom = boxes[page, word].tolist()
        columns = {min(x * 7 // 1000, 6) for x in range(left, max(right, left + 1))}
        rows = {min(y * 7 // 1000, 6) for y in range(top, max(bottom, top + 1))}
        wanted = any(hidden[page, row * 7 + column] for row in rows for column in columns)
        assert found[page, word] == wanted
    assert not in_masked_patch(boxes, torch.zeros(20, 49, dtype=torch.bool), 7).any()


def test_post_norm_puts_the_norm_on_the_sum() -> None:
    torch.manual_seed(0)
    block = PostNormBlock(8, 2).eval()
    x = torch.randn(2, 5, 8)
    after = block.norm1(x + block.attention(x))
    torch.testing.assert_close(block(x), block.norm2(after + block.fc2(F.gelu(block.fc1(after)))))


def word(text: str, field: str = "other", segment: int = 0, left: int = 0) -> Word:
    return Word(text, (left, 0, left + 10, 10), field, segment)


def test_fields_are_runs_of_one_segment() -> None:
    page = [word("To:", "label", 0), *(word(w, "person", 1) for w in ["Ann", "Lee"]), word("Bo", "person", 2)]
    assert entities(page, [w.field for w in page]) == {(0, 1, "label"), (1, 3, "person"), (3, 4, "person")}
    assert entities(page, ["other", "person", "label", "other"]) == {(1, 2, "person"), (2, 3, "label")}


def test_a_segment_is_one_box() -> None:
    page = [word("a", segment=1, left=5), word("b", segment=1, left=100), word("c", segment=2, left=7)]
    assert [w.box for w in in_segment_boxes(page)] == [(5, 0, 110, 10), (5, 0, 110, 10), (7, 0, 17, 10)]


def test_long_pages_are_tagged_part_by_part(processor: Processor) -> None:
    page = [word(f"word{number}", left=number) for number in range(200)]
    parts = processor.words.windows(page)
    assert [w for part in parts for w in part] == page
    assert len(parts) > 3
    for part in parts:
        tokens = processor.words([part])
        assert int(tokens.word.max()) + 1 == len(part)  # nothing was cut
    assert processor.words.windows([]) == [[]]
    endless = word("x" * 3000)
    assert processor.words.windows([word("a"), endless, word("b")]) == [[word("a")], [endless], [word("b")]]


def test_field_numbers_stand_at_first_pieces(processor: Processor) -> None:
    page = [word("Antidisestablishmentarianism", "label"), word("1", "value"), word("x", "no such field")]
    tokens = processor.words([page, page[1:2]])
    numbers = processor.words.field_numbers([page, page[1:2]], tokens)
    names = [[processor.words.fields[n] for n in row[row != NO_FIELD].tolist()] for row in numbers]
    assert names == [["label", "value", "other"], ["value"]]
    assert torch.equal(numbers != NO_FIELD, first_pieces(tokens))


def test_weighted_pages_give_the_figure_of_all_together() -> None:
    counts = np.array([[3.0, 4.0], [0.0, 2.0], [5.0, 5.0]])
    score = Score("test/fields/entity_f1", counts[:, 0] / counts[:, 1], weights=counts[:, 1])
    assert score.value == pytest.approx(8 / 11)
    assert Score.from_json(score.to_json()).estimate() == score.estimate()
    assert score.estimate().low < 8 / 11 < score.estimate().high


def test_a_page_without_entities_keeps_its_place_whatever_is_predicted() -> None:
    """Which pages have any depends on the predictions of an arm, and arms are compared page by page."""
    seen, unseen = _weighted("", [(4, 4), (0, 1), (2, 4)]), _weighted("", [(2, 4), (0, 0), (2, 4)])
    assert (seen.value, unseen.value) == (pytest.approx(6 / 9), pytest.approx(4 / 8))
    assert paired_difference([seen] * 3, [unseen] * 3).value == pytest.approx(6 / 9 - 4 / 8)


class Oracle(torch.nn.Module):
    """Tags every word as the corpus does, except for those of one field."""

    def __init__(self, processor: Processor, pages: Corpus, wrong: str):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.fields = processor.words.fields
        self.answers = iter(
            self.fields.index("other" if w.field == wrong else w.field)
            for row in pages.rows("test").tolist()
            for w in processor.load_example(pages, row)["words"]
        )

    has_learned_fields = True

    def classify_tokens(self, batch: Batch) -> torch.Tensor:
        count = int(first_pieces(batch["words"]).sum())
        return F.one_hot(torch.tensor([next(self.answers) for _ in range(count)]), len(self.fields)).float()


def test_field_scores_of_a_method_that_knows(pages: Corpus, processor: Processor) -> None:
    reader = Reader(pages, processor)
    perfect = {s.name: s for s in field_scores(Oracle(processor, pages, ""), processor, reader, "test")}
    assert perfect["test/fields/entity_f1"].value == 1
    assert perfect["test/fields/word_accuracy"].value == 1
    chance = perfect["test/fields/entity_f1"].chance
    assert chance is not None
    assert 0 < chance < 0.5
    lacking = {s.name: s for s in field_scores(Oracle(processor, pages, "label"), processor, reader, "test")}
    assert chance < lacking["test/fields/entity_f1"].value < 1


def test_it_trains_on_real_pages_and_comes_back_as_it_was(pages: Corpus, tmp_path: Path) -> None:
    courses: dict[str, list[float]] = defaultdict(list)

    def note(_progress: object, _reached: float, losses: dict[str, torch.Tensor]) -> None:
        for name, loss in losses.items():
            courses[name].append(float(loss))

    budget, quiet = Budget(steps=100), RuntimeConfig(logger="none")
    run = train(TINY, pages, budget, out=tmp_path / "run", runtime=quiet, on_step=note)
    assert set(courses) == {"pixels", "codebook", "commitment", "mlm", "mim", "wpa", "token_classification"}
    for name in ("pixels", "mlm", "mim", "token_classification"):
        tenth = max(len(courses[name]) // 5, 1)
        assert np.mean(courses[name][-tenth:]) < np.mean(courses[name][:tenth]), name
    scores = {score.name: score for score in evaluate(run, pages)}
    assert {"test/fields/entity_f1", "test/fields/word_accuracy", "test/linear_probe_kind/image/accuracy"} <= set(
        scores
    )
    accuracy = scores["test/linear_probe_kind/page/accuracy"]
    assert accuracy.value > accuracy.chance
    again = load_run(tmp_path / "run")
    reader = Reader(pages, again.processor)
    found = field_scores(again.model, again.processor, reader, "test")
    np.testing.assert_allclose(found[0].clusters, scores["test/fields/entity_f1"].clusters)


def test_fields_are_written_for_programs(pages: Corpus, processor: Processor, tmp_path: Path) -> None:
    run = Run(TINY, Oracle(processor, pages, ""), processor, {"recipe": {"name": "oracle"}})
    assert write_fields(run, pages, "test", tmp_path / "fields.jsonl") == len(pages.rows("test"))
    records = [json.loads(line) for line in (tmp_path / "fields.jsonl").read_text().splitlines()]
    row = int(pages.rows("test")[0])
    words = processor.load_example(pages, row)["words"]
    assert records[0]["key"] == pages.key(row)
    for field in records[0]["fields"]:
        first, end = field["words"]
        assert {w.field for w in words[first:end]} == {field["field"]}
        assert field["text"] == " ".join(w.text for w in words[first:end])
    with pytest.raises(UserError, match="cannot classify words"):
        write_fields(Run(TINY, torch.nn.Linear(1, 1), processor, {"recipe": {"name": "x"}}), pages, "test", tmp_path)
    again = Run(TINY, Oracle(processor, pages, ""), processor, {"recipe": {"name": "oracle"}})
    with pytest.raises(UserError, match="cannot be written"):
        write_fields(again, pages, "test", tmp_path / "nowhere" / "fields.jsonl")
    again.model.has_learned_fields = False
    with pytest.raises(UserError, match="pre-trained alone"):
        write_fields(again, pages, "test", tmp_path / "fields.jsonl")


def test_patches_under_words_and_their_majority_field() -> None:
    words = [word("a", "x", left=0), word("b", "y", left=0), word("c", "y", left=5)]
    inside = touched([word("a", left=495), word("b", left=0)._replace(box=(0, 0, 1000, 1000))], 2)
    assert inside.tolist() == [[True, True, False, False], [True] * 4]
    assert majority_fields(words, 2) == {0: "y"}
    assert majority_fields([*words, word("e", "x", left=600)], 2) == {0: "y", 1: "x"}
    assert majority_fields([], 2) == {}
