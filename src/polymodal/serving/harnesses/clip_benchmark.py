"""CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark at 48de38c1) on runs, and on exports to transformers.

Its command with the model type `polymodal`, where --pretrained names folders of runs or exports:

    python -m polymodal.serving.harnesses.clip_benchmark eval --pretrained runs/pairs --dataset flickr30k ...
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch

from polymodal.errors import UserError
from polymodal.serving.harnesses.embedders import load_embedder

MODEL_TYPE = "polymodal"
OUTPUT = "{dataset}_{pretrained_full_path}_{language}_{task}.json"
WEIGHTS = "model.safetensors"
TRUST = "--trust-code"  # a flag of this command, not of CLIP_benchmark's


def load(
    model_name: str,
    pretrained: str,
    cache_dir: str | None = None,
    device: str | torch.device = "cpu",
    trust_code: bool = False,
) -> tuple[Any, Any, Any]:
    """Return the model, the transform of its images and its tokenizer: an entry of `clip_benchmark.models.TYPE2FUNC`.

    model_name: is not used; a run knows its method. pretrained: the folder of a run or export, or a file in it.
    cache_dir: a folder that a relative path is below. trust_code: see `load_embedder`. Raises UserError for a run
    without embeddings of images and texts.
    """
    embedder = load_embedder(Path(cache_dir or ".") / pretrained, device, trust_code)
    if len(embedder.kinds) < 2:
        raise UserError(f"The run '{embedder.name}' does not embed both images and texts, which CLIP_benchmark needs.")
    return embedder.model, embedder.transform, embedder.tokenizer


def arguments(given: list[str]) -> list[str]:
    """Complete the arguments of CLIP_benchmark's command: the model type, a name, and a name of the output file.

    Folders become their files of weights, because CLIP_benchmark makes the name of the output of what it is given, and
    only that of a file is one without slashes.
    """
    if given[:1] != ["eval"]:
        return given
    completed = [str(Path(word) / WEIGHTS) if (Path(word) / WEIGHTS).is_file() else word for word in given]
    for flag, value in (("--model_type", MODEL_TYPE), ("--model", MODEL_TYPE), ("--output", OUTPUT)):
        if not any(word == flag or word.startswith(f"{flag}=") for word in given):
            completed += [flag, value]
    return completed


def register(trust_code: bool = False) -> None:
    """Add the model type to CLIP_benchmark. Raises UserError where it is not installed."""
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise UserError(
            f"CLIP_benchmark cannot be imported ({error}); install it: pip install clip-benchmark"
        ) from error
    models.TYPE2FUNC[MODEL_TYPE] = functools.partial(load, trust_code=trust_code)
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)


def main() -> int:
    """Run CLIP_benchmark's command with the model type `polymodal`."""
    try:
        register(TRUST in sys.argv)
        from clip_benchmark import cli

        sys.argv[1:] = arguments([word for word in sys.argv[1:] if word != TRUST])
        cli.main()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
