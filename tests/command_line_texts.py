"""What the command line says of all recipes, options and corpora, as JSON: `read` from sources, or `imported`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import sys
from typing import Any

from polymodal import recipes, source
from polymodal.cli import main
from polymodal.corpora import registry

COMMANDS = {"security": "attack", "metrics": "score", "data_curation": "curate"}  # by family; the others are trained


def help_of(*words: str) -> str:
    sys.argv = ["polymodal", *words, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()


def texts() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in recipes.entries().items():
        command = COMMANDS.get(entry.family, "train")
        words = [command, name] if command == "train" else [command, name, "X"]
        published = dataclasses.asdict(recipes.stand_in(name).paper())
        found[f"recipe {name}"] = [help_of(*words), published, recipes.describe(name)]
    for command in ("resume", "ask", "serve", "caption", "sample-preferences"):
        found[f"command {command}"] = help_of(command)
    found |= {f"corpus {name}": dataclasses.asdict(about) for name, about in registry.built_in().items()}
    return found


if __name__ == "__main__":
    if sys.argv[1] == "imported":
        recipes.stand_in = recipes.find
        source.find = lambda module, name: getattr(importlib.import_module(module), name)
    said = texts()
    print(json.dumps({"torch": "torch" in sys.modules, "texts": said}))
