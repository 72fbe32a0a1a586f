"""ALPRO: clips and stills, alignment before fusion, a prompter that names crops, and what can be asked of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import polymodal as pm
from polymodal.corpora import Corpus, from_path
from polymodal.corpora.clips import MOTIONS, Actor, film
from polymodal.corpora.corpus import About
from polymodal.corpora.scenes import sprites_of
from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.data.columns.video import VideoColumn
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation.capabilities import CanClassifyAnswers
from polymodal.evaluation.evaluate import evaluate, validation
from polymodal.evaluation.tasks.image_text_matching import CanScorePairs, matching_scores
from polymodal.evaluation.tasks.region_classification import CanClassifyRegions, in_square, region_scores
from polymodal.modalities import Questions, Regions, Text, Video
from polymodal.modalities.boxes import boxes_to_patch_mask, random_boxes
from polymodal.modalities.text import Tokens
from polymodal.modalities.video import encode
from polymodal.recipes.video import alpro
from polymodal.rng import ExampleRNG
from polymodal.training import Run, load_run, train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.stages import active_stages
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
TINY = alpro.Recipe(
    batch_size=16,
    optimizer=OptimizerConfig(learning_rate=3e-3),
    video=VideoEncoderConfig(frames=2, image_size=32, patch_size=8, width=32, depth=1, num_heads=2),
    text=TextEncoderConfig(vocab_size=400, context_length=24, width=32, depth=1, num_heads=2, pool_type="cls"),
    fusion_depth=1,
    embed_dim=32,
)


@pytest.fixture(scope="module")
def clips() -> Corpus:
    """Some clips as those of the corpus, of emoji in the place of stamps, which are a large download."""
    sprites, rows = sprites_of("google")[:12], []
    for number in range(112):
        rng = np.random.default_rng(number)
        chosen = rng.choice(len(sprites), size=2, replace=False)
        actors = [Actor("a", sprites[place].name, sprites[place].image, None) for place in chosen]
        motions = [str(motion) for motion in rng.choice(list(MOTIONS), size=2, replace=False)]
        frames, boxes = film(actors, motions, rng)
        said = [f"a {actor.name} {motion}" for actor, motion in zip(actors, motions, strict=True)]
        rows.append(
            {
                "video": encode(frames, 8),
                "captions": [{"text": " and ".join(said), "language": "en"}],
                "regions": [{"name": actor.name, "box": box} for actor, box in zip(actors, boxes, strict=True)],
                "questions": [
                    {"question": f"What {motions[0]}?", "answer": actors[0].name, "kind": "object", "rationale": ""},
                    {"question": "How many things are there?", "answer": "2", "kind": "count", "rationale": ""},
                ],
            }
        )
    return Corpus(
        about=About("some clips", "clips", "none", "here", ("video", "text")),
        table=pa.Table.from_pylist(rows),
        columns={"video": Video(16), "captions": Text(), "regions": Regions(), "questions": Questions()},
        splits={"train": np.arange(80), "validation": np.arange(80, 96), "test": np.arange(96, 112)},
    )


@pytest.fixture(scope="module")
def processor(clips: Corpus) -> Processor:
    return fit_processor(TINY, clips)


@pytest.fixture(scope="module")
def run(clips: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("alpro") / "run"
    return train(TINY, clips, Budget(steps=100), out=out, validate=validation(clips), runtime=QUIET)


def method(processor: Processor, **changes: object) -> alpro.ALPRO:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, recipe: alpro.Recipe = TINY, count: int = 8) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train")[:count].tolist()]
    return recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, count))


# Data


def test_a_clip_shows_some_of_its_frames_in_order() -> None:
    column = VideoColumn(4, 8)
    clip = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    seen = {int(value) for value in (column([clip])[0, :, 0, 0, 0] * 0.5 + 0.5).mul(255).round()}
    assert seen == {2, 6, 10, 14}, "the middles of four equal stretches"
    rng, drawn = np.random.default_rng(0), set()
    for _ in range(60):
        frames = column.drawn(clip, rng)[:, 0, 0, 0].tolist()
        assert [frame // 4 for frame in frames] == [0, 1, 2, 3], "one of each stretch"
        drawn |= set(frames)
    assert drawn == set(range(16))
    assert column.drawn(clip[:2], rng).shape[0] == 2


def test_stills_among_clips_stand_still() -> None:
    column = VideoColumn(4, 8)
    clip, still = np.random.default_rng(0).integers(0, 255, (2, 4, 8, 8, 3), dtype=np.uint8)
    pixels = column.pixels([clip, still[:1]])
    assert pixels.shape == (2, 4, 3, 8, 8)
    assert all(torch.equal(frame, pixels[1, 0]) for frame in pixels[1])
    assert column.pixels([still[:1]]).shape == (1, 1, 3, 8, 8)


def test_all_frames_of_a_clip_are_changed_alike(processor: Processor, clips: Corpus) -> None:
    example = processor.load_example(clips, 0)
    still = example | {"video": np.repeat(example["video"][:1], 16, axis=0)}
    recipe = dataclasses.replace(TINY, augmentation=dataclasses.replace(TINY.augmentation, color_jitter_prob=1.0))
    video = recipe.training_batch([still, still], processor, ExampleRNG.of(0, 0, 2))["video"]
    assert torch.allclose(video[:, 0], video[:, 1])
    assert not torch.allclose(video[0], video[1], atol=1e-2)


def test_boxes_stand_on_the_grid_and_have_the_area() -> None:
    grid = 14
    boxes = random_boxes(grid, (0.3, 0.5), ExampleRNG.of(0, 0, 500))
    edges = boxes * grid
    assert torch.allclose(edges, edges.round(), atol=1e-4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    inside = boxes_to_patch_mask(boxes, grid)
    sides = (edges[:, 2:] - edges[:, :2]).round().long()
    assert torch.equal(inside.sum(1), sides.prod(1)), "no patch beside the box, and all in it"
    share = inside.float().mean(1)
    assert 0.28 < float(share.quantile(0.3)) < float(share.quantile(0.95)) < 0.55
    assert float(share.max()) < 0.56
    by_hand = torch.zeros(4, 4, dtype=torch.bool)
    by_hand[1:3, 2:4] = True
    assert torch.equal(boxes_to_patch_mask(torch.tensor([[0.55, 0.3, 0.9, 0.75]]), 4)[0], by_hand.flatten())
    assert boxes_to_patch_mask(torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]]), 4).sum(1).tolist() == [1, 1]


def test_things_are_nouns_of_the_texts(processor: Processor, clips: Corpus) -> None:
    named = {region.name for row in clips.rows("train") for region in clips.value(int(row), "regions")}
    assert set(processor.entities) <= named, "no verb, and no word of the motions"
    assert len(processor.entities) > len(named) / 2
    assert alpro.frequent_things(clips, 3) == processor.entities[:3]


def test_texts_that_name_nothing_are_refused(clips: Corpus) -> None:
    silent = clips.table.set_column(1, "captions", pa.array([[{"text": "и так далее", "language": "ru"}]] * 112))
    with pytest.raises(UserError, match="--no-use-pem"):
        fit_processor(TINY, dataclasses.replace(clips, table=silent))


# Losses


def test_a_prompter_that_is_unsure_teaches_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    taught = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.1, 0.1, 0.1, 0.7]])
    logs = logits.log_softmax(1)
    by_hand = -((taught * logs).sum(1)[[0, 2]]).mean()
    assert torch.allclose(alpro.pem_loss(logits, taught, 0.3), by_hand)
    nothing = alpro.pem_loss(logits, taught, 0.9)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.count_nonzero(logits.grad) == 0
    surest_is_not_the_first = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    assert alpro.pem_loss(logits[:1], surest_is_not_the_first, 0.2).item() > 0, "of entity 0, too"


def test_each_stage_has_its_losses(processor: Processor, clips: Corpus) -> None:
    model, batch = method(processor), batch_of(processor, clips)
    examples = [processor.load_example(clips, row) for row in range(8)]
    assert set(model.losses(batch)) == {"itc", "itm", "mlm", "pem"}
    first = TINY.paired_batch(examples, processor, ExampleRNG.of(0, 0, 8))
    assert set(model.prompter_losses(first)) == {"prompter"}
    last = TINY.finetuning_batch(examples, processor, ExampleRNG.of(0, 0, 8))
    assert set(model.finetuning_losses(last)) == {"itc", "itm", "vqa"}
    plain = method(processor, use_itc=False, use_pem=False)
    assert set(plain.losses(batch)) == {"itm", "mlm"}
    assert [stage.name for stage in TINY.stages()] == ["prompter", "pre-training", "fine-tuning"]
    ladder = active_stages(dataclasses.replace(TINY, use_pem=False))
    assert [stage.fraction for stage in ladder] == pytest.approx([0.75, 0.25]), (
        "what the prompter would take is trained on"
    )


def test_the_prompter_is_frozen_and_out_of_the_optimizer(processor: Processor, clips: Corpus) -> None:
    model, batch = method(processor).train(), batch_of(processor, clips)
    sum(model.losses(batch).values()).backward()
    assert all(parameter.grad is None for parameter in model.prompter.parameters())
    assert not model.prompter.training
    others = [name for name, p in model.named_parameters() if not name.startswith("prompter") and p.grad is None]
    assert [name for name in others if not name.startswith("answer_head")] == []
    trained = TINY.stages()[1].trainable
    from fnmatch import fnmatchcase

    names = [name for name, _ in model.named_parameters()]
    kept = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in trained)]
    assert kept == [name for name in names if name.startswith("prompter.")]


def test_names_are_made_of_the_trained_words_and_are_probabilities(processor: Processor, clips: Corpus) -> None:
    model, batch = method(processor), batch_of(processor, clips)
    prompter = model.prompter
    with torch.no_grad():
        for parameter in prompter.text_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    taught = prompter.entity_probabilities(batch["video"])
    assert torch.allclose(taught.sum(1), torch.ones(8), atol=1e-5)
    prompts = processor.text([prompt.format(processor.entities[1]) for prompt in alpro.PROMPTS[0]])
    assert torch.allclose(prompter.bank[0, 1], prompter.embed({"text": prompts})["text"].mean(0), atol=1e-5)
    stills = prompter.entity_probabilities(batch["video"][:, :1])
    wanted = (prompter.logit_scale() * prompter.encode_video(batch["video"][:, :1])[1] @ prompter.bank[1].T).softmax(1)
    assert torch.allclose(stills, wanted, atol=1e-6), "clips of one frame are asked about as images"
    again = method(processor)
    again.load_state_dict(model.state_dict())
    assert bool(again.prompter.made), "a run that goes on keeps them"


def test_the_crop_keeps_its_place_and_the_average_is_over_its_patches(processor: Processor, clips: Corpus) -> None:
    """What is outside the box has no influence on the teacher, and the student's tokens are those inside it."""
    model, batch = method(processor), batch_of(processor, clips)
    inside = boxes_to_patch_mask(batch["box"], 4)
    cropped = model._cropped(batch["video"], inside)
    kept = inside.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None, None].expand_as(cropped)
    assert torch.equal(cropped[kept], batch["video"][kept])
    assert torch.count_nonzero(cropped[~kept]) == 0
    seen: list[torch.Tensor] = []
    model.entity_head.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model.losses(batch)
    words, _ = model.encode_text(batch["text"])
    patches, _ = model.encode_video(batch["video"])
    _, fused = model.fuse(words, batch["text"].mask, patches)
    by_hand = torch.stack([own[where].mean(0) for own, where in zip(fused, inside, strict=True)])
    assert torch.allclose(seen[0], by_hand, atol=1e-5)


