"""Conversations in every form in which data sets have them: read right, and trained on."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as PILImage

from format_samples import png
from polymodal.corpora import Corpus, from_path
from polymodal.data.conversation import Turn
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.data.sequence import pad_sequences
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation.tasks.conversation_likelihood import answer_scores
from polymodal.modalities import Conversations
from polymodal.modalities.conversation import Message, without_images
from polymodal.modalities.image import to_rgb
from polymodal.modalities.text import Tokens
from polymodal.recipes.any_to_any import moma
from polymodal.recipes.language_models import mono_internvl
from polymodal.rng import ExampleRNG

COUNT = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def plain(messages: list[Message]) -> list[tuple[str, tuple[Any, ...]]]:
    """Images as the red of their first pixel."""
    return [
        (role, tuple(part if isinstance(part, str) else np.asarray(to_rgb(part))[0, 0, 0].item() for part in parts))
        for role, parts in messages
    ]


def conversations(corpus: Corpus) -> list[Any]:
    column = corpus.column_with(Conversations)
    return [plain(corpus.value(row, column)) for row in range(len(corpus))]


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(png(number))


def llava(number: int) -> dict[str, Any]:
    said = [
        {"from": "human", "value": f"<image>\nWhat is in image {number}?"},
        {"from": "gpt", "value": f"Thing {number}."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "There."},
    ]
    return {"id": f"00{number}", "image": f"{number}.png", "conversations": said}


def llava_read(number: int) -> list[Any]:
    return [
        ("user", (20 * number, f"What is in image {number}?")),
        ("assistant", (f"Thing {number}.",)),
        ("user", ("Where?",)),
        ("assistant", ("There.",)),
    ]


@pytest.mark.parametrize("folder", [".", "images", "../train2017"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_llava_files_with_the_images_beside_them(folder, suffix, tmp_path):
    file = tmp_path / "set" / f"llava.{suffix}"
    write_images(file.parent / folder)
    file.parent.mkdir(exist_ok=True)
    records = [llava(number) for number in range(COUNT)]
    file.write_text(json.dumps(records) if suffix == "json" else "\n".join(map(json.dumps, records)))
    corpus = from_path(file)
    assert conversations(corpus) == [llava_read(number) for number in range(COUNT)]
    assert corpus.key(3) == "003"
    assert "Thing 0" in corpus.columns["conversations"].describe(corpus.value(0, "conversations"))


def test_images_of_one_row_or_several_or_none(tmp_path):
    write_images(tmp_path)
    several = {
        "id": 1,
        "image": ["1.png", "2.png"],
        "conversations": [
            {"from": "human", "value": "Compare <image> with <image>."},
            {"from": "gpt", "value": "Darker."},
        ],
    }
    alone = {
        "id": "two",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps([llava(0), several, alone]))
    assert conversations(from_path(tmp_path / "a.json")) == [
        llava_read(0),
        [("user", ("Compare", 20, "with", 40, ".")), ("assistant", ("Darker.",))],
        [("system", ("Be brief.",)), ("user", ("Hi",)), ("assistant", ("Hello",))],
    ]


def test_messages_with_parts_and_plain_texts_in_one_file(tmp_path):
    write_images(tmp_path)
    address = "data:image/png;base64," + base64.b64encode(png(5)).decode()
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is <image> a word?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            ],
            "images": ["3.png"],
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]},
                {"role": "assistant", "content": "No."},
            ],
            "images": [],
        },
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert conversations(from_path(tmp_path / "a.jsonl")) == [
        [("system", ("Be kind.",)), ("user", (60, "Is <image> a word?")), ("assistant", ("Yes.",))],
        [("user", (100,)), ("assistant", ("No.",))],
    ]


def test_openai_messages_alone(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(COUNT)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "a.jsonl")
    assert conversations(corpus)[7] == [("user", ("7?",)), ("assistant", ("7!",))]
    assert set(corpus.columns) == {"messages"}
    assert {len(rows) > 0 for rows in corpus.splits.values()} == {True}


def test_sharegpt_with_system_prompts(tmp_path):
    rows = [
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "narrator", "value": "f()"},
                {"from": "gpt", "value": "Yes"},
            ],
        },
        {"system": "", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    corpus = from_path(tmp_path / "a.json")
    with pytest.raises(UnreadableExample, match="'narrator' is no role; roles are system, user and assistant"):
        corpus[0]
    rows[0]["conversations"][1]["from"] = "observation"
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert conversations(from_path(tmp_path / "a.json"))[0][0] == ("system", ("Be brief.",))


@pytest.mark.parametrize("records", [True, False])
def test_the_cauldron_and_finevision(records, tmp_path):
    """`images`: bytes records (or bytes), which stand before the first question; `texts`: pairs."""

    def stored(number: int) -> Any:
        return {"bytes": png(number), "path": f"{number}.png"} if records else png(number)

    said = {"user": "More?", "assistant": "b.", "source": "y"}
    rows = [
        {"images": [stored(n), stored(0)], "texts": [{"user": f"{n}?", "assistant": "a.", "source": "x"}, said]}
        for n in range(COUNT)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    corpus = from_path(tmp_path)
    assert set(corpus.columns) == {"texts"}
    assert conversations(corpus)[2] == [
        ("user", (40, 0, "2?")),
        ("assistant", ("a.",)),
        ("user", ("More?",)),
        ("assistant", ("b.",)),
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (("<image><image>?", "a", [png(0)]), "2 places for images in its texts, and 1 images"),
        (("<image>?", "a", []), "1 places for images in its texts, and 0 images"),
        (("?", " ", []), "no answer of the assistant"),
        (([{"type": "video"}], "a", []), "a part of type 'video'"),
        (([{"type": "image_url", "image_url": "https://x.org/a.png"}], "a", []), "at https://x.org/a.png; download it"),
        (("<image>", "a", ["none.png"]), "none.png cannot be read"),
    ],
)
def test_unreadable_conversations_say_why(value, reason):
    content, answer, images = value
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    with pytest.raises(UnreadableExample, match=reason):
        Conversations().decode({"messages": messages, "images": images})


def test_arrow_keeps_what_is_stored():
    stored = {
        "messages": [{"role": "user", "content": "<image> ?"}, {"role": "assistant", "content": "a"}],
        "images": [png(2)],
    }
    again = pa.array([stored], Conversations().arrow_type)[0].as_py()
    assert plain(Conversations().decode(again)) == [("user", (40, "?")), ("assistant", ("a",))]
    assert without_images(Conversations().decode(again)) == [Message("user", ("?",)), Message("assistant", ("a",))]


def test_equal_images_are_in_one_split_and_groups_are_in_any(tmp_path):
    """Four conversations about each image: their smallest ids do not pull all of them into `test`."""
    (tmp_path / "images").mkdir()
    records = []
    for number in range(60):
        image = PILImage.new("RGB", (8, 6), (number, 3, 7))
        for copy in range(4):
            image.save(tmp_path / "images" / f"{number}-{copy}.png")
            records.append(llava(0) | {"id": f"{number}-{copy}", "image": f"{number}-{copy}.png"})
    (tmp_path / "a.json").write_text(json.dumps(records))
    corpus = from_path(tmp_path / "a.json")
    groups = {split: {corpus.key(row).split("-")[0] for row in rows} for split, rows in corpus.splits.items()}
    assert not groups["train"] & groups["test"]
    assert 4 <= len(groups["test"]) <= 22  # 12 are expected; 35 by the smallest of four


def test_a_column_that_has_no_conversations_is_a_sentence(tmp_path):
    write_images(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps([llava(0)]))
    with pytest.raises(UserError, match="'image' is string, which is no conversations column"):
        from_path(tmp_path / "a.json", conversations="image")


# Training


@pytest.fixture
def llava_file(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    records = [llava(number) for number in range(COUNT)]
    records[5]["conversations"][0]["value"] = "<image><image>?"
    records[6].pop("image")
    records[6]["conversations"][0]["value"] = "Alone?"
    (tmp_path / "llava.json").write_text(json.dumps(records))
    return tmp_path / "llava.json"


def learned(packed: Any, tokenizer: Any, row: int = 0) -> str:
    return tokenizer.decode(Tokens.of([packed.ids[row][packed.predicted[row]].tolist()]))[0]


def test_a_dialogue_of_one_image_is_the_sequence_that_prompts_are_of(llava_file):
    recipe = mono_internvl.Recipe.tiny()
    corpus = from_path(llava_file)
    processor = fit_processor(recipe, corpus)
    form = processor.conversation
    example = processor.load_example(corpus, 3)
    image = next(part for part in example["messages"][0].parts if not isinstance(part, str))
    turns = [Turn("Thing 3.", "What is in image 3?"), Turn("There.", "Where?")]
    for ours, theirs in zip(
        vars(pad_sequences([form.dialogue(example["messages"])])).values(),
        vars(pad_sequences([form.sequence(image, turns)])).values(),
        strict=True,
    ):
        assert all(map(torch.equal, ours.values(), theirs.values())) if isinstance(ours, dict) else True
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else True


def test_the_loss_is_asked_for_in_all_answers_alone_and_images_stand_at_their_places(llava_file):
    recipe = mono_internvl.Recipe.tiny()
    processor = fit_processor(recipe, from_path(llava_file))
    form, tile = processor.conversation, np.full((32, 32, 3), 9, np.uint8)
    said = [
        Message("system", ("be brief",)),
        Message("user", ("one", tile, "two", tile)),
        Message("assistant", ("first",)),
        Message("user", ("what now",)),
        Message("assistant", ("second",)),
    ]
    segments = form.dialogue(said)
    packed = pad_sequences([segments])
    assert learned(packed, processor.tokenizer).replace(" ", "") == "firstsecond"
    assert packed.predicted.sum() == sum(len(s) for s in segments if s.predicted)
    assert [s.modality for s in segments].count("image") == 2
    places = [number for number, segment in enumerate(segments) if segment.modality == "image"]
    ids = processor.tokenizer
    between = ids.decode(Tokens.of([torch.cat([s.values for s in segments[places[0] + 1 : places[1]]]).tolist()]))[0]
    assert "two" in between
    marks = torch.cat([s.values for s in segments if s.modality == "text"]).tolist()
    assert marks.count(form.marks["<user>"][0]) == marks.count(form.marks["<assistant>"][0]) == 2


@pytest.mark.parametrize("context", [40, 60, 96])
def test_a_dialogue_fits_its_context_and_always_answers(context, llava_file):
    tiny = mono_internvl.Recipe.tiny()
    recipe = dataclasses.replace(tiny, language_model=dataclasses.replace(tiny.language_model, context_length=context))
    processor = fit_processor(recipe, from_path(llava_file))
    tile = np.full((32, 32, 3), 9, np.uint8)
    long = " ".join(["word"] * 100)
    said = [Message("system", (long,)), Message("user", (tile, long, tile, long)), Message("assistant", (long,))] * 2
    segments = processor.conversation.dialogue(said[1:])
    assert sum(map(len, segments)) <= context
    assert sum(len(segment) for segment in segments if segment.predicted) >= 5
    assert [segment.modality for segment in segments].count("image") == 2


def test_every_stage_of_mono_internvl_and_moma_learns_from_conversations(llava_file):
    corpus = from_path(llava_file)
    for recipe in (mono_internvl.Recipe.tiny(), moma.Recipe.tiny()):
        processor = fit_processor(recipe, corpus)
        rows = [row for row in range(COUNT) if row != 5]
        examples = [processor.load_example(corpus, row) for row in rows]
        model = recipe.build(processor)
        for stage in recipe.stages():
            batch = getattr(recipe, stage.batch)(examples, processor, ExampleRNG.of(0, 0, len(examples)))
            if stage.losses == "losses":
                assert all(torch.isfinite(loss) for loss in model.losses(batch).values())
    with pytest.raises(UnreadableExample, match="2 places for images"):
        processor.load_example(corpus, 5)


def test_images_that_do_not_fit_the_context_are_said(tmp_path):
    write_images(tmp_path)
    many = {"image": [f"{n}.png" for n in range(COUNT)], "conversations": llava(0)["conversations"]}
    many["conversations"][0]["value"] = "<image>" * COUNT
    (tmp_path / "a.json").write_text(json.dumps([llava(0), many]))
    corpus = from_path(tmp_path / "a.json")
    processor = fit_processor(mono_internvl.Recipe.tiny(), corpus)
    with pytest.raises(UnreadableExample, match="12 images do not fit the context of 96 tokens"):
        processor.load_example(corpus, 1)


def test_training_on_a_llava_file_names_what_is_skipped(llava_file):
    corpus = from_path(llava_file)
    corpus = corpus.with_splits({"train": np.arange(COUNT), "validation": np.arange(2), "test": np.arange(2)})
    processor = fit_processor(mono_internvl.Recipe.tiny(), corpus)
    reader = Reader(corpus, processor)
    _, examples = reader.read_split("train")
    assert len(examples) == COUNT - 1
    assert reader.skipped == {"005": "it has 2 places for images in its texts, and 1 images"}


def test_answers_of_conversations_are_scored(llava_file):
    corpus = from_path(llava_file)
    corpus = corpus.with_splits({"train": np.arange(4), "test": np.arange(4, COUNT)})
    recipe = mono_internvl.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    method = recipe.build(processor)
    reader = Reader(corpus, processor)
    bits, gain = answer_scores(method, processor, reader, "test")
    assert (bits.name, gain.name) == ("test/answers/bits_per_byte", "test/answers/image_gain")
    assert len(bits.clusters) == 7  # of eight, one is unreadable
    assert len(gain.clusters) == 6  # one has no image
    _, examples = reader.read_split("test")
    one = method.log_likelihood(processor(messages=[examples[0]["messages"]]))
    size = bits.weights[0]  # of the answers as they are decoded, with or without blanks between them
    assert len("Thing 4.There.") - 1 <= size <= len("Thing 4. There.") + 1
    assert bits.clusters[0] == pytest.approx(-one.item() / np.log(2) / size, rel=1e-5)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('[{"id": 1, "conversations": [{"from": "human"', "cannot be read as JSON"),
        ("[]", "no rows"),
        ('[{"id": 1, "conversations": []}, {"id": 2, "conversations": null}]', "No column has"),
    ],
)
def test_half_written_and_empty_files_are_a_sentence(written, message, tmp_path):
    (tmp_path / "a.json").write_text(written)
    with pytest.raises(UserError, match=message):
        from_path(tmp_path / "a.json")


def test_rows_of_wrong_types_are_skipped_and_named(tmp_path):
    write_images(tmp_path)
    rows = [llava(number) for number in range(COUNT)]
    rows[1]["conversations"] = []
    rows[2]["conversations"] = None
    rows[3]["conversations"][0]["value"] = None
    rows[4]["conversations"][1]["value"] = 7
    rows[5]["image"] = None
    rows[6]["conversations"] = "no list"
    rows[7]["conversations"][0]["from"] = None
    (tmp_path / "a.json").write_text(json.dumps(rows))
    corpus = from_path(tmp_path / "a.json")
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "002")]
    processor = fit_processor(mono_internvl.Recipe.tiny(), corpus)
    reader = Reader(corpus, processor)
    rows_of_splits = np.concatenate(list(corpus.splits.values()))
    assert sorted(rows_of_splits) == [row for row in range(COUNT) if row != 2]
    reader.read_all(rows_of_splits)
    assert reader.skipped == {
        "001": "there is no answer of the assistant",
        "005": "it has 1 places for images in its texts, and 0 images",
        "006": "'None' is no role; roles are system, user and assistant",
        "007": "'None' is no role; roles are system, user and assistant",
    }
    said = plain(corpus.value(4, "conversations"))
    assert said[1] == ("assistant", ("7",))
    assert plain(corpus.value(3, "conversations"))[0] == ("user", (60,))


def test_a_placeholder_in_a_text_among_lists_of_parts_is_a_place(tmp_path: Path) -> None:
    """JSON lines in which a content is a text in one row and a list in another."""
    (tmp_path / "0.png").write_bytes(png(0))
    contents = ["first <image> last", [{"type": "text", "text": "say <image>"}, {"type": "image"}]]
    lines = [
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}], "images": ["0.png"]}
        for content in contents
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = from_path(tmp_path / "a.jsonl")
    found = [corpus.value(row, "messages")[0].parts for row in (0, 1)]
    assert [[part if isinstance(part, str) else "IMAGE" for part in parts] for parts in found] == [
        ["first", "IMAGE", "last"],
        ["say <image>", "IMAGE"],
    ]


@pytest.mark.parametrize("nothing", [{}, {"image": None}, {"image": ""}])
def test_rows_without_an_image_are_read_and_are_in_each_split(nothing: dict[str, Any], tmp_path: Path) -> None:
    """LLaVA's mixture has conversations without an image, which some data sets mark by an empty path."""
    lines = []
    for number in range(60):
        place = {"image": f"{number}.png"} if number % 2 else nothing
        asked = f"<image>{number}?" if number % 2 else f"{number}?"
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": "a"}]
        lines.append({**place, "conversations": said})
        PILImage.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "a.json").write_text(json.dumps(lines))
    corpus = from_path(tmp_path / "a.json")
    assert list(corpus.columns.values()) == [Conversations(tmp_path)]
    assert plain(corpus.value(4, "conversations"))[0] == ("user", ("4?",))
    without = {split: sum(1 for row in rows if row % 2 == 0) for split, rows in corpus.splits.items()}
    assert min(without.values()) > 0


