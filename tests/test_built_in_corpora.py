"""Built-in corpora: packages are read in place, parsers do what they say, and compositions agree with their answers."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest

from corpus_modules import module
from polymodal.corpora._packages import DebianPackage, NpmPackage, PyPIPackage, members
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora._wordnet import definitions
from polymodal.errors import UnreadableExample

# packages


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ar_member(name: str, data: bytes) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)


FILES = {"a/one.txt": b"1", "a/two.bin": b"22"}


def test_files_of_a_debian_package_are_read_without_dpkg(tmp_path):
    data = lzma.compress(tar_of({f"./{name}": data for name, data in FILES.items()}, "w"))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data}
    deb = b"!<arch>\n" + b"".join(ar_member(name, part) for name, part in parts.items())
    (tmp_path / "some.deb").write_bytes(deb)
    assert dict(members(tmp_path / "some.deb")) == FILES
    assert dict(members(tmp_path / "some.deb", lambda name: name.startswith("a/two"))) == {"a/two.bin": b"22"}


def test_files_of_tarballs_and_wheels(tmp_path):
    (tmp_path / "some.tgz").write_bytes(tar_of(FILES, "w:gz"))
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        for name, data in FILES.items():
            wheel.writestr(name, data)
    for archive in ("some.tgz", "some.whl"):
        assert dict(members(tmp_path / archive)) == FILES
        assert dict(members(tmp_path / archive, lambda name: name.endswith(".bin"))) == {"a/two.bin": b"22"}


def test_archives_have_the_names_that_registries_give_them():
    assert NpmPackage("openmoji", "17.0.0", "", 1).archive == "openmoji-17.0.0.tgz"
    assert PyPIPackage("elpv-dataset", "1.0.0", "", 1).archive == "elpv_dataset-1.0.0-py3-none-any.whl"
    assert DebianPackage("wordnet-base", "1:3.0-37", "", 1).archive == "wordnet-base_1%3a3.0-37_all.deb"


def test_a_split_by_hash_has_about_the_shares_that_are_asked_for():
    splits = [split_by_hash(f"page {number}") for number in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)


# parsers


def test_captions_of_stamps():
    text = "A  paw print.\nar.utf8=.أثر مخلب\nzh_CN.utf8=爪印。\nsr@latin.utf8=Trag šape.\nnonsense\nfr.utf8=\n"
    found = {record["language"]: record["text"] for record in module("stamps").parse_captions(text.encode())}
    assert found == {"en": "A paw print.", "ar": "أثر مخلب.", "zh-CN": "爪印。", "sr-Latn": "Trag šape."}


def test_time_series_files():
    text = "# about\n@problemName X\n@classLabel true up down\n@data\n1,2,3:4,5,6:up\n7,8:9,10:down\n"
    labels, found = module("series").parse_ts(text)
    assert labels == ["up", "down"]
    assert [(label, channels.shape) for label, channels in found] == [("up", (2, 3)), ("down", (2, 2))]
    assert found[0][1][1].tolist() == [4, 5, 6]


PAGE = """<html><head><title>4.4. Crop</title></head><body>
<div class="navheader"><p>Prev</p><img src="prev.png"/></div>
<h3 class="title">4.4. Crop</h3>
<p>Text   with <b>bold</b> and <img src="icon.png" alt="an icon"/> an image.</p>
<ul><li>plain item</li><li><p>item in a paragraph</p></li></ul>
<pre>  code
    stays</pre>
