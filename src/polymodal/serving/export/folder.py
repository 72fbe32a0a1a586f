"""Common parts of exports: the folder is written atomically, verified against the run, and has a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polymodal.encoders.pretrained import hub_answers
from polymodal.errors import UserError, unknown, write_errors
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.recipes.dual_encoders._base import DualEncoder
from polymodal.serving.export.language_model import language_to_transformers
from polymodal.serving.export.model_card import write_card
from polymodal.serving.export.onnx import to_onnx
from polymodal.serving.export.sentence_transformers import to_sentence_transformers
from polymodal.serving.export.transformers import to_transformers
from polymodal.training import Run
from polymodal.training.folder_lock import writes

TOLERANCE = 1e-4  # maximum difference between the embeddings or logits of a run and of its export

# Exporters by type of method; each writes into a folder and returns a description and the maximum difference.
FORMATS: dict[str, dict[type, Callable[[Run, Path], tuple[str, float]]]] = {
    "transformers": {DualEncoder: to_transformers, VisionLanguageModel: language_to_transformers},
    "onnx": {DualEncoder: to_onnx},
    "sentence-transformers": {DualEncoder: to_sentence_transformers},
}
KINDS = {DualEncoder: "dual encoders", VisionLanguageModel: "language models that see"}


@dataclass(frozen=True)
class Export:
    """Result of an export. difference: maximum difference between the outputs of the run and of the export."""

    folder: Path
    what: str
    difference: float


@writes("out")
def export(run: Run, to: str, out: Path, command: str = "") -> Export:
    """Export a run to another library's format. command: for the model card.

    Raises UserError for an unknown format, a method with no export, an existing folder, a missing package, or an export
    whose outputs differ from the run's by more than 1e-4.
    """
    named = out
    if to not in FORMATS:
        raise unknown("format to export to", to, FORMATS)
    write = next((write for kind, write in FORMATS[to].items() if isinstance(run.model, kind)), None)
    if write is None:
        known = " and ".join(KINDS[kind] for kind in FORMATS[to])
        raise UserError(f"The method of '{run.name}' cannot be exported to {to} so far; {known} can.")
    if isinstance(run.model, DualEncoder) and (reason := run.model.missing_export()):
        raise UserError(reason)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another folder, or remove it.")
    out = Path(os.path.realpath(out))  # a link to an empty folder stays a link
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = out.with_name(f".{out.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)  # of an export that was killed
        partial = aside / "export"
        partial.mkdir(parents=True)
        try:
            with torch.inference_mode(False), torch.no_grad():
                what, difference = write(run, partial)
            if not difference <= TOLERANCE:
                raise UserError(
                    f"The export would differ from the run by {difference:.1e}, more than {TOLERANCE:.0e}; nothing was "
                    "written. Please report this."
                )
            write_card(run, partial, to, what, difference, command)
            if out.is_dir():
                out.rmdir()
            os.replace(partial, out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Export(named, what, difference)


def push(folder: Path, name: str) -> str:
    """Upload an export to the hub; return its address. Raises UserError when that fails."""
    from huggingface_hub import HfApi

    again = f"{folder} is written; to upload it, run: hf auth login, then: hf upload {name} {folder}"
    if not hub_answers():
        raise UserError(f"The hub cannot be reached. {again}.")
    api: Any = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from polymodal")
    except Exception as error:  # of the hub's library and of two libraries below it
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"It was not uploaded as '{name}' ({why}). {again}.") from error
    return str(address)
