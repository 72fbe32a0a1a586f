"""The command that pairs the images of documents with texts."""

from __future__ import annotations

from pathlib import Path

import pytest

import polymodal as pm
import test_realsyn
from polymodal.cli import main
from polymodal.corpora import Corpus
from polymodal.modalities import Text
from polymodal.recipes.dual_encoders import clip

documents = test_realsyn.documents


def test_documents_are_paired_and_trained_on_by_commands(
    documents: Path, tmp_path: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    pm.train(clip.Recipe.tiny(), corpus, pm.Budget(steps=2), out=tmp_path / "clip")

    def run(*words: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["polymodal", *words])
            main()

    out, options = str(tmp_path / "pairs"), ("--min-side", "16", "--dedup-similarity", "1.1", "--min-entropy", "0")
    run("curate", "realsyn", str(documents), "--encoder", str(tmp_path / "clip"), "--out", out, *options)
    assert "clean sentences" in capsys.readouterr().out
    pairs = pm.corpora.from_path(out)
    assert {len(pairs.value(row, pairs.column_with(Text))) for row in range(len(pairs))} <= {2, 3, 4}
    of_split = [
        {text.text.rpartition(": ")[2] for row in pairs.rows(split) for text in pairs.value(int(row), "text")}
        for split in pairs.splits
    ]
    assert sum(map(len, of_split)) == len(set.union(*of_split))  # no sentence is in two splits
    assert pm.train(clip.Recipe.tiny(), pairs, pm.Budget(steps=2)).record["state"] == "finished"
    bad = {
        (str(documents),): "Give --encoder RUN",
        (str(documents), "--encoder", "nowhere"): "nowhere",
        ("nowhere", "--encoder", str(tmp_path / "clip")): "no file or folder nowhere",
        (out, "--encoder", str(tmp_path / "clip")): "has no interleaved column",
        (str(documents), "--encoder", str(tmp_path / "clip"), "--min-side", "99"): "too small",
        (str(documents), "--encoder", str(tmp_path / "clip"), "--num-tagz", "3"): "--num-tagz",
    }
    for words, message in bad.items():
        with pytest.raises(SystemExit) as stopped:
            run("curate", "realsyn", *words, "--out", str(tmp_path / "none"))
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if "none" in path.name and path.is_dir()] == []
