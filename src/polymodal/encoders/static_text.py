"""Static text embeddings: means of fixed token vectors, for words and short phrases, without a network."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Float
from safetensors.numpy import load

from polymodal.corpora._packages import PyPIPackage, fetch, members

PACKAGE = PyPIPackage(
    "wordllama",
    "0.4.0.post1",
    "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
    19_155_170,
    file="wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    platform="manylinux2014_x86_64",
)


class StaticText:
    """Token vectors distilled from the input embeddings of language models (WordLlama, 256 dimensions)."""

    def __init__(self, vectors: Float[np.ndarray, "vocabulary dim"], tokenizer: tokenizers.Tokenizer):
        self.vectors = vectors
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # a text that names a special token is ordinary text

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Return L2-normalized embeddings; that of an empty text is zero."""
        embeddings = np.zeros((len(texts), self.vectors.shape[1]), np.float32)
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for row, encoding in zip(embeddings, encoded, strict=True):
            if encoding.ids:
                row[:] = self.vectors[encoding.ids].mean(0)
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)


@functools.cache
def static_text(wanted_by: str) -> StaticText:
    """Load WordLlama's vectors, downloading them once (19 MB). Raises UserError without network."""
    files = dict(
        members(fetch(PACKAGE, wanted_by), lambda name: name.endswith((".safetensors", "tokenizer_config.json")))
    )
    weights = next(data for name, data in files.items() if name.endswith(".safetensors"))
    tokenizer = next(data for name, data in files.items() if name.endswith(".json"))
    vectors = load(weights)["embedding.weight"].astype(np.float32)
    return StaticText(vectors, tokenizers.Tokenizer.from_str(tokenizer.decode()))
