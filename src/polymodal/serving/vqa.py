"""Captioning and visual question answering (VQA) of images or clips, by generation or classification of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from polymodal.errors import UnreadableExample, UserError, unusable
from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.evaluation.task import has_names
from polymodal.layers.decoding import Decoding, generation_listener
from polymodal.modalities.video import SUFFIXES
from polymodal.serving.missing_capability import lacks
from polymodal.serving.unreadable import each_readable
from polymodal.serving.zero_shot import column_of
from polymodal.training.run import Run, answers, evaluating, to_device


def answer_about(run: Run, images: Sequence[Any], question: str, decoding: Decoding, seed: int = 0) -> list[str]:
    """Return the answer about each image (paths, bytes or Pillow images); without a question, a caption.

    A run with a closed set of answers returns the most probable one, also for clips (paths). seed: for sampling. Raises
    UserError for a run that does not answer, and for an unreadable image.
    """
    if isinstance(run.model, CanClassifyAnswers) and has_names(run.processor, "answers"):
        return [_chosen(run, image, question) for image in images]
    if not isinstance(run.model, CanGenerateText):
        raise lacks(run, "answer", "generate_text", "answer_logits")
    processor: Any = run.processor
    columns: dict[str, list[Any]] = {"image": list(images)}
    if question:
        columns["question"] = [question] * len(images)
    try:
        batch = processor(**columns)
    except UnreadableExample as error:
        raise unusable(error) from error
    device = next(run.model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with evaluating(run.model):
        return processor.texts(run.model.generate_text(to_device(batch, device), decoding, generator))


def stream_answer(run: Run, image: Any, question: str, tell: Callable[[str], None]) -> str:
    """As `answer_about` of one image, by greedy decoding; tell: called with the beginning of the text at each token."""
    processor: Any = run.processor

    def listen(tokens: list[list[int]]) -> None:
        tell(processor.texts(tokens)[0])

    with generation_listener(listen):
        (text,) = answer_about(run, [image], question, Decoding())
    return text


def answer_each(
    run: Run, files: Sequence[str], question: str, decoding: Decoding, seed: int = 0
) -> list[str | UserError]:
    """As `answer_about`, for files some of which may be unreadable: those have the error in place of an answer."""
    if not isinstance(run.model, CanClassifyAnswers | CanGenerateText):
        raise lacks(run, "answer", "generate_text", "answer_logits")
    options = {"question": question} if question else {}

    def answer(some: list[str]) -> list[str]:
        return answer_about(run, some, question, decoding, seed)

    return each_readable(run, files, column_of, answer, **options)


def _chosen(run: Run, shown: Any, question: str) -> str:
    if not question:
        raise UserError(f"The run '{run.name}' answers questions, and writes no captions; give --question \"...\".")
    item = "video" if str(shown).lower().endswith(SUFFIXES) else "image"
    processor: Any = run.processor
    try:
        (logits,) = answers(run.model, processor, "answer_logits", {item: [shown], "question": [question]})
    except UnreadableExample as error:
        raise unusable(error) from error
    return processor.answers[int(logits[0].argmax())]
