"""Pretrained encoders: parts that all modalities share. A source is a folder, or a name on the Hugging Face hub.

The architecture is recorded in the recipe, so a run can be reopened without the source; weights are loaded when
training begins (`training/initialization.py`).
"""

from __future__ import annotations

import inspect
import json
import os
import socket
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from polymodal.errors import UserError, needs

HUB = "hf:"  # prefix of a source on the command line
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")  # architecture, tokenizer and preprocessing
WEIGHTS = ("*.safetensors",)


def source_name(source: str) -> str:
    """Return NAME of 'hf:NAME'. Raises UserError for a source without the prefix."""
    if not source.startswith(HUB) or source == HUB:
        raise UserError(f"'{source}' is no pretrained model; write hf:NAME, a name on the hub, or hf:PATH, a folder.")
    return source.removeprefix(HUB)


def transformers() -> Any:
    """Import transformers when a pretrained model is first used. Raises UserError when it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise needs("transformers", "hub", "A pretrained model") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def folder_of(name: str, patterns: Iterable[str] = SETTINGS) -> Path:
    """Return the folder with these files of a pretrained model. Raises UserError when there is none, or no network."""
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else _downloaded(name, tuple(patterns))


@cache
def _downloaded(name: str, patterns: tuple[str, ...]) -> Path:
    """Download files to the hub's cache, once per process."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    reachable = hub_answers()
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=not reachable))
    except GatedRepoError as error:
        raise UserError(f"'{name}' is gated; accept its license on its page and log in with: hf auth login.") from error
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        why = "nor a public model on the hub" if reachable else "nor in the cache, and the hub cannot be reached"
        raise UserError(f"'{name}' is neither a folder {why}.") from error


@cache
def hub_answers() -> bool:
    """Return whether the hub is reachable within seconds; the hub's library alone would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout=5):
            return True
    except OSError:
        return False


def read_configuration(name: str) -> Any:
    """Read the configuration of a pretrained model. Raises UserError when transformers does not know its type."""
    folder = folder_of(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"'{name}' is no model that transformers wrote (it has no config.json).")
    try:
        return transformers().AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "of no named type")
        raise UserError(f"'{name}' is a model of a type that this transformers does not know: {kind}.") from error


def configuration_from(settings: Mapping[str, Any]) -> Any:
    """Rebuild a configuration from the settings that a recipe recorded."""
    values = dict(settings)
    return transformers().AutoConfig.for_model(values.pop("model_type"), **values)


def settings_of(configuration: Any) -> dict[str, Any]:
    """Return the settings of a configuration that a recipe records; JSON values only."""
    settings = json.loads(configuration.to_json_string(use_diff=True))
    for name in ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype"):
        settings.pop(name, None)
    return settings | {"model_type": configuration.model_type}


@dataclass(frozen=True)
class PretrainedConfig:
    """Fields of a pretrained encoder's configuration in addition to those of its modality."""

    source: str = ""
    """Folder, or name on the hub."""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Architecture, as in the source's config.json."""


class PretrainedModel(nn.Module):
    """A transformers model as a part of a method; subclasses adapt its input and output."""

    def __init__(self, source: str, settings: Mapping[str, Any], class_name: str, part: str = ""):
        """Build the architecture.

        class_name: transformers class, an Auto class where the configuration determines it. part: submodule that is
        used, by default the whole model.
        """
        super().__init__()
        self.source = source
        configuration = configuration_from(settings)
        library = transformers()
        model_class = getattr(library, class_name)
        if hasattr(model_class, "_model_mapping"):
            model_class = model_class._model_mapping[type(configuration)]
        takes_pooling = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        options = {"add_pooling_layer": False} if takes_pooling else {}  # a pooler that no loss would train
        # `_from_config` is what AutoModel calls: it chooses the attention implementation, too.
        model = model_class._from_config(configuration, **options)
        self.model = model.get_submodule(part)
        self.kind, self.part, self.options = model_class, part, options

    def load_pretrained(self) -> None:
        """Load the pretrained weights. Raises UserError when the source lacks weights that this class needs."""
        folder = folder_of(self.source, (*SETTINGS, *WEIGHTS))
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"'{self.source}' has no .safetensors file; its weights cannot be read safely.")
        named = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
        named |= {"use_safetensors": True, "trust_remote_code": False}  # no pickles, and no code of the source
        try:
            loaded, report = self.kind.from_pretrained(folder, config=self.model.config, **named, **self.options)
            if self._lacking(report):  # a class that cannot load from a checkpoint of the full model
                full_model, report = transformers().AutoModel.from_pretrained(folder, **named)
                loaded = next((part for part in full_model.modules() if type(part) is self.kind), loaded)
            weights = loaded.get_submodule(self.part).state_dict()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"The weights of '{self.source}' cannot be read ({type(error).__name__}).") from error
        if lacking := self._lacking(report):
            kind = self.kind.__name__
            raise UserError(f"'{self.source}' does not fit {kind}: no weights of its shape are there for {lacking[0]}.")
        self.model.load_state_dict(weights)

    def _lacking(self, report: Mapping[str, Any]) -> list[str]:
        """Return the names of weights that were missing, or had another shape."""
        names = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
        return sorted(name for name in names if name.startswith(self.part))

    def add_lora(self, rank: int, name: str, targets: tuple[str, ...]) -> int:
        """Add peft's LoRA (Hu et al. 2021) to the linear layers whose full names match; return how many there are.

        name: of this module in the method. Raises UserError when peft is not installed.
        """
        from transformers.pytorch_utils import Conv1D

        targets_found = [
            module_name
            for module_name, module in self.model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and any(fnmatchcase(f"{name}.model.{module_name}", pattern) for pattern in targets)
        ]
        if targets_found:
            try:
                from peft import LoraConfig, inject_adapter_in_model
            except ImportError as error:
                raise needs("peft", "hub", "--lora-rank for a pretrained model") from error
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets_found), self.model)
        return len(targets_found)

    def merge_lora(self) -> None:
        """Merge the LoRA updates into the weights, and restore the plain layers."""
        for name, module in list(self.model.named_modules()):
            if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
                module.merge()
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module.get_base_layer())


def pretrained_weights(name: str) -> dict[str, Tensor]:
    """Load all tensors of a pretrained model: a folder, a name on the hub, or a file of torch.save.

    Raises UserError when there are none.
    """
    if Path(name).is_file() and not name.endswith(".safetensors"):
        return _checkpoint_tensors(Path(name))
    if Path(name).is_file():
        return read_tensors(Path(name))
    folder = folder_of(name, (*SETTINGS, *WEIGHTS))
    tensors = {
        key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in read_tensors(path).items()
    }
    if not tensors:
        raise UserError(f"'{name}' has no .safetensors file; its weights cannot be read safely.")
    return tensors


def _checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights in a file of torch.save, without executing code that it contains."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read safely; save its weights as safetensors.") from error
    nested = [value for value in checkpoint.values() if isinstance(value, Mapping)] if checkpoint else []
    state = max(nested, key=len, default=checkpoint)  # beside the state of an optimizer and the like
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} has no weights.")
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises UserError when it is not one."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"{path} cannot be read as safetensors weights ({type(error).__name__}).") from error
