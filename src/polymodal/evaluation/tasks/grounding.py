"""Zero-shot segmentation, pointing and phrase grounding with patch vectors, against masks without training on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UnreadableExample
from polymodal.evaluation.panels import EXAMPLES, Panel, Panels, text_panel, value_panel
from polymodal.evaluation.retrieval import ranks, retrieval_scores
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Mask, Regions
from polymodal.modalities.region import Region
from polymodal.training.run import embed, evaluating, to_device

BATCH = 128


@runtime_checkable
class CanEncodePatches(Protocol):
    """Capability: vectors of image patches in the space of the text embedding."""

    def encode_patches(self, image: torch.Tensor) -> Tensor: ...


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


def grounding_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Scores of segmentation, pointing and phrase grounding; images are square, the unit of the first two is an image.

    segmentation: mean IoU of an image's objects, each pixel of which is assigned to one of their names; the background
    does not count. Chance: a random name per pixel.
    pointing_game: whether the object covers at least half of the patch most similar to its name. Chance: a random
    patch.
    phrase_grounding: retrieval of boxes by names, among all boxes of the split. A box's vector is the mean over
    its patches.
    Images without a named object in their mask are left out; without any image, there are no scores.
    """
    rows, examples = reader.read_all(reader.corpus.rows(split))
    annotated = [_objects(reader.corpus, row) for row in rows.tolist()]
    images = [example["image"] for example, one in zip(examples, annotated, strict=True) if one]
    if not images:
        return []
    patches = _patch_vectors(method, processor, images)
    regions = [one[0] for one in annotated if one]
    truths = [one[1] for one in annotated if one]
    names = sorted({region.name for of_image_regions in regions for region in of_image_regions})
    vectors = dict(zip(names, embed(method, processor, text=names)["text"], strict=True))
    values = np.array(
        [
            _one_image(of_image, torch.stack([vectors[region.name] for region in of_image_regions]), truth)
            for of_image, of_image_regions, truth in zip(patches, regions, truths, strict=True)
        ]
    )
    (overlap, overlap_chance), (pointing, pointing_chance) = values[:, :2].T, values[:, 2:].T
    return [
        Score(f"{split}/segmentation/mIoU", overlap, float(overlap_chance.mean())),
        Score(f"{split}/pointing_game/accuracy", pointing, float(pointing_chance.mean())),
        *_phrase_grounding(split, patches, regions, truths, vectors),
    ]


def _objects(corpus: Corpus, row: int) -> tuple[list[Region], np.ndarray] | None:
    """Return the named objects of an image that its mask has, and the mask, in which they are numbered from 1.

    None where there is no object, or regions or mask are missing or damaged.
    """
    try:
        regions, mask = (corpus.value(row, corpus.column_with(kind)) for kind in (Regions, Mask))
    except UnreadableExample:
        return None
    kept = [number for number, one in enumerate(regions, 1) if one.name and (mask == number).any()]
    numbers = np.zeros(256, dtype=mask.dtype)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return ([regions[number - 1] for number in kept], numbers[mask]) if kept else None


