"""Files of point clouds and meshes: positions and colors as the files have them, in the unit sphere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image as PILImage

from polymodal.corpora import from_path
from polymodal.corpora.formats import _clouds
from polymodal.corpora.formats._clouds import SURFACE, read_pcd, stored_cloud
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Points
from polymodal.modalities.points import normalize_points


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


RNG = np.random.default_rng(0)
PLACES = RNG.normal(size=(40, 3)) + 500_000
COLORS = RNG.integers(0, 256, (40, 3)).astype(np.uint8)


def cloud(file: Path) -> np.ndarray:
    return Points().decode(stored_cloud(file))


def pcd(file: Path, form: str, places: np.ndarray = PLACES) -> Path:
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 8 8 8 4\nTYPE F F F {'F' if form == 'binary' else 'U'}\n"
    )
    header += (
        f"COUNT 1 1 1 1\nWIDTH {len(places)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(places)}\nDATA {form}\n"
    )
    packed = (COLORS.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=1, dtype=np.uint32)
    if form == "ascii":
        rows = (" ".join([*map(repr, map(float, xyz)), str(rgb)]) for xyz, rgb in zip(places, packed, strict=True))
        body = "\n".join(rows).encode()
    else:
        rows = np.zeros(len(places), [("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("rgb", "<u4")])
        rows["x"], rows["y"], rows["z"], rows["rgb"] = *places.T, packed
        body = rows.tobytes()
    file.write_bytes(header.encode() + body)
    return file


def written(folder: Path, form: str) -> Path:
    file = folder / f"cloud.{form.partition('-')[0]}"
    if form == "npy":
        np.save(file, np.c_[PLACES, COLORS / 255])
    elif form == "npz":
        np.savez(file, other=np.zeros(3), xyz=PLACES, rgb=COLORS)
    elif form.startswith("ply"):
        encoding = "ascii" if form == "ply-ascii" else "binary_little_endian"
        header = f"ply\nformat {encoding} 1.0\nelement vertex {len(PLACES)}\n"
        header += "".join(f"property double {axis}\n" for axis in "xyz")
        header += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
        if encoding == "ascii":
            rows = np.c_[PLACES, COLORS].tolist()
            body = "".join(f"{x!r} {y!r} {z!r} {r:.0f} {g:.0f} {b:.0f}\n" for x, y, z, r, g, b in rows).encode()
        else:
            body = b"".join(place.tobytes() + color.tobytes() for place, color in zip(PLACES, COLORS, strict=True))
        file.write_bytes(header.encode() + body)
    else:
        pcd(file, form.partition("-")[2])
    return file


@pytest.mark.parametrize("form", ["npy", "npz", "ply-ascii", "ply-binary", "pcd-ascii", "pcd-binary"])
def test_each_form_has_the_points_and_colors_that_were_written(form, tmp_path):
    points = cloud(written(tmp_path, form))
    np.testing.assert_allclose(points[:, :3], normalize_points(PLACES), atol=1e-5)
    np.testing.assert_allclose(points[:, 3:], COLORS / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["obj", "glb", "off", "ply", "stl"])
def test_points_of_meshes_lie_on_the_surface_and_are_the_same_each_time(suffix, tmp_path):
    trimesh.creation.box((2, 2, 2)).export(tmp_path / f"box.{suffix}")
    points = cloud(tmp_path / f"box.{suffix}")
    assert points.shape == (SURFACE, 3)
    sides = np.abs(points).max(axis=1)
    np.testing.assert_allclose(sides, sides[0], rtol=0.03)  # the centroid of the samples is near that of the box
    assert (points == cloud(tmp_path / f"box.{suffix}")).all()


def test_colors_of_a_mesh_are_sampled(tmp_path):
    box = trimesh.creation.box((1, 1, 1))
    box.visual.face_colors = [255, 0, 51, 255]
    box.export(tmp_path / "box.glb")
    np.testing.assert_allclose(cloud(tmp_path / "box.glb")[:, 3:].mean(axis=0), [1, 0, 0.2], atol=0.01)


def test_normals_are_no_colors_and_missing_points_are_left_out(tmp_path):
    normals = RNG.normal(size=(40, 3))
    places = RNG.normal(size=(40, 3))
    places[3] = np.nan
    np.save(tmp_path / "a.npy", np.c_[places, normals])
    assert cloud(tmp_path / "a.npy").shape == (39, 3)


def test_large_clouds_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(_clouds, "MAX_POINTS", 10)
    np.save(tmp_path / "a.npy", PLACES)
    assert len(cloud(tmp_path / "a.npy")) == 10


@pytest.mark.parametrize("form", ["npy", "npz", "ply-binary", "pcd-binary", "pcd-ascii"])
def test_files_that_are_cut_off_are_unreadable(form, tmp_path):
    file = written(tmp_path, form)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UnreadableExample):
        stored_cloud(file)


def test_what_is_no_cloud_is_unreadable(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(UnreadableExample, match="allow_pickle"):
        stored_cloud(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((4, 2)))
    with pytest.raises(UnreadableExample, match=r"the shape \(4, 2\)"):
        stored_cloud(tmp_path / "b.npy")
    with pytest.raises(UnreadableExample, match="compressed PCD is not read"):
        read_pcd(pcd(tmp_path / "c.pcd", "binary_compressed"))


def test_a_folder_has_classes_texts_and_views(tmp_path):
    for number in range(12):
        place = tmp_path / ("chair" if number % 2 else "table") / f"{number}.npy"
        place.parent.mkdir(exist_ok=True)
        np.save(place, RNG.normal(size=(30, 3)))
        place.with_suffix(".txt").write_text(f"object {number}")
        PILImage.new("RGB", (8, 8), (number, 0, 0)).save(place.with_suffix(".png"))
    (tmp_path / "chair" / "1.npy").write_bytes(b"nothing")
    corpus = from_path(tmp_path)
    assert len(corpus) == 11
    assert [(one.count, one.reason) for one in corpus.skipped] == [(1, "cannot be read")]
    assert (corpus.label, corpus.columns["label"].names) == ("label", ("chair", "table"))
    row = corpus.table.column("file").to_pylist().index("table/4.npy")
    assert corpus.value(row, "text")[0].text == "object 4"
    assert corpus.value(row, "points").shape == (30, 3)
    assert corpus.value(row, "image").size == (8, 8)


def test_a_folder_without_a_readable_cloud_is_a_sentence(tmp_path):
    (tmp_path / "a.obj").write_text("no mesh\n")
    with pytest.raises(UserError, match="None of the 1 files can be read"):
        from_path(tmp_path)


def test_folders_of_splits_in_each_class_as_in_modelnet(tmp_path):
    for number, kind in enumerate(["chair", "table"]):
        for split, count in (("train", 4), ("test", 2)):
            for item in range(count):
                file = tmp_path / kind / split / f"{kind}_{item}.npy"
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, PLACES * (item + 1) + 10 * number)
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 8, "test": 4}
    assert corpus.columns["label"].names == ("chair", "table")


def test_an_array_with_its_axes_in_another_order_is_no_cloud_of_three_points(tmp_path):
    np.save(tmp_path / "a.npy", PLACES.T)
    with pytest.raises(UnreadableExample, match=r"the shape \(3, 40\), not points x 3 or 6"):
        stored_cloud(tmp_path / "a.npy")
