"""Runs of a language model that learns to see: from stages to answers, scores, comparisons and the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as PILImage

from polymodal.corpora import Corpus
from polymodal.data.conversation import Turn
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import pad_sequences
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.errors import UserError
from polymodal.evaluation.byte_likelihood import bits_per_byte, unigram_bits
from polymodal.evaluation.capabilities import CanGenerateText
from polymodal.evaluation.evaluate import evaluate
from polymodal.evaluation.question_answering import most_frequent_answers, question_scores
from polymodal.evaluation.tasks.language_modeling import HasTextCorpus, text_scores
from polymodal.layers.decoding import Decoding
from polymodal.modalities import Image, Questions, Text
from polymodal.recipes.language_models import mono_internvl
from polymodal.reproduce.compare import Start, compare
from polymodal.reproduce.result import Arm
from polymodal.serving.vqa import answer_about
from polymodal.training import Run, load_run, train
from polymodal.training.initialization import with_encoders
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget
from tiny_checkpoints import save, save_tokenizer

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2}
QUIET = RuntimeConfig(logger="none")
SMALL = LanguageModelConfig(
    vocab_size=600, context_length=160, width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=64
)
TINY = mono_internvl.Recipe(
    language_model=SMALL,
    tile_size=48,
    patch_size=8,
    patch_embed_dim=16,
    batch_size=8,
    max_turns=3,
    optimizer=OptimizerConfig(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def few_scenes(scenes: Corpus) -> Corpus:
    return scenes.with_splits(
        {name: rows[:96] if name == "train" else rows[:12] for name, rows in scenes.splits.items()}
    )


@pytest.fixture(scope="module")
def processor(few_scenes: Corpus) -> Processor:
    return fit_processor(TINY, few_scenes)


@pytest.fixture(scope="module")
def run(few_scenes: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("mono") / "run"
    return train(TINY, few_scenes, Budget(steps=50), out=out, runtime=QUIET)


def test_packing_and_padding_do_not_change_what_is_likely(processor: Processor, few_scenes: Corpus) -> None:
    torch.manual_seed(0)
    model = TINY.build(processor).eval()
    images = [few_scenes.value(row, "image") for row in range(3)]
    texts = ["a cat", "a large cat and a small bus with a tree", "two"]
    with torch.no_grad():
        together = model.log_likelihood(processor(image=images, answer=texts))
        alone = [model.log_likelihood(processor(image=[p], answer=[t])) for p, t in zip(images, texts, strict=True)]
        form = processor.conversation
        said = [form.sequence(processor.image.open(p), [Turn(t)]) for p, t in zip(images, texts, strict=True)]
        packed = model.losses({"sequences": form.pack(said)})["lm"]
        rows = pad_sequences(said)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed, -together.sum() / rows.predicted.sum(), atol=1e-4, rtol=1e-4)


def test_it_learns_in_all_stages_answers_and_comes_back_from_disk(run: Run, few_scenes: Corpus) -> None:
    stages = {entry["stage"]: entry["losses"]["lm"] for entry in run.history if "losses" in entry}
    assert list(stages) == ["language", "concepts", "semantics", "alignment", "instructions"]
    first = next(entry["losses"]["lm"] for entry in run.history if "losses" in entry)
    assert stages["instructions"] < first - 0.5
    assert isinstance(run.model, CanGenerateText)
    assert isinstance(run.recipe, HasTextCorpus)
    scores = {score.name: score for score in evaluate(run, few_scenes)}
    assert {"test/vqa/accuracy", "test/vqa/image_gain", "test/captions/bits_per_byte"} <= set(scores)
    assert 0 < scores["test/captions/bits_per_byte"].value < 8
    assert run.directory is not None
    again = load_run(run.directory)
    images = [few_scenes.value(row, "image") for row in range(2)]
    question = "How many things are there?"
    assert answer_about(run, images, question, Decoding()) == answer_about(again, images, question, Decoding())
    drawn = [answer_about(run, images, "", Decoding(temperature=1.0), seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_chance_is_the_commonest_answer_and_the_gain_of_blind_answers_is_none(
    few_scenes: Corpus, processor: Processor
) -> None:
    class AlwaysYes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def generate_text(self, batch: dict) -> list[list[int]]:
            ids = processor.tokenizer(["yes"]).ids[0, 1:-1].tolist()
            return [ids] * len(batch["prompts"])

    scores = {s.name: s for s in question_scores(AlwaysYes(), processor, Reader(few_scenes, processor), "test")}
    usual = most_frequent_answers(few_scenes)
    assert set(usual) == {"count", "presence", "colour", "size", "place", "relation"}
    assert scores["test/vqa/count/accuracy"].value == 0
    relation = scores["test/vqa/relation/accuracy"]
    assert 0 < relation.value < 1
    if usual["relation"] == "yes":
        assert relation.chance == relation.value
    assert scores["test/vqa/image_gain"].value == 0


def test_bits_per_byte_are_those_of_the_text_alone(run: Run, few_scenes: Corpus) -> None:
    score = bits_per_byte("x/bits_per_byte", run.model, run.processor, ["a cat", "an apple and a bus"])
    found = run.model.log_likelihood(run.processor(answer=["a cat", "an apple and a bus"]))
    assert score.value == pytest.approx(
        -float(found.detach().sum()) / np.log(2) / len("a catan apple and a bus"), rel=1e-4
    )
    assert not score.higher_is_better
    named = text_scores(run.model, run.processor, few_scenes, "test")
    assert [one.name for one in named] == ["test/text/scenes/bits_per_byte"]
    assert 3 < named[0].chance < 6, "of English text, far below that of uniform bytes"


def test_chance_of_bytes_is_their_frequency_in_training() -> None:
    assert unigram_bits((), ["some"]) == 8
    likelihood = {"a": 4 / 260, "b": 2 / 260, "c": 1 / 260}
    expected = -np.mean([np.log2(likelihood[letter]) for letter in "abca"])
    assert unigram_bits(["aab", "a"], ["abc", "a"]) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_pretrained_language_model_learns_to_see(kind: str, few_scenes: Corpus, tmp_path: Path) -> None:
    if kind == "llama":
        config = transformers.LlamaConfig(**LLAMA, vocab_size=300, max_position_embeddings=160)
    else:
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=160, vocab_size=300)
    model = transformers.AutoModelForCausalLM.from_config(config)
    folder = save_tokenizer(save(model, tmp_path / kind), ["a large cat and a small bus", "how many things"] * 20)
    recipe = with_encoders(dataclasses.replace(TINY, stage_fractions=(0, 1, 1, 1, 1)), {"lm": f"hf:{folder}"})
    if kind == "gpt2":
        with pytest.raises(UserError, match="no place for experts"):
            train(recipe, few_scenes, Budget(steps=1), runtime=QUIET)
        recipe = dataclasses.replace(recipe, visual_experts=False, freeze_llm=False)
    run = train(recipe, few_scenes, Budget(steps=8), out=tmp_path / "run", runtime=QUIET)
    assert isinstance(run.processor, Processor)
    texts = ["a large cat", "a small bus and a cat"]
    assert torch.isfinite(run.model.log_likelihood(run.processor(answer=texts))).all()
    again = load_run(tmp_path / "run")
    image = [few_scenes.value(0, "image")]
    assert answer_about(again, image, "How many?", Decoding(max_new_tokens=4)) == answer_about(
        run, image, "How many?", Decoding(max_new_tokens=4)
    )


def test_arms_begin_with_what_was_trained_first(few_scenes: Corpus, tmp_path: Path) -> None:
    first = dataclasses.replace(TINY, stage_fractions=(1, 0, 0, 0, 0))
    arm = Arm("seeing", dataclasses.replace(TINY, stage_fractions=(0, 1, 0, 0, 0)))
    start = Start(first, Budget(steps=3), scored=True)
    found = compare([arm], few_scenes, Budget(steps=2), seeds=1, out=tmp_path, start=start)
    (scores,) = found.start_scores
    assert scores["test/captions/bits_per_byte"] != found.trials[0].scores["test/captions/bits_per_byte"].value
    assert scores.keys() == found.trials[0].scores.keys()
    began, became = load_run(tmp_path / "start" / "seed-0"), found.trials[0].run
    for name, weight in became.model.state_dict().items():
        if ".feed_forward.text." in name or ".attention." in name:
            assert torch.equal(weight, began.model.state_dict()[name]), name


def test_a_user_asks_a_run(run: Run, tmp_path: Path, polymodal: Callable[..., Any]) -> None:
    PILImage.new("RGB", (90, 60), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no image")

    def ask(*words: str) -> Any:
        return polymodal("ask", str(run.directory), *words)

    said = ask("red.png", "--question", "How many things are there?", "--json", "--max-new-tokens", "5")
    assert said.returncode == 0, said.stderr
    (answer,) = json.loads(said.stdout)
    assert answer["image"] == "red.png"
    assert isinstance(answer["text"], str)
    for words, sentence in (
        (("broken.png",), "The image is in no format"),
        (("missing.png",), "cannot be read"),
        (("red.png", "--num-beams", "0"), "at least 1"),
        ((), "Say which images"),
    ):
        failed = ask(*words)
        assert failed.returncode == 2, words
        assert sentence in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_corpus_without_captions_or_images_is_refused(scenes: Corpus) -> None:
    for kind, without in ((Text, (Text, Questions)), (Image, (Image,))):
        others = {name: modality for name, modality in scenes.columns.items() if not isinstance(modality, without)}
        with pytest.raises(UserError, match=f"has no {kind.__name__.lower()}.* column"):
            fit_processor(mono_internvl.Recipe(), dataclasses.replace(scenes, columns=others))
