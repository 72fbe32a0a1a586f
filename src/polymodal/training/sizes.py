"""Sizes of recipes: `--size tiny|small|base|large`, and the size that suits the data and the machine.

tiny: the defaults of a recipe, which train in a minute on two cores. small, base: encoders as in `encoders.sizes`,
plain fields as in the recipe's `size_fields`; what kind of encoder it is (pooling, causal attention, patches) is at
`small` that of the defaults, at `base` that of the paper. large: the paper's preset, as `--paper`.

The learning rate of small and base is that of the defaults times (default width / new width), of the encoder that grows
most: with Adam, the update of a matrix grows with the number of its inputs (muP, Yang et al. 2022, table 3). muP leaves
the rates of vectors and embeddings as they are; here one factor is for all parameters. A recipe may state another rate.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from polymodal.corpora.corpus import Corpus
from polymodal.encoders.pretrained import HUB
from polymodal.encoders.size_names import SIZES, Size, check_size
from polymodal.encoders.sizes import is_resizable, resized
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Image, Images, Video
from polymodal.training.recipe_record import recipe_from_record
from polymodal.training.run import RECORD, read_record

SAMPLED_IMAGES = 16
MAX_TINY_SIDE = 64  # px: images up to this side are icons, larger ones photographs
MIN_SMALL_ROWS = 100  # training examples
MIN_BASE_ROWS = 10_000
MIN_SMALL_ROWS_WITHOUT_IMAGES = 1000


def sized(recipe: Any, size: Size | str) -> Any:
    """Return a recipe at a size. recipe: class, or an instance, whose values other than the defaults are kept.

    Raises UserError for an unknown size, and for `large` of a recipe without a preset of its paper.
    """
    kind = recipe if isinstance(recipe, type) else type(recipe)
    preset = _preset(kind, check_size(size))
    return preset if recipe is kind else _kept(recipe, kind(), preset)


def _preset(kind: type[Any], size: Size) -> Any:
    default = kind()
    if size == "tiny":
        return default
    if size == "large":
        if not hasattr(kind, "paper"):
            raise UserError("This recipe has no preset of a paper, which size large is; take base.")
        return kind.paper()
    start = kind.paper() if size == "base" and hasattr(kind, "paper") else default
    plain = getattr(kind, "size_fields", {}).get(size, {})
    changes = {name: resized(value, size) for name, value in _parts(start)} | plain
    larger = dataclasses.replace(default, **changes)
    if "optimizer" in plain or not hasattr(default, "optimizer"):
        return larger
    rate = default.optimizer.learning_rate * learning_rate_factor(default, larger)
    return dataclasses.replace(larger, optimizer=dataclasses.replace(default.optimizer, learning_rate=rate))


def _parts(recipe: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a recipe that configure parts with a width, by name."""
    for field in dataclasses.fields(recipe):
        if is_resizable(value := getattr(recipe, field.name)):
            yield field.name, value


def learning_rate_factor(default: Any, larger: Any) -> float:
    """Return the smallest ratio of widths, default to larger, over the transformers of a recipe."""
    pairs = [(value, getattr(larger, name)) for name, value in _parts(default)] + [(default, larger)]
    widths = [
        (before.width, after.width)
        for before, after in pairs
        if hasattr(before, "width") and hasattr(before, "num_heads") and hasattr(after, "width")
    ]
    return min((before / after for before, after in widths), default=1.0)


def _kept(given: Any, default: Any, preset: Any) -> Any:
    """Return the preset with the values of `given` that differ from the defaults, also within configurations."""
    if given == default:
        return preset
    alike = type(given) is type(default) is type(preset)
    if not alike or not dataclasses.is_dataclass(given) or isinstance(given, type):
        return given
    values = {
        field.name: _kept(*(getattr(one, field.name) for one in (given, default, preset)))
        for field in dataclasses.fields(given)
        if field.init
    }
    return dataclasses.replace(preset, **values)


