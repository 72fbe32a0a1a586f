"""CSV files in the encodings in which spreadsheets write them."""

from __future__ import annotations

import gzip

import pytest

from format_samples import written_images
from polymodal.corpora import Corpus, from_path
from polymodal.errors import UserError
from polymodal.modalities import Text

CAPTIONS = ["café", "Müller – the “big” one", "señor, with\na second line", "naïve", *["a dog", "a cat"] * 4]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def lines(delimiter: str = ",", heading: str = "image") -> str:
    pairs = [f'{number}.png{delimiter}"{text}"' for number, text in enumerate(CAPTIONS)]
    return "\r\n".join([f"{heading}{delimiter}caption", *pairs])


def texts(corpus: Corpus) -> list[str]:
    column = corpus.column_with(Text)
    return [corpus.value(row, column)[0].text for row in range(len(corpus))]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("cp1252", "is not in UTF-8 and is read as Windows-1252: 'café' in line 2"),
        ("utf-16", "is read as UTF-16"),
    ],
)
def test_encodings_of_spreadsheets(encoding, note, suffix, tmp_path):
    written_images(tmp_path)
    content = lines("\t" if suffix == ".tsv" else ",").encode(encoding)
    (tmp_path / f"pairs{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    for _ in range(2):  # the second time from the cache
        corpus = from_path(tmp_path / f"pairs{suffix}")
        assert texts(corpus) == CAPTIONS
        assert [one for one in corpus.notes if "read as" in one] == ([f"pairs{suffix} {note}."] if note else [])


def test_utf16_of_either_byte_order(tmp_path):
    written_images(tmp_path)
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        (tmp_path / "pairs.csv").write_bytes(mark + lines(";").encode(encoding))
        assert texts(from_path(tmp_path / "pairs.csv")) == CAPTIONS


def test_headings_in_windows_1252(tmp_path):
    written_images(tmp_path)
    rows = [f"{number}.png,thing {number}" for number in range(12)]
    (tmp_path / "pairs.csv").write_bytes("\n".join(["image,légende", *rows]).encode("cp1252"))
    assert from_path(tmp_path / "pairs.csv", text="légende").column_with(Text) == "légende"


def test_metadata_beside_images_in_windows_1252(tmp_path):
    written_images(tmp_path)
    (tmp_path / "metadata.csv").write_bytes(lines(heading="file_name").encode("cp1252"))
    corpus = from_path(tmp_path)
    assert texts(corpus) == CAPTIONS
    assert any("metadata.csv is not in UTF-8 and is read as Windows-1252" in one for one in corpus.notes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "a,é\n".encode() + "b,é\n".encode("cp1252"),
            r"has lines in UTF-8 \(line 2\) and others that are not \(.* line 3\)",
        ),
        (
            "a,é\n".encode("cp1252") + "b,é\n".encode(),
            r"has lines in UTF-8 \(line 3\) and others that are not \(.* line 2\)",
        ),
        ("a,кошка\nb,собака\n".encode("cp1251"), r"is not in UTF-8; save it as UTF-8 \(as Windows-1252 it would have"),
        ("a,ネコがいる\n".encode("shift-jis"), "is not in UTF-8; save it as UTF-8"),
        ("a,猫在这里\n".encode("gbk"), "is not in UTF-8; save it as UTF-8"),
        (b"a,\x81\n", "line 2 is not in Windows-1252, either"),
    ],
)
def test_other_encodings_are_a_sentence(content, sentence, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,caption\n" + content)
    with pytest.raises(UserError, match=sentence):
        from_path(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfea\0,\0b\0\n\0x", "begins as UTF-16 does, and is damaged"),
        ("text,caption\na,b\n".encode("utf-32"), "is in UTF-32; save it as UTF-8"),
        ("text,caption\na,b\n".encode("utf-16-le"), "is in UTF-16 without a byte order mark, or no text"),
        ("text,caption\na,b\n".encode("utf-16-be"), "is in UTF-16 without a byte order mark, or no text"),
    ],
)
def test_damaged_utf16_is_a_sentence(content, sentence, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        from_path(tmp_path / "a.csv")
