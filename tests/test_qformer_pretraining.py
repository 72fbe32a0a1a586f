"""Q-Former pre-training: prefix and block-diagonal mask, the losses in plain loops, and generation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.layers.decoding import Decoding
from polymodal.layers.projection_head import SyncBatchNorm3d
from polymodal.layers.qformer import QFormer, QFormerConfig
from polymodal.modalities.text import TextTokenizer, Tokens
from polymodal.models.qformer_pretraining import QFormerPretraining
from polymodal.objectives.query_contrastive import (
    attribute_contrastive_loss,
    max_query_similarity,
    presence_targets,
    query_contrastive_loss,
)

CONFIG = QFormerConfig(16, 3, 2, 24, num_queries=4, media_width=12, vocab_size=30, context_length=10)


def qformer() -> QFormer:
    torch.manual_seed(0)
    model = QFormer(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def test_a_prefix_of_states_is_the_joint_sequence_in_causal_mode() -> None:
    model, media = qformer(), torch.randn(3, 5, 12)
    ids, mask = torch.randint(0, 30, (3, 6)), torch.arange(6) < torch.tensor([[6], [4], [1]])
    states, prefix = model.encode_queries(media)
    queries, text = model(media, ids=ids, text_mask=mask, mode="itg")
    torch.testing.assert_close(states, queries)
    torch.testing.assert_close(model.decode_text(prefix, ids, mask)[mask], text[mask])


def test_separate_queries_are_sequences_of_their_own_with_a_copy_of_the_image() -> None:
    model, media = qformer(), torch.randn(3, 5, 12)
    states, prefix = model.encode_queries(media, separate=True)
    assert not torch.allclose(states, model.encode_queries(media)[0], atol=1e-3)
    for number in range(4):
        alone = QFormer(CONFIG).eval()
        alone.load_state_dict(model.state_dict())
        alone.config = QFormerConfig(**{**vars(CONFIG), "num_queries": 1})
        alone.queries = nn.Parameter(model.queries[number : number + 1])
        own, own_prefix = alone.encode_queries(media)
        torch.testing.assert_close(states[:, number : number + 1], own)
        torch.testing.assert_close(prefix[-1][:, number : number + 1], own_prefix[-1])


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_contrast_is_finding_by_finding_over_studies() -> None:
    image, text, presence = vectors(0, 4, 3, 8), vectors(1, 4, 3, 8), torch.rand(4, 3)
    temperature, total = torch.tensor(0.2), 0.0
    for k in range(3):
        for one, other in ((image, text), (text, image)):
            for b in range(4):
                logits = torch.stack([one[b, k] @ other[c, k] / temperature for c in range(4)])
                target = torch.stack([presence[b, k] * presence[c, k] for c in range(4)]).softmax(0)
                total -= float((target * logits.log_softmax(0)).sum()) / (2 * 4 * 3)
    assert float(attribute_contrastive_loss(image, text, temperature, presence)) == pytest.approx(total, rel=1e-5)


def test_a_query_belongs_to_its_own_sentence() -> None:
    image, text = (vectors(seed, 6, 4, 16).requires_grad_() for seed in (0, 1))
    presence, order, temperature = torch.rand(6, 4).round(), torch.tensor([2, 0, 3, 1]), torch.tensor(0.1)

    def loss(of_image: torch.Tensor, of_text: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        pair = F.normalize(of_image, dim=-1), F.normalize(of_text, dim=-1)
        return attribute_contrastive_loss(*pair, temperature, there, target_temperature=0.1)

    optimizer = torch.optim.Adam([image, text], 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(image, text, presence).backward()
        optimizer.step()
    fitted = loss(image, text, presence)
    torch.testing.assert_close(fitted, loss(image[:, order], text[:, order], presence[:, order]))
    assert loss(image, text[:, order], presence) > fitted + 0.1  # sentences of other findings
    assert loss(image, text.roll(1, 0), presence) > fitted + 0.1  # of other studies


def test_released_targets_are_almost_uniform_and_reward_no_pair() -> None:
    presence = torch.eye(4)[:, :1]  # one study has the finding
    (target,) = presence_targets(presence, presence)
    assert float(target.max()) == pytest.approx(math.e / (math.e + 3))
    (sharp,) = presence_targets(presence, presence, 0.1)
    assert float(sharp.max()) > 0.99
    alike = vectors(0, 4, 1, 8)
    apart = attribute_contrastive_loss(alike, alike, torch.tensor(0.07), presence)
    assert apart > attribute_contrastive_loss(alike, alike[:1].expand(4, -1, -1), torch.tensor(0.07), presence)


def test_absent_findings_have_uniform_targets_and_the_classifier_gets_gradient_unless_detached() -> None:
    targets = presence_targets(torch.zeros(4, 2), torch.rand(4, 2))
    torch.testing.assert_close(targets, torch.full((2, 4, 4), 0.25))
    image, text = vectors(0, 4, 2, 8), vectors(1, 4, 2, 8)
    presence = torch.rand(4, 2, requires_grad=True)
    attribute_contrastive_loss(image, text, torch.tensor(0.1), presence).backward()
    assert presence.grad is not None
    assert bool(presence.grad.any())


def test_an_image_is_as_similar_as_its_best_query() -> None:
    image, text, temperature = vectors(0, 4, 3, 8), vectors(1, 4, 8), torch.tensor(0.2)
    logits = torch.tensor([[max(float(q @ t) for q in one) for t in text] for one in image]) / 0.2
    torch.testing.assert_close(max_query_similarity(image, text) / 0.2, logits)
    smoothed = (0.9 * torch.eye(4) + 0.1 / 4).double()
    expected = -sum(float((smoothed * one.double().log_softmax(1)).sum()) for one in (logits, logits.T)) / 8
    assert float(query_contrastive_loss(image, text, temperature)) == pytest.approx(expected, rel=1e-5)
    equal = query_contrastive_loss(image, text[:1].expand(4, -1), temperature, labels=torch.zeros(4))
    assert float(equal) >= math.log(4) - 1e-5  # no pair can be told apart


def pretraining() -> tuple[QFormerPretraining, Tokens, torch.Tensor]:
    texts = ["a red dog", "a blue cat runs", "the old house", "two birds"]
    column = TextColumn(LearnedTokenizer(40, 10), TextTokenizer.characters(texts, 40, 10))
    torch.manual_seed(0)
    model = QFormerPretraining(CONFIG, 8, column)
    return model, column(texts), torch.randn(4, 5, 12)


def test_the_trio_of_losses_learns_a_batch_and_writes_it() -> None:
    model, text, media = pretraining()
    group, optimizer = torch.arange(4).double(), torch.optim.Adam(model.parameters(), 5e-3)
    first: dict[str, float] = {}
    for _ in range(150):
        losses = model.trio_losses(media, text, group, uniform=torch.rand(4, 2))
        first = first or {name: float(loss.detach()) for name, loss in losses.items()}
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
    assert all(float(losses[name].detach()) < 0.9 * value for name, value in first.items()), (first, losses)
    assert losses.keys() == {"itc", "itm", "lm"}
    model.eval()
    _, prefix = model.qformer.encode_queries(media)
    for beams in (1, 3):
        written = model.write(prefix, Decoding(12, num_beams=beams))
        expected = [row[1 : length - 1] for row, length in zip(text.ids.tolist(), text.lengths.tolist(), strict=True)]
        assert sum(a == b for a, b in zip(written, expected, strict=True)) >= 3
    assert model.match(text, media).shape == (4, 2)


def test_queries_begin_with_the_text_branch_and_padding_is_not_predicted() -> None:
    model, text, media = pretraining()
    block: Any = model.qformer.blocks[0]
    assert torch.equal(block.query_mlp[0].weight, block.text_mlp[0].weight)
    model.eval()
    _, prefix = model.qformer.encode_queries(media)
    longer = Tokens(F.pad(text.ids, (0, 3)), text.lengths)
    kept = Tokens(longer.ids[:, :10], text.lengths)
    torch.testing.assert_close(model.lm_loss(prefix, text), model.lm_loss(prefix, kept))


def test_images_change_what_small_queries_hand_to_the_decoder_from_the_first_step() -> None:
    torch.manual_seed(0)
    texts = TextColumn(LearnedTokenizer(60, 10), TextTokenizer.characters(["a b c d"], 60, 10))
    model = QFormerPretraining(QFormerConfig(64, 3, 4, 64, 8, 64, 1, 1, 10), 16, texts, with_itm=False).eval()
    last = model.qformer.encode_queries(torch.randn(16, 4, 64))[1][-1].detach()
    assert float(last.std(0).mean() / last.std()) > 0.1  # 0.02 with the standard deviation of BERT


def test_batch_norm_of_volumes_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own, theirs, x = SyncBatchNorm3d(3), nn.BatchNorm3d(3), torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(own(x), theirs(x))
    rows = x.movedim(1, -1)
    again = own._over_processes(rows.flatten(0, -2), rows[..., 0].numel()).unflatten(0, rows.shape[:-1])
    torch.testing.assert_close(again.movedim(-1, 1), theirs(x))
