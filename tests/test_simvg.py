"""SimVG: the released head's boxes and losses, decoupled branches, distillation, stages."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.tasks.referring import referring_scores
from polymodal.modalities import Expressions
from polymodal.modalities.text import Tokens
from polymodal.recipes.grounding import simvg
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.training.stages import active_stages
from polymodal.types import Budget

TINY = simvg.Recipe.tiny()


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


def built(processor: Processor, **changes: object) -> simvg.SimVG:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, recipe: simvg.Recipe = TINY, count: int = 4) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:count]]
    return recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, len(examples)))


def test_each_branch_trains_its_own_part(processor: Processor, corpus: Corpus) -> None:
    """The decoder's loss does not reach the object token, and the token branch's losses do not reach the decoder."""
    for names, untouched in (
        (("decoder_branch",), ("object_projection", "token", "token_head")),
        (("token_branch", "distillation"), ("decoder", "decoder_head", "memory_projection")),
    ):
        model = built(processor, encoder=dataclasses.replace(TINY.encoder, depth=0))  # without fusion in the encoder
        losses = model.losses(batch_of(processor, corpus))
        sum(losses[name] for name in names).backward()
        for part in untouched:
            assert all(parameter.grad is None for parameter in model.get_submodule(part).parameters()), part
        assert bool(model.encoder.object_token.grad.any()) is ("token_branch" in names)


def test_the_text_reaches_patches_only_where_the_encoder_fuses(processor: Processor, corpus: Corpus) -> None:
    batch = batch_of(processor, corpus)
    text, longer = batch["text"], torch.nn.functional.pad(batch["text"].ids, (0, 3), value=7)
    other = batch | {"text": Tokens(text.ids.flip(0), text.lengths.flip(0))}
    for fusion, reaches in (("encoder", True), ("head", False)):
        model = built(processor, fusion=fusion, encoder=dataclasses.replace(TINY.encoder, context_length=30))
        one, two = (model.queries(b["image"], b["text"])[2] for b in (batch, other))
        assert torch.allclose(one, two, atol=1e-6) is not reaches
        found, padded = (model.predict_boxes(batch | {"text": t}) for t in (text, Tokens(longer, text.lengths)))
        assert all(torch.allclose(found[branch][0], padded[branch][0], atol=1e-5) for branch in found)


def test_stages_losses_and_settings_that_do_not_fit(processor: Processor, corpus: Corpus) -> None:
    assert [stage.name for stage in TINY.stages()] == ["captions", "decoder", "grounding"]
    assert TINY.stages()[1].loss_weights == {"token_branch": 0.0, "distillation": 0.0}
    assert [stage.name for stage in active_stages(simvg.Recipe.paper())] == ["grounding"]
    alone, fixed = (
        built(processor, distill_type=kind, decoder_warmup_fraction=0.0).losses(batch_of(processor, corpus))
        for kind in ("none", "fixed")
    )
    assert set(alone) == {"token_branch"}
    assert float(fixed["token_branch"].detach()) == pytest.approx(float(alone["token_branch"].detach()) / 2, rel=1e-5)
    for changes, sentence in (
        ({"distill_type": "none"}, "asks for a decoder"),
        ({"scale_jitter": (1.0, 0.5)}, "scale-jitter"),
        ({"caption_fraction": 0.8}, "leave less than nothing for 'grounding'"),
    ):
        with pytest.raises(UserError, match=sentence):
            active_stages(dataclasses.replace(TINY, **changes))


def test_several_queries_learn_from_all_expressions(processor: Processor, corpus: Corpus) -> None:
    several = dataclasses.replace(TINY, num_queries=3)
    counts = Counter(batch_of(processor, corpus, several, 40)["expressions"].counts.tolist())
    assert len(counts) > 1
    assert set(batch_of(processor, corpus, TINY, 40)["expressions"].counts.tolist()) == {1}
    jittered = batch_of(processor, corpus, dataclasses.replace(TINY, scale_jitter=(1.3, 1.4)))
    plain = batch_of(processor, corpus)
    assert not torch.allclose(jittered["image"], plain["image"])
    assert not torch.allclose(jittered["expressions"].boxes, plain["expressions"].boxes)
    for boxes, probability in built(processor, num_queries=3).predict_boxes(plain).values():
        assert boxes.shape == (len(plain["image"]), 3, 4)
        assert bool((boxes[..., 2:] >= boxes[..., :2]).all())
        assert bool(((probability > 0) & (probability < 1)).all())


def of_pairs(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """The corpus with two boxes for every expression."""
    value, column = type(corpus).value, corpus.column_with(Expressions)

    def twice(self: Corpus, row: int, name: str, **options: int) -> object:
        read = value(self, row, name, **options)
        return [one._replace(boxes=one.boxes[:1] * 2) for one in read if one.boxes] if name == column else read

    monkeypatch.setattr(type(corpus), "value", twice)
    return corpus


def test_one_query_for_several_objects_is_named(
    processor: Processor, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One box was matched to one of several objects in training, and evaluation had no score and no word of why."""
    pairs = of_pairs(corpus, monkeypatch)
    with pytest.raises(UserError, match="let --num-queries be"):
        fit_processor(TINY, pairs)
    fit_processor(dataclasses.replace(TINY, num_queries=2), pairs)
    reader = Reader(pairs, processor)
    with pytest.warns(UserWarning, match="train with --num-queries above 1"):
        assert referring_scores(built(processor), processor, reader, "test") == []
    assert referring_scores(built(processor, num_queries=2), processor, reader, "test")


def test_the_published_preset_starts_from_a_run(corpus: Corpus) -> None:
    """Its encoder, of BEiT-3 in the paper, was random and learned at a tenth of the rate."""
    assert "by --init" in simvg.Recipe.paper().missing_init()
    assert TINY.missing_init() == ""
    recipe = dataclasses.replace(TINY, caption_fraction=0.0, encoder_lr_scale=0.1)
    with pytest.raises(UserError, match="BEiT-3's weights cannot be loaded"):
        train(recipe, corpus, Budget(steps=1))
