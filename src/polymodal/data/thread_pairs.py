"""Pairs of a thread's parts for pre-training, and labelled pairs of posts for fine-tuning (MQDD, sections 3 and 4).

QT, QC, AT and AC are text and code of question and answer. Question-Answer (QA) pairs have one part of each,
Same-Post (SP) pairs text and code of one post.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.data.columns.thread import ThreadExample
from polymodal.data.masked_input import mask_tokens
from polymodal.data.masks import mask_random
from polymodal.data.processor import Processor
from polymodal.modalities.paired_tokens import PairedTokens, paired_tokens
from polymodal.modalities.thread import DUPLICATE, LABELS
from polymodal.rng import ExampleRNG
from polymodal.types import Example

QT, QC, AT, AC = "question_text", "question_code", "answer_text", "answer_code"
QA_PAIRS = ((QT, AT), (QC, AC), (QT, AC), (QC, AT))
SP_PAIRS = ((QC, QT), (AC, AT))


class PartPair(NamedTuple):
    """Two parts in one sequence. same_post: an SP pair, else a QA pair. matches: of one thread, else a negative.

    alone: a single part, the second one being empty; neither of SP nor of QA.
    """

    first: str
    second: str
    same_post: bool
    matches: bool
    alone: bool = False


class PartPairBatch(TypedDict):
    """pair: as it is; mlm_pair: with masked tokens; masked_pair: True for tokens that are predicted.

    task_mask: [1, 0] for SP pairs, [0, 1] for QA pairs, [0, 0] for a part alone.
    """

    pair: PairedTokens
    mlm_pair: PairedTokens
    masked_pair: Bool[Tensor, "batch length"]
    task_mask: Float[Tensor, "batch 2"]
    matches: Float[Tensor, " batch"]


class PostPairBatch(TypedDict):
    """Two posts each. labels: 1 for duplicates."""

    thread: PairedTokens
    second: PairedTokens
    labels: Int[Tensor, " batch"]


def pair_types(example: ThreadExample) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the QA and the SP pairs of which a thread has both parts."""
    thread = example.thread
    qa, sp = ([pair for pair in kinds if all(getattr(thread, part) for part in pair)] for kinds in (QA_PAIRS, SP_PAIRS))
    return qa, sp


def sample_part_pair(example: ThreadExample, rng: np.random.Generator, negative_prob: float = 0.5) -> PartPair:
    """Sample a pair of parts: of the QA or the SP stream alike, then of one of the kinds that the thread has.

    A thread with a single part gives that part alone. negative_prob: that the second part is replaced by that of
    another thread, which is no duplicate.
    """
    streams, same_post = pair_types(example), bool(rng.random() < 0.5)
    if not streams[same_post]:
        same_post = not same_post
    kinds = streams[same_post]
    if not kinds:
        return PartPair(next((part for part in example.thread[:4] if part), ""), "", same_post, True, alone=True)
    first, second = kinds[int(rng.integers(len(kinds)))]
    left, right = getattr(example.thread, first), getattr(example.thread, second)
    if rng.random() < negative_prob and example.others is not None:
        other = example.others.sample(second, right, rng)
        if other is not None:
            return PartPair(left, other, same_post, False)
    return PartPair(left, right, same_post, True)


def part_pair_batch(
    examples: list[Example], processor: Processor, rng: ExampleRNG, mask_ratio: float, max_length: int
) -> PartPairBatch:
    """Sample a pair of each thread, and mask its tokens afterwards, with the pair and its label as they are.

    mask_ratio: probability of every token to be predicted; of these 80 % are masked, 2 % random and 18 % kept, as the
    released code replaces 10 % of those that are not masked. max_length: in tokens.
    """
    threads = [example["thread"] for example in examples]
    pairs = [sample_part_pair(thread, one) for thread, one in zip(threads, rng.generators, strict=True)]
    tokenizer = processor.thread.tokenizer
    tokens = paired_tokens([(pair.first, pair.second) for pair in pairs], tokenizer, max_length)
    mask = mask_random(tokens.lengths.tolist(), mask_ratio, rng, exact=False)
    vocab_size = tokenizer.vocab_size
    masked = mask_tokens(tokens, mask, vocab_size, rng, vocab_size, keep_prob=0.18, random_prob=0.02)
    assert isinstance(masked.inputs, PairedTokens)
    return {
        "pair": tokens,
        "mlm_pair": masked.inputs,
        "masked_pair": masked.mask,
        "task_mask": torch.tensor(
            [[not pair.alone and pair.same_post == same_post for same_post in (True, False)] for pair in pairs]
        ).float(),
        "matches": torch.tensor([float(pair.matches) for pair in pairs]),
    }


def post_pair_batch(
    examples: list[Example], processor: Processor, rng: ExampleRNG, any_order: bool = True
) -> PostPairBatch:
    """Sample a pair of posts for each thread: a duplicate as often as a negative, of the kinds of negatives alike.

    So there are N duplicates and N / 3 of each kind, as in the released code. The negative of a thread without negative
    links is another training thread, and one without duplicates has negatives alone. any_order: whether half of the
    pairs are swapped.
    """
    pairs, labels = [], []
    for example, one in zip(examples, rng.generators, strict=True):
        linked = example["thread"].linked
        kinds = [[link.thread for link in linked if link.label == label] for label in range(len(LABELS))]
        negatives = [kind for label, kind in enumerate(kinds) if kind and label != DUPLICATE]
        thread, others = example["thread"].thread, example["thread"].others
        is_duplicate = bool(kinds[DUPLICATE]) and one.random() < 0.5
        some = kinds[DUPLICATE] if is_duplicate else negatives[int(one.integers(len(negatives)))] if negatives else []
        if not some:
            other = others.sample_thread(one) if others is not None else None
            some, is_duplicate = ([other], False) if other else (kinds[DUPLICATE], bool(kinds[DUPLICATE]))
        second = some[int(one.integers(len(some)))] if some else thread
        swapped = any_order and one.random() < 0.5
        pairs.append((second, thread) if swapped else (thread, second))
        labels.append(int(is_duplicate))
    first, other = (processor.thread([pair[side] for pair in pairs]) for side in (0, 1))
    return {"thread": first, "second": other, "labels": torch.tensor(labels)}
