"""Captions in several formats: templates and control prompts, assertions, entities, lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polymodal.corpora.corpus import Corpus
from polymodal.curation import caption_formats, caption_quality
from polymodal.curation.template_captioner import SceneFacts, SceneObject, TemplateCaptioner
from polymodal.data.caption_mixing import format_tag
from polymodal.errors import UserError
from polymodal.modalities.text import Caption, TextTokenizer

FACTS = SceneFacts(
    (SceneObject("cat", "large", "red", "top"), SceneObject("bus", "small", "blue", "left")), ((0, "above", 1),)
)
WRITER = TemplateCaptioner({"cat": "animal", "bus": "vehicle", "dog": "animal"}, frozenset({"bus"}))


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


def test_a_captioner_adds_formats_to_training_images_and_learns_from_control_prompts(
    corpus: Corpus, tmp_path: Path
) -> None:
    columns = {name: corpus.columns[name] for name in ("image", "text")}
    corpus = dataclasses.replace(corpus, columns=columns, label=None)
    prompted: list[str] = []

    def write(corpus: Corpus, rows: Any, form: str, alt_texts: Any) -> list[str]:
        prompted.extend(caption_formats.control_prompt(form, alt_text) for alt_text in alt_texts)
        return [f"{form} of {alt_text}" for alt_text in alt_texts]

    written = caption_formats.write_formats(corpus, tmp_path / "captioned", write, ("ssc", "afc"))
    row = written.rows("train")[3]
    texts = corpus.value(corpus.rows("train")[3], "text")
    added = [Caption(f"{form} of {texts[0].text}", format_tag(form)) for form in ("ssc", "afc")]
    assert written.value(row, "text") == [*texts, *added]
    assert prompted[24 + 3].endswith(f"alternative text is: {texts[0].text}")
    assert {caption.language for caption in written.value(written.rows("test")[0], "text")} == {"en"}
    prompts = caption_formats.write_control_prompts(written, tmp_path / "prompts")
    assert [(one.answer, one.kind) for one in prompts.value(3, "questions")] == [
        (caption.text, form) for caption, form in zip(added, ("ssc", "afc"), strict=True)
    ]
    with pytest.raises(UserError, match="No caption of the format dsc was written"):
        caption_formats.write_formats(corpus, tmp_path / "empty", lambda corpus, rows, *_: [" "] * len(rows), ("dsc",))
    with pytest.raises(UserError, match="has captions of dsc_plus"):
        caption_formats.write_control_prompts(written, tmp_path / "none", caption_formats.STAGES[1])
