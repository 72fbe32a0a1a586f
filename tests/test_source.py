"""Stand-ins that are made from sources: they show what the imported classes show, and become them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from polymodal import recipes, source
from polymodal.cli import comparing
from polymodal.corpora import registry
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip
from polymodal.training import RuntimeConfig

OWN = '''
"""Mine."""
from dataclasses import dataclass, replace
from typing import Literal

import sizes_of_mine
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.encoders.image import ImageEncoderConfig
from polymodal.constraints import PositiveInt
from polymodal.recipes.dual_encoders import clip as start

DOUBLE = 2 * 3
Kind = Literal["a", "b"]
Vectors = Float[Tensor, "batch dim"]
log = start.__name__


def names(vectors: Vectors = torch.zeros(0)) -> Vectors:
    return torch.zeros(DOUBLE)


def half() -> int:
    return DOUBLE // 2


@dataclass(frozen=True)
class Tower:
    sizes: tuple[int, ...] = tuple(DOUBLE * step for step in (1, 2))
    """Of the layers."""

    @classmethod
    def large(cls) -> "Tower":
        return replace(cls(), sizes=(half(),))


@dataclass(frozen=True)
class Recipe(start.Recipe):
    number: PositiveInt = DOUBLE
    """How many."""
    kind: Kind = "b"
    tower: Tower = Tower.large()
    image: ImageEncoderConfig = ImageEncoderConfig(width=DOUBLE)

    @torch.no_grad()
    def build(self, processor: Tensor, dtype=torch.float32) -> Vectors:
        return names()


@dataclass(frozen=True)
class Other(Recipe):
    size: int = sizes_of_mine.LARGE + torch.zeros(5).numel()
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sizes_of_mine", raising=False)
    (tmp_path / "sizes_of_mine.py").write_text("LARGE = 7")
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path / "mine.py"


def texts(*ways: str) -> list[Mapping[str, Any]]:
    """What `command_line_texts.py` finds in each way, at the same time."""
    program = str(Path(__file__).with_name("command_line_texts.py"))
    running = [subprocess.Popen([sys.executable, program, way], stdout=subprocess.PIPE, text=True) for way in ways]
    return [json.loads(process.communicate()[0]) for process in running]


def test_help_and_listings_from_sources_are_those_of_the_imported_classes() -> None:
    read, imported = texts("read", "imported")
    assert (read["torch"], imported["torch"]) == (False, True)
    assert len(read["texts"]) == len(recipes.entries()) + 5 + len(registry.names()) > 50
    assert all("usage: polymodal" in said[0] for name, said in read["texts"].items() if name.startswith("recipe"))
    assert read["texts"] == imported["texts"]


def test_the_stand_in_of_a_users_file_has_its_fields_and_becomes_its_recipe(own: Path) -> None:
    stand_in = recipes.stand_in(str(own))
    assert stand_in.__module__ == "mine (source)"
    assert hasattr(stand_in, "build")
    real = recipes.find(str(own))
    values, expected = dataclasses.asdict(stand_in()), dataclasses.asdict(real())
    assert values == expected
    assert values["tower"] == {"sizes": (3,)}
    made = source.real(stand_in(number=9, kind="a"))
    assert type(made).__module__.startswith("polymodal_own_recipe_mine")
    assert isinstance(made, clip.Recipe)
    assert (made.number, made.kind, made.tower.sizes) == (9, "a", (3,))
    assert type(made.tower).__module__ == type(made).__module__


def test_a_users_file_is_read_without_torch(own: Path) -> None:
    program = "import sys; from polymodal import recipes; kind = recipes.stand_in(sys.argv[1]); "
    program += "print(kind().tower.sizes, hasattr(kind, 'build'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(own)], capture_output=True, text=True, check=False)
    assert done.stdout == "(3,) True False\n", done.stderr


def test_what_is_not_readable_is_imported(own: Path) -> None:
    stand_in = recipes.stand_in(f"{own}:Other")
    assert stand_in.__module__.startswith("polymodal_own_recipe_mine")
    assert stand_in().size == 12


@pytest.mark.parametrize(
    ("line", "expected"),
    [("x = undefined", "NameError"), ("def f(:", "SyntaxError"), ("class Recipe(undefined): pass", "NameError")],
)
def test_a_file_that_does_not_import_says_so(own: Path, line: str, expected: str) -> None:
    own.write_text(f"{OWN}\n{line}\n")
    with pytest.raises(UserError, match=f"does not import: {expected}"):
        source.real(recipes.stand_in(str(own))())


def test_a_preset_that_is_not_readable_is_imported(own: Path) -> None:
    method = "    @classmethod\n    def paper(cls):\n        return cls(number=sizes_of_mine.LARGE)\n"
    own.write_text(OWN.replace("    @torch.no_grad()", f"{method}\n    @torch.no_grad()"))
    stand_in = recipes.stand_in(str(own))
    with pytest.raises(source.NotReadable):
        stand_in.paper()
    assert comparing._recipe_with_flags(f"{own} --paper").number == 7


def test_flags_of_a_users_file_reach_its_recipe(own: Path) -> None:
    made = comparing._recipe_with_flags(f"{own} --number 4 --tower.sizes 5 6 --image.width 32")
    assert (made.number, made.tower.sizes, made.image.width) == (4, (5, 6), 32)
    with pytest.raises(UserError, match="--number is at least 1"):
        comparing._recipe_with_flags(f"{own} --number 0")


def test_real_replaces_stand_ins_and_nothing_else() -> None:
    file = Path(source.__file__).parent / "training" / "runtime.py"
    own = source.Source("polymodal.training.runtime", file, lambda: sys.modules["polymodal.training.runtime"])
    stand_in = own["RuntimeConfig"](num_threads=3, precision="bfloat16")
    assert type(stand_in) is not RuntimeConfig
    assert source.real(stand_in) == RuntimeConfig(num_threads=3, precision="bfloat16")
    assert source.real((stand_in, 1)) == (RuntimeConfig(num_threads=3, precision="bfloat16"), 1)
    recipe = clip.Recipe()
    assert source.real(recipe) is recipe
    with pytest.raises(UserError, match="is no interval"):
        own["RuntimeConfig"](save_interval="soon")


def test_a_name_that_statements_bind_in_several_ways_is_not_readable(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    lines = ["a = 1", "a = 2", "b = 1", "b += 1", "for c in (1, 2): pass", "d = a", "e: int"]
    file.write_text("\n".join([*lines, "f, g = 1, 2", "h = [one for one in 'xy']"]))
    found = source.Source("m", file, lambda: None)
    for name in "abcde":
        with pytest.raises(source.NotReadable):
            found[name]
    assert (found["f"], found["g"], found["h"]) == (1, 2, ["x", "y"])
    with pytest.raises(source.NotReadable):
        found["z"]
    assert not hasattr(found.module, "z")
