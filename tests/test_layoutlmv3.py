"""LayoutLMv3: the network and weights of transformers, masks of words and patches, word-patch alignment."""

from __future__ import annotations

import dataclasses
import math

import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from polymodal.claims.layoutlmv3 import claim, fields
from polymodal.corpora import Corpus
from polymodal.data.columns.words import first_pieces, in_segment_boxes
from polymodal.data.masks import in_masked_patch
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.page import patch_boxes
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation import validation
from polymodal.modalities.document import PageTokens, Word, Words, page_tokens
from polymodal.modalities.text import Tokens
from polymodal.recipes.documents import layoutlmv3
from polymodal.rng import ExampleRNG
from polymodal.training.stages import active_stages
from polymodal.types import Batch
from tiny_pages import PATCHES, TINY


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


@pytest.fixture
def batch(corpus: Corpus, processor: Processor) -> Batch:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train")[:16].tolist()]
    return TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, 16))


def method(processor: Processor, recipe: layoutlmv3.Recipe = TINY) -> layoutlmv3.LayoutLMv3:
    torch.manual_seed(0)
    return recipe.build(processor).eval()


def test_patch_boxes_are_on_the_scale_of_word_boxes() -> None:
    boxes = patch_boxes(4)
    assert boxes[0].tolist() == [1, 1, 999, 999]
    assert boxes[1 + 6].tolist() == [500, 250, 750, 500]  # second row, third column
    assert boxes[-1].tolist() == [750, 750, 1000, 1000]


@pytest.mark.parametrize("box", [(0, 0, 1300, 10), (-1, 0, 5, 5), (500, 0, 400, 10)])
def test_invalid_boxes_are_named(
    box: tuple[int, int, int, int], corpus: Corpus, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = [Word("fine", (0, 0, 1000, 1000)), Word("wrong", box)]
    with pytest.raises(UserError, match=r"the word 'wrong' has the box .*; boxes are left, top, right, bottom"):
        page_tokens([page], processor.tokenizer)
    monkeypatch.setattr(Corpus, "value", lambda *_: page)
    with pytest.raises(UnreadableExample, match="the word 'wrong'"):
        processor.words.load(corpus, 0)


def test_words_without_a_segment_keep_their_boxes(processor: Processor) -> None:
    stored = [{"text": "a", "box": [0, 0, 10, 10]}, {"text": "b", "box": [500, 500, 600, 520]}]
    kind = Words()
    page = kind.decode(pa.array([stored], type=kind.arrow_type).to_pylist()[0])
    assert [word.link for word in page] == [-1, -1]
    assert in_segment_boxes(page) == page
    with pytest.raises(UnreadableExample, match="left, top, right, bottom"):
        kind.decode(pa.array([[{"text": "a", "box": None}]], type=kind.arrow_type).to_pylist()[0])
    line = [word._replace(segment=3) for word in page]  # a user's own, which nothing has loaded
    boxes = [
        made.boxes[made.word >= 0].unique(dim=0).tolist() for made in (processor.words([page]), processor.words([line]))
    ]
    assert boxes == [[[0, 0, 10, 10], [500, 500, 600, 520]], [[0, 0, 600, 520]]]


def test_dropout_is_that_of_the_official_code(processor: Processor) -> None:
    encoder, lengths = method(processor).train().encoder, []
    encoder.dropout.register_forward_hook(lambda _, given, __: lengths.append(given[0].shape[1]))
    words = page_tokens([[Word("a", (0, 0, 1000, 1000))]], processor.tokenizer)
    encoder(words, torch.randn(1, 3, 32, 32))
    text = words.tokens.ids.shape[1]  # patches alone have none: their `pos_drop` is 0
    assert lengths == [text, text + PATCHES + 1]


def test_heads_have_the_published_sizes() -> None:
    with torch.device("meta"):
        paper = layoutlmv3.LayoutLMv3(layoutlmv3.Recipe.paper(), 50_265, 2)
    sizes = [sum(p.numel() for p in head.parameters()) / 1e6 for head in (paper.mim_head, paper.wpa_head)]
    assert [round(size, 1) for size in sizes] == [6.9, 0.6]


def test_masked_words_and_patches_are_not_read(batch: Batch, processor: Processor) -> None:
    own = method(processor)
    words, masked = batch["words"], batch["masked_words"]
    assert masked.any()
    assert not (masked & (words.word < 0)).any()
    ids = torch.where(masked, (words.tokens.ids + 7) % 200, words.tokens.ids)
    changed = dataclasses.replace(words, tokens=Tokens(ids, words.tokens.lengths))
    in_pixels = batch["masked_patches"].unflatten(1, (TINY.encoder.grid,) * 2)
    in_pixels = in_pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    image = torch.where(in_pixels, torch.randn_like(batch["image"]), batch["image"])
    with torch.no_grad():
        found = own.encoder(words, batch["image"], masked, batch["masked_patches"])
        same = own.encoder(changed, image, masked, batch["masked_patches"])
        unmasked = own.encoder(changed, image)
    for one, other, different in zip(found, same, unmasked, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, different, atol=1e-3)


def test_whole_words_are_masked(corpus: Corpus, processor: Processor) -> None:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()]
    share, count = 0, 0
    for seed in range(20):
        made = TINY.training_batch(examples, processor, ExampleRNG.of(seed, 0, len(examples)))
        of_word, masked = made["words"].word, made["masked_words"]
        for row, gone in zip(of_word, masked, strict=True):
            assert all(gone[row == number].unique().numel() == 1 for number in range(int(row.max()) + 1))
        share += int((masked & first_pieces(made["words"])).sum())
        count += int(first_pieces(made["words"]).sum())
    assert 0.25 < share / count < 0.35


