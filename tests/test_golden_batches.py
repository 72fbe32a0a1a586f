"""Batches of every kind of column, held to those that were made before recipes declared columns."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pytest
import torch
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Tensor

import polymodal as pm
from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.modalities import Audio, Category, Image, Images, Points, Questions, Text, Video
from polymodal.modalities.audio import encoded as encoded_sound
from polymodal.modalities.image import encoded as encoded_image
from polymodal.modalities.modality import to_npy
from polymodal.modalities.video import encode as encode_video
from polymodal.rng import ExampleRNG
from typed_batches import batch_type, check_batch

CHOICES: dict[str, dict[str, Any]] = {"ulip_2": {"text_source": "names"}, "alpro": {"use_pem": False}}
GOLDEN = Path(__file__).parent / "golden" / "batches.json"
ROWS = 4
TEXTS = ["a red apple", "two cats and a bus"]


def first_captions(examples: list[Any]) -> list[str]:
    return [example["text"][0].text for example in examples]


# The recipe, its corpus, the batches that its stages learn from, and what evaluations ask its processor for.
CASES: dict[str, tuple[str, str, tuple[str, ...], Callable[[list[Any]], list[dict[str, list[Any]]]]]] = {
    "clip": (
        "dual_encoders.clip",
        "emoji",
        ("training_batch",),
        lambda e: [{"image": [one["image"] for one in e]}, {"text": first_captions(e)}],
    ),
    "siglip": ("dual_encoders.siglip", "scenes", ("training_batch",), lambda e: [{"text": TEXTS}]),
    "sparc": ("dual_encoders.sparc", "emoji", ("training_batch",), lambda e: []),
    "improved_clip": ("dual_encoders.improved_clip", "emoji", ("training_batch",), lambda e: []),
    "tip": (
        "science.tip",
        "solar_cells",
        ("training_batch", "labelled_batch"),
        lambda e: [{name: [one[name] for one in e] for name in ("image", "table", "label")}],
    ),
    "imm": (
        "generation.inductive_moment_matching",
        "emoji",
        ("training_batch",),
        lambda e: [{"text": TEXTS}],
    ),
    "imm_digits": (
        "generation.inductive_moment_matching",
        "digits",
        ("training_batch",),
        lambda e: [{"label": [one["label"] for one in e]}],
    ),
    "dgvae": (
        "recommendation.dgvae",
        "viewers",
        ("training_batch",),
        lambda e: [{"history": [np.array([0, 3]), np.array([5])]}],
    ),
    "layoutlmv3": (
        "documents.layoutlmv3",
        "documents",
        ("image_batch", "training_batch", "token_classification_batch"),
        lambda e: [{"words": [one["words"][:20] for one in e]}],
    ),
    "ulip_2": (
        "three_d.ulip_2",
        "things",
        ("image_batch", "training_batch"),
        lambda e: [
            {"points": [one["points"] for one in e], "text": TEXTS},
            {"image": [one["views"][0] for one in e]},
            {"views": [one["views"] for one in e]},
        ],
    ),
    "mslam": (
        "speech_audio.mslam",
        "things",
        ("training_batch", "ctc_finetuning_batch"),
        lambda e: [{"sound": [one["sound"] for one in e if "sound" in one], "text": TEXTS}],
    ),
    "gradient_harmonization": (
        "optimization.gradient_harmonization",
        "things",
        ("training_batch",),
        lambda e: [{"video": [one["video"] for one in e], "sound": [one["sound"] for one in e]}],
    ),
    "alpro": (
        "video.alpro",
        "things",
        ("paired_batch", "training_batch", "finetuning_batch"),
        lambda e: [
            {"video": [one["video"] for one in e], "question": TEXTS, "answer": ["none", "cup"]},
            {"box": [(0.1, 0.2, 0.5, 0.9)]},
        ],
    ),
    "simvg": (
        "grounding.simvg",
        "referring",
        ("caption_batch", "training_batch"),
        lambda e: [{"expressions": [each["expressions"][0].boxes for each in e], "text": TEXTS}],
    ),
    "mono_internvl": (
        "language_models.mono_internvl",
        "scenes",
        ("text_batch", "concept_batch", "semantic_batch", "task_batch", "training_batch"),
        lambda e: [
            {"image": [one["image"] for one in e], "question": TEXTS * 2},
            {"image": [one["image"] for one in e], "question": TEXTS * 2, "begun": ["yes", ""] * 2},
            {"image": [one["image"] for one in e], "answer": TEXTS * 2},
            {"answer": TEXTS},
        ],
    ),
    "moma": (
        "any_to_any.moma",
        "scenes",
        ("image_batch", "training_batch"),
        lambda e: [{"text": TEXTS}, {"document": [["before", e[0]["image"], "after"]]}],
    ),
}


def numbers_in(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a batch by its path."""
    if isinstance(value, torch.Tensor):
        yield name, value.detach().numpy()
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from numbers_in(value[key], f"{name}.{key}")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers_in(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, list | tuple) and not all(isinstance(one, str) for one in value):
        for number, one in enumerate(value):
            yield from numbers_in(np.asarray(one) if isinstance(one, list) else one, f"{name}.{number}")
    elif isinstance(value, np.ndarray):
        yield name, value
    else:
        assert isinstance(value, int | float | str | list | tuple | type(None)), (name, type(value))


