"""SGA against its released attacker on a small source model, and the passes and bounds of the attack."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import polymodal as pm
from polymodal.attacks.evaluate import Pairs, Ranks, pair_logits, perturb_pairs
from polymodal.attacks.perturbation import Victim, projected_ascent, words_by_importance
from polymodal.attacks.stop_words import STOP_WORDS
from polymodal.recipes.security.set_level_attack import Recipe
from polymodal.recipes.video import alpro

GOLDEN = np.load(Path(__file__).parent / "golden" / "set_level_attack.npz")
VOCABULARY = {word: number for number, word in enumerate(GOLDEN["vocabulary"].tolist())}
TEXTS, OWNER = GOLDEN["texts"].tolist(), GOLDEN["owner"]
CAPTIONS = [[text for text, image in zip(TEXTS, OWNER, strict=True) if image == n] for n in range(3)]
IMAGES = torch.from_numpy(GOLDEN["images"])


class Source:
    """The source model of the golden numbers, see golden/set_level_attack.txt."""

    def embed(self, batch: dict) -> dict[str, Tensor]:
        weights = {name: torch.from_numpy(GOLDEN[f"weights_{name}"]) for name in ("image", "place", "word", "out")}
        if "image" in batch:
            patches = F.unfold(batch["image"], 4, stride=4).transpose(1, 2)
            vectors = torch.tanh(patches @ weights["image"].T + weights["place"]).mean(1)
            return {"image": F.normalize(vectors, dim=-1)}
        pieces = [
            [piece for word in text.split() for piece in ("play ##er" if word == "player" else word).split()]
            for text in batch["text"]
        ]
        means = [weights["word"][[VOCABULARY.get(piece, 1) for piece in own[:28]]].mean(0) for own in pieces]
        return {"text": F.normalize(torch.tanh(torch.stack(means)) @ weights["out"], dim=-1)}


class Offered:
    """The candidates that the released code had."""

    candidates_of = json.loads(str(GOLDEN["candidates"]))

    def candidates(
        self, places: Sequence[tuple[list[str], int]], count: int, min_logit: float = 0.3
    ) -> list[list[str]]:
        assert (count, min_logit) == (10, 0.3)
        return [self.candidates_of[f"{TEXTS.index(' '.join(words))}/{index}"] for words, index in places]


class Columns(SimpleNamespace):
    image = SimpleNamespace(normalize=lambda pixels: (pixels - 0.45) / 0.27)

    def __call__(self, **columns: list) -> dict:
        return columns


def flat(captions: list[list[str]]) -> list[str]:
    return [text for own in captions for text in own]


VICTIM = Victim(Source(), Columns())


@pytest.mark.parametrize(("name", "scales"), [("pair", ()), ("set", (0.5, 0.75, 1.25, 1.5))])
def test_all_three_passes_are_those_of_the_released_attacker(name: str, scales: tuple[float, ...]) -> None:
    recipe = dataclasses.replace(Recipe.paper(), scales=scales)
    clean = VICTIM.encode_image(IMAGES)
    first = recipe.edit(VICTIM, Offered(), CAPTIONS, clean)
    assert flat(first) == GOLDEN[f"{name}_first"].tolist()
    perturbed, final = recipe.attack(Source(), Columns(), Offered(), IMAGES, CAPTIONS, seed=7)
    np.testing.assert_allclose(perturbed, GOLDEN[f"{name}_adv"], atol=1e-6)
    assert flat(final) == GOLDEN[f"{name}_final"].tolist()
    assert (final != first) == (name == "pair"), "the third pass has another guide"
    similarity = VICTIM.encode_image(perturbed) @ VICTIM.encode_text(flat(first)).T
    loss = -sum(float(similarity[image, n]) for n, image in enumerate(OWNER)) / 3
    assert loss == pytest.approx(float(GOLDEN[f"{name}_loss"]), abs=1e-5)


def test_importance_of_words_is_that_of_the_released_attacker() -> None:
    order = words_by_importance(VICTIM, [text.split() for text in TEXTS])
    scores = np.split(GOLDEN["importance"], np.cumsum([len(text.split()) for text in TEXTS])[:-1])
    for own, expected in zip(order, scores, strict=True):
        assert np.all(np.diff(expected[own]) <= 1e-6)


def test_the_words_that_may_be_attacked_are_those_of_the_released_attacker() -> None:
    """Its filter_words without marks: their number, and the SHA-256 of the sorted words."""
    digest = "0b3dbe280742ddaa07ede4fec2f6e989e8efbdbbd71c871231c52b39c722594f"
    assert len(STOP_WORDS) == 268
    assert hashlib.sha256(" ".join(sorted(STOP_WORDS)).encode()).hexdigest() == digest
    assert not STOP_WORDS & {"two", "fire", "front", "be", "have", "bill", "top"}
    assert {"just", "unless", "used", "isn't", "theirs"} <= STOP_WORDS


def test_captions_without_words_stay_as_they_are() -> None:
    empty = [["", " "], [""], [""]]
    assert Recipe().edit(VICTIM, Offered(), empty, VICTIM.encode_image(IMAGES)) == empty


def test_a_set_of_one_caption_and_one_scale_is_a_pair() -> None:
    """PGD away from the one caption by hand; with more captions and scales the result differs."""
    one, clean = [own[:1] for own in CAPTIONS], VICTIM.encode_image(IMAGES)
    pair = Recipe(scales=(), use_all_captions=False)
    made = [
        recipe.perturb(VICTIM, IMAGES, captions, clean, torch.Generator().manual_seed(0))
        for recipe, captions in ((Recipe(scales=()), one), (pair, CAPTIONS), (Recipe(), CAPTIONS))
    ]
    guides = VICTIM.encode_text(flat(one))
    by_hand = projected_ascent(
        IMAGES, lambda pixels: -(VICTIM.encode_image(pixels) * guides).sum(1).mean(),
        2 / 255, 0.5 / 255, 10, torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(made[0], by_hand)
    assert torch.equal(made[1], by_hand)
    assert not torch.equal(made[2], by_hand)


def test_restarts_keep_the_least_similar_image() -> None:
    guides = VICTIM.encode_text([own[0] for own in CAPTIONS])
    similarity = [
        (VICTIM.encode_image(Recipe(scales=(), use_all_captions=False, num_iters=2, restarts=restarts).perturb(
            VICTIM, IMAGES, CAPTIONS, guides, torch.Generator().manual_seed(0))) * guides).sum(1)
        for restarts in (1, 4)
    ]  # fmt: skip
    assert (similarity[1] <= similarity[0] + 1e-7).all()
    assert (similarity[1] < similarity[0] - 1e-7).any()


def test_a_fused_model_is_attacked_and_reranks(corpus: Corpus) -> None:
    """ALPRO as source, by its unimodal features, and as target, by the matching head of its fusion encoder."""
    run = pm.train(dataclasses.replace(alpro.Recipe.tiny(), use_pem=False), corpus, pm.Budget(steps=4))
    pairs = Pairs.of(corpus, run, "train", 4)
    perturbed = perturb_pairs(Recipe(top_k=0, num_iters=1), run, corpus, pairs)
    assert any(np.any(np.array(a) != np.array(b)) for a, b in zip(pairs.images, perturbed.images, strict=True))
    order = (-pair_logits(run, pairs)).argsort(1)
    best = [1 + min(order[n].tolist().index(text) for text in (2 * n, 2 * n + 1)) for n in range(4)]
    assert Ranks.of(run, pairs).by_image.tolist() == best
