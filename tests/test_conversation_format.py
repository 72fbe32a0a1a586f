"""Conversations and documents to sequences: tiles, marks, where the loss is, and what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polymodal.corpora import About, Corpus, mix_corpora
from polymodal.corpora.saved import save_corpus
from polymodal.data.conversation import ASSISTANT, IMAGE, IMAGE_END, IMAGE_START, USER, Turn
from polymodal.data.conversation_format import ConversationFormat
from polymodal.data.instructions import ocr_turn
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import pad_sequences
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.errors import UserError
from polymodal.evaluation.tasks.token_likelihood import document_scores
from polymodal.modalities import Interleaved, Text
from polymodal.modalities.image import tile_grid, tiles
from polymodal.modalities.text import stored_texts
from polymodal.recipes.any_to_any import moma
from polymodal.recipes.language_models import mono_internvl
from polymodal.rng import ExampleRNG

TINY = mono_internvl.Recipe(
    language_model=LanguageModelConfig(
        vocab_size=600, context_length=160, width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=64
    ),
    tile_size=48,
    patch_size=8,
    patch_embed_dim=16,
)


@pytest.fixture(scope="module")
def few_scenes(scenes: Corpus) -> Corpus:
    return scenes.with_splits(
        {name: rows[:96] if name == "train" else rows[:12] for name, rows in scenes.splits.items()}
    )


@pytest.fixture(scope="module")
def processor(few_scenes: Corpus) -> Processor:
    return fit_processor(TINY, few_scenes)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_no_other_grid_is_nearer_to_the_shape_of_a_image(width: int, height: int, most: int) -> None:
    across, down = tile_grid(width, height, 448, most)
    assert 1 <= across * down <= most
    apart = abs(width / height - across / down)
    grids = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most]
    assert apart <= min(abs(width / height - i / j) for i, j in grids)


def test_of_grids_of_one_shape_a_large_image_takes_the_larger() -> None:
    assert tile_grid(448, 448, 448, 4) == (1, 1)
    assert tile_grid(896, 896, 448, 4) == (2, 2)
    assert tile_grid(1344, 448, 448, 6) == (3, 1)


def test_tiles_are_the_image_again_with_the_whole_at_the_end() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    cut = tiles(pixels, 32, 2)
    assert cut.shape == (3, 32, 32, 3)
    assert np.array_equal(np.concatenate([cut[0], cut[1]], axis=1), pixels)
    assert abs(cut[2].mean() - pixels.mean()) < 1
    assert tiles(pixels, 32, 1).shape == (1, 32, 32, 3)


def test_a_conversation_asks_the_loss_for_answers_and_their_ends_alone(processor: Processor) -> None:
    image = np.full((48, 48, 3), 200, np.uint8)
    said = [Turn("a red cat"), Turn("two", "How many things are there?")]
    packed = processor.conversation.pack([processor.conversation.sequence(image, said)])
    row, asked = packed.ids[0].tolist(), packed.predicted[0]
    predicted = [ids for ids, there in zip(row, asked.tolist(), strict=True) if there]
    assert predicted.count(processor.conversation.end) == 2
    assert processor.texts([predicted])[0] == "a red cat two"
    imaged = packed.of(IMAGE)[0]
    assert int(imaged.sum()) == processor.image.tokens_per_tile == len(packed.features[IMAGE])
    assert not (asked & imaged).any()
    marks = [processor.conversation.marks[mark][0] for mark in (IMAGE_START, IMAGE_END, USER, ASSISTANT)]
    places = [row.index(mark) for mark in marks]
    assert places == sorted(places), "the image stands between its marks, the question between its own"
    assert list(range(places[0] + 1, places[1])) == imaged.nonzero().squeeze(1).tolist()


def test_a_prompt_is_the_beginning_of_its_conversation(processor: Processor) -> None:
    image = np.full((48, 48, 3), 200, np.uint8)
    question = "Where is the cat?"
    prompt = pad_sequences([processor.conversation.prompt(image, question)])
    whole = pad_sequences([processor.conversation.sequence(image, [Turn("left", question)])])
    length = prompt.ids.shape[1]
    assert torch.equal(whole.ids[:, :length], prompt.ids)
    assert whole.predicted[0, length:].all()


def test_prompts_of_different_length_end_together(processor: Processor) -> None:
    prompts = processor(question=["Where?", "Where is the large red cat, and is it left of the bus?"])["prompts"]
    assert (prompts.document[:, -1] == 1).all()
    assert prompts.document[0, 0] == 0
    assert prompts.position[:, -1].tolist() == [int(row.sum()) - 1 for row in prompts.document]


def test_what_is_too_long_is_cut_and_a_image_never_is(processor: Processor) -> None:
    image = np.full((48, 48, 3), 200, np.uint8)
    long = "many words " * 200
    for said in ([Turn(long)], [Turn(long, long)], [Turn("yes", long)], [Turn("no", "no?")] * 99):
        sequence = processor.conversation.sequence(image, said)
        assert sum(map(len, sequence)) <= processor.conversation.context
        packed = processor.conversation.pack([sequence])
        assert packed.predicted.any()
        assert int(packed.of(IMAGE).sum()) == processor.image.tokens_per_tile
    small = ConversationFormat(20, processor.columns)
    with pytest.raises(UserError, match="leaves no room in a context of 20"):
        small.sequence(image, [Turn("yes")])


def test_what_a_corpus_lacks_is_not_read(small_emoji: Corpus, few_scenes: Corpus, processor: Processor) -> None:
    assert set(processor.load_example(few_scenes, 0)) == {"image", "text", "questions", "regions"}
    assert set(processor.load_example(small_emoji, 0)) == {"image", "text"}
    both = mix_corpora([(small_emoji, 1.0), (few_scenes, 1.0)], every_column=True)
    assert set(processor.load_example(both, 0)) == {"image", "text"}
    assert set(processor.load_example(both, len(small_emoji))) == {"image", "text", "questions", "regions"}
    captions = processor.load_example(both, len(small_emoji))["text"]
    assert len({caption.text for caption in captions}) == 3, "scenes have three columns of captions"


def test_boxes_are_in_thousandths(few_scenes: Corpus, processor: Processor) -> None:
    example = processor.load_example(few_scenes, 0)
    stored = few_scenes.value(0, "regions")
    for region, own in zip(example["regions"], stored, strict=True):
        assert region.box == tuple(round(edge * 1000 / 96) for edge in own.box)


def test_written_words_are_in_the_image_and_in_a_caption(few_scenes: Corpus, processor: Processor) -> None:
    said = set()
    for row in range(30):
        example = processor.load_example(few_scenes, row)
        page, text = ocr_turn(example, np.random.default_rng(row))
        assert page.shape == example[IMAGE].shape
        assert any(text in caption.text for caption in example["text"])
        dark = (page.mean(2) < 128).any(axis=0)
        assert dark.any()
        assert not dark[[0, -1]].all(), "nothing is cut"
        said.add(len(text.split()))
    assert said == {1, 2}


def test_a_document_holds_texts_and_whole_images_in_their_order(processor: Processor) -> None:
    image = np.full((48, 48, 3), 200, np.uint8)
    made = pad_sequences([processor.conversation.document(["a red cat", image, "and a dog"])])
    assert int(made.of(IMAGE).sum()) == processor.image.tokens_per_tile == 9
    assert made.predicted[0].tolist() == [False] + [True] * (made.ids.shape[1] - 1)
    assert processor.texts([made.ids[0][~made.of(IMAGE)[0]].tolist()])[0] == "a red cat and a dog"
    crowded = processor.conversation.document([image] * 99)
    assert sum(map(len, crowded)) <= processor.conversation.context
    assert sum(len(segment) for segment in crowded if segment.modality == IMAGE) % 9 == 0, "no image is cut"
    prompt = processor(text=["a red cat"])["prompts"]
    assert prompt.ids[0, -1].item() == processor.conversation.marks[IMAGE_START][-1]


def test_documents_of_a_corpus_are_read_in_their_order(few_scenes: Corpus, tmp_path: Path) -> None:
    """Pages of several texts and figures, as those of manuals, some without any."""
    pages = []
    for number in range(40):
        figures = [few_scenes.raw(row, "image") for row in few_scenes.rows("train")[number : number + number % 3]]
        texts = [piece("paragraph", f"page {number}"), piece("item", "of several")]
        pages.append(
            {
                "key": f"page {number}",
                "split": "train" if number < 24 else "validation" if number < 32 else "test",
                "document": [*texts, *(piece("figure", "", one) for one in figures), piece("paragraph", "the end")],
                "title": stored_texts(f"title {number}"),
            }
        )
    about = About("book", "forty pages", "ours", "scenes", ("interleaved", "text"))
    book = save_corpus(tmp_path / "book", about, {"document": Interleaved(), "title": Text()}, pages)
    recipe = dataclasses.replace(moma.Recipe.tiny(), patch_size=8)
    reader = Reader(book, fit_processor(recipe, book))
    parts = reader.processor.load_example(book, 2)["document"]
    assert [part if isinstance(part, str) else part.shape for part in parts] == [
        "page 2\nof several",
        (32, 32, 3),
        (32, 32, 3),
        "the end",
    ]
    model = recipe.build(reader.processor).eval()
    scores = {score.name: score for score in document_scores(model, reader.processor, reader, "test")}
    assert len(scores["test/text_by_whole_batch/nll_per_token"].clusters) == 8
    figures = scores["test/image_by_whole_batch/nll_per_token"]
    assert figures.weights.tolist() == [16 * (number % 3) for number in range(32, 40)]
    assert np.isfinite(figures.value)
    texts = recipe.image_batch([{"document": ["no figure"]}], reader.processor, ExampleRNG.of(0, 0, 1))
    assert texts[IMAGE].shape == (1, 3, 32, 32)


def test_an_image_that_never_fits_is_an_error(processor: Processor) -> None:
    """It was left out of every document without a word, and prompts for it were cut at their end."""
    large = dataclasses.replace(processor.image, tile_size=256, token_size=16, largest=256)
    form = ConversationFormat(160, {**processor.columns, IMAGE: large})
    image = np.zeros((256, 256, 3), np.uint8)
    for call in (lambda: form.document(["a cat", image]), lambda: form(text=["a cat"]), lambda: form.prompt(image, "")):
        with pytest.raises(UserError, match="An image of 256 tokens leaves no room in a context of 160"):
            call()


def piece(kind: str, text: str, figure: bytes | None = None) -> dict:
    return {"kind": kind, "text": text, "figure": figure}
