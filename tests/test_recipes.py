"""Every recipe on real data; and what the cards say must hold."""

import dataclasses
from pathlib import Path

import pytest

import polymodal as pm
from polymodal import recipes
from polymodal.errors import UserError
from polymodal.evaluation import evaluate
from polymodal.modalities.image_augmentation import may_flip
from polymodal.modalities.text import Caption
from polymodal.recipes.dual_encoders import clip, sparc
from polymodal.recipes.new import write_starting_point
from polymodal.training import train
from polymodal.types import Budget


def test_trained_clip_is_better_than_chance_on_its_training_images(small_emoji):
    """The whole chain learns: 150 steps on 280 images, asked for the very images that it saw."""
    run = train(clip.Recipe(batch_size=64), small_emoji, Budget(steps=150))
    seen = small_emoji.with_splits(small_emoji.splits | {"test": small_emoji.rows("train")[:100]})
    scores = {score.name: score for score in evaluate(run, seen)}
    recall = scores["test/text_to_image/R@10"]
    assert recall.chance is not None
    assert recall.value > 3 * recall.chance


def test_mirror_images_are_not_made_of_images_that_say_left(emoji):
    concepts = [emoji.raw(row, "concept") for row in range(len(emoji))]
    allowed = may_flip([emoji.value(row, "captions") for row in range(len(emoji))]).tolist()
    flips = dict(zip(concepts, allowed, strict=True))
    assert not flips["left arrow"]
    assert flips["grapes"]
    lists = [[Caption("arrow, left, west")], [Caption("linke Hand", "de")], [Caption("Right-facing fist", "en-GB")]]
    assert may_flip(lists).tolist() == [False, True, False]


# the folder is the list


def test_every_recipe_file_is_listed_with_paper_and_idea():
    for name, entry in recipes.entries().items():
        assert entry.title
        assert len(entry.idea) > 20
        module = getattr(recipes, name)
        assert module.paper.arxiv == entry.arxiv
        assert (recipes.FIRST_CLAIM in recipes.claims(name)) == entry.has_claim
        assert getattr(module, entry.method)
        assert dataclasses.is_dataclass(module.Recipe)
        assert type(module.Recipe.paper()) is module.Recipe


def test_every_hyper_parameter_is_explained():
    for name in recipes.entries():
        for row in recipes.describe(name)["hyper_parameters"]:
            assert row["meaning"], (name, row["flag"])


def test_names_and_files_and_modules_are_found(tmp_path, monkeypatch):
    assert recipes.find("sparc") is sparc.Recipe
    assert recipes.find("polymodal.recipes.dual_encoders.clip:Recipe") is clip.Recipe
    own = tmp_path / "mine.py"
    own.write_text("from polymodal.recipes.dual_encoders.clip import Recipe\nclass Other(Recipe): pass\n")
    assert issubclass(recipes.find(f"{own}:Other"), clip.Recipe)
    for spec, expected in {
        "spark": "did you mean 'sparc'",
        f"{own}:Absent": "has no class 'Absent'",
        f"{tmp_path}/none.py": "There is no file",
        "no.such.module:Recipe": "cannot be imported",
    }.items():
        with pytest.raises(UserError, match=expected):
            recipes.find(spec)
    own.write_text("x = 1\ny = undefined\n")
    with pytest.raises(UserError, match=r"line 2, does not import: NameError"):
        recipes.find(str(own))
    assert pm.recipes.sparc.Recipe is sparc.Recipe


def test_a_recipe_of_another_family_is_copied_as_a_starting_point(tmp_path: Path) -> None:
    path = write_starting_point("mine", "dgvae", tmp_path)
    own = recipes.find(str(path))
    assert [field.name for field in dataclasses.fields(own)] == [
        field.name for field in dataclasses.fields(recipes.find("dgvae"))
    ]
    assert path.read_text().startswith('"""Mine, a copy of dgvae to change. DGVAE: ')
    assert recipes.entries()["dgvae"].corpus == "viewers"
    assert recipes.entries()["inductive_moment_matching"].slug == "inductive-moment-matching"
