"""Pairs of a thread's parts and of posts: kinds, negatives, masks and truncation; and losses of pairs by formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.data.thread_pairs import QA_PAIRS, SP_PAIRS, part_pair_batch, post_pair_batch, sample_part_pair
from polymodal.modalities.paired_tokens import truncate_longer
from polymodal.modalities.thread import DUPLICATE, PARTS, Thread
from polymodal.objectives.pair_matching import task_masked_bce
from polymodal.objectives.soft_f1 import soft_macro_f1_loss
from polymodal.recipes.code.mqdd import Recipe
from polymodal.rng import ExampleRNG


def test_a_task_has_no_gradient_of_the_others_and_weighs_its_part_of_the_batch():
    logits, labels = torch.randn(4, 2, requires_grad=True), torch.tensor([1.0, 0.0, 1.0, 0.0])
    mask = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    each = task_masked_bce(logits, labels, mask)
    loop = sum(F.binary_cross_entropy_with_logits(logits[row, 0], labels[row]) for row in range(3)) / 4
    assert torch.allclose(each[0], torch.as_tensor(loop))
    (gradient,) = torch.autograd.grad(each.sum(), logits)
    assert torch.equal(gradient != 0, mask.bool())


def test_soft_f1_of_certain_predictions_is_f1():
    labels = torch.tensor([1, 1, 1, 0, 0])
    logits = 60.0 * F.one_hot(torch.tensor([1, 1, 0, 0, 1]), 2)
    assert float(soft_macro_f1_loss(logits, labels)) == pytest.approx(1 - (2 * 2 / 6 + 2 * 1 / 4) / 2, abs=1e-5)


@pytest.mark.parametrize(("first", "second", "room"), [(9, 4, 10), (4, 9, 7), (6, 6, 7), (3, 2, 9), (1, 8, 3)])
def test_the_longer_text_is_cut_first(first, second, room):
    rows = list(range(first)), list(range(second))
    expected = first, second
    while sum(expected) > room:
        expected = (expected[0] - 1, expected[1]) if expected[0] > expected[1] else (expected[0], expected[1] - 1)
    assert tuple(map(len, truncate_longer(*rows, room))) == expected


def test_pairs_are_of_one_post_or_of_question_and_answer_and_negatives_of_other_threads(corpus: Corpus):
    recipe = Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:12])[1]
    clusters = {value: n // 2 for n in range(24) for value in corpus.value(n, "thread")[:4]}
    matches = []
    for example in examples:
        thread, rng = example["thread"].thread, np.random.default_rng(0)
        parts = dict(zip(thread[:4], PARTS, strict=True))
        for _ in range(40):
            pair = sample_part_pair(example["thread"], rng)
            kinds = [
                kind for kind in (SP_PAIRS if pair.same_post else QA_PAIRS) if getattr(thread, kind[0]) == pair.first
            ]
            assert kinds
            if pair.matches:
                assert (parts[pair.first], parts[pair.second]) in kinds
            else:
                assert clusters[pair.second] != clusters[pair.first]
            matches.append(pair.matches)
    assert 0.4 < np.mean(matches) < 0.6
    rng = ExampleRNG.of(0, 0, 12)
    batch = part_pair_batch(examples, processor, rng, 0.5, 32)
    assert torch.equal(batch["task_mask"].sum(1), torch.ones(12))
    changed = batch["pair"].ids != batch["mlm_pair"].ids
    assert not (batch["masked_pair"] & ~batch["pair"].content_mask).any()
    assert not (changed & ~batch["masked_pair"]).any()
    ends = (batch["pair"].ids == processor.thread.tokenizer.end) & batch["pair"].mask
    assert torch.equal(ends.sum(1), torch.full((12,), 2))
    assert torch.equal(batch["pair"].segments.diff().clamp(min=0).argmax(1) + 1, batch["pair"].first_lengths)
    labels = torch.cat([post_pair_batch(examples, processor, ExampleRNG.of(n, 0, 12))["labels"] for n in range(20)])
    assert 0.4 < labels.float().mean() < 0.6


@pytest.mark.parametrize("part", range(4))
def test_a_part_alone_is_neither_a_pair_of_a_post_nor_of_question_and_answer(part, corpus: Corpus):
    processor = fit_processor(Recipe.tiny(), corpus)
    thread = Thread(*("some words" if number == part else "" for number in range(4)))
    examples = [Reader(corpus, processor).read_all(corpus.rows("train")[:1])[1][0]["thread"]._replace(thread=thread)]
    for seed in range(6):
        batch = part_pair_batch([{"thread": examples[0]}], processor, ExampleRNG.of(seed, 0, 1), 0.5, 32)
        assert batch["task_mask"].tolist() == [[0, 0]]
        assert batch["pair"].first_lengths.tolist() == batch["pair"].lengths.tolist()  # no second segment
        assert batch["pair"].content_mask.any()


def test_the_negative_of_a_thread_without_any_is_another_thread(corpus: Corpus):
    processor = fit_processor(Recipe.tiny(), corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:12])[1]
    for example in examples:
        linked = tuple(link for link in example["thread"].linked if link.label == DUPLICATE)
        example["thread"] = example["thread"]._replace(linked=linked)
    examples = [example for example in examples if example["thread"].linked]
    assert examples
    labels = []
    for seed in range(20):
        rng = ExampleRNG.of(seed, 0, len(examples))
        batch = post_pair_batch(examples, processor, rng, any_order=False)
        duplicates = processor.thread([example["thread"].linked[0].thread for example in examples])
        for row, label in enumerate(batch["labels"].tolist()):
            second, duplicate = (side.ids[row][side.mask[row]].tolist() for side in (batch["second"], duplicates))
            assert (second == duplicate) == bool(label)
        labels += batch["labels"].tolist()
    assert 0.3 < np.mean(labels) < 0.7
