"""Captions in several formats: mixing ratios, templates and control prompts, assertions, entities, lengths."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polymodal.corpora import from_path, in_languages
from polymodal.corpora.corpus import Corpus
from polymodal.curation import caption_formats, caption_quality
from polymodal.curation.template_captioner import SceneFacts, SceneObject, TemplateCaptioner
from polymodal.data.caption_mixing import by_format, caption_format, format_tag, mixing_ratios, sample_formats
from polymodal.data.columns.caption_formats import tagged
from polymodal.errors import UserError
from polymodal.modalities.text import Caption, TextTokenizer
from polymodal.rng import ExampleRNG

ALT, SSC, DSC = Caption("IMG_12 cat", "de"), Caption("a cat", "en-x-ssc"), Caption("there is a cat.", "en-X-DSC")
FACTS = SceneFacts(
    (SceneObject("cat", "large", "red", "top"), SceneObject("bus", "small", "blue", "left")), ((0, "above", 1),)
)
WRITER = TemplateCaptioner({"cat": "animal", "bus": "vehicle", "dog": "animal"}, frozenset({"bus"}))


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
    # Where they are joined, all captions of both formats are used.
    several = [{"text": [ALT, SSC, Caption("a tom", "en-x-ssc")]}]
    [joined] = sample_formats(several, mixing_ratios(0.5, ("ssc",)), ExampleRNG.of(0, 0, 1), concatenate=True)
    assert [one.text for one in joined["text"]] == ["IMG_12 cat. a cat", "IMG_12 cat. a tom"]


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
    assert WRITER.write("1", FACTS, "afc", "cat, bus IMG_7").text == texts["afc"]  # as a list, too
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
    # Captions in further formats join those that are there, and take the place of those in their own.
    more = caption_formats.write_formats(written, tmp_path / "more", write, ("dsc", "afc"))
    formats = [caption_format(caption.language) for caption in more.value(more.rows("train")[3], "text")]
    assert formats == [*["alt_text"] * len(texts), "ssc", "dsc", "afc"]
    assert tagged([Caption("a cat", "en-x-dsc"), Caption("a cat")], "ssc")[0].language == "en-x-dsc"
    english = in_languages(more, ["en"])  # with private subtags
    assert len(english.value(english.rows("train")[3], "text")) == len(formats)
    prompts = caption_formats.write_control_prompts(written, tmp_path / "prompts")
    assert [(one.answer, one.kind) for one in prompts.value(3, "questions")] == [
        (caption.text, form) for caption, form in zip(added, ("ssc", "afc"), strict=True)
    ]
    with pytest.raises(UserError, match="No caption of the format dsc was written"):
        caption_formats.write_formats(corpus, tmp_path / "empty", lambda corpus, rows, *_: [" "] * len(rows), ("dsc",))
    with pytest.raises(UserError, match="has captions of dsc_plus"):
        caption_formats.write_control_prompts(written, tmp_path / "none", caption_formats.STAGES[1])


def test_captions_of_finished_chunks_are_kept_when_the_work_is_stopped(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {name: corpus.columns[name] for name in ("image", "text")}
    corpus = dataclasses.replace(corpus, columns=columns, label=None)
    monkeypatch.setattr(caption_formats, "CHUNK", 8)
    asked: list[list[int]] = []

    def write(_: Corpus, rows: Any, form: str, alt_texts: Any) -> list[str]:
        asked.append([*rows])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [f"{form} of {alt_text}" for alt_text in alt_texts]

    unfinished = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        caption_formats.write_formats(corpus, tmp_path / "one", write, unfinished=unfinished)
    with pytest.raises(UserError, match="begun with another run"):
        caption_formats.write_formats(corpus, tmp_path / "one", write, ("dsc",), unfinished=unfinished)
    written = caption_formats.write_formats(corpus, tmp_path / "one", write, unfinished=unfinished)
    assert asked[1] == asked[2]
    assert len({*map(tuple, asked)}) == len(asked) - 1  # the first chunk is not asked again
    whole = caption_formats.write_formats(corpus, tmp_path / "whole", write)
    rows = written.rows("train")
    assert [written.value(row, "text") for row in rows] == [whole.value(row, "text") for row in rows]
    assert not unfinished.exists()


def test_columns_of_formats_become_tags_and_images_without_a_caption_get_one(tmp_path: Path) -> None:
    lines = ["file_name,ssc,alt_text,split"]
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(
            f"{number}.png,{f'a red {number},shop {number}' if number else ','},{'test' if number == 3 else 'train'}"
        )
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    corpus = from_path(tmp_path, text="ssc")
    written = caption_formats.write_formats(
        corpus,
        tmp_path / "written",
        lambda corpus, rows, form, alt_texts: [f"{form} {one}" for one in alt_texts],
        ("afc",),
    )
    found = [{name: some[0].text for name, some in by_format(written.value(row, "text")).items()} for row in range(4)]
    full = [{"alt_text": f"shop {n}", "ssc": f"a red {n}", "afc": f"afc shop {n}"} for n in (1, 2)]
    assert found == [{"afc": "afc "}, *full, {"alt_text": "shop 3", "ssc": "a red 3"}]


def test_each_format_has_its_tokens(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(caption_formats, "check_generates_text", lambda run: None)
    monkeypatch.setattr(caption_formats, "describe", lambda *_, decoding: limits.append(decoding.max_new_tokens) or [])
    for captioner in (caption_formats.RunCaptioner(None), caption_formats.RunCaptioner(None, 9)):
        for form in ("ssc", "dsc_plus"):
            captioner(corpus, [0], form, [""])
    assert limits == [32, 256, 9, 9]