def digest(batch: dict[str, Any]) -> dict[str, list[float]]:
    """Of every tensor its shape, its mean, and its mean beside two fixed series of weights."""
    found = {}
    for name, values in numbers_in(batch, "batch"):
        flat = values.astype(np.float64).ravel()
        place = np.arange(len(flat))
        parts = [flat, flat * np.cos(place), flat * np.cos(0.37 * place + 1)]
        found[name] = [*values.shape, *(float(part.mean()) if len(flat) else 0.0 for part in parts)]
    return found


def things() -> Corpus:
    """Noise of every kind: points, views, film, sound, and what is said and asked of them."""
    rng, rows = np.random.default_rng(0), []
    for number in range(12):
        frames = rng.integers(0, 256, (6, 40, 56, 3), dtype=np.uint8)
        images = [encoded_image(PILImage.fromarray(frame)) for frame in frames[:3]]
        name = ("cup", "lamp", "bus")[number % 3]
        rows.append(
            {
                "points": to_npy(rng.normal(size=(50 + number, 6)).astype(np.float32)),
                "views": images,
                "image": images[0],
                "video": encode_video(frames, 8),
                "sound": encoded_sound(rng.normal(0, 0.1, 8000 + 400 * number).astype(np.float32), 16_000),
                "captions": [{"text": f"a {name} number {number}", "language": "en"}],
                "questions": [{"question": "which?", "answer": name, "kind": "name", "rationale": ""}],
                "category": name,
            }
        )
    return Corpus(
        about=About("things", "things", "none", "here", ("points", "video", "audio", "text")),
        table=pa.Table.from_pylist(rows),
        columns={
            "points": Points(),
            "views": Images(),
            "image": Image(),
            "video": Video(6),
            "sound": Audio(16_000),
            "captions": Text(),
            "questions": Questions(),
            "category": Category(("cup", "lamp", "bus")),
        },
        splits={"train": np.arange(8), "validation": np.arange(8, 10), "test": np.arange(10, 12)},
        label="category",
    )


def few(name: str) -> Corpus:
    if name == "things":
        return things()
    corpus = getattr(pm.corpora, name)()
    return corpus.with_splits({split: rows[:48] for split, rows in corpus.splits.items()})


def batches(recipe: Any, processor: Any, corpus: Corpus, case: str) -> dict[str, dict[str, list[float]]]:
    _, _, makers, asked = CASES[case]
    _, examples = Reader(corpus, processor).read_all(corpus.rows("train")[:ROWS])
    assert len(examples) == ROWS
    made = {name: getattr(recipe, name)(examples, processor, ExampleRNG.of(0, 0, ROWS)) for name in makers}
    for name, batch in made.items():
        check_batch(batch, batch_type(recipe, name))
    made |= {f"asked {number}": processor(**values) for number, values in enumerate(asked(examples))}
    return {name: digest(batch) for name, batch in made.items()}


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_before(case: str, tmp_path: Path) -> None:
    module, name, *_ = CASES[case]
    recipe = importlib.import_module(f"polymodal.recipes.{module}").Recipe(**CHOICES.get(case, {}))
    corpus = few(name)
    processor = fit_processor(recipe, corpus)
    golden = json.loads(GOLDEN.read_text())[case]
    processor.save(tmp_path)
    for one in (processor, Processor.load(tmp_path, recipe.columns())):
        found = batches(recipe, one, corpus, case)
        assert found.keys() == golden.keys()
        for batch, tensors in golden.items():
            assert found[batch].keys() == tensors.keys(), batch
            for tensor, numbers in tensors.items():
                np.testing.assert_allclose(found[batch][tensor], numbers, rtol=1e-6, atol=1e-6, err_msg=tensor)


class Pairs(TypedDict):
    image: Float[Tensor, "batch 3 size size"]
    group: NotRequired[Int[Tensor, " batch"]]


@pytest.mark.parametrize(
    ("batch", "fault"),
    [
        ({"image": torch.zeros(2, 3, 4, 4), "group": torch.zeros(2, dtype=torch.long)}, None),
        ({"image": torch.zeros(2, 3, 4, 4)}, None),
        ({"group": torch.zeros(2, dtype=torch.long)}, "Pairs"),  # a key is missing
        ({"image": torch.zeros(2, 3, 4, 4), "label": torch.zeros(2)}, "Pairs"),  # a key too many
        ({"image": torch.zeros(2, 3, 4, 5)}, "image"),
        ({"image": torch.zeros(2, 3, 4, 4), "group": torch.zeros(3, dtype=torch.long)}, "group"),
        ({"image": torch.zeros(2, 3, 4, 4), "group": torch.zeros(2)}, "group"),
    ],
)
def test_batches_that_are_not_as_declared_are_found(batch: dict[str, Any], fault: str | None) -> None:
    if fault is None:
        check_batch(batch, Pairs)
    else:
        with pytest.raises(AssertionError, match=fault):
            check_batch(batch, Pairs)
