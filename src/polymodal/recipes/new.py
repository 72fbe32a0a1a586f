"""`polymodal new`: the file of a user's own method, short, commented, and ready to run."""

from __future__ import annotations

import keyword
from pathlib import Path

from polymodal.errors import UserError, unknown
from polymodal.files import written_aside
from polymodal.recipes import entries

STARTING_POINT = '''"""{title}: say here in one line what your method does.

Run it:  polymodal compare {source} ./{name}.py --corpus emoji --budget 25s
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from polymodal.data.processor import Processor
from polymodal.recipes.{family} import {source} as start
from polymodal.types import Batch


class {title}(start.{method}):
    """{method} with your idea. Its towers are `self.image_encoder` and `self.text_encoder`; `embed` gives vectors."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.weight = recipe.uniformity
        # More layers (nn.Module) or parameters (nn.Parameter) of your own go here.

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses, already weighted; the trainer adds them up and shows each by its name.

        batch["image"]: pixels (batch, 3, size, size); batch["text"]: Tokens with ids (batch, length) and lengths.
        """
        losses = super().losses(batch)
        # Your idea goes here. The example spreads the images over the sphere (Wang and Isola 2020, equation 2).
        distance = F.pdist(self.encode_image(batch["image"]))
        losses["uniformity"] = self.weight * (-2 * distance**2).exp().mean().log()
        return losses


@dataclass(frozen=True)
class Recipe(start.Recipe):
    """Every field is a flag of the command line, and the text below it is its help: --uniformity 0.2."""

    uniformity: float = 0.1
    """Weight of the example loss; 0 is {method}."""

    def build(self, processor: Processor) -> {title}:
        return {title}(self, processor.tokenizer.vocab_size)
'''


def write_starting_point(name: str, source: str, folder: Path = Path()) -> Path:
    """Write NAME.py, a recipe that adds one loss to a dual encoder, or a copy of any other recipe; returns its path.

    Raises UserError for a name that is no Python name, a file that is there already, or an unknown recipe.
    """
    name = name.removesuffix(".py")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot name a method; use letters, digits and _, as in my_method.")
    known = entries()
    if source not in known:
        raise unknown("recipe", source, known)
    path = folder / f"{name}.py"
    if path.exists():
        raise UserError(f"{path} is there already; choose another name, or remove it.")
    entry = known[source]
    title = "".join(part.capitalize() for part in name.split("_"))
    if entry.family == "dual_encoders":
        text = STARTING_POINT.format(name=name, title=title, source=source, family=entry.family, method=entry.method)
    else:
        text = entry.file.read_text(encoding="utf-8").replace('"""', f'"""{title}, a copy of {source} to change. ', 1)
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path