def test_the_paired_losses_by_hand(processor: Processor, clips: Corpus, monkeypatch) -> None:
    """Two pairs: each one's only negative is the other."""
    model, batch = method(processor), batch_of(processor, clips, count=2)
    losses, _, _ = model._paired_losses(batch, use_itc=True)
    logits = model.itm_logits({"video": batch["video"], "text": batch["text"]})
    right, wrong = logits.diagonal(), torch.stack([logits[0, 1], logits[1, 0]])
    # A text and a video that are not its own, for each of the two: every wrong pair comes twice.
    each = torch.cat([torch.nn.functional.softplus(-right), torch.nn.functional.softplus(wrong).repeat(2)])
    assert float(losses["itm"]) == pytest.approx(float(each.mean()), abs=1e-5)
    vectors = model.embed(batch)
    similarity = model.logit_scale() * vectors["video"] @ vectors["text"].T
    truth = torch.arange(2)
    cross = torch.nn.functional.cross_entropy
    both = (cross(similarity, truth) + cross(similarity.T, truth)) / 2
    assert float(losses["itc"]) == pytest.approx(float(both), abs=1e-5)


def test_padding_of_texts_changes_nothing(processor: Processor, clips: Corpus) -> None:
    model, batch = method(processor), batch_of(processor, clips)
    text = batch["text"]
    longer = Tokens(torch.nn.functional.pad(text.ids, (0, 5), value=7), text.lengths)
    plain, padded = (model.itm_logits({"video": batch["video"], "text": one}) for one in (text, longer))
    assert torch.allclose(plain, padded, atol=1e-5)
    asked = [model.answer_logits({"video": batch["video"], "question": one}) for one in (text, longer)]
    assert torch.allclose(*asked, atol=1e-5)