def test_losses_at_the_start_are_those_of_guessing(batch: Batch, processor: Processor) -> None:
    own = method(processor)
    losses = own.losses(batch)
    assert losses["mlm"].item() == pytest.approx(math.log(processor.words.tokenizer.vocab_size), rel=0.1)
    assert losses["mim"].item() == pytest.approx(math.log(16), rel=0.2)
    assert losses["wpa"].item() == pytest.approx(math.log(2), rel=0.2)
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in own.tokenizer.parameters())
    assert own.encoder.mask_token.grad.abs().sum() > 0


def test_alignment_is_predicted_for_unmasked_words_alone(batch: Batch, processor: Processor) -> None:
    own = method(processor)
    one_word = batch | {"masked_words": batch["words"].word >= 0}
    one_word["masked_words"][0, 1] = False
    tokens, _ = own.encoder(batch["words"], batch["image"], one_word["masked_words"], batch["masked_patches"])
    masked = in_masked_patch(batch["words"].boxes, batch["masked_patches"], TINY.encoder.grid)[0, 1]
    wanted = F.binary_cross_entropy_with_logits(own.wpa_head(tokens[0, 1]), (~masked).float()[None])
    torch.testing.assert_close(own.losses(one_word)["wpa"], wanted)
    nothing = batch | {"masked_words": batch["words"].word >= 0}
    empty = PageTokens(Tokens(batch["words"].tokens.ids[:, :2], torch.full((16,), 2)), torch.zeros(16, 2, 4).long(),
                       torch.full((16, 2), -1))  # fmt: skip
    blank = batch | {"words": empty, "masked_words": torch.zeros(16, 2, dtype=torch.bool)}
    assert [own.losses(case)["wpa"].item() for case in (nothing, blank)] == [0, 0]  # and no NaN
    assert own.token_classification_losses(blank | {"fields": torch.full((16, 2), -100)})["token_classification"] == 0
    with torch.no_grad():
        own.wpa_head[-1].weight.zero_()
        own.wpa_head[-1].bias.fill_(20.0)  # "aligned", surely
        losses = own.losses(batch | {"masked_patches": torch.zeros(16, PATCHES, dtype=torch.bool)})
        assert losses["wpa"] < 1e-6  # all words are aligned where no patch is masked
        assert losses["mim"] == 0
        assert own.losses(batch)["wpa"] > 0.1


def test_dropout_reaches_attention_weights(processor: Processor) -> None:
    attention = method(processor).train().encoder.transformer.blocks[0].attention
    x = torch.randn(1, 5, TINY.encoder.width)
    assert attention.dropout == 0.1
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


def test_stages_follow_the_tasks() -> None:
    def names(**changed: object) -> list[str]:
        return [stage.name for stage in active_stages(dataclasses.replace(TINY, **changed))]

    assert names(use_mim=False, use_wpa=False) == ["pre-training", "fine-tuning"]
    assert names(finetune_fraction=1.0) == ["fine-tuning"]
    assert names(finetune_fraction=0.0) == ["image tokenizer", "pre-training"]
    assert active_stages(layoutlmv3.Recipe.paper())[-1].name == "pre-training"
    with pytest.raises(UserError, match="wpa"):
        dataclasses.replace(TINY, use_mim=False)
    for one in (claim, fields):
        arms = (one.baseline, one.treatment, *one.further.values())
        assert len({(arm.use_mim, arm.use_wpa) for arm in arms}) == len(arms) == 3
        assert all(dataclasses.replace(arm, use_mim=True, use_wpa=True) == one.treatment for arm in arms)


def test_what_has_not_been_learned_is_not_scored(pages: Corpus, processor: Processor) -> None:
    """The claim measured patches, by the fields in them, after all arms had been fine-tuned on fields; a model without
    fine-tuning was scored, and validated, by a head for fields that had not learned."""
    stages = [[stage.name for stage in active_stages(one.treatment)] for one in (claim, fields)]
    assert {"patch_fields", "word_to_patch"} <= {name.split("/")[1] for name in claim.metrics}
    assert ["fine-tuning" in names for names in stages] == [False, True]
    assert {name.split("/")[1] for name in fields.metrics} == {"fields"}
    found = {}
    for fraction in (0.0, 0.5):
        model = method(processor, dataclasses.replace(TINY, finetune_fraction=fraction))
        found[fraction] = [*validation(pages)(model, processor)]
    assert found[0.0] == ["validation/word_to_patch/hit_rate"]
    assert found[0.5] == ["validation/fields/entity_f1", "validation/fields/word_accuracy"]
