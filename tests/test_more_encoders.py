"""Encoders beside those of images and texts: shapes, the invariances that they promise, gradients."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from golden_points import GOLDEN, SMALL, checkpoint
from polymodal.encoders.action import ActionEncoderConfig
from polymodal.encoders.audio import AudioEncoder, AudioEncoderConfig
from polymodal.encoders.cell import CellEncoder, CellEncoderConfig
from polymodal.encoders.graph import GraphEncoder, GraphEncoderConfig, VectorGraph
from polymodal.encoders.molecule import MoleculeEncoder, MoleculeEncoderConfig, collate_molecules
from polymodal.encoders.points import PointEncoder, PointEncoderConfig, farthest_point_sampling
from polymodal.encoders.series import SeriesEncoder, SeriesEncoderConfig
from polymodal.encoders.table import TableEncoder, TableEncoderConfig
from polymodal.encoders.video import VideoEncoder, VideoEncoderConfig
from polymodal.encoders.volume import VolumeEncoder, VolumeEncoderConfig, patchify_3d
from polymodal.encoders.waveform import Convolutions, WaveformEncoder, WaveformEncoderConfig, frame_counts
from polymodal.errors import UserError
from polymodal.layers.graph import GraphAttention, GraphConvolution, propagate, symmetric_weights
from polymodal.modalities import Molecule
from polymodal.modalities.action import Action, ActionSteps
from polymodal.modalities.padding import Padded, pad
from polymodal.modalities.table import TableRows
from polymodal.modalities.text import TextTokenizer


@pytest.fixture
def point_encoder() -> PointEncoder:
    torch.manual_seed(0)
    return PointEncoder(PointEncoderConfig(num_groups=8, group_size=6)).eval()


@pytest.fixture
def audio_encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(AudioEncoderConfig(num_mel_bins=32)).eval()


def test_the_order_of_points_does_not_matter(point_encoder):
    points = torch.randn(3, 50, 6)
    tokens, pooled = point_encoder(points)
    assert tokens.shape == (3, 8, 64)
    assert pooled.shape == (3, 64)
    again, pooled_again = point_encoder(points[:, torch.randperm(50)])
    assert torch.allclose(tokens, again, atol=1e-4)
    assert torch.allclose(pooled, pooled_again, atol=1e-4)
    assert not torch.allclose(pooled, point_encoder(points + 0.1)[1], atol=1e-3)  # positions are absolute


@pytest.mark.parametrize(("kind", "channels"), [("colored", 6), ("plain", 3)])
def test_the_encoder_is_that_of_the_official_code(kind: str, channels: int) -> None:
    encoder = PointEncoder(dataclasses.replace(SMALL, channels=channels))
    encoder.load_point_bert(checkpoint(kind))
    points = torch.from_numpy(GOLDEN["points"])
    for mode in ("eval", "train"):
        pooled = encoder.train(mode == "train")(points)[1]
        torch.testing.assert_close(pooled, torch.from_numpy(GOLDEN[f"{kind}_{mode}"]), atol=1e-5, rtol=1e-5)
    pooled.square().sum().backward()
    norm = encoder.transformer.blocks[0].attention.qkv.weight.grad.norm()
    assert float(norm) == pytest.approx(float(GOLDEN[f"{kind}_gradient"]), rel=1e-5)
    np.testing.assert_allclose(encoder.first_conv[1].running_var, GOLDEN[f"{kind}_running_var"], rtol=1e-5)


def test_the_class_token_stands_beside_the_largest_values():
    torch.manual_seed(0)
    config = PointEncoderConfig(num_groups=8, group_size=6, encoder_dims=24, pool_type="cls_max", drop_path_rate=0.5)
    encoder = PointEncoder(config).eval()
    tokens, pooled = encoder(torch.randn(3, 50, 6))
    assert tokens.shape == (3, 8, 64)
    assert pooled.shape == (3, config.pooled_width)
    assert torch.equal(pooled[:, 64:], tokens.amax(dim=1))
    assert PointEncoderConfig().pooled_width == 64


def test_color_and_shape_matter(point_encoder):
    points = torch.randn(1, 50, 6)
    pooled = point_encoder(points)[1]
    for channel in (1, 4):
        changed = points.clone()
        changed[..., channel] *= -0.5
        assert not torch.allclose(pooled, point_encoder(changed)[1], atol=1e-3)


def test_farthest_points_against_the_plain_rule():
    places = torch.randn(1, 30, 3)
    chosen = farthest_point_sampling(places, 6)[0].tolist()
    assert chosen[0] == int(places[0].norm(dim=1).argmax())
    for count in range(1, 6):
        distance = torch.stack([(places[0] - places[0, number]).norm(dim=1) for number in chosen[:count]]).amin(0)
        assert chosen[count] == int(distance.argmax())


def test_padding_of_a_sound_changes_nothing(audio_encoder):
    sounds = [torch.randn(length, 32) for length in (8, 21, 40)]
    tokens, pooled = audio_encoder(pad(sounds))
    assert tokens.values.shape == (3, 10, 64)
    assert tokens.lengths.tolist() == [2, 6, 10]
    for row, sound in enumerate(sounds):
        alone, pooled_alone = audio_encoder(pad([sound]))
        assert torch.allclose(pooled[row], pooled_alone[0], atol=1e-5)
        assert torch.allclose(tokens.values[row, : len(alone.values[0])], alone.values[0], atol=1e-5)
    noisy = pad(sounds).values
    noisy[0, 8:], noisy[1, 21:] = 7.0, -9.0
    assert torch.allclose(pooled, audio_encoder(Padded(noisy, torch.tensor([8, 21, 40])))[1], atol=1e-5)


def test_when_a_sound_comes_matters(audio_encoder):
    sound = torch.randn(1, 40, 32)
    lengths = torch.tensor([40])
    assert not torch.allclose(
        audio_encoder(Padded(sound, lengths))[1], audio_encoder(Padded(sound.flip(1), lengths))[1], atol=1e-3
    )


def test_gradients_reach_every_parameter_and_weights_come_back(point_encoder, audio_encoder):
    for encoder, batch in ((point_encoder, torch.randn(2, 30, 6)), (audio_encoder, pad([torch.randn(16, 32)] * 2))):
        encoder(batch)[1].square().sum().backward()
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())
        copy = type(encoder)(encoder.config).eval()
        copy.load_state_dict(encoder.state_dict())
        assert torch.equal(copy(batch)[1], encoder(batch)[1])


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(UserError, match="do not tile"):
        AudioEncoder(AudioEncoderConfig(num_mel_bins=30, patch_bins=16))


def rows(numbers: list[list[float]], categories: list[list[int]]) -> TableRows:
    return TableRows(torch.tensor(numbers), torch.tensor(categories))


def test_a_missing_value_is_not_zero_and_columns_differ():
    torch.manual_seed(0)
    encoder = TableEncoder(TableEncoderConfig(), numeric=2, categories=(3, 2)).eval()
    tokens, pooled = encoder(rows([[0.0, 1.0], [math.nan, 1.0], [1.0, 0.0]], [[0, 1], [0, 1], [0, 1]]))
    assert tokens.shape == (3, 4, 64)
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)
    assert not torch.allclose(pooled[0], pooled[2], atol=1e-3)
    nothing = encoder(rows([[math.nan, math.nan]], [[-1, -1]]))[1]
    assert nothing.isfinite().all()
    encoder(rows([[0.5, math.nan]], [[1, -1]]))[1].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())


def test_values_of_a_category_column_are_its_own():
    torch.manual_seed(0)
    encoder = TableEncoder(TableEncoderConfig(), numeric=0, categories=(3, 2)).eval()
    every = rows([[]] * 6, [[first, second] for first in range(3) for second in range(2)])
    pooled = encoder(every)[1]
    assert (torch.pdist(pooled) > 1e-3).all()


def test_padding_of_a_series_changes_nothing():
    torch.manual_seed(0)
    encoder = SeriesEncoder(SeriesEncoderConfig(channels=3)).eval()
    series = [torch.randn(length, 2) for length in (5, 33, 64)]
    tokens, pooled = encoder(pad(series))
    assert tokens.lengths.tolist() == [1, 3, 4]
    for row, one in enumerate(series):
        assert torch.allclose(pooled[row], encoder(pad([one]))[1][0], atol=1e-5)


def test_neither_the_order_of_atoms_nor_neighbors_in_the_batch_matter():
    pytest.importorskip("rdkit")
    from rdkit import Chem

    torch.manual_seed(0)
    encoder = MoleculeEncoder(MoleculeEncoderConfig()).eval()
    smiles = ["CCO", "c1ccccc1C(=O)O", "C"]
    molecules = [Molecule().decode(text) for text in smiles]
    atoms, pooled = encoder(collate_molecules(molecules))
    assert atoms.shape == (3 + 9 + 1, 64)
    for row, text in enumerate(smiles):
        assert torch.allclose(pooled[row], encoder(collate_molecules([molecules[row]]))[1][0], atol=1e-5)
        written_otherwise = Chem.MolToSmiles(Chem.MolFromSmiles(text), doRandom=True, canonical=False)
        other = encoder(collate_molecules([Molecule().decode(written_otherwise)]))[1][0]
        assert torch.allclose(pooled[row], other, atol=1e-5)
    isomers = encoder(collate_molecules([Molecule().decode("CCCO"), Molecule().decode("CC(C)O")]))[1]
    assert not torch.allclose(isomers[0], isomers[1], atol=1e-3)


@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_a_clip_is_more_than_its_frames(attention):
    torch.manual_seed(0)
    encoder = VideoEncoder(VideoEncoderConfig(frames=4, attention=attention))
    for name, weight in encoder.named_parameters():
        if "temporal_fc" in name:  # zero at first, as in TimeSformer: time begins to matter with the first step
            torch.nn.init.normal_(weight, std=0.1)
    video = torch.randn(2, 4, 3, 32, 32)
    tokens, pooled = encoder(video)
    assert tokens.shape == (2, 4 * 16, 64)
    assert not torch.allclose(pooled, encoder(video.flip(1))[1], atol=1e-3)
    changed = video.clone()
    changed[:, 3] += 1  # the last frame reaches the tokens of the first
    assert not torch.allclose(tokens[:, :16], encoder(changed)[0][:, :16], atol=1e-3)
    pooled.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())


def test_divided_attention_looks_along_time_and_within_a_frame():
    torch.manual_seed(0)
    encoder = VideoEncoder(VideoEncoderConfig(frames=4, depth=1)).eval()
    video = torch.randn(1, 4, 3, 32, 32, requires_grad=True)
    first = encoder(video)[0][0, 0, 0]  # not the sum over channels, which the norm makes constant
    (gradient,) = torch.autograd.grad(first, video)
    seen = gradient[0].abs().sum(1).unfold(1, 8, 8).unfold(2, 8, 8).sum((-1, -2)) > 0
    assert seen[0].all()  # its own frame, through space
    assert seen[:, 0, 0].all()  # its own place, through time


def test_a_missing_contrast_is_not_computed_and_has_no_influence():
    torch.manual_seed(0)
    encoder = VolumeEncoder(VolumeEncoderConfig(num_contrasts=3, image_size=(8, 16, 8))).eval()
    voxels = torch.randn(2, 3, 8, 16, 8)
    present = torch.tensor([[True, True, True], [True, False, True]])
    tokens, pooled = encoder(voxels, present)
    assert tokens.lengths.tolist() == [6, 4]
    assert tokens.values.shape == (2, 6, 64)
    otherwise = voxels.clone()
    otherwise[1, 1] = 100.0
    assert torch.equal(pooled, encoder(otherwise, present)[1])
    assert not torch.allclose(pooled[1], encoder(voxels, torch.ones(2, 3, dtype=torch.bool))[1][1], atol=1e-3)


def test_cubes_are_cut_in_order():
    voxels = torch.arange(2 * 4 * 2).float().reshape(1, 1, 2, 4, 2)
    cubes = patchify_3d(voxels, 2)
    assert cubes.shape == (1, 1, 2, 8)
    assert torch.equal(cubes[0, 0, 1], voxels[0, 0, :, 2:].flatten())


# graphs, cells and waveforms

ENDS = torch.tensor([[0, 1, 1, 2, 3, 2], [1, 0, 2, 1, 2, 3]])


def test_graph_convolution_is_the_normalized_adjacency():
    torch.manual_seed(0)
    x, layer = torch.randn(5, 4), GraphConvolution(4, 6)
    adjacency = torch.eye(5)
    adjacency[ENDS[1], ENDS[0]] = 1
    scale = adjacency.sum(1).rsqrt()
    expected = scale[:, None] * adjacency * scale @ layer.linear(x) + layer.bias
    torch.testing.assert_close(layer(x, ENDS), expected)


def test_graph_attention_weighs_neighbors_and_itself():
    torch.manual_seed(0)
    x, layer = torch.randn(5, 4), GraphAttention(4, 6, num_heads=2)
    values = layer.linear(x).unflatten(1, (2, 3))
    logits = (values * layer.source).sum(-1)[None] + (values * layer.target).sum(-1)[:, None]  # target, source, head
    logits = torch.where(logits > 0, logits, 0.2 * logits)
    seen = torch.eye(5, dtype=torch.bool)
    seen[ENDS[1], ENDS[0]] = True
    weights = logits.masked_fill(~seen[..., None], -torch.inf).softmax(dim=1)
    expected = torch.einsum("tsh,shw->thw", weights, values).flatten(1) + layer.bias
    torch.testing.assert_close(layer(x, ENDS), expected)


@pytest.mark.parametrize("messages", ["convolution", "attention"])
def test_the_order_of_nodes_and_other_graphs_change_nothing(messages):
    torch.manual_seed(0)
    encoder = GraphEncoder(GraphEncoderConfig(num_features=4, message_passing=messages))
    nodes = torch.randn(5, 4)
    tokens, pooled = encoder(VectorGraph(nodes, ENDS, torch.tensor([0, 0, 0, 0, 1]), 2))
    order = torch.tensor([3, 0, 2, 1])
    place = order.argsort()
    alone, pooled_alone = encoder(VectorGraph(nodes[:4][order], place[ENDS], torch.zeros(4, dtype=torch.long), 1))
    torch.testing.assert_close(alone, tokens[:4][order])
    torch.testing.assert_close(pooled_alone, pooled[:1])
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_silent_genes_cost_nothing_and_names_matter():
    torch.manual_seed(0)
    encoder = CellEncoder(CellEncoderConfig(num_genes=6, num_expression_bins=5)).eval()
    levels = torch.tensor([[0, 3, 0, 1, 5, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    tokens, packing, pooled = encoder(levels)
    assert packing.mask.sum(1).tolist() == [4, 2, 1]
    assert tokens.shape == (7, 64)
    torch.testing.assert_close(encoder(levels[1:2])[-1], pooled[1:2])
    assert not torch.allclose(encoder(levels[:1].flip(1))[-1], pooled[:1], atol=1e-4)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    renamed = CellEncoder(encoder.config)
    renamed.load_state_dict(encoder.state_dict() | {"name.weight": encoder.name.weight[order]})
    torch.testing.assert_close(renamed(levels[:, order])[-1], pooled)
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_convolutions_are_those_of_wav2vec_2():
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder

    torch.manual_seed(0)
    own = Convolutions(8)
    theirs = Wav2Vec2FeatureEncoder(Wav2Vec2Config(conv_dim=(8,) * 7, feat_extract_norm="layer", conv_bias=True))
    for layer, convolution, norm in zip(theirs.conv_layers, own.convolutions, own.norms, strict=True):
        layer.conv.load_state_dict(convolution.state_dict())
        layer.layer_norm.load_state_dict(norm.state_dict())
    samples = torch.randn(2, 3000)
    torch.testing.assert_close(own(samples).transpose(1, 2), theirs(samples))
    assert frame_counts(torch.tensor([3000, 400])).tolist() == [own(samples).shape[1], 1]


def test_silence_behind_a_sound_changes_nothing_and_a_short_one_is_refused():
    torch.manual_seed(0)
    encoder = WaveformEncoder(WaveformEncoderConfig())
    long, short = torch.randn(4000), torch.randn(1700)
    tokens, pooled = encoder(pad([long.numpy(), short.numpy()]))
    alone, pooled_alone = encoder(pad([short.numpy()]))
    assert tokens.lengths.tolist() == [12, 5]
    torch.testing.assert_close(alone.values[0], tokens.values[1, :5])
    torch.testing.assert_close(pooled_alone, pooled[1:])
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    with pytest.raises(ValueError, match="400 samples"):
        encoder(pad([torch.randn(300).numpy()]))


def test_steps_see_what_was_done_before_them():
    torch.manual_seed(0)
    words = TextTokenizer.train(["open the red door", "go to the key"] * 20, 300, 16)
    encoder = ActionEncoderConfig(num_actions=4, num_targets=8, context_length=5).build(words.vocab_size).eval()
    first = [Action(0, 3), Action(1, -1, "red door"), Action(2, 100)]
    second = [Action(3)] * 7
    packed, packing, pooled = encoder(ActionSteps.of([first, second], words))
    assert packed.shape == (10, 64)
    torch.testing.assert_close(pooled[0], encoder(ActionSteps.of([first], words))[2][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:2], encoder(ActionSteps.of([first[:2]], words))[0], rtol=1e-4, atol=1e-5)
    assert packing.mask.sum(1).tolist() == [3, 7]
    for other in (Action(0, 4), Action(1, 3), Action(0, 3, "key")):
        changed = encoder(ActionSteps.of([[other, *first[1:]]], words))[2]
        assert not torch.allclose(changed[0], pooled[0], atol=1e-4)
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_convolutions_without_weights_multiply_by_the_normalized_adjacency() -> None:
    ends, x = torch.tensor([[0, 0, 1, 2, 3, 3, 4], [0, 1, 1, 2, 3, 0, 4]]), torch.randn(2, 3, 5)
    dense, degree = torch.zeros(5, 5), torch.tensor([2.0, 1, 1, 2, 1])  # of the rows
    for source, target in ends.T.tolist():
        dense[source, target] = (degree[source] * degree[target]) ** -0.5
    torch.testing.assert_close(propagate(x, ends, symmetric_weights(ends.flip(0), 5), 2), x @ dense @ dense)
