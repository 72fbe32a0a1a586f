"""Volumes and findings: corpus of studies, files of users, cropping, augmentation, multi-scale features, reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from polymodal.corpora import Corpus, from_path
from polymodal.corpora.studies import FINDINGS, probabilities, study
from polymodal.data.columns.volume import VolumeAugmentation, VolumeColumn, cropped
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.data.reports import NO_FINDING, assemble, report_of, split_sentences, states
from polymodal.encoders.volume_resnet import VolumeResNet, VolumeResNetConfig
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation.tasks.findings import f1, finding_scores, macro_auc, presence_panel, report_scores
from polymodal.layers.multi_scale_tokens import MultiScaleTokens, MultiScaleTokensConfig
from polymodal.modalities import Findings
from polymodal.modalities.volume import Scan, key_slice
from polymodal.recipes.captioning.abn_blip import Recipe
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.types import Budget


def anatomy() -> np.ndarray:
    """A ball of gray and white matter."""
    grid = np.stack(np.meshgrid(*(np.arange(40) - 20,) * 3, indexing="ij"))
    ball = (np.linalg.norm(grid, axis=0) < 18).astype(np.float32)
    return np.stack([0.6 * ball, 0.4 * ball, 0 * ball])


def test_lesions_of_a_study_are_where_their_sentences_and_masks_say() -> None:
    lesions = 0
    for seed in range(5):
        scans, mask, sentences = study(anatomy(), np.random.default_rng(seed))
        again = study(anatomy(), np.random.default_rng(seed))
        np.testing.assert_array_equal(scans, again[0])
        present = sorted({*mask[mask > 0].tolist()})
        assert [FINDINGS[number - 1] for number in present] == [finding for finding in FINDINGS if finding in sentences]
        for number in present:
            kind, lobe = FINDINGS[number - 1]
            places = np.argwhere(mask == number)
            assert ("left" if places[:, 0].mean() < 20 else "right") in sentences[kind, lobe]
            assert states(sentences[kind, lobe], f"{lobe} {kind}")
            lesions += 1
            if kind == "cyst":  # dark in both contrasts
                inside = mask == number
                assert all(scan[inside].mean() < scan[(mask == 0) & (scan > 60)].mean() for scan in scans)
    assert lesions > 5
    frequencies = probabilities()
    assert frequencies.max() == pytest.approx(0.32)
    assert frequencies.min() == pytest.approx(0.02)


def test_the_key_slice_has_most_of_the_mask() -> None:
    voxels, mask = np.random.default_rng(0).random((2, 4, 5, 6)), np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 2, 4] = 3
    image, part = key_slice(voxels, mask)
    np.testing.assert_array_equal(image, voxels[:, :, :, 4])
    assert part.sum() == 6
    assert key_slice(voxels, np.zeros_like(mask), axis=0)[0].shape == (2, 5, 6)


def test_volumes_are_cropped_and_padded_around_the_center_and_standardized() -> None:
    voxels = np.arange(2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)
    out = cropped(voxels, (2, 5, 6))
    np.testing.assert_array_equal(out[:, :, :, 1:4], voxels[:, 1:3])
    assert (out[..., 4:] == 0).all()
    column = VolumeColumn((2, 5, 6), [1.0, 2.0], [2.0, 4.0], ["a", "b"])
    batch = column([Scan(voxels, np.array([True, False]))])
    torch.testing.assert_close(batch[0, 0], torch.from_numpy((out[0] - 1) / 2))
    assert not batch[0, 1].any()
    with pytest.raises(UnreadableExample, match="no finite numbers"):
        column([Scan(voxels * np.nan, np.array([True, True]))])


def test_augmentation_changes_intensities_by_no_more_than_it_says() -> None:
    column = VolumeColumn((4, 4, 2), [0.0], [1.0], ["a"])
    scans = [Scan(np.random.default_rng(n).random((1, 4, 4, 2)).astype(np.float32), np.ones(1, bool)) for n in range(8)]
    plain, rng = column(scans), ExampleRNG.of(0, 0, 8)
    changed = column.augmented(scans, VolumeAugmentation(), rng)
    assert float((changed - plain).abs().max()) <= 0.2
    assert float((changed - plain).abs().max()) > 0.02
    turned = column.augmented(scans, VolumeAugmentation(0.0, 0.0, 0.0, rotate_prob=1.0), ExampleRNG.of(0, 0, 8))
    turns = [[torch.equal(b, torch.rot90(a, k, (1, 2))) for k in (1, 2, 3)] for a, b in zip(plain, turned, strict=True)]
    assert all(map(any, turns))
    torch.testing.assert_close(
        column.augmented(scans[4:], VolumeAugmentation(), ExampleRNG(rng.seeds[4:])), changed[4:]
    )


def test_feature_maps_have_five_scales_and_tokens_one_width() -> None:
    config, tokens = VolumeResNetConfig((16, 48, 40), 4), MultiScaleTokensConfig(2, 8, 16, 8, 3)
    maps = VolumeResNet(config, 2).eval()(torch.randn(2, 2, 16, 48, 40))
    assert [one.shape[1] for one in maps] == list(config.channels) == [4, 16, 32, 64, 128]
    assert tuple(maps[-1].shape[2:]) == config.last_size == (1, 2, 2)
    assert MultiScaleTokens(tokens, config.channels, config.last_size)(maps).shape == (2, tokens.total, 16)
    paper = VolumeResNetConfig((224, 224, 160), 64, (3, 8, 36, 3), (7, 7, 3), (2, 2, 1))
    assert paper.last_size == (7, 7, 10)  # as the released code has it
    with pytest.raises(UserError, match="even"):
        MultiScaleTokens(MultiScaleTokensConfig(grid=3), config.channels, config.last_size)


def test_a_batch_of_one_study_is_refused_in_a_sentence() -> None:
    config = VolumeResNetConfig((16, 16, 16), 4)
    with pytest.raises(UserError, match="batch size of 2"):
        VolumeResNet(config, 1)(torch.randn(1, 1, 16, 16, 16))
    assert len(VolumeResNet(config, 1).eval()(torch.randn(1, 1, 16, 16, 16))) == 5


def test_reports_are_assembled_by_region_and_read_back() -> None:
    sentences = ["a small cyst in the left lobe", "no abnormal tumor is seen.", "no abnormal edema."]
    assert assemble(sentences, ["lobe", "lobe", "stem"]) == {
        "lobe": "a small cyst in the left lobe.", "stem": "Normal."
    }  # fmt: skip
    said = assemble(sentences, ["lobe", "lobe", "stem"], lambda region, kept: f"{region}: {len(kept)}")
    assert said["lobe"] == "lobe: 1"
    assert report_of(["", ""]) == NO_FINDING
    assert split_sentences("a b. c d. ") == ["a b.", "c d."]
    assert states("A large cyst, in the left frontal lobe", "Frontal cyst")
    assert not states("no abnormal frontal cyst", "Frontal cyst")
    assert not states("there is no frontal cyst", "Frontal cyst")
    assert not states("a cyst in the parietal lobe", "Frontal cyst")


def test_scores_of_findings_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, likely = rng.random((60, 6)) < 0.3, rng.random((60, 6))
    predicted = likely > 0.6
    assert macro_auc("a", likely, truth).value == pytest.approx(roc_auc_score(truth, likely, average="macro"))
    counts = dict(zip("abcdef", (90, 50, 40, 30, 3, 2), strict=True))
    panel = {score.name: score for score in presence_panel("p", predicted, truth, counts)}
    assert panel["p/macro_F1"].value == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert panel["p/tail/macro_F1"].value == pytest.approx(f1_score(truth[:, 4:], predicted[:, 4:], average="macro"))
    recall = np.mean([predicted[truth[:, n], n].mean() for n in (4, 5)])
    assert panel["p/tail/recall"].value == pytest.approx(recall)
    all_stated = presence_panel("p", np.ones_like(truth), truth, counts)[0]
    assert all_stated.value == pytest.approx(all_stated.chance)
    without_first = f1("a", predicted[1:, 0], truth[1:, 0]).value
    one = f1("a", predicted[:, 0], truth[:, 0])
    assert one.clusters[0] - one.clusters[1] == pytest.approx(
        59 * (f1("a", np.delete(predicted[:, 0], 1), np.delete(truth[:, 0], 1)).value - without_first)
    )
    scores = {s.name: s.value for s in report_scores("r", [["a b c d."], []], [("a b c d.", ""), ("", "e f g.")])}
    assert scores["r/sentence_accuracy"] == 0.5
    assert 0 < scores["r/BLEU-4"] < 1


def test_scores_without_a_unit_are_left_out(corpus: Corpus) -> None:
    reader = Reader(corpus, fit_processor(Recipe.tiny(), corpus))
    method = Recipe.tiny().build(reader.processor)
    names = {score.name for score in finding_scores(method, reader.processor, reader, "test", 1)}  # one study: no AUC
    assert "test/report/BLEU-4" in names
    assert "test/presence/AUC" not in names


def write_studies(folder: Path, table: str | None = None) -> Path:
    nibabel = pytest.importorskip("nibabel")
    folder.mkdir()
    lines = ["scan,Lung: nodule,Lung: opacity,effusion"]
    for number in range(20):
        voxels = np.random.default_rng(number).integers(0, 90, (16, 16, 16)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"case{number}_ct.nii.gz")
        nodule, effusion = '"a nodule, left"' if number % 2 else "", "yes" if number % 5 else ""
        lines.append(f"case{number},{nodule},{number % 3 % 2},{effusion}")
    (folder / "findings.csv").write_text(table or "\n".join(lines))
    return folder


def test_scans_of_a_user_with_findings_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    corpus: Corpus = from_path(write_studies(tmp_path / "ct"))
    assert corpus.columns["findings"] == Findings(("nodule", "opacity", "effusion"), ("Lung", "Lung", "Findings"))
    found = {corpus.key(row): corpus.value(row, "findings") for row in range(20)}
    assert next(value for key, value in found.items() if "case7" in key) == ("a nodule, left", "opacity.", "effusion.")
    run = train(dataclasses.replace(Recipe.tiny(), batch_size=2), corpus, Budget(steps=2))
    assert run.processor.findings.names == ["nodule", "opacity", "effusion"]
    for number, (table, said) in enumerate([
        ("scan\ncase1", "has no finding"), ("scan,a\nother,b", "names no scan"), ("scan,a,A\ncase1,b,c", "of one name"),
        ("scan,a\ncase1,b,c", "2 columns"), ("scan,a\ncase1,", "No training study"),
        ("scan,a\ncase1,b\ncase1.nii.gz,c", "2 rows for 1 scans"),
    ]):  # fmt: skip
        with pytest.raises(UserError, match=said):
            train(Recipe.tiny(), from_path(write_studies(tmp_path / str(number), table)), Budget(steps=2))


def test_rows_of_findings_without_a_scan_are_listed_and_cells_may_have_line_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    table = 'scan,nodule\ncase1 ,"a nodule,\nleft."\nghost,a nodule.\ncase2,'
    corpus = from_path(write_studies(tmp_path / "ct", table))
    row = next(row for row in range(20) if corpus.key(row) == "case1")
    assert corpus.value(row, "findings") == ("a nodule, left.",)
    (skipped,) = corpus.skipped
    assert (skipped.count, skipped.example) == (1, "ghost")
    assert "names no scan" in skipped.reason
