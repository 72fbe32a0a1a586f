"""Masked modelling against transformers' own classes."""

import pytest
import torch
import transformers
from transformers.models.bert.modeling_bert import BertLMPredictionHead
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from polymodal.data.masked_input import mask_tokens
from polymodal.data.masks import mask_patches, mask_random, mask_time_spans, restore_indices
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.image import patchify
from polymodal.modalities.text import Tokens
from polymodal.objectives.masked_modeling import masked_lm_loss, masked_patch_loss
from polymodal.rng import ExampleRNG


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_patch_loss_is_that_of_mae(norm_pix):
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, norm_pix_loss=norm_pix,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config).eval()
    pixels = torch.randn(3, 3, 16, 16)
    out = model(pixels)
    # Theirs order a patch's values row, column, channel; ours channel, row, column.
    prediction = out.logits.unflatten(2, (4, 4, 3)).permute(0, 1, 4, 2, 3).flatten(2)
    ours = masked_patch_loss(prediction, patchify(pixels, 4), out.mask.bool(), norm_pix)
    torch.testing.assert_close(ours, out.loss)


def test_masked_counts_and_the_order_of_restoring_are_those_of_mae():
    torch.manual_seed(0)
    model = transformers.ViTMAEModel(
        transformers.ViTMAEConfig(hidden_size=12, num_hidden_layers=0, num_attention_heads=2)
    )
    noise = torch.rand(2, 196)
    _, mask, restore = model.embeddings.random_masking(torch.randn(2, 196, 12), noise)
    assert mask_patches(196, 0.75, ExampleRNG.of(0, 0, 2)).sum(1).tolist() == mask.sum(1).int().tolist()
    # Both put visible tokens first; theirs shuffles them.
    assert torch.equal(restore < 49, restore_indices(mask.bool()) < 49)


def test_the_head_and_the_loss_are_berts():
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=23, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    theirs = BertLMPredictionHead(config)
    torch.nn.init.normal_(theirs.bias)
    torch.nn.init.normal_(theirs.decoder.bias)
    ours = MaskedLMHead(8, 23, norm_eps=1e-12)
    ours.load_state_dict(
        {
            "dense.weight": theirs.transform.dense.weight,
            "dense.bias": theirs.transform.dense.bias,
            "norm.weight": theirs.transform.LayerNorm.weight,
            "norm.bias": theirs.transform.LayerNorm.bias,
            "bias": theirs.decoder.bias,
        }
    )
    hidden_states, targets, mask = torch.randn(3, 6, 8), torch.randint(23, (3, 6)), torch.rand(3, 6) < 0.4
    logits = theirs(hidden_states)
    torch.testing.assert_close(ours(hidden_states.flatten(0, 1), theirs.decoder.weight), logits.flatten(0, 1))
    labels = targets.masked_fill(~mask, -100)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(masked_lm_loss(ours, hidden_states, theirs.decoder.weight, targets, mask), expected)


def test_tokens_are_replaced_as_often_as_by_transformers_collator():
    rows, length, vocab_size = 200, 102, 500
    vocabulary = {f"w{number}": number for number in range(vocab_size)}
    vocabulary |= {"[PAD]": 500, "[CLS]": 501, "[SEP]": 502, "[MASK]": 503, "[UNK]": 504}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    torch.manual_seed(0)
    ids = torch.randint(vocab_size, (rows, length))
    ids[:, 0], ids[:, -1] = 501, 502
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    theirs = collate([{"input_ids": row} for row in ids])
    rng = ExampleRNG.of(0, 0, rows)
    mask = torch.nn.functional.pad(mask_random([length - 2] * rows, 0.15, rng, exact=False), (1, 1))
    ours = mask_tokens(Tokens(ids, torch.full((rows,), length)), mask, 503, rng, len(tokenizer))

    def statistics(given, labels):
        masked = labels != -100
        return torch.tensor(
            [
                masked[:, 1:-1].float().mean(),
                (given[masked] == 503).float().mean(),
                (given[masked] == labels[masked]).float().mean(),
                (given[~masked] == ids[~masked]).float().mean(),
            ]
        )

    found, expected = statistics(ours.inputs.ids, ours.labels()), statistics(theirs["input_ids"], theirs["labels"])
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    assert not ours.mask[:, [0, -1]].any()


def test_time_spans_are_as_many_as_wav2vec2s():
    theirs = _compute_mask_indices((300, 200), mask_prob=0.65, mask_length=10, min_masks=2)
    ours = mask_time_spans([200] * 300, 0.065, 10, ExampleRNG.of(0, 0, 300), min_spans=2, exact=True)
    assert ours.float().mean().item() == pytest.approx(theirs.mean(), abs=0.02)
