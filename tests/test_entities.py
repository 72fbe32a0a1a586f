"""Entities of images and texts, and the sentences of reports."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.user_files import from_path
from polymodal.data.columns.entities import CHEXPERT, EntitiesColumn, mentions
from polymodal.errors import UserError
from polymodal.modalities.text_augmentation import report_sentences

GOLDEN = dict(np.load(Path(__file__).parent / "golden/medflip.npz").items())


def test_sentences_are_those_of_medclip() -> None:
    for report, expected in zip(GOLDEN["reports"].tolist(), GOLDEN["sentences"].tolist(), strict=True):
        sentences = [" ".join(re.findall(r"\w+|[^\w\s]+", one.lower())) for one in report_sentences(report)]
        assert sentences == (expected.split("|") if expected else [report.lower().replace(".", " .")])


def test_mentions_are_present_uncertain_or_absent() -> None:
    column = EntitiesColumn(names=CHEXPERT, default="No Finding")
    text = "No pleural effusion or pneumothorax. Possible edema, but stable cardiomegaly; no edema."
    state = {name: value for name, value in zip(CHEXPERT, column.of_text(text).tolist(), strict=True) if value}
    assert state == {"Pleural Effusion": -1, "Pneumothorax": -1, "Cardiomegaly": 1}
    assert mentions("no fracture. an old fracture", {"fracture": 0}) == {0: 1}
    assert mentions("no fracture. maybe, possibly a fracture", {"fracture": 0}) == {0: 0}
    assert column.of_text("all is well").tolist() == [1.0] + [0.0] * 13
    assert not column.of_text("all is well", default=False).any()


def test_entities_come_from_captions_or_classes(corpus: Corpus) -> None:
    column = EntitiesColumn().fit([corpus], {})
    assert {"red", "square"} <= {*column.names}
    assert not {"a", "there"} & {*column.names}  # in every text
    row, names = int(corpus.rows("train")[0]), np.array(column.names)
    assert {*names[column.load(corpus, row) == 1]} == {"red", "square"}
    label = EntitiesColumn("label").fit([corpus], {})
    assert label.load(corpus, row).tolist() == [float(name == "red") for name in label.names]
    with pytest.raises(UserError, match="none of the entities"):
        EntitiesColumn("label", default="No Finding").fit([corpus], {})


def test_a_table_states_findings_as_chexpert_does(tmp_path: Path) -> None:
    lines = [f"{n}.png,clear lungs {n},{('1,0', '-1,', '0,1', ',1')[n % 4]}" for n in range(20)]
    (tmp_path / "reports.csv").write_text("\n".join(["image,text,Edema,Lung_Lesion", *lines]))
    for n in range(20):
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / f"{n}.png")
    corpus = from_path(tmp_path)
    column = EntitiesColumn("table").fit([corpus], {})
    order = [[*column.names].index(name) for name in ("Edema", "Lung_Lesion")]
    for row in range(20):
        number = int(corpus.value(row, "text")[0].text.split()[-1])
        assert column.load(corpus, row)[order].tolist() == [[1, -1], [0, 0], [-1, 1], [0, 1]][number % 4]
    assert column.of_text("no lung lesion")[order].tolist() == [0, -1]
