"""Modalities beside images and texts: decoding, bad input, and the invariances of augmentation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polymodal.errors import UnreadableExample
from polymodal.modalities import (
    Actions,
    Audio,
    Cell,
    DataTable,
    Graph,
    Interleaved,
    Labels,
    Points,
    Series,
    Table,
    Video,
    Volume,
)
from polymodal.modalities.audio import encoded, log_mel, mel_filters, resampled
from polymodal.modalities.gene_expression import binned
from polymodal.modalities.modality import to_npy
from polymodal.modalities.padding import pad
from polymodal.modalities.points import any_points, augment_points, normalize_points, some_points, with_color
from polymodal.modalities.series import augment_series, standardize
from polymodal.modalities.table import TableRow, collate, column_statistics, drop_values
from polymodal.modalities.video import encode, sample_evenly
from polymodal.modalities.view_caption import ViewCaptions
from polymodal.modalities.webpage import xpath_steps
from polymodal.rng import ExampleRNG


def tone(hertz: float, rate: int = 16_000, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


# audio


def test_sound_comes_back_mono_at_the_wanted_rate():
    stereo = np.stack([tone(440, 44_100), np.zeros(22_050, np.float32)], axis=1)
    waveform = Audio(16_000).decode(encoded(stereo, 44_100))
    assert len(waveform) == 8000
    spectrum = np.abs(np.fft.rfft(waveform))
    assert abs(spectrum.argmax() * 2 - 440) <= 2
    assert np.abs(waveform[1000:-1000]).max() == pytest.approx(0.5, abs=0.02)


def test_what_comes_after_the_limit_is_left_out():
    assert len(Audio(16_000, longest=0.25).decode(encoded(tone(300), 16_000))) == 4000


@pytest.mark.parametrize("data", [b"", b"not a sound", encoded(tone(300), 16_000)[:20]])
def test_a_broken_sound_is_unreadable(data):
    with pytest.raises(UnreadableExample, match="sound"):
        Audio().decode(data)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    assert np.abs(resampled(tone(7000, 16_000), 16_000, 8000)[500:-500]).max() < 0.02


def test_a_tone_is_loudest_in_its_own_mel_bin():
    mel = log_mel(torch.from_numpy(tone(1000))[None], 16_000, bins=40)
    assert mel.shape == (1, 51, 40)
    filters = mel_filters(16_000, 512, 40)
    assert int(mel[0, 25].argmax()) == int(filters[round(1000 * 512 / 16_000)].argmax())


def test_mel_filters_share_every_frequency_between_the_outer_peaks():
    total = mel_filters(16_000, 512, 40).sum(dim=1)
    assert torch.allclose(total[10:235], torch.ones(225), atol=1e-5)
    assert (total <= 1.0 + 1e-5).all()


def test_padding_changes_no_frame_whose_window_it_does_not_reach():
    waveform = torch.from_numpy(tone(500))[None]
    longer = torch.nn.functional.pad(waveform, (0, 4000))
    assert torch.allclose(log_mel(waveform, 16_000)[:, :48], log_mel(longer, 16_000)[:, :48], atol=1e-5)


# video


def test_a_clip_comes_back_in_order():
    pytest.importorskip("av")
    frames = np.stack([np.full((32, 48, 3), 15 * number, np.uint8) for number in range(12)])
    clip = Video(frames=4).decode(encode(frames, 8))
    assert clip.frames.shape == (4, 32, 48, 3)
    means = clip.frames.mean(axis=(1, 2, 3))
    assert means == pytest.approx([15 * place for place in sample_evenly(12, 4)], abs=6)
    assert clip.seconds == pytest.approx([place / 8 for place in sample_evenly(12, 4)])


@pytest.mark.parametrize("data", [b"", b"not a video"])
def test_a_broken_video_is_unreadable(data):
    pytest.importorskip("av")
    with pytest.raises(UnreadableExample, match="video"):
        Video().decode(data)


def test_evenly_spaced_frames():
    assert sample_evenly(3, 8) == [0, 1, 2]
    assert sample_evenly(16, 4) == [2, 6, 10, 14]


# points, series


def test_normalized_points_lie_in_the_unit_sphere():
    places = normalize_points(np.random.default_rng(0).normal(3, 5, (200, 3)))
    assert np.abs(places.mean(axis=0)).max() < 1e-6
    assert np.linalg.norm(places, axis=1).max() == pytest.approx(1.0)


def test_turning_points_keeps_heights_distances_and_colors():
    points = torch.randn(5, 40, 6)
    turned = augment_points(points, ExampleRNG.of(0, 0, 5), scale=(1.0, 1.0), shift=0.0)
    assert torch.allclose(turned[..., 1], points[..., 1])
    assert torch.equal(turned[..., 3:], points[..., 3:])
    before, after = (torch.pdist(cloud[0, :, :3]) for cloud in (points, turned))
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(turned[..., 0], points[..., 0])


def test_isotropic_augmentation_scales_all_axes_by_one_number() -> None:
    points = torch.randn(50, 30, 6)
    changed = augment_points(points, ExampleRNG.of(0, 0, 50), (0.8, 1.25), 0.1, isotropic=True)
    before, after = (torch.stack([torch.pdist(cloud[:, :3]) for cloud in one]) for one in (points, changed))
    ratio = after / before
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4, rtol=1e-4)
    assert 0.8 <= float(ratio.min()) < 0.9 < 1.15 < float(ratio.max()) <= 1.25


def test_the_first_point_stands_for_those_that_are_dropped():
    points = torch.randn(40, 200, 6)
    changed = augment_points(points, ExampleRNG.of(0, 0, 40), scale=(1.0, 1.0), shift=0.0, dropout=0.8)
    lost = (changed == changed[:, :1]).all(dim=2)[:, 1:].double().mean(dim=1)
    assert 0.3 < float(lost.mean()) < 0.5
    assert float(lost.max()) < 0.9
    assert float(lost.min()) < 0.1


def test_perturbing_rotations_keep_distances():
    points = torch.randn(30, 20, 6)
    turned = augment_points(points, ExampleRNG.of(0, 0, 30), scale=(1.0, 1.0), shift=0.0, rotate_perturbation=0.06)
    for one, other in zip(points, turned, strict=True):
        assert torch.allclose(torch.pdist(one[:, :3]), torch.pdist(other[:, :3]), atol=1e-4)
    heights = (turned[..., 1] - points[..., 1]).abs() / points[..., :3].norm(dim=2)
    assert 0.01 < float(heights.max()) < 3 * 0.06 * 2


def test_a_cloud_gives_as_many_points_as_are_asked_for():
    points, rng = np.arange(30, dtype=np.float32).reshape(10, 3), np.random.default_rng(0)
    assert some_points(points, 5)[:, 0].tolist() == [0, 6, 12, 18, 24]
    assert some_points(points, 20)[:, 0].tolist() == np.repeat(np.arange(0, 30, 3), 2).tolist()
    drawn = any_points(points, 10, rng)
    assert sorted(drawn[:, 0]) == points[:, 0].tolist()
    assert any_points(points, 25, rng).shape == (25, 3)
    assert with_color(points).shape == (10, 6)
    assert with_color(with_color(points)).shape == (10, 6)


def test_captions_of_views_stand_view_by_view_the_best_first():
    stored = [{"view": 1, "text": "b", "fit": 0.1}, {"view": 0, "text": "c", "fit": 0.3}]
    stored.append({"view": 1, "text": "a", "fit": 0.2})
    assert [caption.text for caption in ViewCaptions().decode(stored)] == ["c", "a", "b"]
    with pytest.raises(UnreadableExample, match="no image has a caption"):
        ViewCaptions().decode([])


def test_an_example_is_augmented_alike_whatever_stands_beside_it():
    points, series = torch.randn(6, 30, 3), torch.randn(6, 2, 25)
    for augment, batch in ((augment_points, points), (augment_series, series)):
        whole = augment(batch, ExampleRNG.of(3, 0, 6))
        half = augment(batch[3:], ExampleRNG.of(3, 3, 3))
        assert torch.allclose(whole[3:], half)


def test_a_constant_channel_is_standardized_to_zero():
    series = standardize(np.array([[5.0, 5.0, 5.0], [1.0, 2.0, 3.0]], np.float32))
    assert series[0].tolist() == [0, 0, 0]
    assert series[1].std() == pytest.approx(1.0)


@pytest.mark.parametrize("modality", [Points(), Series()])
@pytest.mark.parametrize("data", [b"", b"not an array", to_npy(np.zeros(3))])
def test_arrays_of_another_kind_are_unreadable(modality, data):
    with pytest.raises(UnreadableExample):
        modality.decode(data)


def test_arrays_with_objects_are_never_unpickled():
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableExample):
        Points().decode(buffer.getvalue())


# tables

TABLE = Table({"width": "cm", "height": "cm"}, {"kind": ("mono", "poly")})


def test_missing_values_stay_missing():
    row = TABLE.decode({"width": 2.5, "height": None, "kind": None})
    assert row.numbers[0] == 2.5
    assert math.isnan(row.numbers[1])
    assert row.categories.tolist() == [-1]
    assert TABLE.lines(row) == ["width: 2.5 cm", "height: ?", "kind: ?"]


@pytest.mark.parametrize(
    "value", [{"width": 1, "height": math.inf, "kind": "mono"}, {"width": 1, "height": 1, "kind": "x"}]
)
def test_a_value_that_the_table_does_not_know_is_unreadable(value):
    with pytest.raises(UnreadableExample):
        TABLE.decode(value)


def test_rows_are_standardized_over_the_values_that_are_there():
    rows = [TableRow(np.array([value, math.nan], np.float32), np.array([0])) for value in (1.0, 3.0, math.nan)]
    mean, std = column_statistics(rows)
    assert mean.tolist() == [2.0, 0.0]
    assert std.tolist() == [1.0, 1.0]
    batch = collate(rows, mean, std)
    assert batch.numbers[:2, 0].tolist() == [-1.0, 1.0]
    assert batch.numbers[:, 1].isnan().all()


def test_values_go_missing_at_the_rate_that_is_asked_for():
    rows = collate([TableRow(np.zeros(20, np.float32), np.zeros(20, np.int64))] * 200, np.zeros(20), np.ones(20))
    missing = drop_values(rows, 0.3, ExampleRNG.of(0, 0, 200))
    assert missing.numbers.isnan().float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (missing.categories == -1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert drop_values(rows, 0.0, ExampleRNG.of(0, 0, 200)).numbers.isnan().sum() == 0


def test_small_tables_have_columns_of_one_length():
    columns = DataTable().decode([{"name": "x", "values": ["1", "2"]}, {"name": "y", "values": ["3", "4"]}])
    assert DataTable().text(columns) == "x | y\n1 | 3\n2 | 4"
    with pytest.raises(UnreadableExample, match="length"):
        DataTable().decode([{"name": "x", "values": ["1"]}, {"name": "y", "values": []}])


# others


def test_a_scan_may_lack_contrasts_but_not_all():
    volume, voxels = Volume(("T1", "T2")), np.ones((2, 3, 4), np.uint8)
    scan = volume.decode({"T1": None, "T2": to_npy(voxels)})
    assert scan.voxels.shape == (2, 2, 3, 4)
    assert scan.present.tolist() == [False, True]
    assert scan.voxels.sum(axis=(1, 2, 3)).tolist() == [0, 24]
    with pytest.raises(UnreadableExample, match="no contrast"):
        volume.decode({"T1": None, "T2": None})
    with pytest.raises(UnreadableExample, match="shape"):
        volume.decode({"T1": to_npy(voxels[:1]), "T2": to_npy(voxels)})


def test_bins_are_quantiles_of_what_a_cell_expresses():
    expression = np.array([0.0, 1, 2, 3, 4, 0, 100], np.float32)
    assert binned(expression, 5).tolist() == [0, 1, 2, 3, 4, 0, 5]
    assert np.array_equal(binned(expression, 5), binned(10 * expression, 5))  # sequencing depth does not matter
    assert binned(np.zeros(4, np.float32), 5).tolist() == [0, 0, 0, 0]
    with pytest.raises(UnreadableExample, match="2 genes"):
        Cell(("A", "B", "C")).decode(to_npy(np.zeros(2)))


def test_molecules_become_graphs():
    pytest.importorskip("rdkit")
    from polymodal.modalities import Molecule

    ethanol = Molecule().decode("OCC")
    assert ethanol.smiles == Molecule().decode("CCO").smiles
    assert sorted(ethanol.atoms[:, 0]) == [6, 6, 8]
    assert ethanol.ends.shape == (2, 4)  # two bonds, both ways
    assert Molecule().decode("C").ends.shape == (2, 0)
    with pytest.raises(UnreadableExample, match="no molecule"):
        Molecule().decode("C(")


def test_labels_graphs_and_actions_refuse_what_they_do_not_know():
    assert Labels(("a", "b")).decode(["b", "a"]) == (0, 1)
    with pytest.raises(UnreadableExample, match="'c'"):
        Labels(("a", "b")).decode(["c"])
    with pytest.raises(UnreadableExample, match="no node"):
        Graph().decode({"nodes": ["x"], "edges": [{"source": 0, "target": 1, "relation": "near"}]})
    with pytest.raises(UnreadableExample, match="'fly'"):
        Actions(("walk",)).decode([{"name": "fly", "target": None, "text": None}])


def test_a_document_with_a_broken_figure_is_unreadable():
    piece = {"kind": "figure", "text": None, "figure": b"broken"}
    with pytest.raises(UnreadableExample, match="image"):
        Interleaved().decode([piece])


def test_xpath_steps():
    assert xpath_steps("/html/body/div[2]/p") == [("html", 1), ("body", 1), ("div", 2), ("p", 1)]


def test_padding_is_zero_and_masked():
    padded = pad([np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)])
    assert padded.values.shape == (2, 4, 3)
    assert padded.values[0, 2:].abs().sum() == 0
    assert padded.mask.tolist() == [[True, True, False, False], [True] * 4]


def test_smiles_are_cut_into_atoms_bonds_and_rings(tmp_path):
    from polymodal.modalities.molecule import UNKNOWN, smiles_tokenizer
    from polymodal.modalities.text import TextTokenizer

    known = ["CC(=O)Oc1ccccc1C(=O)O", "C[C@@H](N)C(=O)O", "Clc1ccc(Br)cc1", "C%12CCCCC%12", "c1cc[nH]c1"]
    tokenizer = smiles_tokenizer(known, 64)
    tokens = tokenizer(known)
    assert tokenizer.decode(tokens) == known
    lengths = {smiles: int(length) - 2 for smiles, length in zip(known, tokens.lengths, strict=True)}
    assert lengths["c1cc[nH]c1"] == 7
    assert lengths["Clc1ccc(Br)cc1"] == 12
    assert lengths["C%12CCCCC%12"] == 8
    tokenizer.save(tmp_path)
    again = TextTokenizer.load(tmp_path, 64)
    assert again(known).ids.equal(tokens.ids)
    assert again(["[Si]"]).ids[0, 1] == tokenizer.tokenizer.token_to_id(UNKNOWN)
