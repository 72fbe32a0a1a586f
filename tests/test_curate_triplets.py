"""The command that describes images without paired text."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PILImage

import polymodal as pm
from polymodal.cli import main
from polymodal.modalities import Text

COLORS = {"cyst": (30, 60, 210), "nodule": (200, 30, 30)}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of images for each label, each with a square on a pale ground."""
    for name, ink in COLORS.items():
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(12):
            image = PILImage.new("RGB", (40, 30), (225, 225, 225))
            image.paste(ink, (number, 2 * (number % 5), number + 9, 2 * (number % 5) + 9))
            image.save(tmp_path / "scans" / name / f"{number}.png")
    (tmp_path / "facts.txt").write_text("A cyst is a sac\nA nodule is a growth\n", encoding="utf-8")
    return tmp_path / "scans"


def test_labelled_images_become_triplets_and_mistakes_end_in_a_sentence(
    scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["polymodal", "curate", "medtrinity", *words])
            main()

    out, facts = str(scans.with_name("triplets")), ("--knowledge", str(scans.with_name("facts.txt")))
    run(str(scans), "--modality", "CT scan", "--structure", "the lung", "--label-questions", *facts, "--out", out)
    assert "described by the writer (B1)" in capsys.readouterr().out
    triplets = pm.corpora.from_path(out)
    texts = [triplets.value(row, triplets.column_with(Text))[0].text for row in range(len(triplets))]
    assert len(texts) == 24
    assert all("This is a CT scan. Structure: The structure is the lung. It shows a " in text for text in texts)
    # The query has no label, which is asked for, and the facts have no word in common with what is left of it.
    assert not any("sac" in text or "growth" in text for text in texts)
    run(str(scans), *facts, "--out", str(scans.with_name("informed")))
    informed = pm.corpora.from_path(scans.with_name("informed"))
    assert all(
        ("is a sac." in text, "is a growth." in text) == ("a cyst" in text, "a nodule" in text)
        for text in (informed.value(row, "description")[0].text.lower() for row in range(len(informed)))
    )
    bad = {
        ("nowhere",): "no file or folder nowhere",
        (str(scans), "--modlity", "CT"): "--modlity",
        (str(scans), "--knowledge", "nowhere.txt"): "nowhere.txt",
        (str(scans), "--retriever", "runs/clip"): "--knowledge",
        (str(scans), "--instruct-fraction", "0.5"): "--captioner",
    }
    for words, message in bad.items():
        with pytest.raises(SystemExit) as stopped:
            run(*words, "--out", str(scans.with_name("none")))
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not scans.with_name("none").exists()
