"""Views of 3-D models, what is seen in them, and the captions that models generate for them."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from polymodal.cli import main
from polymodal.corpora import Corpus
from polymodal.corpora._prepared import Preparation
from polymodal.corpora.furniture_views import describe_view, named_colors, outline, view_rows
from polymodal.corpora.saved import open_saved, save_corpus
from polymodal.curation.captions import CaptionCounts, CaptionOptions, captioned, write_captions
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.errors import UserError
from polymodal.modalities import Category, Image, Images, Points, Text
from polymodal.modalities.view_caption import ViewCaptions
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.language_models import mono_internvl
from polymodal.training import Run, train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
MODELS = 40
TOWER = ImageEncoderConfig(image_size=32, width=32, depth=1)
SPEAKER = mono_internvl.Recipe(
    language_model=LanguageModelConfig(
        vocab_size=320, context_length=64, width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=64
    ),
    tile_size=32,
    patch_size=8,
    patch_embed_dim=16,
    batch_size=16,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    freeze_llm=False,
    visual_experts=False,
    stage_fractions=(0.0, 0.0, 0.0, 0.0, 1.0),
)


@pytest.fixture(scope="module")
def furniture(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The first of the real models: preparing all of them takes minutes."""
    module = importlib.import_module("polymodal.corpora.furniture")
    rows = list(itertools.islice(module._rows(Preparation("furniture", Progress(disable=True))), MODELS))
    for number, row in enumerate(rows):
        row["split"] = ("test", "validation", "train", "train", "train")[number % 5]
    categories = tuple(sorted({row["category"] for row in rows}))
    columns = {
        "points": Points(),
        "icon": Image(),
        "views": Images(),
        "captions": Text({"en": 19.0}),
        "category": Category(categories),
    }
    kept = [{name: row[name] for name in ("key", "split", *columns)} for row in rows]
    folder = tmp_path_factory.mktemp("furniture") / "models"
    corpus = save_corpus(folder, module.about, columns, kept, label="category")
    return dataclasses.replace(corpus, prompts={name: (name.lower(),) for name in categories})


@pytest.fixture(scope="module")
def views(furniture: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    columns = {"image": Image(), "captions": Text({"en": 19.0}), "category": furniture.columns["category"]}
    folder = tmp_path_factory.mktemp("furniture") / "views"
    return save_corpus(folder, furniture.about, columns, view_rows(furniture), label="category")


# What is seen


def test_what_is_seen_of_a_view_is_said() -> None:
    image = np.full((40, 40, 3), 255, np.uint8)
    image[18:22, 4:36] = (20, 30, 200)
    image[18:22, 4:14] = (200, 20, 20)
    assert describe_view(image, "Toy Train", "Kitchen") == "wide blue and red toy train, kitchen"
    assert describe_view(image.swapaxes(0, 1), "Pole", "Exterior") == "tall blue and red pole, exterior"
    assert describe_view(np.full_like(image, 255), "Ghost", "Office") == "ghost, office"
    square = np.zeros((9, 9), bool)
    square[2:6, 3:7] = True
    assert outline(square) == ""


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("black", (20, 20, 20)),
        ("white", (250, 250, 245)),
        ("grey", (128, 128, 130)),
        ("red", (220, 20, 30)),
        ("orange", (250, 140, 20)),
        ("brown", (120, 70, 30)),
        ("yellow", (240, 220, 40)),
        ("green", (30, 160, 60)),
        ("blue", (30, 60, 200)),
        ("purple", (130, 40, 190)),
        ("pink", (250, 90, 180)),
    ],
)
def test_colors_have_their_names(name: str, rgb: tuple[int, int, int]) -> None:
    assert named_colors(np.array([rgb] * 4, np.uint8)) == [name]


def test_views_keep_the_split_of_their_model(furniture: Corpus, views: Corpus) -> None:
    assert len(views) == 12 * MODELS
    for split, rows in views.splits.items():
        owners = {views.key(row).rpartition("/")[0] for row in rows}
        assert owners == {furniture.key(row) for row in furniture.rows(split)}
    texts = [caption.text for caption in views.value(0, "captions") if caption.language == "en"]
    assert len(texts) == 3
    assert texts[2].endswith(f"{texts[0].lower()}, {texts[1]}")


# Captions


