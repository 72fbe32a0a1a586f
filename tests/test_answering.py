"""Commands about single images: several of them, folders, broken ones, and questions in the terminal."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image as PILImage

from polymodal.serving.zero_shot import class_probabilities, classify_each
from polymodal.training import load_run


@pytest.fixture
def photos(tmp_path):
    """A folder of images with captions and questions, and one file that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for n in range(60):
        PILImage.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"image{n:02}.png")
        question = {"question": "What is it?", "answer": ("a bowl", "a hat")[n % 2]}
        lines.append({"image": f"image{n:02}.png", "caption": f"a thing {n % 7}", "questions": [question]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = tmp_path / "few"
    few.mkdir()
    for n in (1, 2):
        (few / f"image{n}.png").write_bytes((folder / f"image0{n}.png").read_bytes())
    (few / "broken.jpg").write_text("no image")
    return folder


def trained(polymodal, photos, recipe, *flags):
    words = ("--data", str(photos / "pairs.jsonl"), "--batch-size", "8", "--budget", "2steps", "--out", recipe)
    done = polymodal("train", recipe, *words, *flags)
    assert done.returncode == 0, done.stderr
    return recipe


@pytest.mark.parametrize("recipe", ["clip", "siglip"])
def test_classify_gives_the_method_s_own_probabilities(polymodal, photos, tmp_path, recipe):
    run = trained(polymodal, photos, recipe)
    words = ("--labels", "bowl, hat,house", "--template", "a photo of a {}.")
    done = polymodal("classify", run, "few", *words, "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [record["image"] for record in records] == ["few/broken.jpg", "few/image1.png", "few/image2.png"]
    assert "image" in records[0]["error"].lower()
    assert "polymodal: few/broken.jpg: " in done.stderr
    loaded = load_run(tmp_path / run)
    texts = loaded.embed(text=[f"a photo of a {label}." for label in ("bowl", "hat", "house")])["text"]
    images = loaded.embed(image=[str(tmp_path / "few" / f"image{n}.png") for n in (1, 2)])["image"]
    wanted = loaded.model.zero_shot_probabilities(images, texts).tolist()
    for record, row in zip(records[1:], wanted, strict=True):
        assert [*record["probabilities"]] == ["bowl", "hat", "house"]
        assert [*record["probabilities"].values()] == pytest.approx(row, abs=1e-5)
    shown = polymodal("classify", run, "few/image1.png", *words).stdout.splitlines()
    best = max(records[1]["probabilities"], key=records[1]["probabilities"].get)
    assert shown[1].split()[:2] == ["few/image1.png", best]
    done = polymodal("classify", run, "few/broken.jpg", *words)
    assert (done.returncode, "few/broken.jpg: " in done.stderr) == (2, True)
    for wrong, said in ((("--labels", "bowl"), "two or more"), (("--labels", "a,b", "--template", "x"), "has no {}")):
        done = polymodal("classify", run, "few/image1.png", *wrong)
        assert (done.returncode, said in done.stderr) == (2, True)


def test_without_probabilities_of_its_own_a_method_gets_a_softmax():
    import torch

    vectors = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    rows = class_probabilities(torch.nn.Linear(1, 1), vectors, vectors)
    torch.testing.assert_close(rows.sum(1), torch.ones(4))
    assert rows.argmax(1).tolist() == [0, 1, 2, 3]


def test_ask_names_a_broken_image_and_answers_the_others(polymodal, photos, tmp_path, monkeypatch):
    run = trained(polymodal, photos, "mono_internvl")
    question = ("--question", "What is it?", "--max-new-tokens", "3")
    done = polymodal("ask", run, "few/image1.png", "few/broken.jpg", "few/image2.png", *question, "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert ["text" in record for record in records] == [True, False, True]
    assert "polymodal: few/broken.jpg: " in done.stderr
    assert json.loads(polymodal("ask", run, "few", *question, "--json").stdout)[1]["text"] == records[0]["text"]
    empty = tmp_path / "empty"
    empty.mkdir()
    done = polymodal("ask", run, "empty", *question)
    assert (done.returncode, "has no image and no clip" in done.stderr) == (2, True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\nHow many?\n\n"))
    done = polymodal("ask", run, "few/image1.png", "-i", "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert "each by itself" in lines[0]
    assert records[0]["text"] in done.stdout


def test_a_method_that_cannot_answer_says_so(polymodal, photos, tmp_path):
    run = trained(polymodal, photos, "clip")
    done = polymodal("ask", run, "few")
    assert (done.returncode, "cannot answer" in done.stderr) == (2, True)
    results = classify_each(load_run(tmp_path / run), [str(tmp_path / "few" / "clip.mp4")], ["a", "b"])
    assert "takes no video" in str(results[0])
