"""A run: the trained method with everything that is needed to use it, and its folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from typing_extensions import TypeVar

from polymodal.corpora.corpus import Corpus
from polymodal.data.processor import Processor
from polymodal.errors import UnreadableExample, UserError, read_errors, unusable, write_errors
from polymodal.files import written_aside
from polymodal.notebook import html_table
from polymodal.training.checkpoint import save_weights
from polymodal.training.checkpoint_reading import load_weights
from polymodal.training.embedding_inputs import as_list
from polymodal.training.parallel import register_forward_methods
from polymodal.training.recipe_file import save_user_recipe
from polymodal.training.recipe_record import recipe_from_record
from polymodal.training.run_files import ADVICE, RECORD, load_processor, read_entries, read_record, save_processor
from polymodal.training.training_rows import TRAINING_ROWS, save_training_rows
from polymodal.types import Batch

WEIGHTS, HISTORY, SKIPPED = "model.safetensors", "history.jsonl", "skipped.jsonl"

MethodT_co = TypeVar("MethodT_co", bound=nn.Module, covariant=True, default=nn.Module)


@dataclass
class Run(Generic[MethodT_co]):
    """Result of training, and of `load_run`.

    model: the trained method, of the class that the recipe builds. directory: None for a run that is in memory alone.
    record: configuration, state (`running`, `interrupted`, `finished`) and cost. history: one entry per logged step,
    with step, examples, seconds, learning rate, losses and validation metrics. trained_corpus: the data of
    training; None for a run that was loaded.
    """

    recipe: Any
    model: MethodT_co
    processor: Processor
    record: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    directory: Path | None = None
    trained_corpus: Corpus | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.directory.name if self.directory else self.record["recipe"]["name"]

    def __repr__(self) -> str:
        kept = f", kept in {self.directory}" if self.directory else ""
        steps = self.record.get("steps", 0)
        return f"{self.record['recipe']['name']}: {self.record['state']} after {steps:,} steps{kept}"

    def _repr_html_(self) -> str:
        corpus, last = self.record.get("corpus", {}), self.history[-1] if self.history else {}
        data = corpus.get("corpus") or corpus.get("data", "")
        losses = ", ".join(f"{name} {value:.3f}" for name, value in last.get("losses", {}).items())
        facts = {
            "state": self.record.get("state", ""),
            "data": data if isinstance(data, str) else ", ".join(map(str, data)),
            "budget": self.record.get("budget", ""),
            "steps": f"{self.record.get('steps', 0):,}",
            "parameters": f"{self.record.get('parameters', 0):,}",
            "losses": losses,
            "folder": self.directory or "",
        }
        rows = [(name, value) for name, value in facts.items() if value]
        return html_table(f"{self.record['recipe']['name']}, {type(self.model).__name__}", (), rows)

    def embed(self, batch_size: int = 256, **columns: Any) -> dict[str, Tensor]:
        """Embed images, texts and what else the method takes, L2-normalized.

        `run.embed(text="a red fruit", image=["apple.png", photo])`: a single value or a list; images are paths, bytes,
        Pillow images or arrays (height x width x 3, uint8) of any size. Raises UserError when the method has no
        embedding, no column is named, or a value is of a wrong kind or cannot be read.
        """
        if not columns or not isinstance(batch_size, int):
            raise UserError("Name what is embedded: run.embed(text=[...]) or run.embed(image=[...]).")
        if not hasattr(self.model, "embed"):
            raise UserError(f"The run '{self.name}' cannot embed: its method has no `embed`.")
        values = {name: as_list(name, given) for name, given in columns.items()}
        try:
            return embed(self.model, self.processor, batch_size, **values)
        except UnreadableExample as error:
            raise unusable(error) from error

    def save(self, path: Path | str) -> Path:
        """Save the run into a new folder, from which `load_run` loads it; returns the folder.

        A run that was in memory alone is kept there from now on. Raises UserError for a folder that holds anything, or
        that cannot be written.
        """
        folder = Path(path)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder} is there already; save the run into a new folder.")
        aside = folder.with_name(f".{folder.name}.partial")
        with write_errors(folder):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            try:
                save_user_recipe(self.recipe, aside)
                self.record["checksums"] = save_processor(self.processor, aside)
                copy = Run(self.recipe, self.model, self.processor, self.record, self.history, aside)
                if self.directory is not None and (self.directory / TRAINING_ROWS).is_file():
                    shutil.copyfile(self.directory / TRAINING_ROWS, aside / TRAINING_ROWS)
                elif self.trained_corpus is not None:
                    save_training_rows(self.trained_corpus, aside)
                copy.save_result()
                copy.save_record()
                if folder.exists():
                    folder.rmdir()
                os.replace(aside, folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        self.directory = self.directory or folder
        return folder

    @property
    def _folder(self) -> Path:
        if self.directory is None:
            raise UserError("This run is in memory alone; keep it with run.save(PATH), or train with out=PATH.")
        return self.directory

    def save_record(self) -> None:
        """Save the record. Raises UserError, as all of these, for a run without a folder."""
        write_json(self._folder / RECORD, self.record)

    def save_result(self) -> None:
        """Save the final weights and the history."""
        save_weights(self.model.state_dict(), self._folder / WEIGHTS)
        self.save_history()

    def save_skipped(self, skipped: Mapping[str, str]) -> None:
        """Save the list of unreadable examples. skipped: the reason for each key."""
        lines = [json.dumps({"key": key, "reason": reason}) for key, reason in sorted(skipped.items())]
        write_text(self._folder / SKIPPED, "".join(f"{line}\n" for line in lines))

    def save_history(self) -> None:
        """Save the history."""
        write_text(self._folder / HISTORY, "".join(json.dumps(entry) + "\n" for entry in self.history))


def embed(method: Any, processor: Processor, batch_size: int = 256, **columns: list[Any]) -> dict[str, Tensor]:
    """Embed the values of each column, in batches; results are on the CPU."""
    vectors = {}
    for column, values in columns.items():
        parts = answers(method, processor, "embed", {column: values}, batch_size)
        vectors[column] = torch.cat([part[column] for part in parts])
    return vectors


def answers(
    method: Any,
    processor: Processor,
    capability: str,
    columns: Mapping[str, list[Any]],
    batch_size: int = 256,
    **options: Any,
) -> list[Any]:
    """Call a capability of the method on all columns, batch by batch; results are on the CPU.

    options: further arguments of the capability. Not in inference mode, as FSDP2 writes again in training into the
    tensors that it gathers here.
    """
    register_forward_methods(method, (capability,))
    device = next(method.parameters()).device
    count = len(next(iter(columns.values())))
    found = []
    with evaluating(method), torch.no_grad():
        for start in range(0, count, batch_size):
            some = {name: values[start : start + batch_size] for name, values in columns.items()}
            answer = getattr(method, capability)(to_device(processor(**some), device), **options)
            found.append(tree_map_only(Tensor, Tensor.cpu, answer))
    return found


@contextmanager
def evaluating(method: nn.Module) -> Iterator[nn.Module]:
    """Set evaluation mode inside the block, and restore the mode afterwards."""
    was_training = method.training
    try:
        yield method.eval()
    finally:
        method.train(was_training)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move tensors and Tokens of a batch to the device."""
    return {name: value.to(device) for name, value in batch.items()}


def write_text(path: Path, text: str) -> None:
    """Write a temporary file and rename it, so that readers never see a partial file."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load_run(directory: Path | str, trust_code: bool = False) -> Run:
    """Load a finished run.

    trust_code: whether code that the run contains or names may be executed although it was not used for training on
    this machine; it can do whatever you can. Raises UserError for a missing or unfinished run, or untrusted code.
    """
    directory = Path(directory)
    record = read_record(directory)
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"The run {directory} has not finished; go on with: polymodal resume {directory}")
    recipe = recipe_from_record(record["recipe"], directory, trust_code)
    processor = load_processor(record, recipe, directory)
    with read_errors(directory / RECORD, ADVICE):  # of values that no method can be built with
        model = recipe.build(processor)
    load_weights(model, directory / WEIGHTS)
    model.eval()
    return Run(recipe, model, processor, record, read_entries(directory / HISTORY), directory)
