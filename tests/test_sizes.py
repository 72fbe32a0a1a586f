"""Sizes of recipes: what every recipe is at each of them, which one is chosen, and what is said before training."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import polymodal as pm
import synthetic
from polymodal import recipes
from polymodal.api import budget_on
from polymodal.cli._recipe_flags import named_size, parse_with_recipe
from polymodal.corpora.corpus import Corpus
from polymodal.data.processor import fit_processor
from polymodal.encoders.pretrained_text import PretrainedTextConfig
from polymodal.encoders.size_names import SIZES
from polymodal.encoders.sizes import is_resizable, resized
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.progress import Progress
from polymodal.training.recipe import TrainingRecipe
from polymodal.training.size_line import architecture, budget_text, duration, millions, too_short
from polymodal.training.sizes import (
    MIN_SMALL_ROWS,
    MIN_SMALL_ROWS_WITHOUT_IMAGES,
    choose_size,
    learning_rate_factor,
    size_of,
    sized,
)
from polymodal.types import Budget

NAMES = [name for name in recipes.entries() if hasattr(recipes.find(name), "build")]
OF_ONE_SIZE = {"dgvae"}  # whose paper has embeddings as small as the defaults
ON_LABELLED_DATA = {"activity_clip": {"pretrain_on": "all"}}  # all examples of the corpus have a label


# What a recipe is at a size


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_at_every_size_and_grows(name: str, corpus: Corpus) -> None:
    kind, corpus, counts = recipes.find(name), synthetic.corpus_for(name, corpus), []
    for size in SIZES:
        recipe = sized(kind, size)
        recipe = replace(recipe, **ON_LABELLED_DATA.get(name, {}))
        processor = fit_processor(replace(recipe, batch_size=12), corpus)  # few examples, which make no larger batch
        with torch.device("meta"):
            counts.append(sum(parameter.numel() for parameter in recipe.build(processor).parameters()))
        assert architecture(recipe)
        assert size_of(recipe) == ("tiny" if name in OF_ONE_SIZE else size)
    if name not in OF_ONE_SIZE:
        tiny, small, base, large = counts
        assert 2 * tiny < small < 25e6
        assert 2 * small < base <= large


@pytest.mark.parametrize("name", NAMES)
def test_tiny_is_the_defaults_and_large_the_paper(name: str) -> None:
    kind = recipes.find(name)
    assert sized(kind, "tiny") == kind()
    assert sized(kind, "large") == kind.paper()
    has_images = name != "dgvae"
    enough = MIN_SMALL_ROWS if has_images else MIN_SMALL_ROWS_WITHOUT_IMAGES
    assert sized(kind, "small").batch_size <= enough, "data of which small is chosen has a batch"


@pytest.mark.parametrize("name", ["clip", "layoutlmv3", "mono_internvl", "inductive_moment_matching"])
def test_small_trains(name: str, corpus: Corpus) -> None:
    run = pm.train(replace(sized(recipes.find(name), "small"), batch_size=4), corpus, "1step", progress=False)
    assert run.record["parameters"] > 2e6


def test_small_has_larger_images_and_texts_that_attend() -> None:
    small, base = sized(clip.Recipe, "small"), sized(clip.Recipe, "base")
    assert 96 <= small.image.image_size <= 128
    assert small.text.depth > 0
    assert small.image.stem == clip.Recipe().image.stem, "it reads pixels as the defaults do"
    assert (base.image.image_size, base.image.stem) == (224, ())
    assert base.text.causal, "base has the paper's kind of encoders"
    assert base.batch_size < 1000 < clip.Recipe.paper().batch_size
    assert base.augmentation == clip.Recipe().augmentation


@pytest.mark.parametrize("size", ["small", "base"])
def test_learning_rates_fall_with_the_width(size: str) -> None:
    kind = recipes.find("tip")
    default, larger = kind(), sized(kind, size)
    ratio = default.image.width / larger.image.width
    assert learning_rate_factor(default, larger) == ratio < 0.5
    assert larger.optimizer.learning_rate == pytest.approx(ratio * default.optimizer.learning_rate)
    assert replace(larger.optimizer, learning_rate=default.optimizer.learning_rate) == default.optimizer


def test_recipes_may_state_learning_rates() -> None:
    assert sized(recipes.find("moma"), "base").optimizer.learning_rate == 1e-3
    small, base = (sized(clip.Recipe, size) for size in ("small", "base"))
    rates = [one.optimizer.learning_rate * one.image.width for one in (small, base)]
    assert rates[0] == pytest.approx(rates[1], rel=0.05), "they fall with the width, too"
    assert rates[0] < clip.Recipe().optimizer.learning_rate * clip.Recipe().image.width / 3


def test_values_other_than_the_defaults_are_kept() -> None:
    given = replace(clip.Recipe(), word_dropout=0.1, image=replace(clip.Recipe().image, patch_size=32))
    changed = sized(given, "small")
    small = sized(clip.Recipe, "small")
    assert changed == replace(small, word_dropout=0.1, image=replace(small.image, patch_size=32))
    assert size_of(changed) is None


def test_pretrained_encoders_pass_through() -> None:
    pretrained = PretrainedTextConfig(source="somewhere", width=8)
    assert resized(pretrained, "base") is pretrained
    recipe = sized(replace(clip.Recipe(), text=pretrained), "small")
    assert recipe.text is pretrained
    assert recipe.image == sized(clip.Recipe, "small").image


@dataclass(frozen=True)
class Part:
    """A part of a user's that is in no list of encoders."""

    width: int = 8
    depth: int = 1
    num_heads: int = 2
    other: int = 3