@pytest.fixture(scope="module")
def speaker(views: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(SPEAKER, views, Budget(steps=60), out=tmp_path_factory.mktemp("ulip") / "speaker", runtime=QUIET)


@pytest.fixture(scope="module")
def ranker(views: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = clip.Recipe(image=TOWER, embed_dim=32, batch_size=16)
    return train(recipe, views, Budget(steps=30), out=tmp_path_factory.mktemp("ulip") / "ranker", runtime=QUIET)


def test_the_captions_that_fit_best_are_kept(speaker: Run, ranker: Run, furniture: Corpus) -> None:
    rows, counts = furniture.rows("train")[:3], CaptionCounts()
    options = CaptionOptions(num_return_sequences=6, top_k=2, num_views=2)
    every = dataclasses.replace(options, top_k=6)
    best, whole = (list(captioned(speaker, furniture, rows, one, ranker, counts)) for one in (options, every))
    assert [row for row, _ in best] == rows.tolist()
    assert counts.images == 12
    for (row, kept), (_, drawn) in zip(best, whole, strict=True):
        images = furniture.value(row, "views")
        for view in (0, 6):
            own = [caption for caption in drawn if caption.view == view]
            vectors = ranker.embed(image=[images[view]], text=[caption.text for caption in own])
            cosines = vectors["text"] @ vectors["image"][0]
            assert [caption.fit for caption in own] == pytest.approx(cosines.tolist(), abs=1e-5)
            assert [c for c in kept if c.view == view] == sorted(own, key=lambda c: -c.fit)[:2]


def test_without_a_ranker_the_commonest_caption_is_the_best(speaker: Run, furniture: Corpus) -> None:
    options = CaptionOptions(num_return_sequences=8, top_k=8, num_views=1)
    ((row, captions),) = captioned(speaker, furniture, furniture.rows("train")[:1], options)
    assert sum(caption.fit for caption in captions) == pytest.approx(1)
    assert [c.fit for c in captions] == sorted((c.fit for c in captions), reverse=True)
    assert list(captioned(speaker, furniture, furniture.rows("train")[:1], options)) == [(row, captions)]


def test_describing_goes_on_where_it_was_stopped(speaker: Run, furniture: Corpus, tmp_path: Path) -> None:
    rows, options, file = (
        furniture.rows("train")[:9],
        CaptionOptions(num_return_sequences=2, num_views=1),
        tmp_path / "unfinished.jsonl",
    )
    whole, again = CaptionCounts(), CaptionCounts()
    every = list(captioned(speaker, furniture, rows, options, counts=whole))
    stopped = captioned(speaker, furniture, rows, options, unfinished=file)
    assert [next(stopped) for _ in range(3)] == every[:3]
    stopped.close()
    assert len(file.read_text().splitlines()) == 2, "what was asked, and a chunk of eight"
    found = list(captioned(speaker, furniture, rows, options, counts=again, unfinished=file))
    assert (found, again) == (every, whole)
    write_captions(furniture, tmp_path / "out", found, unfinished=file)
    assert not file.exists()


def test_one_image_an_example_is_described_too(speaker: Run, views: Corpus) -> None:
    ((_, captions),) = captioned(speaker, views, views.rows("train")[:1], CaptionOptions(num_return_sequences=2))
    assert [caption.view for caption in captions] == [0]


def test_what_cannot_caption_or_rank_is_named(speaker: Run, ranker: Run, furniture: Corpus, tmp_path: Path) -> None:
    rows = furniture.rows("train")[:1]
    with pytest.raises(UserError, match="does not generate text; a method that does is mono_internvl"):
        list(captioned(ranker, furniture, rows, CaptionOptions()))
    with pytest.raises(UserError, match="does not embed images and texts"):
        list(captioned(speaker, furniture, rows, CaptionOptions(), speaker))
    with pytest.raises(UserError, match="at least 1"):
        CaptionOptions(num_return_sequences=0)
    with pytest.raises(UserError, match="No caption came out"):
        write_captions(furniture, tmp_path / "none", [])
    assert not (tmp_path / "none").exists()


def test_captions_and_training_on_the_command_line(
    speaker: Run, ranker: Run, furniture: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "captions", furniture.choices["data"]
    arguments = [str(speaker.directory), "--data", data, "--score-with", str(ranker.directory), "--out", str(out)]
    run_command("caption", *arguments, "--num-return-sequences", "2", "--num-views", "3")
    assert "24 training examples with captions" in capsys.readouterr().out
    corpus = open_saved(out)
    assert isinstance(corpus.columns["view_captions"], ViewCaptions)
    assert len(corpus.rows("train")) == 24
    assert len(corpus.rows("test")) == 8
    captions = corpus.value(int(corpus.rows("train")[0]), "view_captions")
    assert [caption.view for caption in captions] == [0, 4, 8]
    made = json.loads((out / "corpus.json").read_text())["made"]
    assert made["counts"]["images"] == 72
    assert made["options"]["num_views"] == 3
    with pytest.raises(SystemExit) as stopped:
        run_command("caption", *arguments)
    assert stopped.value.code == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command("caption", *arguments[:-1], str(tmp_path / "formats"), "--formats", "ssc")
    assert "--score-with ranks several captions" in capsys.readouterr().err
    small = ["--image.image-size", "32", "--batch-size", "8", "--num-points", "64", "--points.num-groups", "8"]
    common = ["--data", str(out), "--budget", "4steps", "--out", str(tmp_path / "run"), *small]
    run_command("train", "ulip_2", *common)
    run_command("evaluate", str(tmp_path / "run"))
    assert "text_to_points" in capsys.readouterr().out
    run_command("embed", str(tmp_path / "run"), "--out", str(tmp_path / "vectors.parquet"))
    run_command("search", str(tmp_path / "run"), "chair", "--top", "3", "--out", str(tmp_path / "sheet.png"))
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def run_command(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polymodal", *arguments])
        main()
