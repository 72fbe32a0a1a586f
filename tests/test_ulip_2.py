"""ULIP-2: points beside frozen towers, views with their own captions, and how such captions are made."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torch.nn import functional as F

import polymodal as pm
from polymodal.claims import ulip_2 as claims
from polymodal.cli import main
from polymodal.corpora import Corpus
from polymodal.corpora._prepared import Preparation
from polymodal.corpora.furniture_views import describe_view, named_colors, outline, view_rows
from polymodal.corpora.saved import open_saved, save_corpus
from polymodal.curation.captions import CaptionCounts, CaptionOptions, captioned, some_views, write_captions
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.points import PointEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation import evaluate
from polymodal.modalities import Category, Image, Images, Points, Text
from polymodal.modalities.points import GRAY
from polymodal.modalities.view_caption import ViewCaption, ViewCaptions
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.three_d import ulip_2
from polymodal.rng import ExampleRNG
from polymodal.training import Run, train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
MODELS = 40
TOWER = ImageEncoderConfig(image_size=32, width=32, depth=1)
TINY = ulip_2.Recipe(
    image=TOWER,
    points=PointEncoderConfig(num_groups=12, group_size=8, width=32, depth=1),
    num_points=128,
    batch_size=16,
    embed_dim=32,
    clip_fraction=0.0,
    optimizer=OptimizerConfig(learning_rate=3e-3),
)
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


@pytest.fixture(scope="module")
def numbered(furniture: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Every view but the last says its own number, best first."""

    def captions(row: int) -> list[ViewCaption]:
        return [ViewCaption(view, f"view {view} {kind} of {row}", fit) for view in range(11) for kind, fit in KINDS]

    training = [(row, captions(row)) for row in furniture.rows("train").tolist()]
    return write_captions(furniture, tmp_path_factory.mktemp("furniture") / "numbered", training)


KINDS = (("worse", 0.1), ("best", 0.9))


@pytest.fixture(scope="module")
def towers(furniture: Corpus) -> Run:
    return train(dataclasses.replace(TINY, clip_fraction=1.0), furniture, Budget(steps=60), runtime=QUIET)


@pytest.fixture(scope="module")
def learned(towers: Run, numbered: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(
        TINY,
        numbered,
        Budget(steps=60),
        out=tmp_path_factory.mktemp("ulip") / "run",
        weights_like=towers.model,
        tokenizer=towers.processor.tokenizer,
        runtime=QUIET,
    )


def examples_of(corpus: Corpus, processor: Processor, split: str = "train") -> list:
    return Reader(corpus, processor).read_split(split)[1]


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


# Triplets


def test_a_image_and_its_captions_are_of_the_same_view(furniture: Corpus, numbered: Corpus) -> None:
    recipe = dataclasses.replace(TINY, num_captions=2)
    processor = fit_processor(recipe, numbered)
    examples = examples_of(numbered, processor)[:8]
    for seed in range(6):
        batch = recipe.training_batch(examples, processor, ExampleRNG.of(seed, 0, len(examples)))
        texts = [text.split() for text in processor.tokenizer.decode(batch["text"])]
        assert len(texts) == 16
        for number, example in enumerate(examples):
            first, second = texts[2 * number], texts[2 * number + 1]
            assert (first[2], second[2]) == ("best", "worse")
            assert first[1] == second[1]
            shown = processor(image=[example["views"][int(first[1])]])["image"][0]
            assert torch.equal(batch["image"][number], shown)
    seen = {int(text[1]) for text in texts}
    assert 11 not in seen  # it has no caption


def test_of_one_view_only_that_is_shown(numbered: Corpus) -> None:
    recipe = dataclasses.replace(TINY, num_views=1)
    processor = fit_processor(recipe, numbered)
    batch = recipe.training_batch(examples_of(numbered, processor), processor, ExampleRNG.of(0, 0, 24))
    assert {text.split()[1] for text in processor.tokenizer.decode(batch["text"])} == {"0"}
    assert some_views(12, 4) == [0, 3, 6, 9]
    assert some_views(2, 4) == [0, 1]
    assert some_views(3, 0) == [0, 1, 2]


@pytest.mark.parametrize("descriptions", ["names", "category"])
def test_names_and_categories_stand_for_captions(furniture: Corpus, descriptions: ulip_2.TextSource) -> None:
    recipe = dataclasses.replace(TINY, text_source=descriptions)
    processor = fit_processor(recipe, furniture)
    examples = examples_of(furniture, processor)
    batch = recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, len(examples)))
    names = [next(c.text for c in example["text"] if c.language == "en").lower() for example in examples]
    assert processor.label is not None
    categories = [processor.label.names[example["label"]].lower() for example in examples]
    wanted = names if descriptions == "names" else categories
    assert processor.tokenizer.decode(batch["text"]) == wanted
    same = batch["group"][:, None] == batch["group"]
    assert same.tolist() == [[one == other for other in wanted] for one in wanted]


def test_several_texts_are_normalized_before_and_after_their_mean(learned: Run, numbered: Corpus) -> None:
    recipe = dataclasses.replace(TINY, num_captions=2)
    examples = examples_of(numbered, learned.processor)[:4]
    batch = recipe.training_batch(examples, learned.processor, ExampleRNG.of(0, 0, 4))
    found = learned.model.encode(batch)["text"]
    each = learned.model.encode_text(batch["text"])
    assert torch.allclose(each.norm(dim=1), torch.ones(8), atol=1e-5)
    assert torch.allclose(found, F.normalize(each[::2] + each[1::2], dim=1), atol=1e-5)


# Losses and what learns


