"""MQDD: golden numbers of the released classes, pairs of parts and of posts, masked losses, and the siamese heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.data.thread_pairs import QA_PAIRS, SP_PAIRS, part_pair_batch, post_pair_batch, sample_part_pair
from polymodal.encoders.longformer import LongformerEncoderConfig
from polymodal.modalities.paired_tokens import PairedTokens, truncate_longest_first
from polymodal.models.siamese_classifier import CosineHead
from polymodal.objectives.pair_matching import task_masked_bce
from polymodal.objectives.soft_f1 import soft_macro_f1_loss
from polymodal.recipes.code.mqdd import MQDD, Recipe
from polymodal.rng import ExampleRNG

GOLDEN = {name: torch.from_numpy(a) for name, a in np.load(Path(__file__).parent / "golden" / "mqdd.npz").items()}

RENAMED = {
    "attention.output.dense": "attention.out", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "fc1", "output.dense": "fc2", "output.LayerNorm": "norm2",
}  # fmt: skip


def released() -> MQDD:
    """Ours with the weights of the released classes: Longformer of transformers, and the heads of the scripts."""
    encoder = LongformerEncoderConfig(39, 32, width=16, depth=2, num_heads=2, attention_window=8)
    model = MQDD(Recipe(encoder=encoder, pair_dim=1000, duplicate_dim=256), 39)
    w = {name.removeprefix("weight/"): value for name, value in GOLDEN.items() if name.startswith("weight/")}
    state = {
        "encoder.embedding.weight": w["_model.embeddings.word_embeddings.weight"],
        "encoder.positions.weight": w["_model.embeddings.position_embeddings.weight"][2:],  # from padding_idx + 1 on
        "encoder.token_type.weight": w["_model.embeddings.token_type_embeddings.weight"],
        "vocab_head.weight": w["head_vocab.weight"], "vocab_head.bias": w["head_vocab.bias"],
        "duplicate_head.dense.weight": w["dense.weight"], "duplicate_head.dense.bias": w["dense.bias"],
        "duplicate_head.out_proj.weight": w["out"],
    }  # fmt: skip
    for kind in ("weight", "bias"):
        state[f"encoder.norm_pre.{kind}"] = w[f"_model.embeddings.LayerNorm.{kind}"]
        state[f"encoder.pooler.{kind}"] = w[f"_model.pooler.dense.{kind}"]
        state |= {f"pair_head.{2 * n}.{kind}": w[f"head_qa_sp_{n + 1}.{kind}"] for n in range(2)}
        for layer in range(2):
            theirs, ours = f"_model.encoder.layer.{layer}.", f"encoder.transformer.blocks.{layer}."
            for name, end in (("qkv", ""), ("qkv_global", "_global")):
                parts = [w[f"{theirs}attention.self.{part}{end}.{kind}"] for part in ("query", "key", "value")]
                state[f"{ours}attention.{name}.{kind}"] = torch.cat(parts)
            for their, our in RENAMED.items():
                state[f"{ours}{our}.{kind}"] = w[f"{theirs}{their}.{kind}"]
    model.vocab_head = torch.nn.Linear(16, 40)  # the released head also predicts the mask token
    model.load_state_dict(state)
    return model.eval()


def tokens(ids: torch.Tensor, order: list[int] | None = None) -> PairedTokens:
    rows = order or [0, 1, 2, 3]
    return PairedTokens(ids[rows], GOLDEN["lengths"][rows], first_lengths=GOLDEN["first_lengths"][rows])


def test_states_losses_and_logits_are_those_of_the_released_classes():
    model, same = released(), GOLDEN["same_post"].float()
    masked, original = tokens(GOLDEN["masked_ids"]), tokens(GOLDEN["ids"])
    states, packing, pooled = model.encoder(masked)
    assert torch.allclose(states, packing.pack(GOLDEN["states"]), atol=1e-5)
    assert torch.allclose(pooled, GOLDEN["pooled"], atol=1e-5)
    assert torch.allclose(model.encoder.pooled(masked), pooled, atol=1e-6)
    batch = {"pair": original, "mlm_pair": masked, "masked_pair": GOLDEN["mask"], "same_post": same}
    losses = model.losses(batch | {"matches": GOLDEN["labels"].float()})
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(
        {name: float(GOLDEN[name]) for name in ("mlm", "sp", "qa")}, rel=1e-5
    )
    pairs = {"thread": original, "second": tokens(GOLDEN["ids"], [3, 2, 1, 0]), "labels": GOLDEN["duplicate_labels"]}
    logits = model.duplicate_logits(pairs)
    assert torch.allclose(logits, GOLDEN["duplicate_logits"], rtol=1e-5, atol=1e-5)
    assert float(model.duplicate_losses(pairs)["duplicates"]) == pytest.approx(float(GOLDEN["cross_entropy"]), rel=1e-5)
    assert float(model.duplicate_f1_losses(pairs)["duplicates"]) == pytest.approx(float(GOLDEN["f1_loss"]), abs=1e-5)
    assert float(model.duplicate_head.penalty()) == pytest.approx(float(GOLDEN["penalty"]), rel=1e-5)
    u, v = (model.encoder.pooled(pairs[name]) for name in ("thread", "second"))
    assert torch.allclose(CosineHead()(u, v), GOLDEN["cosine"], atol=1e-5)
    assert torch.equal(CosineHead()(u, v), CosineHead()(v, u))
    assert not torch.allclose(model.duplicate_head(u, v), model.duplicate_head(v, u))


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
    assert tuple(map(len, truncate_longest_first(*rows, room))) == expected


def test_pairs_are_of_one_post_or_of_question_and_answer_and_negatives_of_other_threads(corpus: Corpus):
    recipe = Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:12])[1]
    clusters = {value: n // 2 for n in range(24) for value in corpus.value(n, "thread")[:4]}
    matches = []
    for example in examples:
        thread, rng = example["thread"].thread, np.random.default_rng(0)
        parts = {
            value: part
            for part, value in zip(
                ("question_text", "question_code", "answer_text", "answer_code"), thread, strict=False
            )
        }
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
    changed = batch["pair"].ids != batch["mlm_pair"].ids
    assert not (batch["masked_pair"] & ~batch["pair"].content_mask).any()
    assert not (changed & ~batch["masked_pair"]).any()
    ends = (batch["pair"].ids == processor.thread.tokenizer.end) & batch["pair"].mask
    assert torch.equal(ends.sum(1), torch.full((12,), 2))
    assert torch.equal(batch["pair"].segments.diff().clamp(min=0).argmax(1) + 1, batch["pair"].first_lengths)
    labels = torch.cat([post_pair_batch(examples, processor, ExampleRNG.of(n, 0, 12))["labels"] for n in range(20)])
    assert 0.4 < labels.float().mean() < 0.6
