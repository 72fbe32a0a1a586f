"""Formats of detection: YOLO and Pascal VOC, in the layouts of the tools that write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageOps

from format_samples import SAMPLES, png
from polymodal.corpora import Corpus, formats, from_path
from polymodal.corpora.formats import _data_files
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.modalities import Expressions, Regions
from polymodal.recipes.grounding.simvg import Recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def regions(corpus: Corpus) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Return names and boxes by file name."""
    column = corpus.column_with(Regions)
    rows = range(len(corpus))
    return {corpus.key(row).rpartition("/")[2]: list(map(tuple, corpus.value(row, column))) for row in rows}


def sizes(corpus: Corpus) -> dict[str, int]:
    return {split: len(rows) for split, rows in corpus.splits.items()}


def skipped(corpus: Corpus) -> dict[str, int]:
    return {one.reason: one.count for one in corpus.skipped}


def yolo(folder: Path, label: str, settings: str = "names: [cat, dog]\n") -> Corpus:
    """Return the corpus of four images of 8 x 6 pixels, of which the first has the label."""
    for number in range(4):
        written(folder / "images" / f"{number}.png", png(number))
        written(folder / "labels" / f"{number}.txt", label if number == 0 else "0 0.5 0.5 1 1\n")
    written(folder / "data.yaml", settings)
    return from_path(folder)


def test_yolo_of_ultralytics(tmp_path):
    corpus = from_path(SAMPLES["yolo"](tmp_path))
    assert sizes(corpus) == {"train": 9, "validation": 3}
    boxes = regions(corpus)
    # Center 0.5, size 0.25 x 0.5 of 8 x 6 pixels; YAML takes `no` for false.
    assert boxes["000000000001.jpg"] == [("dog", (3, 2, 5, 4)), ("no", (0, 0, 4, 6))]
    assert boxes["000000000004.jpg"] == []
    expressions = [corpus.value(row, corpus.column_with(Expressions)) for row in range(len(corpus))]
    assert expressions[1] == [("dog", ((3, 1.5, 5, 4.5),), 0), ("no", ((0, 0, 4, 6),), 0)]
    assert [[one.text for one in expressions[row] if not one.boxes] for row in (0, 4, 8)] == [["dog"], ["no"], ["dog"]]
    assert any("Images without a label file (3)" in note for note in corpus.notes)
    assert not corpus.skipped


def test_a_recipe_of_grounding_reads_every_image_of_yolo(tmp_path):
    corpus = from_path(SAMPLES["yolo"](tmp_path))
    reader = Reader(corpus, fit_processor(Recipe.tiny(), corpus))
    assert len(reader.read_all(np.arange(len(corpus)))[0]) == len(corpus)


@pytest.mark.parametrize("root", ["", "train"])
def test_yolo_of_roboflow(root, tmp_path):
    for split, count in {"train": 8, "valid": 2, "test": 2}.items():
        for number in range(count):
            written(tmp_path / split / "images" / f"{number}_jpg.rf.0f.jpg", png(number + 20 * len(split)))
            written(tmp_path / split / "labels" / f"{number}_jpg.rf.0f.txt", "1 0.5 0.5 0.5 0.5" if number else "")
    written(tmp_path / "README.roboflow.txt", "0 of 1")
    written(
        tmp_path / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'hot dog']\n",
    )
    corpus = from_path(tmp_path / root)
    assert regions(corpus)["1_jpg.rf.0f.jpg"] == [("hot dog", (2, 2, 6, 4))]
    assert regions(corpus)["0_jpg.rf.0f.jpg"] == []
    if not root:
        assert sizes(corpus) == {"train": 8, "validation": 2, "test": 2}


