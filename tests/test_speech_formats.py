"""Formats of speech data: texts as they are written, splits and speakers as the files state them, nothing run."""

from __future__ import annotations

from pathlib import Path

import pytest

from format_samples import COUNT, SAMPLES, wav
from polymodal.corpora import from_path
from polymodal.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def sizes(corpus) -> dict[str, int]:
    return {split: len(rows) for split, rows in corpus.splits.items()}


def test_ljspeech_has_normalized_texts_and_quotation_marks(tmp_path):
    corpus = from_path(SAMPLES["ljspeech"](tmp_path))
    assert corpus.value(3, "text")[0].text == "thing number 3, really"
    assert corpus.raw(3, "as_written") == '"thing number 3'
    assert corpus.value(3, "audio").shape == (1600,)
    assert sum(sizes(corpus).values()) == COUNT


def test_sounds_that_are_not_there_are_counted(tmp_path):
    SAMPLES["ljspeech"](tmp_path)
    (tmp_path / "wavs" / "LJ001-0005.wav").unlink()
    corpus = from_path(tmp_path)
    assert len(corpus) == COUNT - 1
    assert [(one.count, one.reason) for one in corpus.skipped] == [(1, "names a file that does not exist")]


def test_common_voice_has_languages_and_the_splits_of_its_files(tmp_path):
    corpus = from_path(SAMPLES["common_voice"](tmp_path))
    assert sizes(corpus) == {"train": 8, "validation": 2, "test": 2}
    assert corpus.value(int(corpus.rows("test")[0]), "sentence") == [('"Thing 10', "ga-IE")]


def test_common_voice_without_splits_keeps_speakers_together(tmp_path):
    lines = ["client_id\tpath\tsentence\tlocale"]
    for number in range(40):
        wav(tmp_path / "clips" / f"{number}.mp3", number)
        lines.append(f"speaker{number % 20}\t{number}.mp3\tThing {number}\tga-IE")
    for name in ("validated", "other"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    corpus = from_path(tmp_path)
    assert len(corpus) == 40
    speakers = [{corpus.raw(int(row), "group") for row in rows} for rows in corpus.splits.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 20


def test_kaldi_folders_are_splits(tmp_path):
    corpus = from_path(SAMPLES["kaldi"](tmp_path))
    assert sizes(corpus) == {"train": 8, "test": 4}
    assert sorted(corpus.value(row, "text")[0].text for row in range(COUNT))[0] == "thing number 0"
    assert corpus.value(0, "audio").shape == (1600,)


@pytest.mark.parametrize("command", ["touch {} |", "sph2pipe -f wav a.sph > {} |"])
def test_commands_of_kaldi_are_never_run(command, tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wav.scp").write_text(f"a {command.format(ran)}\n")
    (tmp_path / "data" / "text").write_text("a words\n")
    with pytest.raises(UserError, match="commands in data are not run; write its sounds to files"):
        from_path(tmp_path / "data")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("segments", "a-1 a 0.0 1.0\n", "segments of longer recordings"),
        ("wav.scp", "a /data/raw.ark:123\n", "names the archive"),
        ("wav.scp", "a nothing.wav\n", "None of the 1 sounds"),
        ("wav.scp", "", "None of the 0 sounds"),
    ],
)
def test_what_is_not_read_of_kaldi_is_a_sentence(file, content, sentence, tmp_path):
    wav(tmp_path / "a.wav")
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=sentence):
        from_path(tmp_path)


def test_librispeech(tmp_path):
    corpus = from_path(SAMPLES["librispeech"](tmp_path))
    assert sizes(corpus) == {"train": 8, "validation": 4}
    texts = {corpus.raw(row, "audio"): corpus.value(row, "text")[0].text for row in range(COUNT)}
    assert texts["train-clean-100/100/7/100-7-0002.flac"] == "THING NUMBER 2"
    assert {corpus.raw(row, "group") for row in range(COUNT)} == {"100", "101", "102"}
    half: Path = next(tmp_path.rglob("*.trans.txt"))
    half.write_text(half.read_text()[:-40] + "\n")
    assert len(from_path(tmp_path)) < COUNT or from_path(tmp_path).skipped


def test_ljspeech_without_its_first_sound_and_in_flac(tmp_path):
    SAMPLES["ljspeech"](tmp_path)
    first, second, *_ = sorted((tmp_path / "wavs").iterdir())
    first.unlink()
    second.rename(second.with_suffix(".flac"))
    corpus = from_path(tmp_path)
    assert (corpus.format, len(corpus)) == ("ljspeech", COUNT - 1)
    assert f"wavs/{second.stem}.flac" in corpus.table.column("audio").to_pylist()


def test_names_of_common_voice_without_suffix(tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(12):
        (tmp_path / "clips" / f"c{number}.mp3").write_bytes(b"ID3")
    lines = [f"s{number % 4}\tc{number}\tthing {number}" for number in range(12)]
    (tmp_path / "train.tsv").write_text("\n".join(["client_id\tpath\tsentence", *lines]))
    assert from_path(tmp_path).table.column("audio").to_pylist() == [f"clips/c{number}.mp3" for number in range(12)]
