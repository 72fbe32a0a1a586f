"""Preference pairs in columns, as the field's data sets have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from format_samples import png
from polymodal.corpora import Corpus, from_path
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UnreadableExample
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks import preference_accuracy
from polymodal.modalities import Conversations, Image, Preferences
from polymodal.modalities.preference import Preference
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.preference import mpo
from polymodal.rng import ExampleRNG

COUNT = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def message(role: str, text: str, *, image: bool = False) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image", "text": None}] * image + [{"type": "text", "text": text}]}


FORMS: dict[str, Any] = {
    "texts": lambda n: {"prompt": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"},
    "RLAIF-V": lambda n: {
        "ds_name": "RLAIF-V",
        "image": {"bytes": png(n), "path": f"{n}.jpg"},
        "question": f"{n}?",
        "chosen": f"good {n}",
        "rejected": f"bad {n}",
        "origin_dataset": "x" * n,
        "origin_split": '{"model": "x"}',
        "idx": str(n),
        "image_path": f"{n}.jpg",
    },
    "TRL, messages": lambda n: {
        "prompt": [{"role": "user", "content": f"{n}?"}],
        "chosen": [{"role": "assistant", "content": f"good {n}"}],
        "rejected": [{"role": "assistant", "content": f"bad {n}"}],
    },
    "TRL, the prompt in both": lambda n: {
        name: [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{kind} {n}"}]
        for name, kind in (("chosen", "good"), ("rejected", "bad"))
    },
    "TRL, an image": lambda n: {
        "images": [{"bytes": png(n), "path": f"{n}.jpg"}],
        "prompt": [message("user", f"{n}?", image=True)],
        "chosen": [message("assistant", f"good {n}")],
        "rejected": [message("assistant", f"bad {n}")],
    },
    "the prompt as text and in both": lambda n: {
        "prompt": f"{n}?",
        "chosen": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"good {n}"}],
        "rejected": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"bad {n}"}],
    },
    "LLaMA-Factory, messages": lambda n: {
        "conversations": [{"from": "human", "value": f"{n}?"}],
        "chosen": {"from": "gpt", "value": f"good {n}"},
        "rejected": {"from": "gpt", "value": f"bad {n}"},
    },
    "lists": lambda n: {
        "preferences": [{"question": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}", "kind": ""}]
    },
}


def opened(folder: Path, form: str) -> Corpus:
    pq.write_table(pa.Table.from_pylist([FORMS[form](n) for n in range(COUNT)]), folder / "data.parquet")
    return from_path(folder / "data.parquet")


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_right(form, tmp_path):
    corpus = opened(tmp_path, form)
    has_images = form in ("RLAIF-V", "TRL, an image")
    assert {type(kind) for kind in corpus.columns.values()} == {Preferences, Image} if has_images else {Preferences}
    assert corpus.value(3, "preferences") == [Preference("3?", "good 3", "bad 3", "")]


def test_mmpr_as_it_is_released(tmp_path):
    """JSON lines with paths of images, and a placeholder in the question."""
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(COUNT):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
        rows.append({"image": f"{number}.png", "question": f"<image>\n{number}?", "chosen": "good", "rejected": "bad"})
    rows[5]["rejected"] = "good"
    rows[6] = {**rows[6], "question": "<image><image> which?"}
    (tmp_path / "mmpr.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "mmpr.jsonl")
    assert corpus.value(3, "preferences") == [Preference("3?", "good", "bad", "")]
    assert corpus.value(3, "image").size == (8, 6)
    for row, reason in ((5, "equal, or one is empty"), (6, "about 2 images")):
        with pytest.raises(UnreadableExample, match=reason):
            corpus.value(row, "preferences")


def test_a_prompt_of_several_turns_is_all_of_them():
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (pair,) = Preferences().decode([{"question": prompt, "chosen": "x", "rejected": "y"}])
    assert pair.question == "a\nb\nc"


@pytest.mark.parametrize("form", ["texts", "RLAIF-V", "TRL, an image"])
def test_mpo_learns_from_pairs_of_users(form, tmp_path):
    corpus = opened(tmp_path, form)
    recipe = mpo.Recipe().starting_from(mono_internvl.Recipe.tiny())
    assert recipe.training_corpora(corpus) == [corpus]
    processor = fit_processor(recipe, corpus)
    examples = [processor.load_example(corpus, row) for row in range(4)]
    batch = recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    losses = recipe.build(processor).losses(batch)
    assert losses.keys() == {"dpo", "bco", "sft"}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_transcripts_of_both_answers_have_the_prompt_that_they_share(tmp_path):
    def transcript(n, answer):
        return f"\n\nHuman: Hello {n}\n\nAssistant: Hi.\n\nHuman: Why?\n\nAssistant: {answer}"

    rows = [{"chosen": transcript(n, "Because."), "rejected": transcript(n, "No.")} for n in range(12)]
    rows[7]["rejected"] = transcript(70, "No.")
    (tmp_path / "hh.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    corpus = from_path(tmp_path / "hh.jsonl")
    (pair,) = corpus.value(3, corpus.column_with(Preferences))
    assert (pair.question, pair.chosen, pair.rejected) == ("Hello 3\nHi.\nWhy?", "Because.", "No.")
    assert 7 not in {int(row) for rows in corpus.splits.values() for row in rows}
    assert sum(one.count for one in corpus.skipped) == 1


@pytest.mark.parametrize("form", ["texts", "RLAIF-V"])
def test_rewards_of_held_out_pairs_are_compared(form, tmp_path):
    corpus = opened(tmp_path, form).with_splits({"train": torch.arange(8).numpy(), "test": torch.arange(8, 12).numpy()})
    recipe = mpo.Recipe().starting_from(mono_internvl.Recipe.tiny())
    processor = fit_processor(recipe, corpus)
    model = recipe.build(processor)
    inputs = TaskInputs(model, processor, Reader(corpus, processor), recipe)
    assert preference_accuracy.task.applies_to(inputs)
    score, margin = preference_accuracy.task.described(preference_accuracy.task.score(inputs))
    assert [one.name for one in (score, margin)] == [
        f"test/preferences/{name}" for name in ("reward_accuracy", "reward_margin")
    ]
    assert (score.value, margin.value) == (0.5, 0.0)  # the policy is the reference
    assert (margin.unit, margin.higher_is_better, margin.is_fraction) == ("nats", True, False)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    score, margin = preference_accuracy.task.score(inputs)
    margins = []
    for row in range(8, 12):
        example = processor.load_example(corpus, row)
        (pair,) = example["preferences"]
        image = {"image": [example["image"]]} if "image" in example else {}
        rewards = []
        for answer in (pair.chosen, pair.rejected):
            batch = processor(question=[pair.question], answer=[answer], **image)
            model.eval()
            rewards.append(recipe.beta * (model.log_likelihood(batch) - model.reference.log_likelihood(batch)).item())
        margins.append(rewards[0] - rewards[1])
    assert score.value == sum(one > 0 for one in margins) / 4
    assert margin.value == pytest.approx(sum(margins) / 4, abs=1e-4)


def test_the_input_of_an_instruction_is_part_of_the_prompt(tmp_path):
    rows = [
        {"instruction": f"Add {n}.", "input": "1" * (n % 2), "chosen": f"good {n}", "rejected": f"bad {n}"}
        for n in range(COUNT)
    ]
    (tmp_path / "dpo.json").write_text(json.dumps(rows))
    corpus = from_path(tmp_path / "dpo.json")
    assert [corpus.value(n, "preferences")[0].question for n in (3, 4)] == ["Add 3.\n1", "Add 4."]
    assert not any(isinstance(kind, Conversations) for kind in corpus.columns.values())