@dataclass(frozen=True)
class Mine(TrainingRecipe):
    """A recipe of a user's."""

    part: Part = Part()


@dataclass(frozen=True)
class Decayed(clip.Recipe):
    """A recipe of a user's with another optimizer."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, weight_decay=0.3)


def test_recipes_and_encoders_of_users_have_sizes() -> None:
    assert is_resizable(Part())
    assert not is_resizable(Part)
    small, base = (sized(Mine, size).part for size in ("small", "base"))
    assert Part().width < small.width < base.width
    assert small.other == 3
    assert sized(Decayed, "small").optimizer == replace(Decayed.optimizer, learning_rate=3.3e-4)
    with pytest.raises(UserError, match="no preset of a paper, which size large is; take base"):
        sized(Mine, "large")
    with pytest.raises(UserError, match="There is no size 'huge'"):
        sized(Mine, "huge")


def test_the_page_has_the_numbers_of_clip() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sizes.md").read_text(encoding="utf-8")
    for size in SIZES:
        recipe = sized(clip.Recipe, size)
        with torch.device("meta"):
            method = clip.CLIP(recipe, recipe.text.vocab_size)
        cells = re.findall(rf"^\| `{size}` \| (.+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", page, re.M)
        assert len(cells) == 1
        image, text, batch_size, rate, parameters = cells[0]
        assert (f"{recipe.image.image_size} px" in image, f"{recipe.text.width}" in text) == (True, True)
        assert float(rate) == pytest.approx(recipe.optimizer.learning_rate, rel=0.05)
        assert batch_size == f"{recipe.batch_size:,}"
        assert parameters == millions(sum(parameter.numel() for parameter in method.parameters()))


# Which size is chosen


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images of 90 x 70 px with captions."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(200):
        pixels = np.kron(rng.integers(0, 255, (7, 9, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a thing of {number % 11} parts and {number % 7} holes")
    return folder


def of_user(like: Corpus, side: int = 0, rows: int = 0, **choices: Any) -> Corpus:
    """As if the corpus were the user's, with images of `side` px and many training rows."""

    class Larger(Corpus):
        def value(self, row: int, column: str, **options: Any) -> Any:
            return PILImage.new("RGB", (2 * side, side))

    values = {field.name: getattr(like, field.name) for field in dataclasses.fields(like)}
    columns = like.columns if side else {"text": like.columns["text"]}
    train = np.arange(rows or len(like.rows("train")))
    return Larger(**values | {"choices": choices, "columns": columns, "splits": {"train": train}})


