"""Corpora that polymodal wrote, damaged on the disk."""

import json

import pytest

import synthetic
from polymodal.corpora import digits
from polymodal.corpora._cache import cache_directory
from polymodal.corpora.sources import from_path
from polymodal.errors import UserError


def test_a_damaged_built_in_corpus_names_the_command_that_mends_it(tmp_path, monkeypatch):
    digits()
    whole = next((cache_directory() / "corpora").glob("digits-*")) / "digits.arrow"
    content = whole.read_bytes()
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    copy = tmp_path / "corpora" / whole.parent.name / whole.name
    copy.parent.mkdir(parents=True)
    for damaged in (content[: len(content) // 2], b"", None):
        copy.unlink(missing_ok=True)
        if damaged is not None:
            copy.write_bytes(damaged)
        with pytest.raises(UserError, match="corpora remove digits"):
            digits()


@pytest.mark.parametrize("change", [{"columns": {}, "label": "none"}, {"label": ["a"]}, {"about": 3}, {"columns": []}])
def test_a_saved_corpus_with_another_description_is_damaged(change, tmp_path):
    synthetic.corpus(tmp_path / "corpus")
    description = tmp_path / "corpus" / "corpus.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    with pytest.raises(UserError, match="is damaged"):
        from_path(tmp_path / "corpus")
    description.write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        from_path(tmp_path / "corpus")


def test_a_folder_named_like_a_built_in_corpus_is_what_a_path_opens(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.csv").write_text("text\n" + "\n".join(f"thing {n}" for n in range(30)))
    monkeypatch.chdir(tmp_path)
    assert len(from_path("digits")) == 30