<div><p class="title">Figure 1</p><img src="images/tool.png" alt="Crop tool"/></div>
</body></html>"""


def test_pages_of_manuals_are_read_in_order_without_their_navigation():
    pytest.importorskip("selectolax")
    title, pieces = module("manuals").parse_page(PAGE)
    assert title == "4.4. Crop"
    assert pieces == [
        ("heading", "4.4. Crop", None),
        ("paragraph", "Text with bold and an image.", None),
        ("figure", "an icon", "icon.png"),
        ("item", "plain item", None),
        ("paragraph", "item in a paragraph", None),
        ("code", "  code\n    stays", None),
        ("caption", "Figure 1", None),
        ("figure", "Crop tool", "images/tool.png"),
    ]


def test_definitions_of_wordnet(tmp_path):
    license = "  1 This software and database is being provided\n"
    lines = {
        "noun": "00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived  \n",
        "verb": '00001741 29 v 02 breathe 0 take_a_breath 0 000 00 | draw air into the lungs; "breathe!"  \n',
        "adj": "00001742 00 a 01 able(p) 0 000 | having the power to do something  \n",
        "adv": "00001743 02 r 01 well 0 000 | in a good manner  \n",
    }
    files = {f"package/dict/data.{name}": (license + line).encode() for name, line in lines.items()}
    (tmp_path / "wordnet.tgz").write_bytes(tar_of(files, "w:gz"))
    assert list(definitions(tmp_path / "wordnet.tgz")) == [
        ("noun/00001740", "noun", ["entity"], "that which is perceived"),
        ("verb/00001741", "verb", ["breathe", "take a breath"], 'draw air into the lungs; "breathe!"'),
        ("adjective/00001742", "adjective", ["able"], "having the power to do something"),
        ("adverb/00001743", "adverb", ["well"], "in a good manner"),
    ]


def test_functions_without_their_docstring():
    method = 'class A:\n    def f(self, x):\n        """Add one to x."""\n        return x + 1\n'
    source = method + '\n    def g(self):\n        """Too short"""\n'
    ((name, line, code, docstring),) = module("functions").documented_functions(source)
    assert (name, line, docstring) == ("A.f", 2, "Add one to x.")
    assert code == "    def f(self, x):\n        return x + 1"


def test_tables_for_charts_keep_numbers_and_leave_gaps_out():
    table = module("charts").read_table('"","x","kind"\n"1",1,a\n"2",NA,b\n"3",3.5,c\n')
    assert table == {"x": [1.0, 3.5], "kind": ["a", "c"]}


def test_answers_about_a_chart_follow_from_its_table():
    chart = module("charts").Chart("bar", "t", "fruit", "weight", ["apple", "pear", "plum"], [3.0, 9.0, 1.5])
    answers = {record["question"]: record["answer"] for record in module("charts").chart_questions(chart)}
    assert answers["Where is the weight highest?"] == "pear"
    assert answers["Where is the weight lowest?"] == "plum"
    assert answers["What is the weight for apple?"] == "3"
    assert answers["How far apart are the highest and the lowest weight?"] == "7.5"
    assert module("charts").as_table(chart)[1] == {"name": "weight", "values": ["3", "9", "1.5"]}


def test_molecules_are_described_by_their_groups():
    pytest.importorskip("rdkit")
    from polymodal.modalities.molecule import parse_smiles

    molecules = module("molecules")
    aspirin = parse_smiles("CC(=O)Oc1ccccc1C(=O)O")
    values = molecules.computed(aspirin) | {"melting point": 408.0, "boiling point": None}
    text = molecules.describe("aspirin", aspirin, values, drug=True)
    assert text.startswith("aspirin has the formula C9H8O4 and 180 g/mol. It has a carboxylic acid, an ester")
    assert "amide" not in text
    assert text.endswith("It is an approved drug. It melts at 408 K.")


def test_a_nearer_point_hides_a_farther_one():
    surface = np.zeros((2, 9))
    surface[:, :3] = [[0, 0, 1], [0, 0, -1]]  # the camera looks along z from the positive side
    surface[:, 3:6] = [[1, 0, 0], [0, 0, 1]]
    surface[:, 8] = 1
    image = np.asarray(module("furniture").render(surface, 0.0, tilt=0.0, side=8), int)
    middle = image[3:5, 3:5].reshape(-1, 3).mean(axis=0)
    assert middle[0] > middle[2] + 30


# compositions


def test_relations_of_a_scene_agree_with_its_boxes(scenes):
    for row in scenes.rows("test")[:30]:
        boxes = [region.box for region in scenes.value(row, "regions")]
        graph = scenes.value(row, "relations")
        said = {(edge.source, edge.target, edge.relation) for edge in graph.edges}
        for source, one in enumerate(boxes):
            for target, other in enumerate(boxes):
                assert ((source, target, "left of") in said) == (one[2] <= other[0])
                assert ((source, target, "above") in said) == (one[3] <= other[1])


def test_answers_about_a_scene_agree_with_it(scenes):
    for row in scenes.rows("test")[:30]:
        regions, questions = scenes.value(row, "regions"), scenes.value(row, "questions")
        names = {region.name.partition(" ")[2] for region in regions}
        for question in questions:
            if question.kind == "count":
                assert int(question.answer) == len(regions)
            if question.kind == "presence":
                thing = question.question.removeprefix("Is there a ").rstrip("?")
                assert (question.answer == "yes") == (thing in names)
        assert {question.answer for question in questions if question.kind == "relation"} in ({"yes", "no"}, set())


def test_answers_about_things_to_count_agree_with_them():
    kinds, corpus = module("counting").KINDS, module("counting").counting()
    rows = corpus.rows("test").tolist()[:200]
    asked = {}
    for row in rows:
        there = Counter(region.name for region in corpus.value(row, "regions"))
        listed = ", ".join(f"{kind} {there[kind]}" for kind in sorted(there))
        assert corpus.value(row, "caption")[0].text == f"{listed}."
        boxes = np.array([region.box for region in corpus.value(row, "regions")])
        assert len({(box[0] // 32, box[1] // 32) for box in boxes.tolist()}) == len(boxes), "each in a cell of its own"
        for question, answer, kind, working, _ in corpus.value(row, "questions"):
            named = [name for name in kinds if f" {name} " in f" {question[:-1]} "]
            numbers = [there[name] for name in sorted(named, key=question.index)]
            right = {
                "count": lambda: str(sum(there.values())),  # noqa: B023
                "count one": lambda: str(numbers[0]),  # noqa: B023
                "sum": lambda: str(sum(numbers)),  # noqa: B023
                "compare": lambda: "yes" if numbers[0] > numbers[1] else "no",  # noqa: B023
                "presence": lambda: "yes" if numbers[0] else "no",  # noqa: B023
            }[kind]()
            assert answer == right, (question, there)
            asked.setdefault(kind, Counter())[answer] += 1
            if working:
                steps = working.removesuffix(f", so {answer}.").split(", ")
                assert all(there[name] == int(count) for name, count in (step.split() for step in steps))
    assert len(asked) == 5
    assert min(asked["compare"]["yes"], asked["presence"]["no"]) > 50


def test_colors_are_named():
    from PIL import Image

    colors = {"red": (220, 20, 20), "blue": (30, 60, 220), "green": (20, 180, 60), "black": (20, 20, 20)}
    for name, color in colors.items():
        assert module("scenes").color_name(Image.new("RGBA", (8, 8), (*color, 255))) == name


# what a corpus says of itself


def test_missing_values_are_missing_and_not_broken(scenes):
    import dataclasses

    import pyarrow as pa

    table = scenes.table.slice(0, 3)
    place = table.column_names.index("long")
    table = table.set_column(place, table.schema.field(place), pa.nulls(3, table.schema.field(place).type))
    corpus = dataclasses.replace(scenes, table=table)
    assert corpus.has("image").tolist() == [True] * 3
    assert corpus.has("image", "long").tolist() == [False] * 3
    assert "long" not in corpus[0]
    with pytest.raises(UnreadableExample, match="there is no long"):
        corpus.value(0, "long")


def test_listing_for_scripts(polymodal, emoji):
    listed = {corpus["name"]: corpus for corpus in json.loads(polymodal("corpora", "list", "--json").stdout)}
    assert len(listed) >= 16
    assert listed["emoji"]["state"] == "prepared"
    assert listed["emoji"]["examples"] == len(emoji)
    assert listed["emoji"]["columns"]["captions"] == "text"
    assert all(corpus["licence"] and corpus["source"] for corpus in listed.values())


def test_what_an_older_version_prepared_is_not_there_and_listing_fetches_nothing(polymodal, tmp_path):
    (tmp_path / "corpora" / "movies-0").mkdir(parents=True)
    (tmp_path / "corpora" / "movies-0" / "movies.arrow").write_bytes(b"old")
    done = polymodal("corpora", "list", "movies", "--json", POLYMODAL_CACHE=str(tmp_path))
    (listed,) = json.loads(done.stdout)
    assert listed["state"] == "not fetched"
    assert listed["examples"] is None
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == ["movies-0"]


def test_show_writes_a_contact_sheet(polymodal, scenes, tmp_path):
    done = polymodal("corpora", "show", "scenes", "--examples", "2", "--out", "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "questions" in done.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 20_000
    shown = json.loads(polymodal("corpora", "show", "scenes", "--json").stdout)["shown"]
    assert len(shown) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "emojis"), "did you mean 'emoji'"),
        (("shwo", "emoji"), "did you mean 'show'"),
        (("show",), "Say which corpus"),
        (("fetch",), "fetch --all"),
        (("show", "scenes", "--examples", "0"), "at least 1"),
        (("show", "scenes", "--out", "no/folder/x.png"), "cannot be written"),
    ],
)
def test_mistakes_end_in_a_sentence(polymodal, scenes, arguments, says):
    done = polymodal("corpora", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