@pytest.mark.parametrize(
    ("side", "rows", "gpu", "size"),
    [
        (32, 50_000, False, "tiny"),
        (64, 50_000, True, "tiny"),
        (65, 50_000, False, "small"),
        (480, 50_000, True, "base"),
        (480, 9_000, True, "small"),
        (480, 127, False, "tiny"),
        (480, 128, False, "small"),
        (0, 500, False, "tiny"),
        (0, 5000, False, "small"),
        (0, 50_000, True, "base"),
    ],
)
def test_the_size_is_chosen_by_data_and_machine(
    side: int, rows: int, gpu: bool, size: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_size(of_user(corpus, side, rows, data=["photos"])).size == size
    assert choose_size(of_user(corpus, side, rows, in_memory="table")).size == size
    assert choose_size(of_user(corpus, side, rows, corpus="emoji")).size == "tiny"
    assert choose_size(of_user(corpus, side, rows, data=["photos"]), device="cpu").size != "base"


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        ("60s", "tiny"),
        ("14m", "tiny"),
        ("15m", "small"),
        ("299steps", "tiny"),
        ("300steps", "small"),
        ("9epochs", "small"),
    ],
)
def test_a_budget_that_is_too_short_for_small_trains_tiny(
    budget: str, size: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = of_user(corpus, 480, 5000, data=["photos"])
    choice = choose_size(data, budget=budget_on(budget, data))
    assert choice.size == size
    assert ("too short for small" in choice.reason) == (size == "tiny")


def test_a_run_that_starts_from_another_has_its_size(corpus: Corpus, tmp_path: Path) -> None:
    small = sized(clip.Recipe, "small")
    recipe = replace(small, batch_size=4, image=replace(small.image, depth=1))  # flags changed some of its values
    pm.train(recipe, corpus, "1step", out=tmp_path / "run", progress=False)
    choice = choose_size(of_user(corpus, 480, 50_000), init=tmp_path / "run")
    assert choice == ("small", f"as in {tmp_path / 'run'}")
    assert choose_size(of_user(corpus, 32), init="hf:owner/name", out=tmp_path / "run").size == "small"
    assert choose_size(of_user(corpus, 32), init="hf:owner/name", out=tmp_path / "none").size == "tiny"
    assert choose_size(corpus, init=tmp_path / "none").size == "tiny", "training says what is missing"


# On the command line and in Python


@pytest.mark.parametrize("arguments", [["--size", "smal"], ["--size=smal"], ["--size", "base", "--size", "smal"]])
def test_a_size_that_is_misspelled_is_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="There is no size 'smal'; did you mean 'small'"):
        named_size(arguments)


def test_the_last_size_counts_and_none_stands_beside_paper() -> None:
    assert named_size(["--size", "base", "--seed", "1", "--size=tiny"]) == "tiny"
    assert named_size(["--seed", "1"]) is None
    with pytest.raises(UserError, match="Give --size or --paper, not both"):
        named_size(["--size", "base", "--paper"])


def test_flags_win_over_the_size() -> None:
    default = str(clip.Recipe().image.width)
    flags = ["--size", "small", "--image.width", default, "--learning-rate", "0.002", "--batch-size", "96"]
    recipe = parse_with_recipe({}, clip.Recipe, flags, "train clip", lambda arguments: None).recipe
    small = sized(clip.Recipe, "small")
    assert recipe == replace(
        small,
        image=replace(small.image, width=clip.Recipe().image.width),
        optimizer=replace(small.optimizer, learning_rate=0.002),
        batch_size=96,
    )


def test_photographs_are_not_trained_on_as_icons_and_resume_keeps_the_size(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polymodal.cli.training import train

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("polymodal.training.sizes.MIN_SMALL_STEPS", 1)
    flags = ["--budget", "2steps", "--batch-size", "8", "--image.depth", "1", "--logger", "none"]
    train(["clip", "--data", str(photos), "--out", str(tmp_path / "run"), *flags])
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("Size ")]
    assert len(lines) == 1
    chosen = "Size small, changed by hand (chosen: images of 70 px on a CPU): image 1 x 192 at 96 px, text 4 x 192; "
    assert lines[0].startswith(chosen)
    for unit in ("million parameters; ", " examples/s, ", " a pass", " GiB of memory."):
        assert unit in lines[0]
    assert "too little for size small: take a budget of 300steps or more, or size tiny." in printed
    run = pm.load_run(tmp_path / "run")
    assert run.recipe == replace(
        sized(clip.Recipe, "small"), batch_size=8, image=replace(sized(clip.Recipe, "small").image, depth=1)
    )


