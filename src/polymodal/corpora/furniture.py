"""Sweet Home 3D's furniture: coloured point clouds, an icon, twelve rendered views, names in 20 languages, sizes.

Points are drawn uniformly from the surface of the mesh, with the colour of its material or texture, after the mesh was
turned and stretched to the size that the catalogue gives. The views are rendered by us from the same surface, so they
are synthetic images of real models. Models with the same English name, or almost the same icon, never straddle a
split.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from polymodal.corpora._packages import DebianPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import Groups, join_alike, split_groups, thumbnail
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import needs
from polymodal.modalities import Category, Image, Images, Modality, Points, Table, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.modality import to_npy
from polymodal.modalities.points import normalize_points

PACKAGE = DebianPackage(
    "sweethome3d-furniture",
    "1.8-1",
    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
    119_782_356,
)
POINTS = 4096  # of a point cloud
VIEWS, SIDE = 12, 128  # rendered images of a model, and their side in pixels
SURFACE = 100_000  # points that a view is rendered from
LANGUAGES = 20
ENGLISH_SHARE = 0.5  # of the names that training draws
NAMES = Text({"en": (LANGUAGES - 1) * ENGLISH_SHARE / (1 - ENGLISH_SHARE)})

about = About(
    name="furniture",
    description="3-D models of furniture as point clouds and rendered views, names in 20 languages, sizes",
    license="by catalogue: CC0, CC-BY-3.0, CC-BY-3.0-USA (column `licence`)",
    source=f"Debian: {PACKAGE.name}",
    modalities=("points", "image", "text", "table", "category"),
    download_bytes=PACKAGE.bytes,
    composed="views are rendered",
)


def furniture() -> Corpus:
    """Open the corpus, fetching and preparing it once (120 MB, some minutes).

    Raises UserError when that is not possible, such as without the package trimesh.
    """
    columns: dict[str, Modality] = {
        "points": Points(),
        "icon": Image(),
        "views": Images(),
        "captions": NAMES,
        "size": Table({"width": "cm", "depth": "cm", "height": "cm"}, {}),
        "category": Category(),
    }
    further = {"licence": pa.string()}
    return open_prepared(about, columns, _rows, further=further, label="category", prompts=prompts)


def prompts(category: str) -> tuple[str, ...]:
    """Return the prompts of a category."""
    return (category.lower(),)


@dataclass(frozen=True)
class _Piece:
    """Catalogue entry: properties, names by language, and the file of its model."""

    key: str
    properties: dict[str, str]
    names: dict[str, str]
    archive: zipfile.ZipFile
    license: str


def _rows(prepare: Preparation) -> Iterator[Row]:
    try:
        import trimesh
    except ImportError as error:
        raise needs("trimesh", "corpora", "Preparing the corpus 'furniture'") from error
    pieces: list[_Piece] = []
    for name, data in members(prepare.fetch(PACKAGE), lambda name: name.endswith(".sh3f")):
        pieces += _catalogue(PurePosixPath(name).stem, zipfile.ZipFile(io.BytesIO(data)))
    icons = [Image().decode(piece.archive.read(piece.properties["icon"])) for piece in pieces]
    same = Groups(len(pieces))
    same.join_equal((row, re.sub(r"[\W\d]+", " ", piece.names["en"].lower())) for row, piece in enumerate(pieces))
    join_alike(same, np.stack([thumbnail(icon) for icon in icons]), tolerance=2.0)
    groups = [pieces[same.root(row)].key for row in range(len(pieces))]
    split_of = split_groups([piece.properties["category"] for piece in pieces], groups)
    shown = prepare.track(zip(pieces, icons, groups, strict=True), "Sampling and rendering models", len(pieces))
    for piece, icon, group in shown:
        rng = np.random.default_rng(zlib.crc32(piece.key.encode()))
        surface = _surface(piece, trimesh, rng)
        if surface is None:
            continue
        chosen = surface[rng.choice(len(surface), POINTS, replace=False)]
        points = np.concatenate([normalize_points(chosen[:, :3]), chosen[:, 3:6]], axis=1)
        yield {
            "key": piece.key,
            "split": split_of[group],
            "points": to_npy(points.astype(np.float16)),
            "icon": encoded(icon),
            "views": [encoded(render(surface, 2 * np.pi * view / VIEWS), "WEBP", quality=90) for view in range(VIEWS)],
            "captions": [{"text": text, "language": language} for language, text in piece.names.items()],
            "size": {side: float(piece.properties[side]) for side in ("width", "depth", "height")},
            "category": piece.properties["category"],
            "licence": piece.license,
        }


def _catalogue(name: str, archive: zipfile.ZipFile) -> Iterator[_Piece]:
    translations = {}
    for file in archive.namelist():
        if match := re.fullmatch(r"PluginFurnitureCatalog(?:_(\w+))?\.properties", file):
            translations[(match[1] or "en").replace("_", "-")] = _properties(archive.read(file))
    english = translations["en"]
    seen: set[str] = set()
    for number in sorted({key.partition("#")[2] for key in english if key.startswith("id#")}, key=int):
        properties = {
            key.partition("#")[0]: value.removeprefix("/") if value.startswith("/") else value
            for key, value in english.items()
            if key.endswith(f"#{number}")
        }
        if not properties["model"].endswith(".obj") or properties["model"] in seen:
            continue
        seen.add(properties["model"])
        names = {language: table.get(f"name#{number}", "") for language, table in sorted(translations.items())}
        names = {language: text for language, text in names.items() if text}
        yield _Piece(f"{name}/{properties['id']}", properties, names, archive, english.get("license", ""))


def _properties(data: bytes) -> dict[str, str]:
    """Parse Java properties: Latin-1, `key=value`, with \\uXXXX for other characters."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), data.decode("latin-1"))
    lines = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {key.strip(): value.strip() for key, separator, value in lines if separator}


