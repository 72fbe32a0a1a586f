"""What images are generated from: a class, words, or both."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from polymodal.modalities.text import Tokens
from polymodal.types import Example


class ConditionBatch(TypedDict, total=False):
    """Conditions of generated images, whichever there are. label_shown, text_shown: False where dropped (CFG)."""

    label: Int[Tensor, " batch"]
    text: Tokens
    label_shown: Bool[Tensor, " batch"]
    text_shown: Bool[Tensor, " batch"]


def conditions(
    processor: Any, examples: list[Example], generators: list[np.random.Generator] | None = None
) -> ConditionBatch:
    """Collate labels and texts of examples, whichever the processor has.

    generators: sample a caption of each, in place of the first.
    """
    given: dict[str, list[Any]] = {}
    if processor.label is not None:
        given["label"] = [example["label"] for example in examples]
    if processor.text is not None and generators is None:
        given["text"] = [example["text"][0].text for example in examples]
    elif processor.text is not None:
        drawn = zip(examples, generators or (), strict=True)
        given["text"] = [processor.text.sample_caption(example["text"], generator) for example, generator in drawn]
    return processor(**given)
