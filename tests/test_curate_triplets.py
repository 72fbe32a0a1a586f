"""The command that describes images without paired text."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import polymodal as pm
from polymodal.cli import main
from polymodal.corpora.in_memory import from_table
from polymodal.curation.regions_of_interest import connected_components
from polymodal.curation.triplets import write_triplets
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


def test_what_a_users_rows_may_have_or_lack(tmp_path: Path) -> None:
    image = PILImage.new("RGB", (40, 30), (225, 225, 225))
    image.paste((200, 30, 30), (4, 5, 13, 14))
    answers = ["cyst", "cyst", "a cyst"]
    asked = [{"question": "What is it?", "answer": answers, "kind": "global"}]
    unanswered = [{"question": "What is it?", "answer": [], "kind": "global"}]
    box = [{"name": "cyst", "box": [4.5, 5.2, 12.0, 13.9]}]
    rows = [
        {"image": image, "regions": box, "questions": asked},
        {"image": image, "regions": [], "questions": asked},
        {"image": image, "regions": None, "questions": asked},
        {"image": image, "regions": box, "questions": unanswered},
    ]
    corpus = from_table({"train": rows})
    made, counts = write_triplets(corpus, tmp_path / "triplets")
    assert len(made) == 3
    assert [*counts.unreadable.values()] == ["no question has an answer"]
    fields = [made.value(row, "description")[0].text for row in range(3)]
    assert made.value(0, "regions")[0].box == (4, 5, 12, 14)
    assert ["No abnormality is located." in text for text in fields] == [False, True, False]
    assert "The region is at the" in fields[2], "a row without boxes says nothing; what is there is detected"
    assert [*made.value(0, "questions")[0].answers] == answers


def test_a_noisy_image_takes_no_mask_of_every_speck() -> None:
    noise = np.random.default_rng(0).random((700, 700)) < 0.3
    noise[100:150, 200:280] = True
    start = time.process_time()
    [largest] = connected_components(noise, min_pixels=2000)
    assert time.process_time() - start < 3
    assert largest[100:150, 200:280].all()
