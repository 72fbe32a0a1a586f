"""Mono-InternVL: images among words, experts that leave the language as it was, stages, questions and answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from polymodal.corpora import Corpus, mix_corpora
from polymodal.data.conversation import ASSISTANT, IMAGE, IMAGE_END, IMAGE_START, USER, Turn
from polymodal.data.conversation_format import ConversationFormat
from polymodal.data.instructions import ocr_turn
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import pad_sequences
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.errors import UserError
from polymodal.evaluation.byte_likelihood import bits_per_byte
from polymodal.evaluation.capabilities import CanGenerateText
from polymodal.evaluation.evaluate import evaluate
from polymodal.evaluation.question_answering import most_frequent_answers, question_scores
from polymodal.evaluation.tasks.language_modeling import HasTextCorpus, text_scores
from polymodal.layers.decoding import Decoding
from polymodal.modalities import Image, Text
from polymodal.modalities.image import tile_grid, tiles
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.language_models._base import ImageEmbedding
from polymodal.reproduce.compare import Start, compare
from polymodal.reproduce.result import Arm
from polymodal.rng import ExampleRNG
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


def method(processor: Processor, recipe: mono_internvl.Recipe = TINY) -> VisionLanguageModel:
    torch.manual_seed(0)
    return recipe.build(processor).eval()


# Images to tiles


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


# Conversations to sequences


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


# The model


def test_an_expert_that_was_copied_changes_nothing(processor: Processor, few_scenes: Corpus) -> None:
    """At the first step, the model is the language model on the vectors of images."""
    with_experts = method(processor)
    without = method(processor, dataclasses.replace(TINY, visual_experts=False))
    weights = with_experts.state_dict()
    without.load_state_dict({name: weights[name] for name in without.state_dict()})
    with_experts.language_model.copy_experts("text")
    batch = batch_of(processor, few_scenes)
    with torch.no_grad():
        torch.testing.assert_close(with_experts.losses(batch)["lm"], without.losses(batch)["lm"])


def batch_of(processor: Processor, corpus: Corpus, recipe: mono_internvl.Recipe = TINY) -> dict:
    _, examples = Reader(corpus, processor).read_all(corpus.rows("train")[:8])
    return recipe.semantic_batch(examples, processor, ExampleRNG.of(0, 0, 8))


def test_language_stays_bit_for_bit_while_images_are_learned(few_scenes: Corpus, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, stage_fractions=(1, 0, 0, 0, 0))
    first = train(recipe, few_scenes, Budget(steps=4), out=tmp_path / "first", runtime=QUIET)
    seeing = dataclasses.replace(TINY, stage_fractions=(0, 1, 1, 0, 0))
    second = train(seeing, few_scenes, Budget(steps=4), init=tmp_path / "first", runtime=QUIET)
    texts = ["a large cat and a small bus", "nothing of the kind"]
    answers = [r.model.log_likelihood(r.processor(answer=texts)) for r in (first, second)]
    assert torch.equal(*answers)
    before, after = first.model.state_dict(), second.model.state_dict()
    learned = {name for name in after if not torch.equal(before[name], after[name])}
    assert learned
    assert all(name.startswith("image_encoder.") or ".feed_forward.image." in name for name in learned)
    loose = dataclasses.replace(seeing, freeze_llm=False)
    third = train(loose, few_scenes, Budget(steps=4), init=tmp_path / "first", runtime=QUIET)
    assert not torch.equal(answers[0], third.model.log_likelihood(third.processor(answer=texts)))


def test_the_gradient_reaches_pixels_through_the_frozen_language_model(
    processor: Processor, few_scenes: Corpus
) -> None:
    model = method(processor).train()
    patterns = TINY.stages()[1].trainable
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    model.losses(batch_of(processor, few_scenes))["lm"].backward()
    for name, parameter in model.named_parameters():
        seeing = name.startswith("image_encoder.") or ".feed_forward.image." in name
        assert (parameter.grad is not None) == seeing, name
        if seeing:  # what images' tokens are after the last attention, nobody reads
            assert (parameter.grad.abs().sum() > 0) == (".blocks.1.feed_forward." not in name), name


def test_a_batch_without_images_runs_and_no_parameter_is_left_out(processor: Processor) -> None:
    model = method(processor).train()
    texts = processor.conversation.pack([processor.conversation.sequence(None, [Turn("a small cat")])])
    model.losses({"sequences": texts})["lm"].backward()
    experts = [p for name, p in model.named_parameters() if ".feed_forward.image." in name]
    assert experts
    assert all(p.grad is not None and (p.grad == 0).all() for p in experts)


def test_packing_and_padding_do_not_change_what_is_likely(processor: Processor, few_scenes: Corpus) -> None:
    model = method(processor)
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


def test_several_tiles_are_seen_at_their_places(processor: Processor) -> None:
    """Two tiles and the whole: three times the tokens, and the second tile changes its own only."""
    model = method(processor)
    column = dataclasses.replace(processor.image, max_tiles=2)
    image = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    other = image.copy()
    other[:, 48:] = 0
    with torch.no_grad():
        seen = [model.image_encoder(column.patchify_tiles(one, None)) for one in (image, other)]
    assert len(seen[0]) == 3 * processor.image.tokens_per_tile
    same = (seen[0] == seen[1]).all(1).unflatten(0, (3, -1))
    assert same[0].all()
    assert not same[1].any()


# The recipe


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


@pytest.mark.parametrize("stage", range(5))
def test_batches_follow_from_their_seed(stage: int, processor: Processor, few_scenes: Corpus) -> None:
    _, examples = Reader(few_scenes, processor).read_all(few_scenes.rows("train")[:8])
    make = getattr(TINY, TINY.stages()[stage].batch)
    one, again, other = (make(examples, processor, ExampleRNG.of(seed, 0, 8))["sequences"] for seed in (0, 0, 1))
    assert torch.equal(one.ids, again.ids)
    if stage != 2:  # the longest caption is always the same
        assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)
    assert (IMAGE in one.features) == (stage > 0)


def test_as_many_captions_are_exchanged_as_was_asked_for() -> None:
    own = [str(number) for number in range(1000)]
    found = mono_internvl.exchanged(own, 0.2, ExampleRNG.of(0, 0, 1000))
    assert 0.15 < np.mean([one != other for one, other in zip(found, own, strict=True)]) < 0.25
    assert mono_internvl.exchanged(own, 0.0, ExampleRNG.of(0, 0, 1000)) == own


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


def test_the_pretrained_size(processor: Processor) -> None:
    """InternLM2 has 1.89e9 parameters; with an expert in every block and the embedding there are 3.1e9 of them."""
    with torch.device("meta"):
        recipe = mono_internvl.Recipe.paper()
        vocabulary = recipe.language_model.vocab_size
        language_model = recipe.language_model.build(vocabulary, ("text", "image"))
        embedding = ImageEmbedding(
            recipe.patch_size, recipe.tokens_per_tile, recipe.patch_embed_dim, recipe.language_model.width
        )
        end = processor.conversation.end
        model = VisionLanguageModel({"image": embedding}, language_model, end, experts=["image"])
    of_text = sum(
        parameter.numel()
        for name, parameter in model.language_model.named_parameters()
        if ".feed_forward.image." not in name
    )
    assert of_text == pytest.approx(1.889e9, rel=0.001)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(3.1e9, rel=0.02)
    assert [most + (most > 1) for most in recipe.max_tiles] == [5, 7, 12, 25]
    assert recipe.tokens_per_tile == 256


def test_arms_begin_with_what_was_trained_first(few_scenes: Corpus, tmp_path: Path) -> None:
    first = dataclasses.replace(TINY, stage_fractions=(1, 0, 0, 0, 0))
    arm = Arm("seeing", dataclasses.replace(TINY, stage_fractions=(0, 1, 0, 0, 0)))
    start = Start(first, Budget(steps=3))
    found = compare([arm], few_scenes, Budget(steps=2), seeds=1, out=tmp_path, start=start)
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
    for kind in (Text, Image):
        others = {name: modality for name, modality in scenes.columns.items() if not isinstance(modality, kind)}
        with pytest.raises(UserError, match=f"has no {kind.__name__.lower()} column"):
            fit_processor(mono_internvl.Recipe(), dataclasses.replace(scenes, columns=others))
