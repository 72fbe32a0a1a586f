"""Attack success rate on image-text retrieval, in the attacked (white-box) model and in others (transfer).

Success is measured among queries that were correct before (Zhang et al. 2022; Lu et al. 2023): the fraction of queries
with their match in the top k whose match is not any more, when all images and captions are perturbed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Tensor

from polymodal.attacks.attack import Attack
from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanEmbed, CanScorePairs
from polymodal.evaluation.embeddings import main_language
from polymodal.evaluation.retrieval import chance_recall, ranks
from polymodal.evaluation.statistics import Score, ratio
from polymodal.modalities import Image, Text
from polymodal.training.run import Run, answers, embed, evaluating

FIRST = (1, 5, 10)
IMAGES_AT_ONCE = 64
RERANKED = 128  # candidates of a query that a fused model re-ranks (k_test of ALBEF and of SGA's evaluation)
MATCHED_AT_ONCE = 16  # images that are matched with all captions at once
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"


@dataclass(frozen=True)
class Pairs:
    """Images and the captions of each, original or perturbed."""

    images: list[PILImage.Image]
    captions: list[list[str]]

    @classmethod
    def of(cls, corpus: Corpus, source: Run, split: str, most: int) -> Pairs:
        """Sample at most so many examples of a split, at the resolution of the source model."""
        if not {Image, Text} <= {type(modality) for modality in corpus.columns.values()}:
            raise UserError(f"An attack needs images and captions; '{corpus.name}' has not both.")
        reader, language = Reader(corpus, source.processor), main_language(corpus)
        _, examples = reader.read_all(corpus.sample(split, most))
        images, captions = [], []
        for example in examples:
            texts = [caption.text for caption in example["text"] if language in (None, caption.language)]
            if texts:
                images.append(PILImage.fromarray(example["image"]))
                captions.append(texts)
        if not images:
            raise UserError(f"The split '{split}' of '{corpus.name}' has no readable image with a caption.")
        return cls(images, captions)

    @property
    def owner(self) -> Int[np.ndarray, " captions"]:
        """Image index of each caption, for all captions in order."""
        return np.repeat(np.arange(len(self.captions)), [len(captions) for captions in self.captions])

    @property
    def texts(self) -> list[str]:
        return [text for captions in self.captions for text in captions]


def perturb_pairs(attack: Attack, source: Run, corpus: Corpus, pairs: Pairs, seed: int = 0) -> Pairs:
    """Perturb pairs with an attack that knows the source model; images are rounded to 8 bits, as in files.

    Raises UserError when the source does not embed images and captions.
    """
    method, processor = source.model, source.processor
    columns: Mapping[str, Any] = getattr(processor, "columns", {})
    if not isinstance(method, CanEmbed) or not {"image", "text"} <= set(columns):
        raise UserError(f"The run '{source.name}' cannot be attacked: it does not embed images and captions.")
    fitted = attack.fit(corpus, main_language(corpus), seed)
    changed = Pairs([], [])
    with evaluating(source.model):
        for start in range(0, len(pairs.images), IMAGES_AT_ONCE):
            part = slice(start, start + IMAGES_AT_ONCE)
            pixels = columns["image"].pixels([np.array(image) for image in pairs.images[part]])
            perturbed, captions = attack.attack(method, processor, fitted, pixels, pairs.captions[part], seed + start)
            changed.images.extend(map(PILImage.fromarray, _eight_bits(perturbed)))
            changed.captions.extend(captions)
    return changed


def _eight_bits(pixels: Float[Tensor, "batch 3 size size"]) -> list[np.ndarray]:
    return list((pixels * 255).round().byte().permute(0, 2, 3, 1).numpy())


@dataclass(frozen=True)
class Ranks:
    """Ranks of the matches of all queries of a target model, by image and by caption.

    broken: the similarity of some pair is NaN, so that the ranks say nothing about the inputs.
    """

    by_image: Int[np.ndarray, " images"]
    by_caption: Int[np.ndarray, " captions"]
    broken: bool = False

    @classmethod
    def of(cls, target: Run, pairs: Pairs) -> Ranks:
        """Rank by inner product; a model that scores pairs then re-ranks the first `RERANKED` of each query (ITM)."""
        vectors = embed(target.model, target.processor, image=pairs.images, text=pairs.texts)
        similarity = vectors["image"] @ vectors["text"].T
        by_image, by_text = similarity, similarity.T
        if isinstance(target.model, CanScorePairs):
            logits = pair_logits(target, pairs)
            by_image, by_text = reranked(by_image, logits), reranked(by_text, logits.T)
        owner, candidates = pairs.owner, torch.eye(len(pairs.texts))  # a query's vector is its row of scores
        relevant = [np.flatnonzero(owner == index) for index in range(len(pairs.images))]
        return cls(
            ranks(by_image, candidates, relevant),
            ranks(by_text, torch.eye(len(pairs.images)), [owner[[n]] for n in range(len(owner))]),
            bool(by_image.isnan().any() or by_text.isnan().any()),
        )


def reranked(similarity: Float[Tensor, "queries candidates"], logits: Float[Tensor, "queries candidates"]) -> Tensor:
    """Return the matching logits of each query's most similar candidates, and a lower score of all others."""
    chosen = similarity.topk(min(RERANKED, similarity.shape[1]), dim=1).indices
    scores = torch.full_like(logits, float(logits.min()) - 1)
    return scores.scatter(1, chosen, logits.gather(1, chosen))


