"""MTEB (github.com/embeddings-benchmark/mteb, version 2) on runs, and on exports to transformers.

mteb.evaluate(MtebEncoder("runs/pairs"), mteb.get_tasks(tasks=["Flickr30kT2IRetrieval"]))
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.serving.harnesses.embedders import Embedder, load_embedder


class MtebEncoder:
    """An encoder of images and texts, as `mteb.models.models_protocols.EncoderProtocol` describes it."""

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        trust_code: bool = False,
        **_: Any,
    ):
        """model_name: the folder of a run or export. revision: is not used; the weights give it. trust_code: see
        `load_embedder`."""
        self.embedder: Embedder = load_embedder(model_name, device, trust_code)

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> Float[np.ndarray, "inputs dim"]:
        """Embed batches of texts, of images, or of both; of both, it is the normalized sum.

        inputs: a DataLoader of `{"text": [...], "image": [...]}`. There are no prompts: texts are embedded as they are.
        Raises UserError for inputs of which the run embeds nothing.
        """
        embed: dict[str, Any] = {"text": self.embedder.embed_texts, "image": self.embedder.embed_images}
        parts: list[torch.Tensor] = []
        for batch in inputs:
            kinds = [kind for kind in self.embedder.kinds if kind in batch]
            if not kinds:
                raise UserError(
                    f"'{self.embedder.name}' embeds {' and '.join(self.embedder.kinds)}, and this task has "
                    f"{', '.join(batch)}."
                )
            vectors = torch.stack([embed[kind](batch[kind]) for kind in kinds])
            parts.append(F.normalize(vectors.sum(0), dim=-1))
        return torch.cat(parts).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[torch.Tensor, "one other"]:
        """Return the cosine similarity of each with each."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[torch.Tensor, " pairs"]:
        """Return the cosine similarity of each pair."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    @functools.cached_property
    def mteb_model_meta(self) -> Any:
        """What MTEB records of the model. The revision is a hash of the weights, so that results of other weights under
        the same name are not taken for its own."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        parameters = sum(one.numel() for one in self.embedder.model.parameters())
        return ModelMeta(
            loader=type(self),
            name=f"polymodal/{self.embedder.name}",
            revision=self._revision(),
            release_date=None,
            languages=None,
            n_parameters=parameters,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=None,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
            modalities=list(self.embedder.kinds),
        )

    def _revision(self) -> str:
        digest = hashlib.sha256()
        for file in sorted(self.embedder.weights):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:40]


def _unit(embeddings: Any) -> Float[torch.Tensor, "*batch dim"]:
    vectors = torch.as_tensor(embeddings).float()
    return F.normalize(vectors, dim=-1)
