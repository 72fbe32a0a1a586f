"""Similarities of texts by a pretrained text encoder, such as CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional as F

from polymodal.encoders.encoder import Encoder
from polymodal.encoders.pretrained import source_name
from polymodal.encoders.pretrained_text import PretrainedTextConfig, PretrainedTextEncoder, PretrainedTokenizer


def text_similarity(source: str, reference: str, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
    """Return the cosines of texts with a reference. source: `hf:NAME` or `hf:PATH`; loaded once.

    Raises UserError for a source that is no text encoder.
    """
    encoder, tokenizer = _loaded(source)
    with torch.no_grad():
        vectors = F.normalize(encoder.pooled(tokenizer([reference, *texts])), dim=-1)
    return (vectors[1:] @ vectors[0]).numpy()


@lru_cache(maxsize=1)
def _loaded(source: str) -> tuple[Encoder, PretrainedTokenizer]:
    config = PretrainedTextConfig.read(source_name(source))
    tokenizer = config.tokenizer([])
    encoder = config.build(tokenizer.vocab_size)
    assert isinstance(encoder, PretrainedTextEncoder)
    encoder.load_pretrained()
    return encoder.eval(), tokenizer
