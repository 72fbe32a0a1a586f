"""Hard negatives and the matching loss: never a positive, the likelier the more similar, alone and in two processes."""

import pytest
import torch
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.objectives.image_text_matching import (
    ITMPairs,
    itm_loss,
    sample_false_images,
    sample_hard_negatives,
    sample_itm_pairs,
)
from polymodal.rng import ExampleRNG


def uniform_of(rng):
    return torch.stack([rng.uniform(), rng.uniform()], dim=1)


@pytest.mark.parametrize("given", [False, True])
def test_negatives_are_sampled_by_the_softmax_of_similarities_without_positives(given):
    torch.manual_seed(0)
    logits, times = torch.tensor([1.0, 3.0, 2.0, 0.0]), 20_000
    positive = torch.tensor([False, True, False, False]).expand(times, 4)
    uniform = ExampleRNG.of(0, 0, times).uniform() if given else None
    index, valid = sample_hard_negatives(logits.expand(times, 4), positive, uniform)
    assert valid.all()
    frequency = torch.bincount(index, minlength=4) / times
    expected = (logits.softmax(0) + 1e-4).masked_fill(positive[0], 0)
    torch.testing.assert_close(frequency, expected / expected.sum(), atol=0.015, rtol=0)


@pytest.mark.parametrize("given", [False, True])
def test_equal_captions_are_never_negatives_and_a_row_without_any_counts_nothing(given):
    labels = torch.tensor([7.0, 7.0, 2.0, 7.0])
    # The most similar ones are all positives.
    similarity = 40.0 * (labels[:, None] == labels)
    for seed in range(30):
        pairs = sample_itm_pairs(similarity, labels, uniform=uniform_of(ExampleRNG.of(seed, 0, 4)) if given else None)
        assert torch.equal(labels[pairs.image] == labels[pairs.text], pairs.labels.bool())
        assert pairs.valid.all()
        assert pairs.text[4:8].tolist()[:2] == [2, 2]
    pairs = sample_itm_pairs(similarity, torch.zeros(4), uniform=uniform_of(ExampleRNG.of(0, 0, 4)) if given else None)
    assert pairs.valid.tolist() == [True] * 4 + [False] * 8
    assert torch.equal(pairs.image[4:], pairs.text[4:])
    logits = torch.randn(12, 2)
    torch.testing.assert_close(itm_loss(logits, pairs), F.cross_entropy(logits[:4], pairs.labels[:4]))


def test_a_batch_of_two_has_each_other_and_a_batch_of_one_no_negative():
    pairs = sample_itm_pairs(torch.eye(2) * 1000)
    assert pairs.image.tolist() == [0, 1, 0, 1, 1, 0]
    assert pairs.text.tolist() == [0, 1, 1, 0, 0, 1]
    assert pairs.labels.tolist() == [1, 1, 0, 0, 0, 0]
    alone = sample_itm_pairs(torch.zeros(1, 1), uniform=torch.zeros(1, 2))
    assert alone.valid.tolist() == [True, False, False]


def test_given_random_numbers_decide_alone():
    similarity, uniform = torch.randn(6, 6), uniform_of(ExampleRNG.of(1, 0, 6))
    first, again = sample_itm_pairs(similarity, uniform=uniform), sample_itm_pairs(similarity, uniform=uniform)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.text, again.text)
    other = sample_itm_pairs(similarity, uniform=uniform_of(ExampleRNG.of(2, 0, 6)))
    assert not torch.equal(first.text, other.text)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_extreme_random_numbers_choose_a_negative(number):
    positive = torch.tensor([[True, False, False, True], [False, True, True, True]])
    index, _ = sample_hard_negatives(torch.randn(2, 4), positive, torch.full((2,), number))
    assert index.tolist() == [1 if number == 0 else 2, 0]


def test_the_loss_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    image, text = torch.randn(5, 4), torch.randn(5, 4)
    pairs = sample_itm_pairs(image @ text.T)
    head = torch.nn.Linear(8, 2)
    loss = itm_loss(head(torch.cat([image[pairs.image], text[pairs.text]], dim=1)), pairs)
    losses = []
    for i, j, label in zip(pairs.image, pairs.text, pairs.labels, strict=True):
        logits = head(torch.cat([image[i], text[j]]))
        losses.append(logits.logsumexp(0) - logits[label])
    assert len(losses) == 15
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_candidates_of_all_processes_need_both_directions():
    with pytest.raises(UserError, match="both directions"):
        sample_itm_pairs(torch.zeros(2, 4))


def test_the_pairs_of_a_certain_head_have_no_loss():
    pairs = ITMPairs(torch.arange(2), torch.arange(2), torch.tensor([1, 0]), torch.ones(2, dtype=torch.bool))
    assert itm_loss(torch.tensor([[0.0, 30.0], [30.0, 0.0]]), pairs) < 1e-6
    assert itm_loss(torch.tensor([[30.0, 0.0], [0.0, 30.0]]), pairs) == pytest.approx(30)


def test_half_of_the_images_are_false_each_other_one_as_often_and_never_of_an_equal_caption():
    labels, times = torch.tensor([1.0, 1.0, 2.0, 3.0]), 4000
    index, is_false = zip(
        *(sample_false_images(labels, uniform_of(ExampleRNG.of(0, 4 * n, 4))) for n in range(times)), strict=True
    )
    index, is_false = torch.stack(index), torch.stack(is_false)
    assert torch.equal(labels[index] != labels, is_false)
    assert (index[~is_false] == torch.arange(4).expand(times, -1)[~is_false]).all()
    torch.testing.assert_close(is_false.double().mean(0), torch.full((4,), 0.5).double(), atol=0.03, rtol=0)
    of_last = torch.bincount(index[:, 3][is_false[:, 3]], minlength=4)
    torch.testing.assert_close(of_last / of_last.sum(), torch.tensor([1, 1, 1, 0]) / 3, atol=0.04, rtol=0)
    kept, none = sample_false_images(torch.zeros(4), torch.zeros(4, 2))
    assert kept.tolist() == [0, 1, 2, 3]
    assert not none.any()
