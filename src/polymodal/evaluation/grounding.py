"""Where in the picture? Zero-shot segmentation and pointing with patch vectors, against masks unseen in training."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.evaluation.retrieval import ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.modalities import Image, Mask, Regions
from polymodal.modalities.image import to_square
from polymodal.training.run import Run, embed


def segment(
    patches: Float[Tensor, "patches dim"], names: Float[Tensor, "names dim"], height: int, width: int
) -> Int[Tensor, "height width"]:
    """The most similar name at every pixel: patch similarities, enlarged bilinearly (SPARC, section 4.4)."""
    grid = int(len(patches) ** 0.5)
    similarity = (names @ patches.T).reshape(1, len(names), grid, grid)
    return F.interpolate(similarity, size=(height, width), mode="bilinear", align_corners=False)[0].argmax(0)


def intersection_over_union(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Of two boolean masks, of which at least one has a True."""
    return float((predicted & truth).sum() / (predicted | truth).sum())


def grounding_scores(run: Run, corpus: Corpus, split: str) -> list[Score]:
    """Segmentation (mIoU of a picture's objects, told apart by their names), pointing (is the best patch for a name on
    its object?), and word to region (does a name find its box among all boxes of the split?).

    Background pixels do not count: the question is which of the objects a pixel belongs to. Chance is that of naming
    each pixel at random, and of pointing at a random patch. The unit is a picture.
    """
    rows = corpus.rows(split)
    image, mask, regions = (corpus.column_of(kind) for kind in (Image, Mask, Regions))
    size = run.processor.image_size  # type: ignore[attr-defined]
    miou, pointing, overlap_by_chance, share_of_picture = [], [], [], []
    boxes: list[Tensor] = []
    box_names: list[str] = []
    box_picture: list[int] = []
    device = next(run.model.parameters()).device
    for number, row in enumerate(rows):
        pixels = to_square(corpus.value(row, image), size)
        with torch.inference_mode():
            batch = run.processor(image=[pixels])["image"].to(device)
            patches = run.model.embed_patches(batch)[0].cpu()  # type: ignore[operator]
        found = corpus.value(row, regions)
        truth = corpus.value(row, mask)
        names = embed(run.model, run.processor, text=[region.name for region in found])["text"]
        labels = segment(patches, names, *truth.shape).numpy()
        on_objects = truth > 0
        overlaps, hits, by_chance, shares = [], [], [], []
        grid = int(len(patches) ** 0.5)
        best = (names @ patches.T).argmax(1)
        for index in range(len(found)):
            own = truth == index + 1
            overlaps.append(intersection_over_union((labels == index) & on_objects, own))
            cell = np.zeros((grid, grid), dtype=bool)
            cell.flat[int(best[index])] = True
            coverage = _coverage(own, grid)
            hits.append(float(coverage[cell][0] >= 0.5))
            shares.append(float((coverage >= 0.5).mean()))
            picked = on_objects.sum() / len(found)
            both = own.sum() / len(found)
            by_chance.append(both / (picked + own.sum() - both))
            left, top, right, bottom = region_cells(found[index].box, truth.shape, grid)
            vector = patches.reshape(grid, grid, -1)[top:bottom, left:right].flatten(0, 1).mean(0)
            boxes.append(F.normalize(vector, dim=0))
            box_names.append(found[index].name)
            box_picture.append(number)
        miou.append(np.mean(overlaps))
        pointing.append(np.mean(hits))
        overlap_by_chance.append(np.mean(by_chance))
        share_of_picture.append(np.mean(shares))
    scores = [
        Score(f"{split}/segmentation/mIoU", np.array(miou), float(np.mean(overlap_by_chance))),
        Score(f"{split}/pointing/accuracy", np.array(pointing), float(np.mean(share_of_picture))),
    ]
    return scores + word_to_region(split, run, torch.stack(boxes), box_names, np.array(box_picture))


def word_to_region(
    split: str, run: Run, boxes: Float[Tensor, "boxes dim"], names: list[str], picture: np.ndarray
) -> list[Score]:
    """R@1 and R@10 of the regions that bear a name, among all regions. The unit is a name."""
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    queries = embed(run.model, run.processor, text=list(places))["text"]
    relevant = [np.array(found) for found in places.values()]
    scores = retrieval_scores(
        f"{split}/word_to_region", ranks(queries, boxes, relevant), relevant, len(boxes), np.arange(len(places))
    )
    return [score for score in scores if score.name.endswith(("R@1", "R@10", "MRR"))]


def _coverage(own: np.ndarray, grid: int) -> np.ndarray:
    """The share of each patch that an object covers."""
    height, width = own.shape
    return own.reshape(grid, height // grid, grid, width // grid).mean(axis=(1, 3))


def region_cells(box: tuple[int, int, int, int], shape: tuple[int, ...], grid: int) -> tuple[int, int, int, int]:
    """The patches that a box covers: left, top, right, bottom in patches, at least one."""
    height, width = shape[:2]
    left, right = (round(edge * grid / width) for edge in box[::2])
    top, bottom = (round(edge * grid / height) for edge in box[1::2])
    left, top = min(left, grid - 1), min(top, grid - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)