def test_hidden_words_are_not_seen(processor: Processor, clips: Corpus) -> None:
    """The words' loss with other words at the hidden places differs by what is wanted only."""
    model, batch = method(processor), batch_of(processor, clips)
    assert bool(batch["masked_tokens"].any())
    assert not bool((batch["masked_tokens"] & ~batch["text"].content_mask).any()), "marks and padding stay"
    given: list[torch.Tensor] = []
    model.mlm_head.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    others = Tokens(batch["text"].ids.masked_fill(batch["masked_tokens"], 300), batch["text"].lengths)
    model.losses(batch)
    model.losses(batch | {"text": others})
    assert torch.allclose(given[0], given[1], atol=1e-5)


# A trained run


def test_it_learns_on_clips_and_is_read_again(run: Run, clips: Corpus) -> None:
    def mean(stage: str, name: str, part: slice) -> float:
        entries = [entry["losses"][name] for entry in run.history if name in entry.get("losses", {})]
        assert entries, stage
        return float(np.mean(entries[part]))

    for name in ("prompter", "mlm", "vqa"):
        assert mean("first", name, slice(-1, None)) < mean("last", name, slice(0, 1))
    again = load_run(run.directory)
    batch = batch_of(again.processor, clips)
    assert torch.equal(again.model.itm_logits(batch), run.model.eval().itm_logits(batch))
    assert isinstance(run.model, CanScorePairs)
    assert isinstance(run.model, CanClassifyAnswers)
    assert isinstance(run.model, CanClassifyRegions)
    assert bool(run.model.prompter.made)


