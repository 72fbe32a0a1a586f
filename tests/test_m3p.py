"""M3P: what is masked and predicted, streams, and what arms have in common."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest
import torch

import synthetic
from polymodal.corpora import Corpus
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.recipes.fusion_encoders import m3p
from polymodal.rng import ExampleRNG

TINY = m3p.Recipe.tiny()


@pytest.fixture(scope="module")
def translated(corpus: Corpus) -> Corpus:
    return synthetic.corpus_for("m3p", corpus)


@pytest.fixture(scope="module")
def processor(translated: Corpus) -> Processor:
    return fit_processor(TINY, translated)


def batch_of(processor: Processor, corpus: Corpus, name: str = "training_batch", **changes: object) -> dict:
    recipe = dataclasses.replace(TINY, **changes)
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:4]]
    return getattr(recipe, name)(examples, processor, ExampleRNG.of(0, 0, len(examples)))


def test_words_or_regions_are_masked_and_predicted_in_positives_alone(processor: Processor, translated: Corpus) -> None:
    torch.manual_seed(0)
    model, batch = TINY.build(processor), batch_of(processor, translated)
    both = set()
    for direction, (pairs, groups, _) in enumerate(model.groups(batch)):
        numbers = [batch[name][:, direction] for name in ("mask_kind", "word_numbers", "region_numbers")]
        masked = model.mask_pairs(pairs, *numbers)
        has_words, has_regions = masked.masked_words.any(1), masked.masked_regions.any(1)
        assert (has_words ^ has_regions).all()  # also of negatives, which are masked, too
        assert torch.equal(has_words, numbers[0].flatten() < 0.5)
        both |= {*has_words.tolist()}
        positive = groups.positive.flatten()[:, None]
        negatives = masked._replace(
            masked_words=masked.masked_words & ~positive, masked_regions=masked.masked_regions & ~positive
        )
        of_negatives = [model.masked_losses(pairs, negatives, groups)[name] for name in ("mlm", "mrc", "mrfr")]
        assert [float(loss) for loss in of_negatives] == [0.0, 0.0, 0.0]
        gradients = torch.autograd.grad(sum(of_negatives), [*model.parameters()], retain_graph=True, allow_unused=True)
        assert not any(one is not None and one.any() for one in gradients)
        assert negatives.masked_words.any() or negatives.masked_regions.any()
    assert both == {True, False}


def test_streams_and_what_arms_have_in_common(processor: Processor, translated: Corpus) -> None:
    plain = batch_of(processor, translated, sent_ratio=0.0)
    switched = batch_of(processor, translated, sent_ratio=1.0, word_ratio=1.0)
    for name in plain.keys() - {"caption"}:  # whatever is switched, all else is the same
        one, other = (getattr(batch[name], "ids", batch[name]) for batch in (plain, switched))
        assert torch.equal(one, other), name
    assert torch.equal(plain["caption"].ids, plain["plain"].ids)
    column, texts = processor.text, processor.text.tokenizer.decode(switched["caption"])
    assert {*column.texts_by_language} == {"en", "de"}
    for caption, text in zip(column.tokenizer.decode(plain["plain"]), texts, strict=True):
        words = [column.dictionary[word]["de"][0] if word in column.dictionary else word for word in caption.split()]
        assert text == " ".join(words)
        assert text != caption
    one_word = column.tokenizer.decode(batch_of(processor, translated, sent_ratio=1.0, one_word=True)["caption"])
    changed = [
        sum(one != other for one, other in zip(caption.split(), text.split(), strict=True))
        for caption, text in zip(column.tokenizer.decode(plain["plain"]), one_word, strict=True)
    ]
    assert max(changed) == 1  # "a" is the same in both languages


def test_fine_tuning_switches_captions_in_the_language(processor: Processor, translated: Corpus) -> None:
    ratios = {"sent_ratio": 1.0, "word_ratio": 1.0, "one_word": True}
    switched = batch_of(processor, translated, "finetuning_batch", **ratios)
    expected = batch_of(processor, translated, sent_ratio=1.0, word_ratio=1.0)  # each word, as the released `clag`
    assert torch.equal(switched["caption"].ids, expected["caption"].ids)
    others = [
        batch_of(processor, translated, "finetuning_batch", finetune_languages=("de",), **ratio)
        for ratio in (ratios, {"sent_ratio": 0.0})
    ]
    assert torch.equal(others[0]["caption"].ids, others[1]["caption"].ids)
    assert torch.equal(switched["group"], expected["group"])  # of the captions as they are


def test_only_paired_languages_go_with_images(translated: Corpus) -> None:
    recipe = dataclasses.replace(TINY, source_language="de", finetune_languages=("en", "de"))
    assert len(recipe.training_rows(translated)) == len(translated.rows("train"))
    assert recipe.build(fit_processor(recipe, translated)).paired_languages == ("de", "und", "en")
    with pytest.raises(UserError, match="in fr"):
        fit_processor(dataclasses.replace(TINY, source_language="fr"), translated)
    with pytest.raises(UserError, match="in fr"):
        dataclasses.replace(TINY, finetune_languages=("fr",)).training_corpora(translated)


def test_captions_without_a_language_are_of_the_source_language_in_fine_tuning_too(translated: Corpus) -> None:
    place, kind = translated.table.column_names.index("text"), translated.table.schema.field("text").type
    untagged = [[{**first, "language": "und"}, *others] for first, *others in translated.table["text"].to_pylist()]
    table = translated.table.set_column(place, "text", pa.array(untagged, kind))
    corpus = dataclasses.replace(translated, table=table)
    assert len(TINY.finetuning_rows(corpus)) == len(corpus.rows("train"))
    assert batch_of(fit_processor(TINY, corpus), corpus, "finetuning_batch")["caption"].lengths.min() > 2
