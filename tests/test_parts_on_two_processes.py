"""Layers and losses that look at the batch of all processes: two processes of half a batch against one of all.

All run in the same two processes, for starting these takes longer than everything else.
"""

import os
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from polymodal.encoders.multiway_moe import MultiwayMoEConfig
from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather_with_grad
from polymodal.layers.momentum_encoder import FeatureQueue, MomentumEncoder
from polymodal.layers.projection_head import SyncBatchNorm1d, SyncBatchNorm3d
from polymodal.modalities.text import Tokens
from polymodal.models.multiway_pairs import MultiwayPairs
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.multi_positive import mil_nce, multi_positive_info_nce, soft_target_contrastive, supcon_loss
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import GradCacheMethod
from polymodal.training.gradient_harmonization import GradientHarmonizer
from polymodal.training.parallel import World


def _run(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parts = (normed, normed_maps, masked, matched, contrasted, paired, queued, sharded, harmonized)
    torch.save({part.__name__: part(rank) for part in parts}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # threads of gloo now and then abort while Python shuts down


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes computed, by the name of the function."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_run, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def own(rank):
    """The rows of a batch of 8 that a process has."""
    return slice(4 * rank, 4 * rank + 4)


def vectors(seed, dim=4):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(8, dim, generator=generator, dtype=torch.float64), dim=1)


LABELS = torch.tensor([0, 1, 2, 0, 1, 1, 3, 4])


def normed(rank):
    norm, x = SyncBatchNorm1d(4).double(), vectors(0)[own(rank)].requires_grad_()
    y = norm(x)
    (y * torch.arange(1.0, 33.0).view(8, 4).sin()[own(rank)]).sum().backward()
    return [y.detach(), x.grad, norm.weight.grad, norm.running_mean, norm.running_var]


def test_batch_norm_over_two_processes_is_torchs_over_the_whole_batch(results):
    one, other = (result["normed"] for result in results)
    norm, x = nn.BatchNorm1d(4).double(), vectors(0).requires_grad_()
    y = norm(x)
    (y * torch.arange(1.0, 33.0).view(8, 4).sin()).sum().backward()
    torch.testing.assert_close(torch.cat([one[0], other[0]]), y.detach())
    torch.testing.assert_close(torch.cat([one[1], other[1]]), x.grad)
    torch.testing.assert_close(one[2] + other[2], norm.weight.grad)
    for _, _, _, mean, variance in (one, other):
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(variance, norm.running_var)


def maps():
    return torch.randn(8, 4, 2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def normed_maps(rank):
    norm, x = SyncBatchNorm3d(4).double(), maps()[own(rank)].requires_grad_()
    y = norm(x)
    (y * maps().sin()[own(rank)]).sum().backward()
    return [y.detach(), x.grad, norm.running_mean, norm.running_var]


def test_batch_norm_of_volumes_over_two_processes_is_torchs_over_the_whole_batch(results):
    one, other = (result["normed_maps"] for result in results)
    norm, x = nn.BatchNorm3d(4).double(), maps().requires_grad_()
    y = norm(x)
    (y * maps().sin()).sum().backward()
    torch.testing.assert_close(torch.cat([one[0], other[0]]), y.detach())
    torch.testing.assert_close(torch.cat([one[1], other[1]]), x.grad)
    for _, _, mean, variance in (one, other):
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(variance, norm.running_var)


def logits_and_targets():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 4, generator=generator), torch.randint(4, (9,), generator=generator)


def masked(rank):
    """Two positions are masked on the first process and seven on the second; then none and three."""
    logits, targets = (value[:2] if rank == 0 else value[2:] for value in logits_and_targets())
    logits.requires_grad_()
    loss = masked_cross_entropy(logits, targets)
    loss.backward()
    return [loss.detach(), logits.grad, masked_cross_entropy(logits[: 3 * rank], targets[: 3 * rank]).detach()]


def test_the_masked_loss_is_the_mean_over_all_masked_positions(results):
    one, other = (result["masked"] for result in results)
    logits, targets = logits_and_targets()
    logits.requires_grad_()
    expected = F.cross_entropy(logits, targets)
    expected.backward()
    torch.testing.assert_close((one[0] + other[0]) / 2, expected.detach())
    torch.testing.assert_close(torch.cat([one[1], other[1]]) / 2, logits.grad)
    torch.testing.assert_close((one[2] + other[2]) / 2, F.cross_entropy(logits[2:5], targets[2:5]).detach())


def matching(image, text, every_image, every_text, labels, rng):
    """A method whose fusion is a product, and whose loss pulls on both features."""
    with torch.no_grad():
        forth, back = image @ every_text.T, text @ every_image.T
    pairs = sample_itm_pairs(forth, labels, back, torch.stack([rng.uniform(), rng.uniform()], dim=1))
    fused = every_image[pairs.image] * every_text[pairs.text]
    return itm_loss(fused[:, :2] - fused[:, 2:], pairs), pairs


def matched(rank):
    image, text = (vectors(seed)[own(rank)].requires_grad_() for seed in (0, 1))
    rng = ExampleRNG.of(0, 4 * rank, 4)
    loss, pairs = matching(image, text, all_gather_with_grad(image), all_gather_with_grad(text), LABELS[own(rank)], rng)
    loss.backward()
    return [loss.detach(), image.grad, text.grad, pairs.image, pairs.text]


def test_hard_negatives_of_all_processes_are_those_of_the_whole_batch(results):
    one, other = (result["matched"] for result in results)
    image, text = (vectors(seed).requires_grad_() for seed in (0, 1))
    loss, pairs = matching(image, text, image, text, LABELS, ExampleRNG.of(0, 0, 8))
    loss.backward()
    for index, expected in ((3, pairs.image), (4, pairs.text)):
        both = torch.stack([one[index].view(3, 4), other[index].view(3, 4)], dim=1).flatten()
        assert torch.equal(both, expected)
    assert (pairs.image[8:16] // 4 != pairs.text[8:16] // 4).any()  # some come from the other process
    torch.testing.assert_close((one[0] + other[0]) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([one[1], other[1]]) / 2, image.grad)
    torch.testing.assert_close(torch.cat([one[2], other[2]]) / 2, text.grad)


def contrastive_loss(name, a, b, scale, rows):
    forth, back = (vectors(seed, 8).square()[rows] for seed in (2, 3))  # rows sum to 1
    return {
        "supcon": lambda: supcon_loss(a, LABELS[rows], scale) + 0 * b.sum(),
        "multi-positive": lambda: multi_positive_info_nce(a, b, LABELS[rows], scale),
        "MIL-NCE": lambda: mil_nce(a, b.unflatten(1, (2, -1)).repeat(1, 1, 2), scale, LABELS[rows] < 3),
        "soft targets": lambda: soft_target_contrastive(a, b, forth, scale, back),
    }[name]()


CONTRASTIVE = ("supcon", "multi-positive", "MIL-NCE", "soft targets")


def contrasted(rank, rows=None):
    rows, found = own(rank) if rows is None else rows, {}
    for name in CONTRASTIVE:
        a, b = (vectors(seed)[rows].requires_grad_() for seed in (0, 1))
        scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
        loss = contrastive_loss(name, a, b, scale, rows)
        loss.backward()
        found[name] = [loss.detach(), a.grad, b.grad, scale.grad]
    if torch.distributed.is_initialized():
        with pytest.raises(UserError, match="both directions"):
            soft_target_contrastive(a, b, torch.ones(4, 8), 7.0)
    return found


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_contrastive_losses_and_gradients_are_those_of_the_whole_batch(results, name):
    one, other = (result["contrasted"][name] for result in results)
    expected = contrasted(0, slice(0, 8))[name]
    torch.testing.assert_close((one[0] + other[0]) / 2, expected[0])
    for index in (1, 2):  # each process means over its own rows, and the trainer means over processes
        torch.testing.assert_close(torch.cat([one[index], other[index]]) / 2, expected[index])
    torch.testing.assert_close((one[3] + other[3]) / 2, expected[3])


def paired(rank, rows=None):
    """ITC, ITM and the balance of experts, of texts that differ in length between processes."""
    torch.manual_seed(0)
    model = MultiwayPairs(MultiwayMoEConfig(16, 8, 20, 6, 8, 2, 2, num_experts=4), 20, 6).eval()
    image, uniform, rows = torch.randn(8, 3, 16, 16), torch.rand(8, 2), own(rank) if rows is None else rows
    ids, lengths = torch.randint(1, 20, (8, 6)), torch.tensor([3, 4, 4, 3, 6, 5, 6, 4])[rows]
    text = Tokens(ids[rows, : int(lengths.max())], lengths)
    batch = {"image": image[rows], "text": text, "group": LABELS[rows].double(), "uniform": uniform[rows]}
    losses, balances = model.pair_losses(batch)
    (sum(losses.values()) + torch.stack(balances).mean()).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [torch.stack([*losses.values(), *balances]).detach(), *gradients]


def test_itc_itm_and_the_balance_of_experts_are_those_of_the_whole_batch(results):
    one, other = (result["paired"] for result in results)
    for a, b, whole in zip(one, other, paired(0, slice(0, 8)), strict=True):
        torch.testing.assert_close((a + b) / 2, whole, atol=1e-5, rtol=1e-4)


def queued(rank, rows=None):
    queue = FeatureQueue(13, 4)
    for step in range(3):
        features, labels = vectors(step).float(), torch.arange(8 * step, 8 * step + 8)
        queue.enqueue(features[own(rank) if rows is None else rows], labels[own(rank) if rows is None else rows])
    return queue.state_dict()


def test_both_processes_hold_the_queue_of_the_whole_batch(results):
    for name, expected in queued(0, slice(0, 8)).items():
        for result in results:
            assert torch.equal(result["queued"][name], expected)


class Method(nn.Module):
    """The first layers of the encoder and its copy are sharded by themselves, the others with the whole."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
        self.momentum = MomentumEncoder({"encoder": self.encoder})

    def forward(self, x):
        with self.momentum.momentum_forward():
            target = self.momentum["encoder"](x)
        return (self.encoder(x.flip(0)) - target).square().mean()


def sharded(rank, shard=True):
    torch.manual_seed(0)
    method = Method()
    method.momentum.before_training()
    if shard:
        mesh = init_device_mesh("cpu", (2,))
        for module in (method.encoder[0], method.momentum["encoder"][0], method):
            fully_shard(module, mesh=mesh)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        method(torch.eye(6)).backward()
        optimizer.step()
        method.momentum.update(0.5)
    state = method.state_dict()
    return {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in state.items()}


def test_sharded_momentum_copies_are_updated_as_whole_ones(results):
    expected = sharded(0, shard=False)
    assert not torch.equal(expected["encoder.1.weight"], expected["momentum.encoder.1.weight"])
    for result in results:
        assert result["sharded"].keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(result["sharded"][name], tensor)


class TwoSpaces(GradCacheMethod, nn.Module):
    """A feature that is compared with another modality, and behind a head with a third one."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        for number, module in enumerate((self.encoder, self.head)):
            nn.init.orthogonal_(module.weight, generator=torch.Generator().manual_seed(number))
            nn.init.zeros_(module.bias)

    def encode(self, batch):
        return {"feature": self.encoder(batch["one"]), "other": batch["other"], "third": batch["third"]}

    def contrastive_losses(self, features):
        pairs = {"other": features["feature"], "third": self.head(features["feature"])}
        return {name: mil_nce(F.normalize(x, dim=1), features[name][:, None], 3.0) for name, x in pairs.items()}


def harmonized(rank, size=2):
    rows = own(rank) if size == 2 else slice(None)
    batch = {name: vectors(number)[rows] for number, name in enumerate(("one", "other", "third"))}
    method, harmony = TwoSpaces().double(), GradientHarmonizer("curriculum", granularity="feature")
    world = World(rank, size, torch.device("cpu"))
    harmony.backward(method, [batch], {}, lambda _: nullcontext(), 1.0, world)
    return [torch.tensor(harmony.skipped), method.encoder.weight.grad, method.head.weight.grad]


def test_harmonized_gradients_are_those_of_one_process(results):
    one, other = (result["harmonized"] for result in results)
    skipped, encoder, head = harmonized(0, size=1)
    assert torch.equal(torch.cat([one[0], other[0]]), skipped)
    assert one[0].sum() != other[0].sum()
    for result in (one, other):
        torch.testing.assert_close(result[1], encoder)
        torch.testing.assert_close(result[2], head)
