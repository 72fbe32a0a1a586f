"""LayoutLMv3 of a size for tests, with four patches a side."""

from __future__ import annotations

import dataclasses

from polymodal.recipes.documents import layoutlmv3

TINY = dataclasses.replace(
    layoutlmv3.Recipe.tiny(),
    encoder=dataclasses.replace(layoutlmv3.Recipe.tiny().encoder, patch_size=8),
    batch_size=16,
)
PATCHES = TINY.encoder.grid**2