def test_sizes_in_python(corpus: Corpus, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = replace(clip.Recipe(), batch_size=4)
    assert pm.train(given, photos, "1step", progress=False).recipe == given, "an instance is trained as it is"
    run = pm.train(given, corpus, "1step", size="small", progress=False)
    assert run.recipe == replace(sized(clip.Recipe, "small"), batch_size=4)
    with pytest.raises(UserError, match="did you mean 'small'"):
        pm.train("clip", corpus, "1step", size="smal")  # type: ignore[call-overload]


def test_photographs_are_tuned_at_the_size_that_they_are_trained_at(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from polymodal import api
    from polymodal.cli.tuning import tune
    from polymodal.reproduce import halving

    tuned: list[tuple[Any, str]] = []

    def record(recipe: Any, *_: Any, command: str = "", **__: Any) -> None:
        tuned.append((recipe, command))
        raise UserError("recorded")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(halving, "successive_halving", record)
    monkeypatch.setattr(api, "successive_halving", record)
    words = ["clip", "--data", str(photos), "--out", str(tmp_path / "out")]
    for flags in ([], ["--size", "tiny"]):
        with pytest.raises(UserError, match="recorded"):
            tune([*words, *flags, "--budget", "20m"])
    assert "Size small (chosen: images of 70 px on a CPU)." in capsys.readouterr().err
    for given in ("clip", clip.Recipe()):
        with pytest.raises(UserError, match="recorded"):
            pm.tune(given, photos, "20m")
    with pytest.raises(UserError, match="recorded"):
        pm.tune(clip.Recipe(word_dropout=0.1), photos, "20m", size="small")
    assert [size_of(recipe) for recipe, _ in tuned] == ["small", "tiny", "small", "tiny", "small"]
    assert tuned[-1][0].word_dropout == 0.1
    assert tuned[0][1].endswith("--size small"), "the command that trains the best has the size that was tuned"
    assert tuned[1][1].endswith("--size tiny")


def test_arms_of_a_comparison_have_one_size(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from polymodal import api
    from polymodal.cli import comparing
    from polymodal.cli._sizes import size_of_arms

    compared: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(api, "compare_arms", lambda arms, *_: compared.extend(arm.recipe for arm in arms))
    corpus = pm.corpora.from_path(photos)
    pm.compare(["clip", "siglip"], corpus, "300steps")
    pm.compare(["clip", recipes.siglip.Recipe()], corpus, "300steps")
    pm.compare(["clip"], corpus, "300steps", size="tiny")
    assert [size_of(recipe) for recipe in compared] == ["small", "small", "tiny", "tiny", "tiny"]
    capsys.readouterr()
    long = Budget(steps=300)
    arms = [comparing._parsed(spec) for spec in ("clip", "siglip", "clip --size base")]
    assert size_of_arms(arms[:2], corpus, long) == "small"
    assert "Size small of all recipes (chosen: " in capsys.readouterr().err
    assert size_of_arms(arms, corpus, long) == "small"
    assert "Size small of the recipes that name none (chosen: " in capsys.readouterr().err
    assert size_of_arms(arms[2:], corpus, long) is None
    assert capsys.readouterr().err == "", "nothing was chosen"
    mine = SimpleNamespace(recipe=Mine(), preset=SimpleNamespace(size=None, paper=False))
    assert size_of_arms([arms[0], mine], corpus, long) is None, "all arms are as large as the user's"
    assert size_of(comparing._recipe_with_flags("clip --size base", "small")) == "base"
    assert size_of(comparing._recipe_with_flags("clip --batch-size 8", "small")) == "small"


# What is said


@pytest.mark.parametrize(
    ("size", "budget", "rows", "wanted"),
    [
        ("tiny", "1step", 100, ""),
        ("small", "300steps", 1000, ""),
        ("small", "299steps", 1000, "about 299 steps and 30 passes over the data, too little for size small: take a "),
        ("small", "300steps", 20_000, "1.5 passes over the data, too little for size small: take a budget of 600steps"),
        ("small", "3000steps", 10**9, ""),
        ("small", "60s", 1000, "take a budget of 5m or more, or size tiny."),
        ("small", "5m", 1000, ""),
        ("small", "1000examples", 1000, "take a budget of 30epochs"),
        ("small", "1000examples", 0, "about 10 steps, too little for size small: take a budget of 30000examples"),
        ("base", "1999steps", 0, "take a budget of 2000steps"),
        ("base", "1e6tokens", 0, ""),
    ],
)
def test_a_budget_that_is_too_small_for_the_size(size: Any, budget: str, rows: int, wanted: str) -> None:
    text = too_short(size, Budget.parse(budget), 100, 100.0, rows)
    assert (wanted in text) if wanted else text == ""


def test_numbers_are_short() -> None:
    assert [budget_text(seconds) for seconds in (5, 119, 121, 7200, 7201)] == ["10s", "120s", "3m", "120m", "3h"]
    assert [duration(seconds) for seconds in (0.44, 12, 600, 36_000)] == ["0.44 s", "12 s", "10 min", "10 h"]
    assert [millions(count) for count in (187_000, 151_277_313, 2_700_000_000)] == [
        "0.187 million",
        "151 million",
        "2.7 billion",
    ]


def test_the_line_is_printed_once_and_timed_without_the_first_step(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    from polymodal.training.size_line import SizeLine
    from polymodal.training.sizes import SizeChoice

    seen: list[int] = []
    line = SizeLine(
        SizeChoice("tiny", ""), corpus, Budget(steps=9), lambda progress, reached, losses: seen.append(progress.step)
    )
    line.built(pm.train(replace(clip.Recipe(), batch_size=4), corpus, "300steps", progress=False))
    progress = Progress()
    for seconds in (10.0, 1.0, 1.0, 1.0, 1.0):
        progress.count_step(4, seconds, 0.0)
        line.step(progress, 0.1, {})
    assert seen == [1, 2, 3, 4, 5]
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("Size tiny: image 128 wide at 32 px, text 128 wide; ")
    assert " 4 examples/s, 6 s a pass" in printed[0]
