"""What a recipe of an attack does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from polymodal.corpora.corpus import Corpus


@runtime_checkable
class Attack(Protocol):
    """What a recipe of an attack does: images and captions that a method takes for strangers."""

    def fit(self, corpus: Corpus, language: str | None, seed: int = 0) -> Any:
        """What it must know beforehand, such as a language model. language: of the captions."""
        ...

    def attack(
        self, method: Any, processor: Any, learned: Any, pixels: Tensor, captions: list[list[str]], seed: int = 0
    ) -> tuple[Tensor, list[list[str]]]:
        """Changed images on the scale 0-1, and changed captions of each."""
        ...