@torch.no_grad()
def _patch_vectors(method: Any, processor: Processor, images: list[Any]) -> Float[Tensor, "images patches dim"]:
    device = next(method.parameters()).device
    with evaluating(method):
        batches = [processor(image=images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return torch.cat([method.encode_patches(to_device(batch, device)["image"]).cpu() for batch in batches])


def _one_image(
    patches: Float[Tensor, "patches dim"], names: Float[Tensor, "objects dim"], truth: np.ndarray
) -> tuple[float, float, float, float]:
    """Means over the objects: IoU and its chance, pointing and its chance. truth: 0 ground, k the k-th object."""
    grid = int(len(patches) ** 0.5)
    given = segment(patches, names, *truth.shape).numpy()
    objects = truth > 0
    similarity = names @ patches.T
    pointed = similarity.argmax(1)
    broken = bool(similarity.isnan().any())  # finds nothing
    values = []
    for number in range(len(names)):
        of_object = truth == number + 1
        overlap = 0.0 if broken else intersection_over_union((given == number) & objects, of_object)
        picked, both = objects.sum() / len(names), of_object.sum() / len(names)
        covered = _coverage(of_object, grid).ravel() >= 0.5
        pointing = 0.0 if broken else float(covered[pointed[number]])
        values.append((overlap, both / (picked + of_object.sum() - both), pointing, covered.mean()))
    return tuple(np.mean(values, axis=0).tolist())


def _coverage(of_object: np.ndarray, grid: int) -> np.ndarray:
    """The fraction of each patch that an object covers."""
    mask = torch.from_numpy(of_object)[None, None].float()
    return F.adaptive_avg_pool2d(mask, grid)[0, 0].numpy()


def _phrase_grounding(
    split: str,
    patches: Float[Tensor, "images patches dim"],
    regions: Sequence[list[Region]],
    truths: Sequence[np.ndarray],
    vectors: dict[str, Tensor],
) -> list[Score]:
    grid = int(patches.shape[1] ** 0.5)
    boxes: list[Tensor] = []
    places: dict[str, list[int]] = defaultdict(list)
    for of_image, of_image_regions, truth in zip(patches.unflatten(1, (grid, grid)), regions, truths, strict=True):
        for region in of_image_regions:
            left, top, right, bottom = region_cells(region.box, truth.shape, grid)
            places[region.name].append(len(boxes))
            boxes.append(F.normalize(of_image[top:bottom, left:right].flatten(0, 1).mean(0), dim=0))
    relevant = [np.array(places[name]) for name in vectors]
    found_at = ranks(torch.stack(list(vectors.values())), torch.stack(boxes), relevant)
    scores = retrieval_scores(f"{split}/phrase_grounding", found_at, relevant, len(boxes), np.arange(len(relevant)))
    return [score for score in scores if score.name.endswith(("R@1", "R@10", "MRR"))]


def region_cells(box: tuple[int, ...], shape: tuple[int, ...], grid: int) -> tuple[int, int, int, int]:
    """The patches that a box covers: left, top, right, bottom in patches, at least one."""
    height, width = shape
    left, right = (round(edge * grid / width) for edge in box[::2])
    top, bottom = (round(edge * grid / height) for edge in box[1::2])
    left, top = min(left, grid - 1), min(top, grid - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def plot(inputs: TaskInputs) -> Panels:
    """Images, the masks of their objects, and the name that is most similar at every pixel of an object."""
    corpus = inputs.corpus
    rows, examples = inputs.test_examples(EXAMPLES)
    patches = _patch_vectors(inputs.method, inputs.processor, [example["image"] for example in examples])
    lines = []
    for row, vectors in zip(rows.tolist(), patches, strict=True):
        regions, truth = _objects(corpus, row) or ([], np.zeros((1, 1), dtype=np.uint8))
        if not regions:
            continue
        names = list(dict.fromkeys(region.name for region in regions))
        texts = embed(inputs.method, inputs.processor, text=names)["text"]
        given = np.where(truth > 0, segment(vectors, texts, *truth.shape).numpy() + 1, 0)
        numbers = np.array([0, *(names.index(region.name) + 1 for region in regions)])
        legend = [(name, f"C{number % 10}") for number, name in enumerate(names)]
        maps = [_map_panel(one, title) for one, title in ((numbers[truth], "mask"), (given, "prediction"))]
        image = value_panel(corpus, row, corpus.column_with(Image))
        lines.append([image, *maps, text_panel(legend)])
    lines = lines or [[text_panel(["no object in a mask"])]]
    return Panels(lines, "Segmentation by the similarity of patches and names", (1, 1, 1, 1.2))


def _map_panel(names: Int[np.ndarray, "height width"], title: str) -> Panel:
    """The name of every pixel by its color; 0 is white."""

    def draw(axes: Any) -> None:
        axes.imshow(np.ma.masked_equal(np.where(names > 0, (names - 1) % 10 + 1, 0), 0), cmap="tab10", vmin=1, vmax=10)
        axes.set(xticks=[], yticks=[])

    return Panel(draw, title)


task = Task(
    capability=CanEncodePatches,
    requires=((Image, Mask),),
    order=80,
    score=lambda inputs: inputs.over_test_splits(grounding_scores),
    metrics={"mIoU": MetricKind(), "accuracy": MetricKind(), "R@*": MetricKind(), "MRR": MetricKind()},
    plot=plot,
    headline=("segmentation/mIoU", "pointing_game/accuracy", "phrase_grounding/R@1"),
    forward_methods=("embed", "encode_patches"),
)
