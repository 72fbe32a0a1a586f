"""ELPV: electroluminescence photographs of 2,624 solar cells, with the kind of the cell and how defective it is.

An expert's judgement is one of four grades: how likely the cell is defective (0, 1/3, 2/3, 1). The numbers of the table
row are measured by us from the photograph (brightness, dark area, unevenness ...), the kind of the cell comes with the
data. The data's own test split is kept; a tenth of its training split becomes `validation`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Image, Modality, Table

PACKAGE = PyPIPackage(
    "elpv-dataset", "1.0.0", "99a6d441f2cbd9f00d3d4165326faa68fbf2314d7d7584d4f679eed92b121f27", 90_801_752
)
GRADES = {0.0: "intact", 1 / 3: "probably intact", 2 / 3: "probably defective", 1.0: "defective"}
MEASURED = ("brightness", "contrast", "dark area", "darkest row", "darkest column", "left-right", "top-bottom", "edges")

about = About(
    name="solar_cells",
    description="2,624 electroluminescence photographs of solar cells with a table row and a defect grade",
    license="CC-BY-NC-SA-4.0 (not for commercial use)",
    source=f"PyPI: {PACKAGE.name}",
    modalities=("image", "table", "category"),
    download_bytes=PACKAGE.bytes,
    composed="the numbers of the table are measured from the photograph",
)


def solar_cells() -> Corpus:
    """Open the corpus, fetching and preparing it once (91 MB). Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "attributes": Table(dict.fromkeys(MEASURED, ""), {"kind": ("mono", "poly")}),
        "grade": Category(tuple(GRADES.values())),
    }
    return open_prepared(about, columns, _rows, label="grade", prompts=_prompts)


def _prompts(grade: str) -> tuple[str, ...]:
    return (f"a solar cell that is {grade}",)


def _rows(prepare: Preparation) -> Iterator[Row]:
    folder = "elpv_dataset/data/"
    files = dict(members(prepare.fetch(PACKAGE), lambda name: name.startswith(folder)))
    lines = files[f"{folder}labels.csv"].decode().splitlines()
    for line in prepare.track(lines, "Measuring photographs"):
        name, probability, kind, split = line.split()
        data = files[folder + name]
        if split == "train":
            split = split_by_hash(name, test=0)
        yield {
            "key": name.removeprefix("images/").removesuffix(".png"),
            "split": split,
            "image": data,
            "attributes": measure(np.asarray(Image().decode(data).convert("L"), np.float64) / 255) | {"kind": kind},
            "grade": min(GRADES.items(), key=lambda grade: abs(grade[0] - float(probability)))[1],
        }


def measure(photograph: np.ndarray) -> dict[str, float]:
    """Measure features for inspection. photograph: height x width, 0 (black) to 1."""
    mean = photograph.mean()
    middle_row, middle_column = (side // 2 for side in photograph.shape)
    left, right = photograph[:, :middle_column].mean(), photograph[:, middle_column:].mean()
    top, bottom = photograph[:middle_row].mean(), photograph[middle_row:].mean()
    edges = np.abs(np.diff(photograph, axis=0)).mean() + np.abs(np.diff(photograph, axis=1)).mean()
    dark = photograph < mean / 2
    values = (
        *(mean, photograph.std(), dark.mean(), photograph.mean(1).min() / mean, photograph.mean(0).min() / mean),
        *((left - right) / mean, (top - bottom) / mean, edges),
    )
    return dict(zip(MEASURED, map(float, values), strict=True))