def _surface(piece: _Piece, trimesh: Any, rng: np.random.Generator) -> np.ndarray | None:
    """Sample surface points in cm: x, y up, z, color (0-1), normal; None for a model without a surface."""
    path = PurePosixPath(piece.properties["model"])
    beside = [name for name in piece.archive.namelist() if PurePosixPath(name).parent == path.parent]
    files = {PurePosixPath(name).name: io.BytesIO(piece.archive.read(name)) for name in beside}
    resolver = trimesh.resolvers.ZipResolver(files)
    scene = trimesh.load_scene(files[path.name], file_type="obj", resolver=resolver)
    meshes = [mesh for mesh in scene.dump() if isinstance(mesh, trimesh.Trimesh) and mesh.area > 0]
    if not meshes:
        return None
    turn = np.eye(3)
    if "modelRotation" in piece.properties:
        turn = np.array([float(value) for value in piece.properties["modelRotation"].split()]).reshape(3, 3)
    areas = np.array([mesh.area for mesh in meshes])
    counts = rng.multinomial(SURFACE, areas / areas.sum())
    parts = []
    for mesh, count in zip(meshes, counts, strict=True):
        if count:
            textured = getattr(mesh.visual, "uv", None) is not None
            places, faces, *colors = trimesh.sample.sample_surface(mesh, count, sample_color=textured, seed=rng)
            if not textured or colors[0] is None:  # None: the texture's file is missing
                material = getattr(mesh.visual, "material", None)
                colors = [np.tile(material.main_color if material else (160, 160, 160), (len(places), 1))]
            parts.append(
                np.concatenate([places @ turn.T, colors[0][:, :3] / 255, mesh.face_normals[faces] @ turn.T], 1)
            )
    surface = np.concatenate(parts)
    low, high = surface[:, :3].min(axis=0), surface[:, :3].max(axis=0)
    size = np.array([float(piece.properties[side]) for side in ("width", "height", "depth")])
    surface[:, :3] = (surface[:, :3] - low) / np.maximum(high - low, 1e-9) * size
    return surface


def render(surface: np.ndarray, angle: float, tilt: float = np.deg2rad(20), side: int = SIDE) -> PILImage.Image:
    """Render surface points (of `_surface`) from `angle` about the vertical axis, slightly from above.

    Near points cover far ones; light comes from the camera. Rendered at twice the size, then downsampled.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    camera = (lean @ turn).T
    center = (surface[:, :3].min(axis=0) + surface[:, :3].max(axis=0)) / 2
    places = (surface[:, :3] - center) @ camera
    light = 0.45 + 0.55 * np.abs((surface[:, 6:9] @ camera)[:, 2])
    color = (surface[:, 3:6] * light[:, None] * 255).clip(0, 255).astype(np.uint8)
    extent = 2 * np.linalg.norm(surface[:, :3] - center, axis=1).max()
    large = 2 * side
    x = ((places[:, 0] / extent + 0.5) * (large - 2)).astype(np.int64)
    y = ((0.5 - places[:, 1] / extent) * (large - 2)).astype(np.int64)
    nearest_last = np.argsort(places[:, 2])
    image = np.full((large, large, 3), 255, np.uint8)
    x, y, color = x[nearest_last], y[nearest_last], color[nearest_last]
    corner = (y[:, None] + np.array([0, 0, 1, 1])) * large + x[:, None] + np.array([0, 1, 0, 1])
    image.reshape(-1, 3)[corner.reshape(-1)] = np.repeat(color, 4, axis=0)
    return PILImage.fromarray(image).resize((side, side), PILImage.Resampling.BOX)