def test_everything_is_asked_of_it(run: Run, clips: Corpus) -> None:
    names = {score.name for score in evaluate(run, clips)}
    wanted = ("text_to_video/R@1", "matching/text_to_video/R@1", "matching/video_to_text/MRR", "vqa/accuracy")
    wanted += ("vqa/object/accuracy", "vqa/video_gain", "regions/top-1", "regions/abstention_rate")
    assert {f"test/{name}" for name in wanted} <= names
    assert any("validation/text_to_video/R@1" in entry.get("validation", {}) for entry in run.history)


def test_scores_of_a_method_that_knows_are_perfect(processor: Processor, clips: Corpus) -> None:
    """Pairs and boxes that are told rightly, by a stand-in that looks at the texts and boxes themselves."""
    names, reader = list(processor.entities), Reader(clips, processor)
    _, examples = reader.read_split("test")
    texts = [example["text"][0].text for example in examples]

    class Knowing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.any = torch.nn.Parameter(torch.zeros(1))
            self.blocks = 0

        def itm_logits(self, batch: dict) -> torch.Tensor:
            start, self.blocks = self.blocks, self.blocks + len(batch["video"])
            own = texts[start : start + len(batch["video"])]
            return torch.tensor([[float(text == mine) for text in texts] for mine in own])

        def classify_regions(self, batch: dict) -> torch.Tensor:
            rows = []
            for box in batch["box"].tolist():
                (name,) = {
                    region.name
                    for example in examples
                    for region in example["regions"]
                    if np.allclose([edge / 96 for edge in region.box], box, atol=1e-6)
                }
                rows.append([float(name == entity) for entity in names])
            return torch.tensor(rows)

    scores = matching_scores(Knowing(), processor, reader, "test", "video")
    assert all(score.value == 1 for score in scores)
    found = {score.name: score for score in region_scores(Knowing(), processor, reader, "test", "video")}
    assert found["test/regions/top-1"].value == 1
    assert found["test/regions/top1_confident"].value == 1
    assert found["test/regions/abstention_rate"].value == 0
    assert found["test/regions/top-1"].chance == pytest.approx(1 / len(names))


