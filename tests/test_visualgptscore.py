"""visualgptscore: BLIP's captioning head as in transformers, invariances of the likelihood, losses in plain loops."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

import polymodal as pm
from polymodal.claims import visualgptscore as claims
from polymodal.corpora.corpus import Corpus
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.pair_scores import MatchingScore
from polymodal.modalities.text import Tokens
from polymodal.models.fusion_encoder import MultimodalTextEncoderConfig
from polymodal.recipes.captioning import visualgptscore
from polymodal.rng import ExampleRNG
from test_fusion_encoder import MARKS, copy_bert_attention, copy_bert_block

TINY = visualgptscore.Recipe.tiny()


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


@pytest.fixture(scope="module")
def model(processor: Processor) -> visualgptscore.VisualGPTScore:
    torch.manual_seed(0)
    built = TINY.build(processor).eval()
    for parameter in built.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return built


def test_the_decoder_is_blips(model: visualgptscore.VisualGPTScore) -> None:
    torch.manual_seed(1)
    sizes = {"vocab_size": 30, "hidden_size": 16, "encoder_hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 10}
    settings = transformers.BlipTextConfig(**sizes, **MARKS, layer_norm_eps=1e-5, is_decoder=True)
    settings._attn_implementation = "eager"
    theirs = BlipTextLMHeadModel(settings).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    head = theirs.cls.predictions
    head.decoder.weight = theirs.bert.embeddings.word_embeddings.weight  # tied, as in the released code
    own = visualgptscore.VisualGPTScore.__new__(visualgptscore.VisualGPTScore)
    torch.nn.Module.__init__(own)
    config = MultimodalTextEncoderConfig(
        width=16, depth=2, num_heads=2, vocab_size=30, context_length=10, causal_attention=True
    )
    own.vocab_size, own.text_encoder = 28, type(model.text_encoder)(config, 16).eval()
    own.lm_head = type(model.lm_head)(16, 30)
    own.text_encoder.token_embedding.load_state_dict(theirs.bert.embeddings.word_embeddings.state_dict())
    own.text_encoder.pos_embed.load_state_dict(theirs.bert.embeddings.position_embeddings.state_dict())
    own.text_encoder.norm.load_state_dict(theirs.bert.embeddings.LayerNorm.state_dict())
    for index, layer in enumerate(theirs.bert.encoder.layer):
        block = own.text_encoder.blocks[index]
        copy_bert_block(block, layer)
        copy_bert_attention(own.text_encoder.causal_attention[index], block.norm1, layer.attention)
        torch.nn.init.normal_(block.self_attention.query.weight)  # the encoder's, which the decoder has no part of
    own.lm_head.dense.load_state_dict(head.transform.dense.state_dict())
    own.lm_head.norm.load_state_dict(head.transform.LayerNorm.state_dict())
    own.lm_head.bias.data = head.bias.data.clone()
    ids, image = torch.randint(28, (2, 6)), torch.randn(2, 5, 16)
    ids[:, 0] = 29  # [DEC]
    with torch.no_grad():
        expected = theirs(ids, encoder_hidden_states=image, use_cache=False).logits
        found = own.next_token_logits(Tokens(ids, torch.tensor([6, 6])), image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_likelihoods_are_sums_over_tokens_and_do_not_depend_on_padding(
    model: visualgptscore.VisualGPTScore, processor: Processor
) -> None:
    torch.manual_seed(0)
    image, texts = torch.randn(3, 3, 32, 32), ["a red square", "there is a blue disk here", "a"]
    with torch.no_grad():
        together = model.log_likelihood({"image": image, "answer": processor.text(texts)})
        for number, text in enumerate(texts):
            tokens, expected = processor.text([text]), 0.0
            visual = model.visual_tokens(image[number : number + 1])
            for place in range(1, int(tokens.lengths[0])):  # each token after its prefix alone; the end token, too
                prefix = Tokens(tokens.ids[:, :place], torch.tensor([place]))
                logits = model.next_token_logits(prefix, visual)[0, -1]
                expected += float(logits.log_softmax(0)[tokens.ids[0, place]])
            assert float(together[number]) == pytest.approx(expected, rel=1e-5)
        assert not torch.allclose(
            together, model.log_likelihood({"image": image.flip(0), "answer": processor.text(texts)})
        )
        model.train()
        smoothed, _ = model.token_losses(processor.text(texts), model.visual_tokens(image), label_smoothing=0.1)
        plain = model.log_likelihood({"image": image, "answer": processor.text(texts)})
        model.eval()
    torch.testing.assert_close(plain, together)  # scores have no dropout here, and never label smoothing
    assert float(smoothed.sum()) > 0


def test_the_trio_of_losses_and_what_each_reads(
    model: visualgptscore.VisualGPTScore, processor: Processor, corpus: Corpus
) -> None:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:4]]
    batch = TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    losses, text = model.losses(batch), batch["text"]
    assert losses.keys() == {"itc", "itm", "lm"}
    nats, count = 0.0, 0
    for row in range(4):
        logits = model.next_token_logits(text, model.visual_tokens(batch["image"]))[row]
        for place in range(1, int(text.lengths[row])):
            nats, count = nats + float(F.cross_entropy(logits[place - 1], text.ids[row, place])), count + 1
    assert float(losses["lm"]) == pytest.approx(nats / count, rel=1e-4)
    model.zero_grad()
    losses["lm"].backward(retain_graph=True)
    assert model.text_encoder.causal_attention[0].query.weight.grad is not None
    assert model.text_encoder.blocks[0].self_attention.query.weight.grad is None
    with torch.no_grad():
        logits = model.itm_logits({"image": batch["image"][:2], "text": text})
        alone = model.match(processor.text(["a red square"]), model.visual_tokens(batch["image"][:1]))
        again = model.itm_logits({"image": batch["image"][:1], "text": processor.text(["a red square"])})
    assert logits.shape == (2, 4)
    assert float(again) == pytest.approx(float(alone[0, 1] - alone[0, 0]), rel=1e-5)
    weightless = dataclasses.replace(TINY, itm_weight=0.0, lm_weight=2.0).build(processor)
    weightless.load_state_dict(model.state_dict())
    weighted = weightless.eval().losses(batch)
    assert float(weighted["itm"]) == 0
    assert float(weighted["lm"]) == pytest.approx(2 * float(losses["lm"]), rel=1e-5)


def test_captions_are_written_token_by_token(model: visualgptscore.VisualGPTScore) -> None:
    image = torch.randn(2, 3, 32, 32)
    both, first = model.generate_text({"image": image}), model.generate_text({"image": image[:1]})
    assert both[0] == first[0]
    assert max(map(len, both)) <= TINY.text.context_length
    token = model.next_token_logits(Tokens(torch.zeros(1, 1).long(), torch.tensor([1])), model.visual_tokens(image[:1]))
    assert (both[0] or [model.end])[0] == int(token[0, -1].argmax())


def test_arms_of_the_claims_score_the_model_that_they_begin_with(corpus: Corpus) -> None:
    """With a learning rate of 0 a step changes nothing, so that arms differ in their score alone."""
    first = pm.train(TINY, corpus, pm.Budget(steps=2), progress=False)
    for claim in (claims.claim, claims.debiasing):
        for arm in (claim.baseline, claim.treatment):
            assert dataclasses.replace(arm, score=claim.start.score, optimizer=claim.start.optimizer) == claim.start
        optimizer = claim.treatment.optimizer
        recipe = dataclasses.replace(TINY, optimizer=optimizer, score=claim.treatment.score)
        tokenizer = first.processor.tokenizer
        arm = pm.train(recipe, corpus, claim.budget, weights_like=first.model, tokenizer=tokenizer, progress=False)
        state = arm.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in first.model.state_dict().items())
        assert arm.model.matching_score == claim.treatment.score
    assert claims.claim.treatment.score.alpha == claims.debiasing.baseline.score.alpha == 0


def test_settings() -> None:
    assert dataclasses.replace(TINY, score=MatchingScore("itm")).score.kind == "itm"
    with pytest.raises(UserError, match="fusion-depth"):
        dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, depth=2, fusion_depth=1))
