"""Point clouds of files: arrays, PLY, PCD, and points sampled from the surfaces of meshes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.errors import UnreadableExample, needs
from polymodal.modalities.modality import to_npy
from polymodal.modalities.points import normalize_points

ARRAYS = (".npy", ".npz")
MESHES = (".obj", ".glb", ".gltf", ".off", ".stl", ".ply")  # what trimesh reads; a PLY may be a cloud or a mesh
SURFACE = 10_000  # points that are sampled from a mesh, as ULIP-2 does
MAX_POINTS = 100_000  # of a cloud; of more, as many are sampled
SEED = 0
MAX_CHANNELS = 12  # of an array; one of 3 x points has its axes in another order
POSITIONS = ("points", "xyz", "pos", "pc", "coords", "positions", "vertices", "point_cloud")
COLORS = ("colors", "color", "rgb")
# What parsers raise for a damaged file.
_DAMAGED = (ValueError, TypeError, KeyError, IndexError, OSError, EOFError, AttributeError, zipfile.BadZipFile)
# NumPy's types of PCD's TYPE and SIZE.
_TYPES = {"F4": "<f4", "F8": "<f8", "I1": "<i1", "I2": "<i2", "I4": "<i4", "U1": "<u1", "U2": "<u2", "U4": "<u4"}


def stored_cloud(file: Path) -> bytes:
    """Return the point cloud of a file as `Points` stores it: in the unit sphere, with colors in 0-1 if it has some.

    Raises UnreadableExample for a file without points, UserError without trimesh for meshes and PLY.
    """
    suffix = file.suffix.lower()
    try:
        cloud = _of_array(file) if suffix in ARRAYS else read_pcd(file) if suffix == ".pcd" else _of_mesh(file)
    except UnreadableExample:
        raise
    except _DAMAGED as error:
        raise UnreadableExample(next(iter(str(error).splitlines()), type(error).__name__)) from error
    cloud = cloud[np.isfinite(cloud).all(axis=1)]  # depth cameras write NaN where they see nothing
    if not len(cloud):
        raise UnreadableExample("it has no points")
    if len(cloud) > MAX_POINTS:
        cloud = cloud[np.random.default_rng(SEED).choice(len(cloud), MAX_POINTS, replace=False)]
    cloud = np.concatenate([normalize_points(cloud[:, :3]), _colors(cloud[:, 3:])], axis=1)
    return to_npy(cloud.astype(np.float32))


def _colors(channels: np.ndarray) -> np.ndarray:
    """Return colors in 0-1; normals and other channels are none."""
    colors = channels[:, :3]
    if colors.shape[1] < 3 or colors.min() < 0 or colors.max() > 255:
        return channels[:, :0]
    return colors / 255 if colors.max() > 1 else colors


def _of_array(file: Path) -> np.ndarray:
    loaded: Any = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return _checked(loaded)
    with loaded:
        names = [name for name in POSITIONS if name in loaded.files] or loaded.files
        if not names:
            raise UnreadableExample("it has no array")
        cloud = _checked(loaded[names[0]])
        colors = next((loaded[name] for name in COLORS if name in loaded.files), None)
    if cloud.shape[1] == 3 and colors is not None and len(colors) == len(cloud):
        return np.concatenate([cloud, _checked(colors)[:, :3]], axis=1)
    return cloud


def _checked(array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or not 3 <= array.shape[1] <= MAX_CHANNELS or array.dtype.kind not in "fiu":
        raise UnreadableExample(f"the array has the shape {array.shape}, not points x 3 or 6")
    return array.astype(np.float64)


def _of_mesh(file: Path) -> np.ndarray:
    try:
        import trimesh
    except ImportError as error:
        raise needs("trimesh", "corpora", f"Reading {file.suffix[1:].upper()} files") from error
    try:
        loaded: Any = trimesh.load(file, process=False)
        if isinstance(loaded, trimesh.Scene):
            loaded = loaded.to_mesh() if any(hasattr(one, "faces") for one in loaded.geometry.values()) else None
            if loaded is None:
                raise UnreadableExample("it has no surface")
        faces = getattr(loaded, "faces", None)
        if faces is None or not len(faces):
            return _of_vertices(loaded)
        sampled = trimesh.sample.sample_surface(loaded, SURFACE, seed=SEED, sample_color=True)
    except UnreadableExample:
        raise
    except Exception as error:  # its loaders raise whatever their parsers do
        raise UnreadableExample(next(iter(str(error).splitlines()), type(error).__name__)) from error
    points = np.asarray(sampled[0], np.float64)
    colors = np.asarray(sampled[2], np.float64)[:, :3] if loaded.visual.defined else points[:, :0]
    return np.concatenate([points, colors], axis=1)


def _of_vertices(cloud: Any) -> np.ndarray:
    places = np.asarray(cloud.vertices, np.float64)
    colors = np.asarray(getattr(cloud, "colors", ()), np.float64)
    return np.concatenate([places, colors[:, :3]], axis=1) if len(colors) == len(places) else places


def read_pcd(file: Path) -> np.ndarray:
    """Read a PCD file (version 0.7, ascii or binary): x, y, z, and red, green, blue in 0-255 if it has `rgb`.

    Raises UnreadableExample for compressed data, and for a file that is cut off.
    """
    data = file.read_bytes()
    header: dict[str, list[str]] = {}
    place = 0
    while "DATA" not in header:
        end = data.index(b"\n", place)
        key, *values = data[place:end].decode("ascii").split() or ["#"]
        header[key.upper()] = values
        place = end + 1
    counts = [int(count) for count in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
    kinds = [_TYPES[f"{kind}{size}"] for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
    total = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    fields = [name.lower() for name in header["FIELDS"]]
    names = [name if name != "_" else f"_{number}" for number, name in enumerate(fields)]
    layout = np.dtype([(*one,) for one in zip(names, kinds, counts, strict=True)])
    if header["DATA"] == ["binary"]:
        rows = np.frombuffer(data, layout, total, place)
        columns = {name: rows[name] for name in names}
    elif header["DATA"] == ["ascii"]:
        cells: Any = np.array(data[place:].split(), dtype=object).reshape(total, sum(counts))
        starts = np.cumsum([0, *counts])
        columns = {
            name: cells[:, start].astype(np.float64 if kind[1] == "f" else np.int64).astype(kind)
            for name, start, kind in zip(names, starts, kinds, strict=False)
        }
    else:
        raise UnreadableExample("compressed PCD is not read; write it with DATA binary")
    places = np.stack([columns[name].reshape(total, -1)[:, 0] for name in ("x", "y", "z")], axis=1).astype(np.float64)
    packed = next((columns[name] for name in ("rgb", "rgba") if name in columns), None)
    if packed is None:
        return places
    bits = np.ascontiguousarray(packed.reshape(total, -1)[:, 0]).view(
        np.uint32
    )  # 0x00RRGGBB, also where it is declared as a float
    colors = np.stack([bits >> 16 & 255, bits >> 8 & 255, bits & 255], axis=1)
    return np.concatenate([places, colors.astype(np.float64)], axis=1)
