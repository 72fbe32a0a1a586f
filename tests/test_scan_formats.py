"""Scans in NIfTI files: orientation, contrasts, masks, and what is damaged."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from format_samples import COUNT, SAMPLES
from polymodal.corpora import from_path
from polymodal.corpora.formats.nifti import read_scan
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Category, Volume

nibabel = pytest.importorskip("nibabel")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(voxels: np.ndarray, path, affine=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def test_contrasts_of_a_scan_are_one_row_in_canonical_orientation(tmp_path):
    corpus = from_path(SAMPLES["nifti"](tmp_path))
    assert len(corpus) == COUNT
    assert corpus.columns["volume"] == Volume(("flair", "t1ce"))
    scan = corpus.value(0, "volume")
    assert scan.present.tolist() == [True, False]
    expected = np.random.default_rng(0).random((5, 4, 3), dtype=np.float32)[::-1]  # its first axis points left
    np.testing.assert_array_equal(scan.voxels[0], expected)
    assert [(one.count, one.reason) for one in corpus.skipped] == [(COUNT, "is a mask")]


def test_scaled_and_uint8_values(tmp_path):
    stored = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    save(stored, tmp_path / "a.nii")
    assert read_scan(tmp_path / "a.nii").dtype == np.uint8
    image = nibabel.Nifti1Image(stored.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2, -5)
    nibabel.save(image, tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "b.nii.gz"), nibabel.load(tmp_path / "b.nii.gz").get_fdata())


def test_class_folders_and_participants(tmp_path):
    lines = ["participant_id\tage\tsex"]
    for number in range(12):
        group = ["ill", "well"][number % 2]
        save(np.ones((3, 3, 3), np.uint8) * number, tmp_path / group / f"sub-{number:02d}_T1w.nii.gz")
        lines.append(f"sub-{number:02d}\t{40 + number % 5}\t{'FM'[number % 2]}")
    (tmp_path / "participants.tsv").write_text("\n".join(lines))
    corpus = from_path(tmp_path)
    assert corpus.columns["label"] == Category(("ill", "well"))
    row = corpus.table.column("file").to_pylist().index("well/sub-03")
    assert corpus.raw(row, "table") == {"age": 43.0, "sex": "M"}


def test_damaged_and_other_scans_are_counted(tmp_path):
    for number in range(4):
        save(np.ones((3, 3, 3), np.float32), tmp_path / f"{number}.nii.gz")
    whole = (tmp_path / "0.nii.gz").read_bytes()
    (tmp_path / "0.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "1.nii.gz").write_bytes(gzip.compress(b"nothing"))
    save(np.ones((3, 3, 3, 5), np.float32), tmp_path / "2.nii.gz")
    corpus = from_path(tmp_path)
    assert (len(corpus), corpus.skipped[0].count) == (1, 3)
    with pytest.raises(UnreadableExample, match="three dimensions are read"):
        read_scan(tmp_path / "2.nii.gz")
    (tmp_path / "3.nii.gz").unlink()
    with pytest.raises(UserError, match="None of the 3 scans can be read"):
        from_path(tmp_path)


def test_masks_alone_are_a_sentence(tmp_path):
    save(np.ones((3, 3, 3), np.uint8), tmp_path / "a_seg.nii")
    with pytest.raises(UserError, match="masks but no scan"):
        from_path(tmp_path)


def test_folders_of_masks_and_channels_of_nnunet(tmp_path):
    for number in range(4):
        for channel in range(2):
            voxels = np.full((3, 3, 3), 10 * number + channel, np.uint8)
            save(voxels, tmp_path / "imagesTr" / f"CASE_{number:03d}_{channel:04d}.nii.gz")
        save(np.full((3, 3, 3), 99, np.uint8), tmp_path / "labelsTr" / f"CASE_{number:03d}.nii.gz")
    corpus = from_path(tmp_path)
    assert (len(corpus), corpus.label) == (4, None)
    scan = corpus.value([corpus.key(row) for row in range(4)].index("imagesTr/CASE_002"), "volume")
    assert [float(voxels.max()) for voxels in scan.voxels] == [20, 21]
    assert [(one.count, one.reason) for one in corpus.skipped] == [(4, "is a mask")]


def test_scans_of_a_subject_are_in_one_split_and_the_group_of_participants_is_a_label(tmp_path):
    lines = ["participant_id\tsex\tgroup"]
    for number in range(20):
        for session in (1, 2):
            name = f"sub-{number:02d}_ses-{session}_T1w.nii.gz"
            voxels = np.full((3, 3, 3), 2 * number + session, np.uint8)
            save(voxels, tmp_path / f"sub-{number:02d}" / f"ses-{session}" / "anat" / name)
        lines.append(f"sub-{number:02d}\t{'FM'[number % 2]}\t{['n/a', 'control', 'patient'][number % 3]}")
    (tmp_path / "participants.tsv").write_text("\n".join(lines))
    corpus = from_path(tmp_path)
    subjects = corpus.table.column("group").to_pylist()
    of_split = [{subjects[int(row)] for row in rows} for rows in corpus.splits.values()]
    assert sum(map(len, of_split)) == len({*subjects}) == 20
    assert all(of_split)
    assert corpus.columns["label"] == Category(("control", "patient"))
    assert {*corpus.columns} == {"volume", "label", "table"}
