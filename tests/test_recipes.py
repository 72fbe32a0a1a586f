"""Every recipe on real data; and what the cards say must hold."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import polymodal as pm
from polymodal import recipes
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation import evaluate
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.tasks.grounding import CanEncodePatches
from polymodal.modalities.image_augmentation import STRONG, may_flip
from polymodal.modalities.text import Caption
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders import clip, improved_clip, siglip, sparc
from polymodal.recipes.new import write_starting_point
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.types import Budget

SMALL = {"batch_size": 48}
VARIANTS = {
    "clip": clip.Recipe(**SMALL),
    "clip with moving average": clip.Recipe(
        **SMALL, optimizer=dataclasses.replace(clip.Recipe.optimizer, ema_decay=0.9)
    ),
    "siglip": siglip.Recipe(**SMALL),
    "sparc": sparc.Recipe(**SMALL),
    "sparc softmax": sparc.Recipe(**SMALL, grouping="softmax"),
    "sparc no threshold": sparc.Recipe(**SMALL, grouping="no_threshold"),
    "improved_clip": improved_clip.Recipe(**SMALL),
    "improved_clip siamlip": improved_clip.Recipe(**SMALL, ssl_loss="siamlip"),
    "improved_clip byolip": improved_clip.Recipe(**SMALL, ssl_loss="byolip"),
    "improved_clip barlip": improved_clip.Recipe(**SMALL, ssl_loss="barlip"),
    "improved_clip swalip": improved_clip.Recipe(**SMALL, ssl_loss="swalip", label_smoothing=0, ssl_loss_weight=0.2),
}


def a_batch(recipe, corpus, count=12, seed=0):
    processor = fit_processor(recipe, corpus)
    _, examples = Reader(corpus, processor).read_all(corpus.rows("train")[:count])
    return processor, recipe.training_batch(examples, processor, ExampleRNG.of(seed, 0, count))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_recipe_trains_on_real_data_and_its_capabilities_answer(name, small_emoji):
    recipe = VARIANTS[name]
    run = train(recipe, small_emoji, Budget(steps=40))
    entries = [entry["losses"] for entry in run.history if "losses" in entry]
    for loss in entries[0]:
        assert entries[-1][loss] < entries[0][loss], loss
    assert isinstance(run.model, CanEmbed)
    assert isinstance(run.model, CanEncodePatches)
    vectors = run.embed(text=["a red fruit", "cat"], image=[small_emoji.value(0, "image")])
    torch.testing.assert_close(vectors["text"].norm(dim=1), torch.ones(2))
    assert vectors["image"].shape == (1, recipe.embed_dim)


def test_trained_clip_is_better_than_chance_on_its_training_images(small_emoji):
    """The whole chain learns: 150 steps on 280 images, asked for the very images that it saw."""
    run = train(clip.Recipe(batch_size=64), small_emoji, Budget(steps=150))
    seen = small_emoji.with_splits(small_emoji.splits | {"test": small_emoji.rows("train")[:100]})
    scores = {score.name: score for score in evaluate(run, seen)}
    recall = scores["test/text_to_image/R@10"]
    assert recall.chance is not None
    assert recall.value > 3 * recall.chance


# SPARC


def random_pairs(batch=3, length=5, patches=16, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, length, dim, generator=generator),
        torch.randn(batch, patches, dim, generator=generator),
        torch.arange(length) < torch.tensor([5, 3, 1])[:batch, None],
    )


@pytest.mark.parametrize("grouping", ["sparse", "no_threshold", "softmax"])
def test_grouping_weights_sum_to_one(grouping):
    tokens, patches, _ = random_pairs()
    weights = sparc.grouping_weights(tokens, patches, grouping)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    assert (weights >= 0).all()


def test_sparse_weights_follow_the_three_steps():
    tokens, patches, _ = random_pairs()
    weights = sparc.grouping_weights(tokens, patches, "sparse")
    similarity = torch.einsum("bld,bpd->blp", tokens, patches)
    for b in range(3):
        for token in range(5):
            row = similarity[b, token]
            row = (row - row.min()) / (row.max() - row.min())
            row = torch.where(row >= 1 / 16, row, torch.zeros(()))
            torch.testing.assert_close(weights[b, token], row / row.sum())
    assert (weights == 0).any()
    assert ((weights > 0).sum(-1) >= 1).all()


def test_a_token_alike_to_all_patches_takes_the_same_of_each():
    patches = torch.ones(1, 4, 3)
    weights = sparc.grouping_weights(torch.randn(1, 2, 3), patches, "sparse")
    torch.testing.assert_close(weights, torch.full((1, 2, 4), 0.25))


def test_local_loss_equals_the_formula_pair_by_pair():
    tokens, patches, mask = random_pairs()
    scale = torch.tensor(5.0)
    losses = sparc.local_loss(tokens, patches, mask, scale)
    for b in range(3):
        count = int(mask[b].sum())
        own = tokens[b, :count]
        groups = sparc.grouping_weights(own[None], patches[b : b + 1], "sparse")[0] @ patches[b]
        expected = info_nce(F.normalize(groups, dim=-1), F.normalize(own, dim=-1), scale)
        torch.testing.assert_close(losses[b], expected)


def test_a_pair_s_local_loss_does_not_change_with_the_other_pairs():
    tokens, patches, mask = random_pairs()
    scale = torch.tensor(5.0)
    before = sparc.local_loss(tokens, patches, mask, scale)
    tokens[1], patches[1] = torch.randn(5, 8), torch.randn(16, 8)
    after = sparc.local_loss(tokens, patches, mask, scale)
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])
    assert not torch.isclose(before[1], after[1])


def test_a_caption_of_one_token_has_no_local_loss_and_no_gradient():
    tokens, patches, mask = random_pairs()
    tokens.requires_grad_()
    losses = sparc.local_loss(tokens, patches, mask, torch.tensor(5.0))
    assert losses[2] == 0
    losses[2].backward()
    assert tokens.grad.abs().sum() == 0


def test_sparc_without_local_loss_has_clip_s_gradient(small_emoji):
    recipe = sparc.Recipe(local_weight=0, global_weight=1.0)
    processor, batch = a_batch(recipe, small_emoji)
    torch.manual_seed(0)
    one = recipe.build(processor)
    torch.manual_seed(0)
    other = clip.Recipe().build(processor)
    (a,), (b,) = one.losses(batch).values(), other.losses(batch).values()
    torch.testing.assert_close(a, b)


# improved CLIP


def test_improved_clip_without_strong_views_is_clip(small_emoji):
    recipe = improved_clip.Recipe(num_strong_views=0)
    processor, batch = a_batch(recipe, small_emoji)
    torch.manual_seed(0)
    ours = recipe.build(processor)
    torch.manual_seed(0)
    plain = clip.Recipe().build(processor)
    torch.testing.assert_close(ours.losses(batch)["contrastive"], plain.losses(batch)["contrastive"])


def test_improved_clip_loss_equals_the_formula(small_emoji):
    recipe = improved_clip.Recipe(num_strong_views=2)
    processor, batch = a_batch(recipe, small_emoji)
    model = recipe.build(processor).eval()
    image, text = model.image_encoder(batch["image"])[1], model.text_encoder(batch["text"])[2]
    images, texts = image.chunk(3), text.chunk(3)

    def cross_entropy(a, b, scale, smoothing):
        logits, labels = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T, torch.arange(len(a))
        ce = [F.cross_entropy(x, labels, label_smoothing=smoothing) for x in (logits, logits.T)]
        return sum(ce) / 2

    plain = cross_entropy(model.image_projection(images[0]), model.text_projection(texts[0]), model.logit_scale(), 0)
    strong = [
        cross_entropy(model.strong["image"](a), model.strong["text"](b), model.strong_logit_scale(), 0.1)
        for a in images[1:]
        for b in texts[1:]
    ]
    expected = (plain + 2 * sum(strong) / 4) / 3
    torch.testing.assert_close(model.losses(batch)["contrastive"], expected)


def test_swalip_refuses_label_smoothing():
    with pytest.raises(UserError, match="label-smoothing 0"):
        improved_clip.Recipe(ssl_loss="swalip", label_smoothing=0.1)


def test_byolip_s_teacher_moves_by_average_only(small_emoji):
    recipe = improved_clip.Recipe(ssl_loss="byolip", ema_momentum=0.9, num_strong_views=1)
    processor, batch = a_batch(recipe, small_emoji)
    model = recipe.build(processor).train()
    sum(model.losses(batch).values()).backward()
    online = torch.nn.ModuleList(model.teacher.online.values())
    teachers, students = list(model.teacher.parameters()), list(online.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teachers)
    for teacher, student in zip(teachers, students, strict=True):
        torch.testing.assert_close(teacher, student)  # the first forward pass copies
    with torch.no_grad():
        students[0].add_(1.0)
    before = teachers[0].clone()
    model.losses(batch)
    assert torch.equal(teachers[0], before)
    model.after_step(0.5)
    torch.testing.assert_close(teachers[0], before + 0.1, rtol=1e-4, atol=1e-4)


def test_mirror_images_are_not_made_of_images_that_say_left(emoji):
    concepts = [emoji.raw(row, "concept") for row in range(len(emoji))]
    allowed = may_flip([emoji.value(row, "captions") for row in range(len(emoji))]).tolist()
    flips = dict(zip(concepts, allowed, strict=True))
    assert not flips["left arrow"]
    assert flips["grapes"]
    lists = [[Caption("arrow, left, west")], [Caption("linke Hand", "de")], [Caption("Right-facing fist", "en-GB")]]
    assert may_flip(lists).tolist() == [False, True, False]


def test_views_stand_one_after_the_other(small_emoji):
    recipe = improved_clip.Recipe(num_strong_views=2, strong_augmentation=dataclasses.replace(STRONG, scale=(1.0, 1.0)))
    _, batch = a_batch(recipe, small_emoji, count=5)
    assert len(batch["image"]) == len(batch["text"]) == 15


def test_siglip_starts_at_the_paper_s_temperature():
    assert siglip.Recipe().logit_scale_init == siglip.Recipe.paper().logit_scale_init == 10
    assert siglip.Recipe.paper().logit_bias_init == -10


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
