"""Help of commands that take a recipe: the data and the command first, then the recipe, then how it is executed."""

import re
import sys

import pytest

from polymodal import cli


@pytest.mark.parametrize("command", ["train", "tune"])
def test_flags_are_in_the_order_in_which_they_are_needed(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["polymodal", command, "clip", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    flags = (
        "--corpus",
        "--data",
        "--vision",
        "--budget",
        "--out",
        "--paper",
        "--embed-dim",
        "--batch-size",
        "--device",
    )
    places = [match.start() for flag in flags if (match := re.search(rf"^\W*{flag}\b", text, re.M))]
    assert len(places) == len(flags)
    assert places == sorted(places)
