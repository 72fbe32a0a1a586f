"""Hybrid captions: sampling by mixing ratios, pure arms to the bit, formats by templates, assertions and diversity."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.curation import caption_formats, caption_quality
from polymodal.curation.template_captioner import SceneFacts, SceneObject, TemplateCaptioner
from polymodal.data.caption_mixing import caption_format, mixing_ratios, sample_formats
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.modalities.text import Caption, TextTokenizer
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.dual_encoders.hybrid_captions import Recipe
from polymodal.rng import ExampleRNG

TINY = Recipe.tiny()
ALT, SSC, DSC = Caption("IMG_12 cat", "de"), Caption("a cat", "en-x-ssc"), Caption("there is a cat.", "en-X-DSC")
FACTS = SceneFacts(
    (SceneObject("cat", "large", "red", "top"), SceneObject("bus", "small", "blue", "left")), ((0, "above", 1),)
)
WRITER = TemplateCaptioner({"cat": "animal", "bus": "vehicle", "dog": "animal"}, frozenset({"bus"}))


def with_texts(corpus: Corpus, change: Any) -> Corpus:
    """The corpus with the captions of each example changed."""
    place, kind = corpus.table.column_names.index("text"), corpus.table.schema.field("text").type
    texts = pa.array([change(some) for some in corpus.table.column("text").to_pylist()], kind)
    return dataclasses.replace(corpus, table=corpus.table.set_column(place, "text", texts))


def short(some: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"text": f"short: {some[0]['text']}", "language": "en-x-ssc"}]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_ratios_of_zero_and_one_are_the_pure_arms_to_the_bit(corpus: Corpus, ratio: float) -> None:
    mixed = with_texts(corpus, lambda some: some + short(some))
    alone = with_texts(corpus, short) if ratio else corpus
    recipe = dataclasses.replace(TINY, synthetic_ratio=ratio)
    plain = clip.Recipe(**{name: value for name, value in vars(recipe).items() if hasattr(clip.Recipe, name)})
    processor, weights = fit_processor(recipe, mixed), []
    for method, data in ((recipe, mixed), (plain, alone)):
        torch.manual_seed(0)
        model = method.build(processor).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            examples = Reader(data, processor).read_all(data.rows("train")[4 * step : 4 * step + 4])[1]
            batch = method.training_batch(examples, processor, ExampleRNG.of(0, 4 * step, 4))
            optimizer.zero_grad()
            sum(model.losses(batch).values(), torch.zeros(())).backward()
            optimizer.step()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_frequencies_of_formats_are_the_mixing_ratios() -> None:
    """Chi-square of 6,000 examples, below the 99.9 % quantile for 2 degrees of freedom, at every ratio."""
    examples = [{"text": [ALT, SSC, DSC]}] * 6000
    for ratio in (0.25, 0.5, 0.75):
        ratios = mixing_ratios(ratio, ("ssc", "dsc"))
        sampled = sample_formats(examples, ratios, ExampleRNG.of(3, 0, 6000))
        counts = Counter(caption_format(one["text"][0].language) for one in sampled)
        expected = {name: 6000 * part for name, part in ratios.items()}
        assert expected == pytest.approx({"alt_text": 6000 * (1 - ratio), "ssc": 3000 * ratio, "dsc": 3000 * ratio})
        assert sum((counts[name] - n) ** 2 / n for name, n in expected.items()) < 13.8
    # The number of an example does not depend on its batch, and images that lack a format take the others.
    part = sample_formats(examples[:10], ratios, ExampleRNG.of(3, 10, 10))
    assert part == sampled[10:20]
    assert sample_formats([{"text": [SSC, DSC]}], {"alt_text": 0.9, "dsc": 0.1}, ExampleRNG.of(0, 0, 1)) == [
        {"text": [DSC]}
    ]
    joined = sample_formats(examples[:1], mixing_ratios(0.5, ("ssc",)), ExampleRNG.of(0, 0, 1), concatenate=True)
    assert joined == [{"text": [Caption("IMG_12 cat. a cat", "de")]}]


def test_formats_say_what_is_there_and_the_splitter_counts_it() -> None:
    alt_text = "black-cat IMG_7"
    texts = {form: WRITER.write("1", FACTS, form, alt_text).text for form in caption_formats.CONTROL_PROMPTS}
    assert texts["ssc"] == "a red animal and a bus."
    assert texts["dsc"] == "there is a large red animal. there is a small blue bus."
    assert texts["afc"] == texts["dsc"].replace("animal", "cat")
    assert texts["dsc_plus"].startswith("a large red animal is at the top of the image.")
    assert texts["dsc_plus"].endswith("the animal is above the bus.")
    numbers = {"ssc": 3, "dsc": 6, "dsc_plus": 9, "afc": 6}
    for form, number in numbers.items():
        written = WRITER.write("1", FACTS, form, alt_text)
        assert written.truths == (True,) * number
        assert len(caption_quality.split_assertions(written.text)) == number
    # AltText of another image misleads: its dog is no cat, all else stays.
    assert WRITER.write("1", FACTS, "afc", "dog").truths == (False, *(True,) * 5)
    lying = dataclasses.replace(WRITER, hallucination_rate=0.3)
    accuracy = {
        form: np.mean([truth for key in range(400) for truth in lying.write(str(key), FACTS, form).truths])
        for form in numbers
    }
    assert accuracy["ssc"] - 0.02 > accuracy["dsc"] > accuracy["dsc_plus"] + 0.02
    assert lying.write("7", FACTS, "dsc_plus") == lying.write("7", FACTS, "dsc_plus")


def test_reports_count_entities_in_equal_samples_and_truncated_captions() -> None:
    assert caption_quality.entities("A photo of a red bus and the dog") == ["bus", "dog"]
    assert caption_quality.entities("IMG_12, chili, hot") == ["chili", "hot"]
    assert caption_quality.listed("Here:\n- a\n* b\n- a\n") == ["a", "b"]
    texts = {"alt_text": ["cat", "dog", "bus", "bus"], "dsc": ["a cat is at the top.", "there is a red cat."]}
    tokenizer = TextTokenizer.characters([*texts["dsc"], *texts["alt_text"]], 60, 21)
    reports = caption_quality.format_reports(texts, tokenizer)
    assert {name: report.counted for name, report in reports.items()} == {"alt_text": 2, "dsc": 2}
    assert (reports["dsc"].assertions, reports["dsc"].entities) == (2.0, 1)
    # 20 and 19 characters with two special tokens: one of 22 is truncated to 21.
    assert (reports["dsc"].tokens, reports["dsc"].truncated) == (21.5, 0.5)
    assert reports["dsc"].entities_per_1k_tokens == pytest.approx(1000 / 43)
    assert tokenizer.context_length == 21
    judged = caption_quality.assertion_accuracy(texts["dsc"], lambda number, assertion: "red" not in assertion)
    assert judged == 0.75
