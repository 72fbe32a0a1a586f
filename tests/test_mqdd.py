"""MQDD: golden numbers of the released classes, global attention of CLS, and fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.encoders.longformer import LongformerEncoderConfig
from polymodal.modalities.paired_tokens import PairedTokens
from polymodal.models.siamese_classifier import CosineHead
from polymodal.recipes.code.mqdd import MQDD, Recipe

GOLDEN = {name: torch.from_numpy(a) for name, a in np.load(Path(__file__).parent / "golden" / "mqdd.npz").items()}

RENAMED = {
    "attention.output.dense": "attention.out", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "fc1", "output.dense": "fc2", "output.LayerNorm": "norm2",
}  # fmt: skip


def released() -> MQDD:
    """Ours with the weights of the released classes: Longformer of transformers, and the heads of the scripts."""
    encoder = LongformerEncoderConfig(39, 32, width=16, depth=2, num_heads=2, attention_window=8)
    model = MQDD(Recipe(encoder=encoder, pair_dim=1000, duplicate_head="concatenation", duplicate_dim=256), 39)
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
    batch = {"pair": original, "mlm_pair": masked, "masked_pair": GOLDEN["mask"]}
    batch |= {"task_mask": torch.stack([same, 1 - same], dim=1), "matches": GOLDEN["labels"].float()}
    losses = model.losses(batch)
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


def test_the_last_token_changes_the_pooled_vector_and_padding_does_not():
    model, masked = released(), tokens(GOLDEN["masked_ids"])
    pooled, changed = model.encoder.pooled(masked), masked.ids.clone()
    changed[range(4), masked.lengths - 1] = 7  # further from CLS than a window
    assert ((model.encoder.pooled(tokens(changed)) - pooled).abs().amax(1) > 1e-4).all()
    padding = torch.where(masked.mask, masked.ids, 9)
    assert torch.allclose(model.encoder.pooled(tokens(padding)), pooled, atol=1e-6)


def test_fine_tuning_has_dropout_and_only_head_parameters_have_a_penalty():
    model = released()
    model.start_fine_tuning()
    assert model.encoder.dropout.p == model.recipe.finetune_dropout
    assert {block.attention.dropout for block in model.encoder.transformer.blocks} == {model.recipe.finetune_dropout}
    model.duplicate_head.penalty().backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found == {"duplicate_head.dense.weight", "duplicate_head.dense.bias", "duplicate_head.out_proj.weight"}