def test_boxes_follow_the_square_that_is_cut_out() -> None:
    assert in_square((50, 0, 100, 100), 100, 200) == pytest.approx((0.0, 0.0, 0.5, 1.0))
    assert in_square((60, 10, 160, 60), 100, 200) == pytest.approx((0.1, 0.1, 1.0, 0.6))
    assert in_square((0, 0, 50, 100), 100, 200) is None


def test_stills_train_it_too(scenes: Corpus) -> None:
    some = scenes.with_splits({name: rows[:48] for name, rows in scenes.splits.items() if name != "test_twitter"})
    run = train(TINY, some, Budget(steps=12), runtime=QUIET)
    names = {score.name for score in evaluate(run, some)}
    assert {"test/text_to_image/R@1", "test/matching/text_to_image/R@1", "test/vqa/accuracy"} <= names
    assert run.embed(image=[some.value(0, "image")])["image"].shape == (1, 32)


def test_own_clips_are_read_by_their_paths(tmp_path: Path, clips: Corpus) -> None:
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for row in range(24):
            (tmp_path / f"{row}.mp4").write_bytes(clips.raw(row, "video"))
            caption = clips.value(row, "captions")[0].text
            file.write(json.dumps({"clip": f"{row}.mp4", "said": caption}) + "\n")
    corpus = from_path(tmp_path / "pairs.jsonl")
    assert isinstance(corpus.columns["clip"], Video)
    small = dataclasses.replace(TINY, batch_size=4, use_pem=False)
    run = train(small, corpus, Budget(steps=4), runtime=QUIET)
    assert run.embed(video=[tmp_path / "3.mp4"])["video"].shape == (1, 32)
    with pytest.raises((UnreadableExample, UserError), match="cannot be"):
        run.embed(video=[tmp_path / "none.mp4"])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="are the same"):
        alpro.Recipe(video=VideoEncoderConfig(width=32))
    with pytest.raises(UserError, match="leave less than nothing for 'pre-training'"):
        active_stages(alpro.Recipe(prompter_fraction=0.6, finetune_fraction=0.5))


def test_the_paper_preset_has_the_papers_size(processor: Processor) -> None:
    preset = alpro.Recipe.paper()
    with torch.device("meta"):
        model = alpro.ALPRO(preset, 30_522, [], 1500)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert 225e6 < counted < 240e6, "TimeSformer-B (121 million) and BERT-base (110 million)"


def test_answers_that_are_not_known_teach_nothing(processor: Processor, clips: Corpus) -> None:
    model = method(processor)
    examples = [processor.load_example(clips, row) for row in range(4)]
    batch = TINY.finetuning_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    assert float(model.finetuning_losses(batch | {"answer": torch.full((4,), UNKNOWN_ANSWER)})["vqa"].detach()) == 0
    assert processor(answer=["no such answer", processor.answers[0]])["answer"].tolist() == [UNKNOWN_ANSWER, 0]


def test_the_corpus_is_listed() -> None:
    assert "alpro" in pm.recipes.entries()
