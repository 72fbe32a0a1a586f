"""Folders of point clouds and meshes: with texts and images beside them, `metadata.csv`, or a folder a class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora.formats._clouds import ARRAYS, MAX_CHANNELS, MESHES, stored_cloud
from polymodal.corpora.formats._converted import FILE, converted_column
from polymodal.corpora.formats._data_files import DataFiles, Match, place_of
from polymodal.corpora.formats._media_folder import DATA, METADATA, SIDECARS, read_folder
from polymodal.corpora.rows import Rows
from polymodal.modalities import Image, Points
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "a folder of point clouds or meshes (.npy, .npz, .ply, .pcd, .obj, .glb, .off, .stl)"
SUFFIXES = (*ARRAYS, *MESHES, ".pcd")
BESIDE = (".mtl", ".bin", *IMAGE_SUFFIXES, *SIDECARS)  # materials, textures, views and texts of the objects
COLUMN = "points"


def matches(data: DataFiles) -> Match:
    """Match folders of 3-D files with what accompanies them; arrays only of the shape of a point cloud."""
    clouds = data.with_suffixes(SUFFIXES)
    rows = [file for file in data.with_suffixes(DATA) if file.name.lower() not in METADATA]
    others = sum(len(files) for suffix, files in data.by_suffix.items() if suffix not in (*SUFFIXES, *BESIDE, *DATA))
    if not clouds or rows or others >= len(clouds):
        return Match.NO
    return Match.CONTENT if any(map(_is_cloud, clouds[:5])) else Match.NO


def read(data: DataFiles) -> Rows:
    """Convert the files, and list them with the text, image and class of each. See `read_folder`.

    Raises UserError where none can be read.
    """
    listed = read_folder(data, COLUMN, SUFFIXES, lambda root: Points())
    table, kept, skipped = converted_column(listed, COLUMN, "points 2", stored_cloud)
    table, images = _with_images(table, data)
    columns = {COLUMN: Points()} | ({"image": Image(listed.root)} if images else {})
    split = listed.split[kept] if listed.split is not None else None
    return replace(listed, table=table, columns=columns, split=split, keys=FILE, skipped=(*listed.skipped, *skipped))


def _with_images(table: pa.Table, data: DataFiles) -> tuple[pa.Table, bool]:
    """Add the images that have the name of a file with another suffix: its views."""
    beside = {
        (data.root / place_of(file, data.root)).with_suffix(""): file for file in data.with_suffixes(IMAGE_SUFFIXES)
    }
    views = [beside.get((data.root / name).with_suffix("")) for name in table.column(FILE).to_pylist()]
    if "image" in table.column_names or not any(views):
        return table, False
    paths = [place_of(file, data.root).as_posix() if file else None for file in views]
    return table.append_column("image", pa.array(paths, pa.string())), True


def _is_cloud(file: Path) -> bool:
    """Return whether a file is a cloud or a mesh, by its first bytes; an array, by its shape."""
    suffix = file.suffix.lower()
    try:
        if suffix == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            return array.ndim == 2 and 3 <= array.shape[1] <= MAX_CHANNELS and array.shape[0] > array.shape[1]
        with file.open("rb") as stream:
            head = stream.read(4096)
    except (OSError, ValueError):
        return False
    starts = {".ply": b"ply", ".off": b"OFF", ".glb": b"glTF", ".npz": b"PK"}
    if suffix in starts:
        return head.startswith(starts[suffix])
    return b"FIELDS" in head if suffix == ".pcd" else suffix in MESHES and bool(head)
