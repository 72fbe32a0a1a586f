"""Studies of scale: comparisons at several budgets read together; and the alignment of pairs by a frozen scorer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polymodal.corpora.corpus import Corpus
from polymodal.curation.alignment import alignment_scores
from polymodal.recipes.dual_encoders import siglip
from polymodal.reproduce.scaling import scaling_study
from polymodal.training import train
from polymodal.types import Budget


def test_alignment_is_the_similarity_of_each_pair(corpus: Corpus) -> None:
    run = train(siglip.Recipe.tiny(), corpus, Budget(steps=1))
    some = corpus.rows("train")[[5, 2]]
    expected = []
    for row in some:
        example = corpus[int(row)]
        image = run.embed(image=[example["image"]])["image"]
        texts = run.embed(text=[caption.text for caption in example["text"]])["text"]
        expected.append(float((texts @ image.T).mean()))
    assert alignment_scores(run, corpus, some) == pytest.approx(expected, abs=1e-5)


def test_a_study_of_scale_on_files(tmp_path: Path, polymodal: Callable[..., Any]) -> None:
    def result(examples: int, errors: dict[str, float]) -> dict[str, Any]:
        metrics = {f"test/m{n}/R@10": {arm: 1 - error - n / 100 for arm, error in errors.items()} for n in range(6)}
        metrics["test/m/tail_minus_head/R@10"] = dict.fromkeys(errors, 0.1)
        return {
            "seeds": [0],
            "arms": dict.fromkeys(errors),
            "runs": [{"arm": arm, "examples": examples} for arm in errors],
            "scores": {
                name: {
                    "higher_is_better": True,
                    "unit": "percent",
                    "arms": {a: {"by_seed": {"0": v}} for a, v in of.items()},
                }
                for name, of in metrics.items()
            },
        }

    for examples in (400, 100, 1600, 6400):
        (folder := tmp_path / str(examples)).mkdir()
        errors = {"n": 0.3 + examples**-0.5, "10n": 0.2 + examples**-0.5}
        (folder / "results.json").write_text(json.dumps(result(examples, errors)))
    folders = [str(tmp_path / str(examples)) for examples in (400, 100, 1600, 6400)]
    study = scaling_study(folders)
    assert study.examples["n"] == (100, 400, 1600, 6400)
    assert len(study.errors) == 6
    assert study.fits["test/m0/R@10"]["10n"].eps.value == pytest.approx(0.2, abs=1e-3)
    assert study.fits["test/m0/R@10"]["n"].c.value == pytest.approx(0.5, abs=1e-2)
    assert study.steps[0].p_value == pytest.approx(2 / 2**6)
    assert study.steps[0].gains["test/m0/R@10"] == pytest.approx((-0.1, 0.1 / 0.3125))
    done = polymodal("scaling", *folders, "--out", "scaling.json")
    assert done.returncode == 0, done.stderr
    assert "Wilcoxon's p = 0.0312 over 6 metrics" in done.stdout
    assert json.loads((tmp_path / "scaling.json").read_text())["arms"] == ["n", "10n"]
    for arguments, message in (
        (["no"], "no holds no finished comparison; make one with"),
        ([folders[0], "--metrics", "x"], "No metric of all comparisons fits x"),
        ([], "Usage: polymodal scaling"),
    ):
        wrong = polymodal("scaling", *arguments)
        assert wrong.returncode == 2
        assert message in wrong.stderr