def test_yolo_of_cvat_with_lists_of_images(tmp_path):
    for number in range(6):
        written(tmp_path / "obj_Train_data" / f"{number}.png", png(number))
        written(tmp_path / "obj_Train_data" / f"{number}.txt", "0 0.5 0.5 0.5 1.0\n")
    written(tmp_path / "obj.names", "cat\ndog\n")
    written(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    for split, numbers in {"train": range(4), "valid": range(4, 6)}.items():
        written(tmp_path / f"{split}.txt", "".join(f"data/obj_Train_data/{number}.png\n" for number in numbers))
    corpus = from_path(tmp_path)
    assert regions(corpus)["3.png"] == [("cat", (2, 0, 6, 6))]
    assert sizes(corpus) == {"train": 4, "validation": 2}
    assert not corpus.skipped


def test_yolo_of_label_studio_has_classes_in_a_text_file(tmp_path):
    yolo(tmp_path, "1 0.5 0.5 0.5 1.0")
    (tmp_path / "data.yaml").unlink()
    assert regions(from_path(tmp_path))["0.png"] == [("1", (2, 0, 6, 6))]
    written(tmp_path / "classes.txt", "cat\r\ndog\r\n")
    corpus = from_path(tmp_path)
    assert regions(corpus)["0.png"] == [("dog", (2, 0, 6, 6))]
    assert not corpus.skipped


@pytest.mark.parametrize(
    ("label", "settings", "box", "note"),
    [
        ("1 0.25 0.5 0.75 0.5 0.5 1", "", (2, 3, 6, 6), "Polygons (1) are read"),
        ("1 0.25 0.5 0.75 0.5 0.75 1 0.25 1", "", (2, 3, 6, 6), "Polygons (1) are read"),
        ("1 0.5 0.5 0.5 1 .1 .1 .2 .2", "kpt_shape: [2, 2]", (2, 0, 6, 6), "objects (1) are"),
        (f"1 0.5 0.5 0.5 1 {'.1 .1 2 ' * 17}", "", (2, 0, 6, 6), "objects (1) are"),
        ("1 0.5 0.5 0.5 1 0.93", "", (2, 0, 6, 6), "A sixth value of boxes (1)"),
        ("1.000000e+00 5.0e-01 5.0e-01 5.0e-01 1.0e+00", "", (2, 0, 6, 6), "Names of classes (2)"),
        ("1 0.125 0.5 0.5 1", "", (0, 0, 3, 6), "Names of classes (2)"),  # reaches out of the image
    ],
)
def test_lines_of_yolo(label, settings, box, note, tmp_path):
    corpus = yolo(tmp_path, label, f"names: [cat, dog]\n{settings}\n")
    assert regions(corpus)["0.png"] == [("dog", box)]
    assert any(note in one for one in corpus.notes)


def test_lines_of_yolo_that_cannot_be_read_are_counted(tmp_path):
    bad = ["7 0.5 0.5 0.1 0.1", "0 4 3 2 2", "0 nan 0.5 0.1 0.1", "0 0.5 0.5 0 0.1", "cat 0.5 0.5 0.1 0.1", "0 .1 .2"]
    corpus = yolo(tmp_path, "\n".join([*bad, "0 0.5 0.5 1 1", "0 0.5 0.5 1 1"]))
    assert regions(corpus)["0.png"] == [("cat", (0, 0, 8, 6))]
    assert sorted(skipped(corpus).values()) == [1, 1, 2, 2]
    assert any(one.example == "labels/0.txt, line 1: 7 0.5 0.5 0.1 0.1" for one in corpus.skipped)
    written(tmp_path / "labels" / "9.txt", "0 0.5 0.5 1 1")
    written(tmp_path / "images" / "8.png", b"no image")
    assert skipped(from_path(tmp_path)) == skipped(corpus) | {
        "is a label file without an image": 1,
        "is an image that cannot be read": 1,
    }


def test_boxes_in_pixels_are_no_yolo(tmp_path):
    for number in range(4):
        written(tmp_path / f"{number}.png", png(number))
        written(tmp_path / f"{number}.txt", "0 4 3 2 2")
    with pytest.raises(
        UserError, match=r"No line of the label files can be read: 0\.txt, line 1: 0 4 3 2 2 is a box out"
    ):
        from_path(tmp_path)


def test_captions_beside_images_are_no_yolo(tmp_path):
    for number in range(4):
        written(tmp_path / f"{number}.png", png(number))
        written(tmp_path / f"{number}.txt", f"{number} red cars at night")
    assert formats.best_formats(DataFiles.of([tmp_path])) == ["imagefolder"]


@pytest.mark.parametrize("names", ["names: 5", "names: [[a], b]", "names: {a: b}", "names: [", "names: !!x [1"])
def test_a_damaged_data_yaml_is_a_sentence(names, tmp_path):
    with pytest.raises(UserError, match=r"data\.yaml"):
        yolo(tmp_path, "0 0.5 0.5 1 1", names)


def test_a_yaml_file_of_another_program_is_passed_over(tmp_path):
    SAMPLES["yolo"](tmp_path)
    written(tmp_path / "chart" / "values.yaml", "a: {{ names }\n  - [")
    (tmp_path / "data.yaml").rename(tmp_path / "pets.yml")
    assert "Names of classes (2) are those of pets.yml." in from_path(tmp_path).notes


def test_data_yaml_in_place_of_the_folder(tmp_path):
    SAMPLES["yolo"](tmp_path)
    corpus = from_path(tmp_path / "data.yaml")
    assert sizes(corpus) == {"train": 9, "validation": 3}
    written(tmp_path / "other" / "data.yaml", (tmp_path / "data.yaml").read_bytes())
    with pytest.raises(UserError, match="name the folder of the images with --data FOLDER"):
        from_path(tmp_path / "other" / "data.yaml")


def marked(path: Path, orientation: int) -> None:
    """Write an image of 24 x 16 pixels as it is stored, red in columns 2 to 8 and rows 4 to 9, with an orientation."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[4:10, 2:9, 0] = 255
    exif = PILImage.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(pixels).save(path, quality=100, subsampling=0, exif=exif)


def is_marked(corpus: Corpus) -> bool:
    """Return whether each box is that of the red pixels of its image."""
    for row in range(len(corpus)):
        red = np.asarray(corpus.value(row, "image").convert("RGB"))[..., 0] > 128
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        (region,) = corpus.value(row, "regions")
        if region.box != (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1):
            return False
    return True


OBJECT = (
    "<object><name>{0}</name><difficult>{5}</difficult><bndbox><xmin>{1}</xmin><ymin>{2}</ymin><xmax>{3}</xmax>"
    "<ymax>{4}</ymax></bndbox>{6}</object>"
)


def xml(name: str, size: tuple[int, int], *objects: str) -> str:
    width, height = size
    stated = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder><filename>{name}</filename>{stated}{''.join(objects)}</annotation>"


def one(*edges: float, name: str = "dog", difficult: int = 0, parts: str = "") -> str:
    return OBJECT.format(name, *edges, difficult, parts)


def test_boxes_of_voc_are_turned_with_the_image_where_they_are_of_the_stored_one(tmp_path):
    for number in range(5, 9):
        marked(tmp_path / f"{number}.jpg", number)
        written(tmp_path / f"{number}.xml", xml(f"{number}.jpg", (24, 16), one(3, 5, 9, 10)))
    assert is_marked(from_path(tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_voc_and_yolo_of_the_upright_image_stay(orientation, tmp_path):
    marked(tmp_path / "voc" / "1.jpg", orientation)
    with PILImage.open(tmp_path / "voc" / "1.jpg") as stored:
        upright = ImageOps.exif_transpose(stored)
    red = np.asarray(upright)[..., 0] > 128
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    box = one(columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1)
    written(tmp_path / "voc" / "1.xml", xml("1.jpg", upright.size, box))
    assert is_marked(from_path(tmp_path / "voc"))
    marked(tmp_path / "yolo" / "1.jpg", orientation)
    center = ((columns[0] + columns[-1] + 1) / 2 / upright.width, (rows[0] + rows[-1] + 1) / 2 / upright.height)
    sides = (len(columns) / upright.width, len(rows) / upright.height)
    written(tmp_path / "yolo" / "1.txt", f"0 {' '.join(map(str, center + sides))}")
    assert is_marked(from_path(tmp_path / "yolo"))


def test_links_to_nowhere_in_yolo_are_counted(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 1 1\n")
    (tmp_path / "images" / "9.png").symlink_to("gone.png")  # an image without a label file, and none to read
    (tmp_path / "labels" / "3.txt").unlink()
    (tmp_path / "labels" / "3.txt").symlink_to("gone.txt")
    corpus = from_path(tmp_path)
    assert sorted(regions(corpus)) == ["0.png", "1.png", "2.png"]
    assert skipped(corpus) == {
        "is an image that cannot be read": 1,
        "is an image whose label file cannot be read": 1,
    }
    assert not any("background" in note for note in corpus.notes)
    written(tmp_path / "images" / "gone.png", png(9))
    assert "9.png" in regions(from_path(tmp_path))


def test_formats_of_tables_do_not_open_the_label_files_of_many_images(tmp_path, monkeypatch):
    yolo(tmp_path, "0 0.5 0.5 1 1\n")
    opened = []
    for format, name in (("graph", "head_lines"), ("flickr30k", "_head")):
        module = formats.module(format)
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda file, *rest, plain=plain: opened.append(file) or plain(file, *rest))
    data = DataFiles.of([tmp_path])
    assert formats.best_formats(data) == ["yolo"]
    assert len(opened) == 8  # the four label files, each by both
    opened.clear()
    monkeypatch.setattr(_data_files, "MAX_TABLES", 3)
    assert formats.best_formats(DataFiles.of([tmp_path])) == ["yolo"]
    assert opened == []


def test_images_of_yolo_outside_of_the_only_split_are_left_out(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 1 1\n", "train: images\nval: images\nnames: [cat, dog]\n")
    for number in range(4):  # predictions that were saved in the folder
        written(tmp_path / "runs" / "predict" / f"{number}.png", png(number + 10))
    corpus = from_path(tmp_path)
    assert sorted(map(corpus.key, range(len(corpus)))) == [f"images/{number}.png" for number in range(4)]
    assert skipped(corpus) == {"is an image of no split that is stated": 4}
    assert any("of the split 'train'; they are split by content" in note for note in corpus.notes)


def test_boxes_of_yolo_that_are_smaller_than_a_pixel_are_that_pixel(tmp_path):
    corpus = yolo(tmp_path, "0 0.55 0.45 0.02 0.02\n")  # 4.32 to 4.48, and 2.64 to 2.76
    assert regions(corpus)["0.png"] == [("cat", (4, 2, 5, 3))]


# Pascal VOC


def test_voc(tmp_path):
    corpus = from_path(SAMPLES["voc"](tmp_path))
    assert sizes(corpus) == {"train": 8, "validation": 2, "test": 2}
    assert corpus.key(3) == "VOCdevkit/VOC2007/JPEGImages/000003.jpg"
    # Pixels are counted from 1, and the last one is of the box.
    assert regions(corpus)["000003.jpg"] == [("dog", (0, 1, 8, 5))]
    assert not corpus.skipped


def test_objects_of_voc(tmp_path):
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    objects = [
        one(1, 1, 4, 3, difficult=1, parts=parts),
        one(2.6, 1, 99, 3, name="cat"),
        one(4, 3, 3, 3),
        "<object><name>cat</name></object>",
    ]
    for number in range(3):
        written(tmp_path / "images" / f"{number}.png", png(number))
        written(
            tmp_path / "annotations" / f"{number}.xml", xml(f"old{number}.jpg", (8, 6), *objects[: 4 * (number < 2)])
        )
    corpus = from_path(tmp_path)
    assert regions(corpus)["0.png"] == [("dog", (0, 0, 4, 3)), ("cat", (2, 0, 8, 3))]
    assert regions(corpus)["2.png"] == []
    assert sorted(skipped(corpus).values()) == [2, 2]
    assert any("marked difficult (2) are read" in note for note in corpus.notes)


def test_voc_whose_pixels_are_counted_from_0(tmp_path):
    for number in range(3):
        written(tmp_path / "train" / f"{number}.png", png(number))
        written(tmp_path / "train" / f"{number}.xml", xml(f"{number}.png", (8, 6), one(number, 1, 4, 3)))
        written(tmp_path / "valid" / f"{number}.png", png(number + 9))
        written(tmp_path / "valid" / f"{number}.xml", xml(f"{number}.png", (8, 6), one(2, 1, 4, 3)))
    corpus = from_path(tmp_path)
    assert sizes(corpus) == {"train": 3, "validation": 3}
    boxes = {corpus.key(row): corpus.value(row, "regions")[0].box for row in range(6)}
    assert (boxes["train/0.png"], boxes["valid/0.png"]) == ((0, 1, 4, 3), (2, 1, 4, 3))
    assert any("counted from 0" in note for note in corpus.notes)


def test_entities_in_voc_are_refused(tmp_path):
    for number in range(3):
        written(tmp_path / f"{number}.png", png(number))
        written(tmp_path / f"{number}.xml", xml(f"{number}.png", (8, 6), one(1, 1, 4, 3)))
    secret = written(tmp_path.parent / "secret", "secret")
    entity = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{secret}">]>{xml("0.png", (8, 6), one(1, 1, 4, 3, name="&e;"))}'
    written(tmp_path / "0.xml", entity)
    corpus = from_path(tmp_path)
    assert [(one.count, "defines the XML entity 'e'" in one.example) for one in corpus.skipped] == [(1, True)]
    assert "0.png" not in regions(corpus)


def test_voc_without_its_images_is_a_sentence(tmp_path):
    for number in range(3):
        written(tmp_path / f"{number}.xml", xml(f"{number}.png", (8, 6), one(1, 1, 4, 3)))
    with pytest.raises(UserError, match=r"name images such as 0\.png, and none of them is in"):
        from_path(tmp_path)
    written(tmp_path / "0.xml", xml("../../0.png", (8, 6)))
    with pytest.raises(UserError, match="outside the folder"):
        from_path(tmp_path)


@pytest.mark.parametrize("blank", [" ", "_"])
@pytest.mark.parametrize("suffix", ["", ".png"])
def test_lists_of_voc_may_have_blanks_and_suffixes_in_names(blank, suffix, tmp_path):
    for number in range(6):
        written(tmp_path / "JPEGImages" / f"photo{blank}{number}.png", png(number))
        file = tmp_path / "Annotations" / f"photo{blank}{number}.xml"
        written(file, xml(f"photo{blank}{number}.png", (8, 6), one(1, 1, 4, 3)))
    lists = {"train": range(4), "test": range(4, 6)}
    for name, numbers in lists.items():
        lines = "".join(f"photo{blank}{number}{suffix}\n" for number in numbers)
        written(tmp_path / "ImageSets" / "Main" / f"{name}.txt", lines)
    assert sizes(from_path(tmp_path)) == {"train": 4, "test": 2}


def test_images_of_voc_of_equal_names_are_those_of_the_folder_of_equal_name(tmp_path):
    for place, split in enumerate(("train", "val")):
        for number in range(4):
            written(tmp_path / "Images" / split / f"{number}.png", png(number + 10 * place))
            if (split, number) != ("train", 2):
                edges = (1 + place, 1, 4, 3)
                written(tmp_path / "Annotations" / split / f"{number}.xml", xml(f"{number}.png", (8, 6), one(*edges)))
    corpus = from_path(tmp_path)
    boxes = {corpus.key(row): corpus.value(row, "regions")[0].box for row in range(len(corpus))}
    assert len(boxes) == 7
    assert all(box == (int("val" in path), 0, 4, 3) for path, box in boxes.items())
    assert not corpus.skipped
    assert any(
        "Images that no XML file describes (1) are not read, such as Images/train/2.png" in one for one in corpus.notes
    )


def test_voc_in_an_encoding_that_is_not_read_is_skipped(tmp_path):
    for number in range(3):
        written(tmp_path / f"{number}.png", png(number))
        written(tmp_path / f"{number}.xml", xml(f"{number}.png", (8, 6), one(1, 1, 4, 3)))
    head = b'<?xml version="1.0" encoding="gb2312"?>'
    written(tmp_path / "1.xml", head + xml("1.png", (8, 6), one(1, 1, 4, 3, name="猫")).encode("gb2312"))
    corpus = from_path(tmp_path)
    assert [one.count for one in corpus.skipped] == [1]
    assert sorted(regions(corpus)) == ["0.png", "2.png"]


@pytest.mark.parametrize(("file", "content"), [("data.yaml", "names: [{}, {}]\n"), ("classes.txt", "{}\n{}\n")])
def test_data_sets_of_yolo_with_other_names_of_classes_are_not_read_as_one(file, content, tmp_path):
    for folder, names in (("a", ("cat", "dog")), ("b", ("dog", "cat"))):
        yolo(tmp_path / folder, "0 0.5 0.5 1 1\n")
        (tmp_path / folder / "data.yaml").unlink()
        written(tmp_path / folder / file, content.format(*names))
    with pytest.raises(UserError, match=rf"a/{file} and .*b/{file} state other names of classes; name the folder"):
        from_path(tmp_path)
    written(tmp_path / "b" / file, content.format("cat", "dog"))
    assert len(from_path(tmp_path)) == 8


def test_the_yaml_file_of_yolo_that_is_named_counts(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 1 1\n")
    named = written(tmp_path / "pets.yaml", "train: images\nval: images\nnames: [parrot, dog]\n")
    assert {name for boxes in regions(from_path(named)).values() for name, _ in boxes} == {"parrot"}
    assert {name for boxes in regions(from_path(tmp_path)).values() for name, _ in boxes} == {"cat"}