@pytest.mark.parametrize("content", [None, "", " ", []])
def test_empty_answers_are_not_learned(content: Any, tmp_path: Path) -> None:
    """A call of a tool has no content; the answer that follows its result is one to the same question."""
    messages = [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": content, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "seven"},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    corpus = from_path(tmp_path / "a.jsonl")
    assert plain(corpus.value(0, "messages")) == [("user", ("what?",)), ("user", ("7",)), ("assistant", ("seven",))]


def test_queries_and_responses_with_history(tmp_path):
    rows = [
        {"query": f"<image>{n}?", "response": f"yes {n}", "images": [f"{n}.png"], "system": "Be brief."}
        for n in range(12)
    ]
    rows[3]["history"] = [["Is it?", "It is."]]
    for n in range(12):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    (tmp_path / "swift.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    corpus = from_path(tmp_path / "swift.jsonl")
    messages = corpus.value(3, corpus.column_with(Conversations))
    texts = ["".join(part for part in message.parts if isinstance(part, str)).strip() for message in messages]
    assert texts[-4:] == ["Is it?", "It is.", "3?", "yes 3"]
    assert sum(not isinstance(part, str) for message in messages for part in message.parts) == 1


def test_instructions_of_alpaca_have_their_input(tmp_path):
    rows = [{"instruction": f"Add {n}.", "input": "1" if n % 2 else "", "output": f"{n + 1}"} for n in range(12)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    corpus = from_path(tmp_path / "alpaca.json")
    column = corpus.column_with(Conversations)
    assert [message.parts for message in corpus.value(3, column)] == [("Add 3.\n1",), ("4",)]
    assert [message.parts for message in corpus.value(4, column)] == [("Add 4.",), ("5",)]


def of_mmmu(n, several):
    row = {"id": str(n), "question": f"What is <image 1> of {n}?", "options": "['a', 'b']", "answer": "B"}
    row |= {f"image_{place}": None for place in range(1, 4)} | {"image_1": {"bytes": png(n), "path": f"{n}.png"}}
    if several and n == 5:
        row |= {"image_3": {"bytes": png(77), "path": "x.png"}, "question": "Is <image 3> like <image 1>?"}
    return row


def test_numbered_images_are_in_the_order_of_their_places(tmp_path):
    pq.write_table(pa.Table.from_pylist([of_mmmu(n, True) for n in range(12)]), tmp_path / "mmmu.parquet")
    corpus = from_path(tmp_path / "mmmu.parquet")
    question, answer = corpus.value(5, corpus.column_with(Conversations))
    assert [part for part in question.parts if isinstance(part, str)] == ["Is", "like", "?\nA. a\nB. b"]
    shown = [part for part in question.parts if not isinstance(part, str)]
    assert [image.tobytes() for image in shown] == [
        PILImage.open(io.BytesIO(png(number))).convert(shown[0].mode).tobytes() for number in (77, 5)
    ]
    assert answer.parts == ("B",)


def test_numbered_images_of_one_a_row_are_the_image_of_a_question(tmp_path):
    pq.write_table(pa.Table.from_pylist([of_mmmu(n, False) for n in range(12)]), tmp_path / "mmmu.parquet")
    corpus = from_path(tmp_path / "mmmu.parquet")
    assert {type(kind).__name__ for kind in corpus.columns.values()} >= {"Image", "Questions"}
    assert corpus.value(4, "image").size == PILImage.open(io.BytesIO(png(4))).size


def test_calls_of_functions_are_said_by_the_assistant_and_results_are_told_to_it(tmp_path):
    turns = [("human", "1 + {}?"), ("function_call", '{{"add": {}}}'), ("observation", "sum {}"), ("gpt", "It is {}.")]
    rows = [{"conversations": [{"from": role, "value": text.format(n)} for role, text in turns]} for n in range(12)]
    (tmp_path / "glaive.json").write_text(json.dumps(rows))
    messages = from_path(tmp_path / "glaive.json").value(3, "conversations")
    assert [message.role for message in messages] == ["user", "assistant", "user", "assistant"]
    assert [message.text for message in messages] == ["1 + 3?", '{"add": 3}', "sum 3", "It is 3."]


def test_instructions_of_dolly_have_their_context(tmp_path):
    rows = [
        {
            "instruction": f"When was {n}?",
            "context": f"It was in {n}." * (n % 2),
            "response": f"In {n}.",
            "category": "qa",
        }
        for n in range(12)
    ]
    (tmp_path / "dolly.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "dolly.jsonl")
    column = corpus.column_with(Conversations)
    assert [message.text for message in corpus.value(3, column)] == ["When was 3?\nIt was in 3.", "In 3."]
    assert [message.text for message in corpus.value(4, column)] == ["When was 4?", "In 4."]


@pytest.mark.parametrize("form", ["texts", "messages", "parts"])
def test_completions_of_trl_answer_their_prompts(form, tmp_path):
    def said(role, text):
        if form == "texts":
            return text
        return [{"role": role, "content": [{"type": "text", "text": text}] if form == "parts" else text}]

    rows = [{"prompt": said("user", f"{n}?"), "completion": said("assistant", f"yes {n}")} for n in range(12)]
    rows[5]["prompt"] = None
    if form == "messages":
        rows[7]["prompt"] = [{"role": "system", "content": "Be kind."}, *rows[7]["prompt"]]
    (tmp_path / "completions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "completions.jsonl")
    column = corpus.column_with(Conversations)
    assert [(m.role, m.text) for m in corpus.value(6, column)] == [("user", "6?"), ("assistant", "yes 6")]
    assert [m.text for m in corpus.value(7, column)] == ["Be kind."] * (form == "messages") + ["7?", "yes 7"]
    assert corpus.skipped[0].count == 1


def test_empty_paths_of_numbered_images_are_no_images(tmp_path):
    for n in range(12):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    rows = [
        {"question": f"{n}?", "answer": "B", "image_1": f"{n}.png" * (n % 2), "image_2": f"{n}.png" * (1 - n % 2)}
        for n in range(12)
    ]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "one.jsonl")
    expected = [PILImage.open(tmp_path / f"{n}.png").tobytes() for n in range(12)]
    assert [corpus.value(n, "image").tobytes() for n in range(12)] == expected