def pair_logits(target: Run, pairs: Pairs) -> Float[Tensor, "images texts"]:
    """Return the image-text matching logits of all pairs."""
    parts = []
    for start in range(0, len(pairs.images), MATCHED_AT_ONCE):
        columns: dict[str, list[Any]] = {"text": pairs.texts, "image": pairs.images[start : start + MATCHED_AT_ONCE]}
        parts += answers(target.model, target.processor, "itm_logits", columns, batch_size=len(pairs.texts))
    return torch.cat(parts)


def success(before: Ranks, after: Ranks, owner: Int[np.ndarray, " captions"], name: str) -> list[Score]:
    """Return attack success and recall before the attack, for both directions and each k; clusters are images.

    A match is not lost where the target has NaN: an attack that breaks the arithmetic misleads nobody.
    """
    count = len(before.by_image)
    captions = np.bincount(owner, minlength=count)
    scores = []
    for direction, old, new, unit, relevant, candidates in (
        (IMAGE_TO_TEXT, before.by_image, after.by_image, np.arange(count), captions, len(owner)),
        (TEXT_TO_IMAGE, before.by_caption, after.by_caption, owner, np.ones_like(owner), count),
    ):
        for k in FIRST:
            chance = chance_recall(relevant, candidates, k)
            correct = np.bincount(unit, old <= k, count)
            lost = np.bincount(unit, (old <= k) & (new > k) & (not after.broken), count)
            queries = np.bincount(unit, minlength=count).astype(float)
            scores.append(Score(f"{name}/{direction}/attack_success@{k}", ratio(lost, correct), None, weights=correct))
            scores.append(Score(f"{name}/{direction}/R@{k}_before", correct / queries, chance, weights=queries))
    return scores


def attack_scores(
    attack: Attack,
    source: str,
    runs: Mapping[str, Run],
    corpus: Corpus,
    pairs: Pairs,
    before: Mapping[str, Ranks],
    seed: int = 0,
) -> tuple[list[Score], Pairs]:
    """Attack one run and evaluate all runs; metrics are named `source_to_target`. Also returns the perturbed pairs.

    before: ranks of each run on the original pairs.
    """
    changed = perturb_pairs(attack, runs[source], corpus, pairs, seed)
    scores = []
    for name, run in runs.items():
        scores += success(before[name], Ranks.of(run, changed), pairs.owner, f"{source}_to_{name}")
    return scores, changed


def summary(scores: Sequence[Score], sources: Sequence[str]) -> list[Score]:
    """Return the success over all pairs of models: white-box (`same_model`) and transfer (`other_models`)."""
    by_name = {score.name: score for score in scores}
    summaries = []
    for group, pairs in (
        ("other_models", [(a, b) for a in sources for b in sources if a != b]),
        ("same_model", [(a, a) for a in sources]),
    ):
        for k in FIRST:
            for kind in (f"attack_success@{k}", f"R@{k}_before"):
                parts = [
                    by_name[f"{a}_to_{b}/{way}/{kind}"] for a, b in pairs for way in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)
                ]
                if parts:
                    summaries.append(_together(f"{group}/{kind}", parts))
    return summaries


def _together(name: str, parts: Sequence[Score]) -> Score:
    """Pool the queries of several scores on the same clusters; chance is pooled by the same numbers of queries."""
    queries = np.array([part.weights for part in parts])
    weights = queries.sum(0)
    sums = np.sum([part.clusters * counts for part, counts in zip(parts, queries, strict=True)], axis=0)
    levels = [part.chance for part in parts if part.chance is not None]
    chance = float(np.average(levels, weights=queries.sum(1))) if len(levels) == len(parts) and weights.any() else None
    return dataclasses.replace(parts[0], name=name, clusters=ratio(sums, weights), chance=chance, weights=weights)