def size_of(recipe: Any) -> Size | None:
    """Return the size whose architecture a recipe has; None where it is of no size."""
    for size in SIZES:
        with suppress(UserError):
            if _architecture(sized(type(recipe), size)) == _architecture(recipe):
                return size
    return None


def _architecture(recipe: Any) -> dict[str, Any]:
    """Return what depends on the size, without what belongs to the optimization."""
    plain = {name for fields in getattr(type(recipe), "size_fields", {}).values() for name in fields}
    return dict(_parts(recipe)) | {name: getattr(recipe, name) for name in plain - {"batch_size", "optimizer"}}


def is_published(kind: type[Any]) -> bool:
    """Return whether a recipe is of this package; the values of a user's own are not replaced unasked."""
    return kind.__module__.startswith("polymodal.recipes.")


class SizeChoice(NamedTuple):
    """A size, and why it is the one, in a few words; '' where the user named it."""

    size: Size
    reason: str


def choose_size(
    corpus: Corpus,
    device: str | None = None,
    init: Path | str | None = None,
    out: Path | str | None = None,
    trust_code: bool = False,
) -> SizeChoice:
    """Return the size that suits data and machine. device: by default a GPU, when there is one.

    Built-in corpora, icons and less than a hundred examples: tiny. On a CPU: small; on a GPU and with ten thousand
    examples: base. A run to start from (`init`), or that goes on in `out`, has its size already.
    """
    begun = out if out is not None and (Path(out) / RECORD).is_file() else init
    if begun is not None and not str(begun).startswith(HUB):
        return SizeChoice(_size_of_run(Path(begun), trust_code), f"as in {begun}")
    if corpus.choices.keys() & {"corpus", "parts"}:
        return SizeChoice("tiny", "a built-in corpus")
    streamed = bool(corpus.choices.get("stream"))
    rows = len(corpus.rows("train"))
    count = "streamed examples" if streamed else f"{rows:,} examples"
    if rows < MIN_SMALL_ROWS and not streamed:
        return SizeChoice("tiny", f"only {count}")
    sides = _image_sides(corpus, streamed)
    side = statistics.median(sides) if sides else 0
    if sides and side <= MAX_TINY_SIDE:
        return SizeChoice("tiny", f"images of {side:.0f} px")
    if not sides and rows < MIN_SMALL_ROWS_WITHOUT_IMAGES and not streamed:
        return SizeChoice("tiny", f"only {count}")
    data = f"images of {side:.0f} px" if sides else count
    if not (torch.cuda.is_available() and (device is None or device.startswith("cuda"))):
        return SizeChoice("small", f"{data} on a CPU")
    if rows < MIN_BASE_ROWS and not streamed:
        return SizeChoice("small", f"{count} on a GPU")
    return SizeChoice("base", f"{data} on a GPU")


def _size_of_run(directory: Path, trust_code: bool) -> Size:
    """Return the size of a run's recipe; tiny where it is of no size, or no run, of which training says more."""
    with suppress(UserError):
        return size_of(recipe_from_record(read_record(directory)["recipe"], directory, trust_code)) or "tiny"
    return "tiny"


def _image_sides(corpus: Corpus, streamed: bool) -> list[int]:
    """Return the shorter sides of a few training images, or frames of clips, in pixels."""
    name = next((name for name, kind in corpus.columns.items() if isinstance(kind, Image | Images | Video)), None)
    if name is None:
        return []
    rows = corpus.rows("train")[:SAMPLED_IMAGES] if streamed else corpus.sample("train", SAMPLED_IMAGES)
    sides = []
    for row in rows:
        with suppress(UnreadableExample, OSError):
            sides.append(_shorter_side(corpus.value(int(row), name)))
    return sides


def _shorter_side(value: Any) -> int:
    """Return the shorter side of an image, of the first of several, or of a clip's frames."""
    first = value[0] if isinstance(value, list) else value
    if hasattr(first, "frames"):
        first = first.frames
    return min(first.size) if hasattr(first, "mode") else min(first.shape[-3:-1])