def test_the_loss_is_two_logarithms_at_first_and_nothing_when_aligned(furniture: Corpus) -> None:
    torch.manual_seed(0)
    processor = fit_processor(dataclasses.replace(TINY, text_source="names"), furniture)
    model = dataclasses.replace(TINY, embed_dim=512).build(processor)
    group = torch.arange(64, dtype=torch.float64)
    apart = {name: F.normalize(torch.randn(64, 512), dim=1) for name in ("points", "image", "text")}
    model.point_logit_scale.logit_scale.data.fill_(0.0)
    total = sum(model.contrastive_losses(apart | {"group": group}).values())
    assert float(total) == pytest.approx(2 * np.log(64), rel=0.02)
    together = dict.fromkeys(("points", "image", "text"), torch.eye(64))
    model.point_logit_scale.logit_scale.data.fill_(np.log(100))
    assert float(sum(model.contrastive_losses(together | {"group": group}).values())) == pytest.approx(0, abs=1e-4)


def test_only_points_and_their_temperature_learn(towers: Run, learned: Run) -> None:
    before = dict(towers.model.named_parameters())
    for name, after in learned.model.named_parameters():
        assert torch.equal(before[name], after) == (not name.startswith("point_")), name


def test_the_loss_falls_and_clouds_are_told_apart(learned: Run, furniture: Corpus) -> None:
    first, last = learned.history[0]["losses"], learned.history[-1]["losses"]
    assert set(last) == {"points_text", "points_image"}
    assert last["points_image"] < first["points_image"] - 0.2
    assert last["points_text"] < first["points_text"]
    scores = {score.name: score for score in evaluate(learned, furniture)}
    for name in ("text_to_points/R@5", "points_to_text/R@5", "image_to_points/R@1", "zero_shot_category/accuracy"):
        assert 0 <= scores[f"test/{name}"].value <= 1
    assert len(scores["test/image_to_points/R@1"].clusters) == len(furniture.rows("test"))
    rows = furniture.rows("train")
    known = furniture.with_splits({"test": rows})
    train_scores = {score.name: score for score in evaluate(learned, known)}
    found = train_scores["test/image_to_points/R@1"]
    assert found.value > 2 * found.chance


def test_order_place_and_size_of_a_cloud_do_not_matter(learned: Run) -> None:
    rng = np.random.default_rng(0)
    cloud = np.concatenate([rng.normal(size=(128, 3)), rng.random((128, 3))], axis=1).astype(np.float32)
    moved = cloud.copy()
    moved[:, :3] = 3 * moved[:, :3] + 5
    one, shuffled, other = learned.embed(points=[cloud, rng.permutation(cloud), moved])["points"]
    assert torch.allclose(one, shuffled, atol=1e-4)
    assert torch.allclose(one, other, atol=1e-4)


def test_a_cloud_without_colors_is_gray(learned: Run) -> None:
    places = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    points = learned.processor(points=[places])["points"]
    assert points.shape == (1, 128, 6)
    assert bool((points[..., 3:] == np.float32(GRAY)).all())
    assert points[..., :3].norm(dim=-1).max() == pytest.approx(1, abs=1e-5)


def test_views_together_are_the_mean_of_each(learned: Run, furniture: Corpus) -> None:
    examples = examples_of(furniture, learned.processor, "test")[:2]
    three, twelve = examples[0]["views"][:3], examples[1]["views"]
    together = learned.embed(views=[three, twelve])["views"]
    for vector, views in zip(together, (three, twelve), strict=True):
        each = learned.embed(image=list(views))["image"]
        assert torch.allclose(vector, F.normalize(each.sum(0), dim=0), atol=1e-5)


def test_the_towers_of_a_clip_run_are_taken(furniture: Corpus, views: Corpus, numbered: Corpus, tmp_path: Path) -> None:
    recipe = clip.Recipe(image=TOWER, embed_dim=32, batch_size=16)
    first = train(recipe, views, Budget(steps=3), out=tmp_path / "clip", runtime=QUIET)
    run = train(TINY, numbered, Budget(steps=2), init=tmp_path / "clip", runtime=QUIET)
    assert torch.equal(run.embed(text=["a chair"])["text"], first.embed(text=["a chair"])["text"])


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


# Use


def test_a_corpus_without_captions_says_what_to_do(furniture: Corpus, emoji: Corpus) -> None:
    with pytest.raises(UserError, match="no captions of views; write some with polymodal caption"):
        fit_processor(TINY, furniture)
    with pytest.raises(UserError, match="no points column"):
        fit_processor(TINY, emoji)
    with pytest.raises(UserError, match="--clip-fraction is from 0 to 1"):
        train(dataclasses.replace(TINY, clip_fraction=1.5), furniture, Budget(steps=1))


def test_the_paper_preset_is_as_large_as_it_says(furniture: Corpus) -> None:
    processor = fit_processor(dataclasses.replace(TINY, text_source="names"), furniture)
    with torch.device("meta"):
        model = ulip_2.Recipe.paper().build(processor)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert 32e6 < sizes["point_encoder"] < 34e6
    assert sizes["image_encoder"] > 1.5e9
    assert model.point_projection.weight.shape == (1280, 768)


def test_the_claim_differs_only_in_what_is_said() -> None:
    claim = claims.claim
    changed = {
        field.name
        for arm in (claim.baseline, *claim.further.values())
        for field in dataclasses.fields(arm)
        if getattr(arm, field.name) != getattr(claim.treatment, field.name)
    }
    assert changed <= {"text_source", "num_views", "num_captions"}
    assert pm.recipes.entries()["ulip_2"].slug == "ulip-2"
