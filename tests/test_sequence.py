"""Packing: hardly any padding, no look across documents, positions that begin anew."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polymodal.data.sequence import Span, balanced, first_fit, pack
from polymodal.layers.transformer import Packing, Transformer
from polymodal.modalities.text import TextTokenizer


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 200))
def test_every_sequence_is_in_one_row_and_rows_do_not_overflow(lengths, capacity):
    for rows in (first_fit(lengths, capacity), balanced(lengths, capacity)):
        assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
        assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    assert len(balanced(lengths, capacity)) <= len(first_fit(lengths, capacity))


def test_a_sequence_that_does_not_fit_is_refused_or_cut():
    with pytest.raises(ValueError, match="of 9 does not fit into rows of 8"):
        first_fit([3, 9], 8)
    packed = pack([[Span("text", torch.arange(9)), Span("text", torch.arange(3))]], 8)
    assert packed.ids.tolist() == [list(range(8))]
    with pytest.raises(ValueError, match="no token"):
        pack([[]], 8)


def test_a_packed_row_says_of_every_place_what_it_is():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    one = [Span("text", torch.tensor([5, 6])), Span("image", image, predicted=False)]
    other = [Span("image", image + 10), Span("text", torch.tensor([7]))]
    packed = pack([one, other], capacity=8)
    assert packed.ids.tolist() == [[5, 6, 0, 0, 0, 0, 7]]
    assert packed.document.tolist() == [[1, 1, 1, 1, 2, 2, 2]]
    assert packed.position.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert packed.predicted.tolist() == [[True, True, False, False, True, True, True]]
    assert packed.of("image").tolist() == [[False, False, True, True, True, True, False]]
    x = torch.zeros(1, 7, 2)
    x[packed.of("image")] = packed.features["image"]
    assert x[0, 2:6].tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]]
    assert packed.packing_efficiency == 1.0


@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_never_see_each_other(causal):
    torch.manual_seed(0)
    transformer, embedding = Transformer(16, 2, 4, causal), nn.Embedding(50, 16)
    nn.init.normal_(embedding.weight)
    documents = [torch.randint(1, 50, (length,)) for length in (3, 9, 5, 1, 7)]
    packed = pack([[Span("text", ids)] for ids in documents], capacity=12)
    packing = Packing.of_segments(packed.document)
    assert len(packed) < len(documents)
    x = embedding(packed.ids).requires_grad_()
    together = packing.pad(transformer(packing.pack(x), packing))
    alone = {tuple(ids.tolist()): transformer(embedding(ids)[None])[0] for ids in documents}
    for row in range(len(packed)):
        for number in range(1, int(packed.document[row].max()) + 1):
            here = packed.document[row] == number
            expected = alone[tuple(packed.ids[row][here].tolist())]
            torch.testing.assert_close(together[row][here], expected, rtol=1e-5, atol=1e-5)
    shared = next(row for row in range(len(packed)) if packed.document[row].max() > 1)
    here = packed.document == 1
    here[:shared] = here[shared + 1 :] = False
    (gradient,) = torch.autograd.grad(together[here].sum(), x)
    assert gradient[here].abs().sum() > 0
    assert gradient[~here].abs().sum() == 0


def documents_of(emoji, scenes, count):
    """Captions of all languages and lengths, some with the patches of their image in between."""
    texts = [caption.text for row in emoji.rows("train")[:200] for caption in emoji.value(row, "captions")]
    texts += [caption.text for row in scenes.rows("train")[:200] for caption in scenes.value(row, "caption")]
    tokenizer, rng = TextTokenizer.train(texts, 2000, 512), np.random.default_rng(0)
    sequences = []
    for _ in range(count):
        words = tokenizer([" ".join(rng.choice(texts, size=rng.integers(1, 9)))])
        sequence = [Span("text", words.ids[0])]
        if rng.random() < 0.5:
            sequence.append(Span("image", torch.zeros(16, 8), predicted=False))
        sequences.append(sequence)
    return sequences


def test_rows_of_real_documents_are_at_least_98_percent_full(emoji, scenes):
    sequences = documents_of(emoji, scenes, 96)
    lengths = [sum(map(len, sequence)) for sequence in sequences]
    assert max(lengths) > 2 * np.median(lengths)
    packed = pack(sequences, capacity=512)
    assert packed.token_count == sum(min(length, 512) for length in lengths)
    assert packed.packing_efficiency >= 0.98
    assert sum(lengths) / (len(lengths) * max(lengths)) < 0.6  # what padding would have filled
