"""The two files that a reader starts with run, and say what the library says."""

from __future__ import annotations

import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import polymodal as pm

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.mark.parametrize("name", ["train_clip", "own_method"])
@pytest.mark.usefixtures("emoji_is_small")
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "2"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "R@10" in said
    assert "chance" in said


def test_an_example_is_read_at_one_sitting() -> None:
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 62, file.name


def test_the_loop_of_the_example_learns() -> None:
    import train_clip

    recipe = replace(train_clip.clip.Recipe(), batch_size=48)
    model, reader = train_clip.train(pm.corpora.emoji(), recipe, steps=40)
    found, chance = train_clip.recall(model, reader)
    assert found > 1.5 * chance


def test_the_loss_of_the_own_method_is_the_formula() -> None:
    from own_method import uniformity

    vectors = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = [(-2 * (vectors[i] - vectors[j]).square().sum()).exp() for i in range(5) for j in range(i)]
    torch.testing.assert_close(uniformity(vectors), torch.stack(pairs).mean().log())


def test_the_own_method_is_a_recipe_of_the_command_line(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from polymodal import cli

    monkeypatch.setattr(sys, "argv", ["polymodal", "train", str(EXAMPLES / "own_method.py"), "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert re.search(r"--uniformity-weight", capsys.readouterr().out)
