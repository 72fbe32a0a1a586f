"""Clips and images with texts: frames, entities, and what matching and boxes score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from polymodal.corpora import Corpus, from_path
from polymodal.corpora.clips import MOTIONS, Actor, film
from polymodal.corpora.scenes import sprites_of
from polymodal.data.columns.video import VideoColumn
from polymodal.data.entities import frequent_nouns
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.evaluation.tasks.image_text_matching import matching_scores
from polymodal.evaluation.tasks.region_classification import first_frame, in_square, region_scores
from polymodal.modalities import Video
from polymodal.recipes.video import alpro
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget
from some_clips import some_clips

QUIET = RuntimeConfig(logger="none")
TINY = dataclasses.replace(alpro.Recipe.tiny(), use_pem=True)


@pytest.fixture(scope="module")
def clips() -> Corpus:
    return some_clips()


@pytest.fixture(scope="module")
def processor(clips: Corpus) -> Processor:
    return fit_processor(TINY, clips)


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


def test_things_are_nouns_of_the_texts(processor: Processor, clips: Corpus) -> None:
    named = {region.name for row in clips.rows("train") for region in clips.value(int(row), "regions")}
    assert set(processor.entities) <= named, "no verb, and no word of the motions"
    assert len(processor.entities) > len(named) / 2
    assert frequent_nouns(clips, 3) == processor.entities[:3]


def test_texts_that_name_nothing_are_refused(clips: Corpus) -> None:
    silent = clips.table.set_column(1, "captions", pa.array([[{"text": "и так далее", "language": "ru"}]] * 112))
    with pytest.raises(UserError, match="--no-use-pem"):
        fit_processor(TINY, dataclasses.replace(clips, table=silent))


def test_an_object_is_in_its_box_in_the_frames_that_are_asked_about() -> None:
    """Boxes are of the first frame; later, an object that moves is elsewhere."""
    sprite = sprites_of("google")[0]
    for motion in MOTIONS:
        rng = np.random.default_rng(0)
        frames, ((left, top, right, bottom),) = film([Actor("a", sprite.name, sprite.image, None)], [motion], rng)
        column = VideoColumn(3, 96)
        inside = []
        for clip in (frames, first_frame(frames)):
            pixels = column.pixels([clip[[2, 8, 13]]])[0]
            object_pixels = (pixels - pixels[:, :, :1, :1]).abs().sum(1) > 0.2
            inside.append(float(object_pixels[:, top:bottom, left:right].sum() / object_pixels.sum()))
        assert inside[1] > 0.97, motion
        assert inside[0] < 0.6 or motion in ("stays", "goes away"), "the box alone does not hold it"


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
            self.pseudo_label_threshold = 0.2

        def itm_logits(self, batch: dict) -> torch.Tensor:
            start, self.blocks = self.blocks, self.blocks + len(batch["video"])
            own = texts[start : start + len(batch["video"])]
            return torch.tensor([[float(text == mine) for text in texts] for mine in own])

        def classify_regions(self, batch: dict) -> torch.Tensor:
            assert torch.equal(batch["video"], batch["video"][:, :1].expand_as(batch["video"])), "the first frame"
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


def test_confidence_is_the_methods_own(processor: Processor, clips: Corpus) -> None:
    class Unsure(torch.nn.Module):
        def __init__(self, threshold: float) -> None:
            super().__init__()
            self.any, self.pseudo_label_threshold = torch.nn.Parameter(torch.zeros(1)), threshold

        def classify_regions(self, batch: dict) -> torch.Tensor:
            return torch.full((len(batch["box"]), len(processor.entities)), 1 / len(processor.entities))

    for threshold, expected in ((0.01, 0.0), (0.5, 1.0)):
        arguments: Any = (Unsure(threshold), processor, Reader(clips, processor), "test", "video")
        scores = {score.name: score.value for score in region_scores(*arguments)}
        assert scores["test/regions/abstention_rate"] == expected


def test_boxes_follow_the_square_that_is_cut_out() -> None:
    assert in_square((50, 0, 100, 100), 100, 200) == pytest.approx((0.0, 0.0, 0.5, 1.0))
    assert in_square((60, 10, 160, 60), 100, 200) == pytest.approx((0.1, 0.1, 1.0, 0.6))
    assert in_square((0, 0, 50, 100), 100, 200) is None


def test_stills_train_it_too(scenes: Corpus) -> None:
    some = scenes.with_splits({name: rows[:48] for name, rows in scenes.splits.items() if name != "test_twitter"})
    run = train(TINY, some, Budget(steps=6), runtime=QUIET)
    names = {score.name for score in evaluate(run, some)}
    assert {"test/text_to_image/R@1", "test/matching/text_to_image/R@1", "test/vqa/accuracy"} <= names
    assert run.embed(image=[some.value(0, "image")])["image"].shape == (1, 16)


def test_own_clips_are_read_by_their_paths(tmp_path: Path, clips: Corpus) -> None:
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for row in range(24):
            (tmp_path / f"{row}.mp4").write_bytes(clips.raw(row, "video"))
            caption = clips.value(row, "captions")[0].text
            file.write(json.dumps({"clip": f"{row}.mp4", "said": caption}) + "\n")
    corpus = from_path(tmp_path / "pairs.jsonl")
    assert isinstance(corpus.columns["clip"], Video)
    run = train(alpro.Recipe.tiny(), corpus, Budget(steps=4), runtime=QUIET)
    assert run.embed(video=[tmp_path / "3.mp4"])["video"].shape == (1, 16)
    with pytest.raises((UnreadableExample, UserError), match="cannot be"):
        run.embed(video=[tmp_path / "none.mp4"])


def test_prompts_are_in_words_of_the_captions(processor: Processor, clips: Corpus) -> None:
    captions = [caption.text for row in clips.rows("train") for caption in clips.value(int(row), "captions")]
    known = set(processor.text(captions).ids.flatten().tolist())
    ids = torch.cat([prompts.ids.flatten() for kind in TINY.build(processor).prompter.prompts for prompts in kind])
    assert float(torch.isin(ids, torch.tensor(sorted(known))).float().mean()) > 0.9
    assert len(set(alpro.Recipe.paper().video_prompts)) == len(set(alpro.Recipe.paper().image_prompts)) == 12
