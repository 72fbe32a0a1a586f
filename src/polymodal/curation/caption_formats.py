"""A controllable captioner: short (SSC), descriptive (DSC), dense (DSC+) and AltText-fused (AFC) captions of images.

One model writes all formats, each asked for by a control prompt; AFC has the AltText in its prompt. The model is a run
that answers questions about images (`RunCaptioner`), fine-tuned on `write_control_prompts` in two stages: first on
short and descriptive captions, then on few, very detailed ones. `TemplateCaptioner` writes the formats of composed
scenes, whose facts are known.

    write_formats(corpus, "captioned", RunCaptioner(load_run("captioner")), ("ssc", "dsc"))
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import save_corpus
from polymodal.curation.captions import check_generates_text, describe
from polymodal.curation.resumable import run_resumably
from polymodal.data.caption_mixing import ALT_TEXT, CAPTION_FORMATS, SYNTHETIC_FORMATS, by_format, format_tag
from polymodal.data.columns.caption_formats import captions_in_formats
from polymodal.errors import UnreadableExample, UserError, unknown
from polymodal.layers.decoding import Decoding
from polymodal.modalities import Image, Questions, Text
from polymodal.modalities.image import to_rgb
from polymodal.modalities.question import stored_questions
from polymodal.modalities.text import Caption
from polymodal.training.run import Run

CHUNK = 64  # images that are captioned together
MAX_NEW_TOKENS = {"ssc": 32, "dsc": 78, "dsc_plus": 256, "afc": 78}  # of a caption; 78 is the paper's for DSC
CONTROL_PROMPTS = {
    "ssc": "Describe the image in one short sentence.",
    "dsc": "Describe the main subject of the image and what else is seen.",
    "dsc_plus": "Describe the image in detail, with all objects, their places and relations, and the background.",
    "afc": "Describe the main subject of the image and what else is seen. Its alternative text is: {alt_text}",
}
STAGES: tuple[tuple[str, ...], ...] = (("ssc", "dsc", "afc"), ("dsc_plus",))  # formats of both fine-tuning stages


class Captioner(Protocol):
    """What writes a caption of a format for rows of a corpus. alt_texts: one a row, empty where there is none."""

    def __call__(self, corpus: Corpus, rows: Sequence[int], form: str, alt_texts: Sequence[str]) -> list[str]: ...


def control_prompt(form: str, alt_text: str = "") -> str:
    """Return the prompt of a format. Raises UserError for an unknown one."""
    if form not in CONTROL_PROMPTS:
        raise unknown("caption format", form, CONTROL_PROMPTS)
    return CONTROL_PROMPTS[form].format(alt_text=alt_text)


class RunCaptioner:
    """A run that answers questions about images, such as of `mono_internvl`, asked by control prompts."""

    def __init__(self, run: Run, max_new_tokens: int | None = None):
        """max_new_tokens: of a caption; by default what its format has. Raises UserError for a run that generates no
        text."""
        check_generates_text(run)
        self.run, self.max_new_tokens = run, max_new_tokens

    def __call__(self, corpus: Corpus, rows: Sequence[int], form: str, alt_texts: Sequence[str]) -> list[str]:
        column = corpus.column_with(Image)
        images = [np.asarray(to_rgb(corpus.value(row, column))) for row in rows]
        prompts = [control_prompt(form, alt_text) for alt_text in alt_texts]
        decoding = Decoding(self.max_new_tokens or MAX_NEW_TOKENS[form])
        return describe(self.run, images, prompts, decoding=decoding)


def write_formats(
    corpus: Corpus,
    folder: Path | str,
    captioner: Captioner,
    formats: Sequence[str] = ("ssc",),
    alt_texts: Callable[[Corpus, int], Sequence[Caption]] = captions_in_formats,
    made: Mapping[str, Any] | None = None,
    unfinished: Path | None = None,
) -> Corpus:
    """Write a corpus whose training images have AltText and synthetic captions, one column with tags of the formats.

    Captions that the images have in other formats stay, and so do all other splits; columns of formats become tags.
    alt_texts: captions of a row, those without a format being AltText; by default all of its own. Images that cannot be
    read are left out; an empty caption is not written. made: what wrote them. unfinished: file for resuming after a
    stop, for the same `made`. Raises UserError for an unknown format, a corpus without images, a folder that is not
    empty, and for a format that no image has a caption of.
    """
    formats = tuple(dict.fromkeys(formats))
    for form in formats:
        control_prompt(form)
    images, first_text = corpus.column_with(Image), corpus.column_with(Text) if corpus.has_modality(Text) else "text"
    text = "text" if first_text in SYNTHETIC_FORMATS else first_text
    others_kept = {name: kind for name, kind in corpus.columns.items() if name not in {first_text, *CAPTION_FORMATS}}
    content = {"formats": list(formats), **(made or {})}
    columns = {**others_kept, text: corpus.columns.get(first_text, Text())}

    def captions_of(row: int) -> list[Caption]:
        with contextlib.suppress(UnreadableExample):
            return [*alt_texts(corpus, row)] if first_text in corpus.columns else []
        return []

    def stored(row: int, split: str, captions: Any) -> dict[str, Any]:
        values = {name: corpus.raw(row, name) for name in others_kept}
        return values | {"key": corpus.key(row), "split": split, text: captions}

    def rows() -> Iterator[dict[str, Any]]:
        readable = (row for row in corpus.rows("train").tolist() if _can_read(corpus, row, images))
        for row, captions in _captioned(corpus, readable, captions_of, captioner, content, unfinished):
            yield stored(row, "train", [caption._asdict() for caption in captions])
        for split, others in corpus.splits.items():
            for row in others.tolist() if split != "train" else ():
                yield stored(row, split, _as_records(corpus, row, first_text))

    types = {field.name: field.type for field in corpus.table.schema if field.name in others_kept}
    written = save_corpus(
        folder, _about(corpus), columns, rows(), types=types, label=corpus.label, made=lambda: content
    )
    if unfinished is not None:
        unfinished.unlink()
    return written


def _captioned(
    corpus: Corpus,
    rows: Iterable[int],
    captions_of: Callable[[int], list[Caption]],
    captioner: Captioner,
    content: Mapping[str, Any],
    unfinished: Path | None,
) -> Iterator[tuple[int, list[Caption]]]:
    """Yield the captions of rows: those that they have in other formats, and what the captioner writes.

    content: `formats`, and what wrote them.
    """
    formats = content["formats"]
    counts = dict.fromkeys(formats, 0)

    def written(_: int, chunk: Sequence[int]) -> dict[str, list[str]]:
        grouped = [by_format(captions_of(row)) for row in chunk]
        alt_texts = [some[ALT_TEXT][0].text if ALT_TEXT in some else "" for some in grouped]
        return {form: captioner(corpus, chunk, form, alt_texts) for form in formats}

    def settings() -> dict[str, Any]:
        return {"corpus": dict(corpus.choices), "rows": len(corpus.rows("train")), "made": content}

    given = iter(rows)
    chunks = list(iter(lambda: tuple(islice(given, CHUNK)), ()))
    for chunk, texts in zip(chunks, run_resumably(chunks, written, unfinished, settings), strict=True):
        for place, row in enumerate(chunk):
            grouped = by_format(captions_of(row)).items()
            kept = [caption for form, some in grouped if form not in formats for caption in some]
            synthetic = [Caption(texts[form][place], format_tag(form)) for form in formats]
            yield row, [*kept, *(caption for caption in synthetic if caption.text.strip())]
        counts = {form: counts[form] + sum(bool(text.strip()) for text in texts[form]) for form in formats}
    if empty := [form for form, count in counts.items() if not count]:
        if unfinished is not None:
            unfinished.unlink()
        raise UserError(
            f"No caption of the format {empty[0]} was written; train the captioner longer, on its control prompts."
        )


def _can_read(corpus: Corpus, row: int, column: str) -> bool:
    try:
        corpus.value(row, column)
    except UnreadableExample:
        return False
    return True


def _about(corpus: Corpus) -> About:
    return dataclasses.replace(
        corpus.about,
        name=f"{corpus.name}-captioned",
        description=f"{corpus.about.description}; with synthetic captions",
        composed="; ".join(part for part in (corpus.about.composed, "synthetic captions") if part),
    )


def texts_by_format(corpus: Corpus, max_rows: int) -> dict[str, list[str]]:
    """Return the captions of each format of at most so many training examples."""
    texts: dict[str, list[str]] = {}
    for row in corpus.sample("train", max_rows).tolist():
        try:
            grouped = by_format(captions_in_formats(corpus, row))
        except UnreadableExample:
            continue
        for form, captions in grouped.items():
            texts.setdefault(form, []).extend(caption.text for caption in captions)
    return texts


def _as_records(corpus: Corpus, row: int, column: str) -> list[dict[str, str]] | None:
    if column not in corpus.columns:
        return None
    try:
        return [caption._asdict() for caption in captions_in_formats(corpus, row)]
    except UnreadableExample:
        return None


def write_control_prompts(corpus: Corpus, folder: Path | str, formats: Sequence[str] = STAGES[0]) -> Corpus:
    """Write a corpus of control prompts with captions of these formats as answers, to fine-tune a captioner on.

    `polymodal train mono_internvl --data FOLDER` is the first of both stages, with `STAGES[0]`; the second one begins
    with it (`--init`), on few very detailed captions. Raises UserError where no training example has such captions.
    """
    images = corpus.column_with(Image)

    def rows() -> Iterator[dict[str, Any]]:
        count = 0
        for split, numbers in corpus.splits.items():
            for row in numbers.tolist():
                questions = _prompted(corpus, row, formats)
                count += split == "train" and bool(questions)
                if questions:
                    record = {"image": corpus.raw(row, images), "questions": stored_questions(questions)}
                    yield record | {"key": corpus.key(row), "split": split}
        if not count:
            raise UserError(f"No training example of '{corpus.name}' has captions of {' or '.join(formats)}.")

    types = {"image": corpus.table.schema.field(images).type}
    columns: dict[str, Any] = {"image": corpus.columns[images], "questions": Questions()}
    about = About(
        f"{corpus.name}-prompts", "control prompts", corpus.about.license, corpus.name, ("image", "questions")
    )
    return save_corpus(folder, about, columns, rows(), types=types)


def _prompted(corpus: Corpus, row: int, formats: Sequence[str]) -> list[tuple[str, str, str]]:
    try:
        grouped = by_format(captions_in_formats(corpus, row))
    except UnreadableExample:
        return []
    alt_text = next((caption.text for caption in grouped.get(ALT_TEXT, ())), "")
    return [
        (control_prompt(form, alt_text), caption.text, form)
        for form in formats
        if form in SYNTHETIC_FORMATS
        for caption in grouped.get(form, ())
    ]
