"""What can be asked about an image, made from what its example has: captions, questions, boxes, written words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from polymodal.data.conversation import DESCRIBE, DOCUMENT, IMAGE, MESSAGES, Turn
from polymodal.modalities.question import Question
from polymodal.rng import ExampleRNG
from polymodal.types import Example

THINK = "Think step by step."  # after a question whose working is to be written before its answer
FINAL = "Final answer:"  # between a working and its answer
MISSING = "\U0010ffff"  # a character that no font has


def choice(values: Sequence[Any], rng: np.random.Generator) -> Any:
    """Any of them, each as often."""
    return values[int(rng.integers(len(values)))]


def parts_of(example: Example) -> list[Any] | None:
    """Return texts and images of a document, or of a conversation, in reading order; None where there is neither."""
    if MESSAGES in example:
        return [part for message in example[MESSAGES] for part in message.parts]
    return example.get(DOCUMENT)


def sample_document(example: Example, rng: np.random.Generator) -> list[Any]:
    """Return the texts and images of a document or conversation; else the image and a caption, in either order."""
    if (parts := parts_of(example)) is not None:
        return parts
    return [choice(example["text"], rng).text, example[IMAGE]][:: 1 if rng.random() < 0.5 else -1]


def sample_images(examples: Sequence[Example], example_rng: ExampleRNG) -> list[Any]:
    """Return the examples' images, or one of each document or conversation that has any."""
    images = []
    for example, rng in zip(examples, example_rng.generators, strict=True):
        inside = [part for part in parts_of(example) or () if not isinstance(part, str)]
        images += [example[IMAGE]] if IMAGE in example else [choice(inside, rng)] if inside else []
    return images


def longest_caption(example: Example) -> str:
    """The one that says most."""
    return max((caption.text for caption in example["text"]), key=len)


def caption_turns(example: Example, rng: np.random.Generator, max_turns: int) -> list[Turn]:
    """The longest caption, asked for."""
    return [Turn(longest_caption(example), DESCRIBE)]


def question_turns(example: Example, rng: np.random.Generator, max_turns: int, cot_fraction: float = 0.5) -> list[Turn]:
    """Some of the questions in any order, at most `max_turns`. cot_fraction: of those with a known rationale."""
    some = [example["questions"][number] for number in rng.permutation(len(example["questions"]))[:max_turns]]
    return [
        chain_of_thought_turn(question)
        if question.rationale and rng.random() < cot_fraction
        else Turn(question.answer, question.question)
        for question in some
    ]


def chain_of_thought_turn(question: Question) -> Turn:
    """The question with its working and the answer after it."""
    return Turn(f"{question.rationale} {FINAL} {question.answer}", chain_of_thought_prompt(question.question))


def chain_of_thought_prompt(question: str) -> str:
    """The question that asks for the working, too."""
    return f"{question} {THINK}"


def final_answer(text: str) -> str | None:
    """What a working comes to, in lower case; None where it has no final answer."""
    _, mark, answer = text.lower().rpartition(FINAL.lower())
    return normalized_answer(answer) or None if mark else None


def normalized_answer(text: str) -> str:
    """An answer as it is compared: in lower case, without spaces and full stops around it."""
    return text.lower().strip(" .")


def instruction_turns(
    example: Example, rng: np.random.Generator, max_turns: int, cot_fraction: float = 0.5
) -> list[Turn]:
    """Questions about three examples of four that have any, else the longest caption, asked for."""
    if "questions" in example and rng.random() < 0.75:
        return question_turns(example, rng, max_turns, cot_fraction)
    return caption_turns(example, rng, max_turns)


def text_turns(example: Example, rng: np.random.Generator, max_turns: int, cot_fraction: float = 0.5) -> list[Turn]:
    """All captions in any order, as texts, then questions that they answer: an example without its image."""
    captions = example.get("text", [])
    turns = [Turn(captions[number].text) for number in rng.permutation(len(captions))]
    return turns + (question_turns(example, rng, max_turns, cot_fraction) if "questions" in example else [])


def grounding_turns(example: Example, rng: np.random.Generator, max_turns: int) -> list[Turn]:
    """Boxes of some objects in thousandths of the image, at most `max_turns`."""
    some = [example["regions"][number] for number in rng.permutation(len(example["regions"]))[:max_turns]]
    return [Turn(" ".join(map(str, region.box)), f"What is the box of the {region.name}?") for region in some]


# What can be asked of an image, by what its example must have.
TASKS: dict[str, Callable[[Example, np.random.Generator, int], list[Turn]]] = {
    "text": caption_turns,
    "questions": question_turns,
    "regions": grounding_turns,
}


def ocr_turn(example: Example, rng: np.random.Generator) -> tuple[np.ndarray, str] | None:
    """Return two words of a caption, drawn in dark on a pale page as large as the example's image; one where two are
    wide.

    A word that is wider than the image is cut. None where the font lacks a letter of the words.
    """
    words = choice(example["text"], rng).text.split()
    start = int(rng.integers(max(len(words) - 1, 1)))
    text = " ".join(words[start : start + 2])
    height, width, _ = example[IMAGE].shape
    font = ImageFont.load_default(size=max(height // 7, 8))
    if not can_draw(font, text):
        return None
    page = PILImage.new("RGB", (width, height), tuple(int(value) for value in rng.integers(200, 256, 3)))
    text = text if font.getlength(text) < width else words[start]
    left, top, right, bottom = font.getbbox(text)
    corner = [int(rng.integers(max(room, 1))) for room in (width - right + left, height - bottom + top)]
    ink = tuple(int(value) for value in rng.integers(0, 90, 3))
    ImageDraw.Draw(page).text((corner[0] - left, corner[1] - top), text, ink, font)
    return np.asarray(page), text


def any_task_turns(example: Example, rng: np.random.Generator, max_turns: int) -> list[Turn]:
    """Any of the `TASKS` that the example has values for, each as often; no turn where it has none."""
    tasks = [ask for name, ask in TASKS.items() if name in example]
    return choice(tasks, rng)(example, rng, max_turns) if tasks else []


def task_conversation(example: Example, rng: np.random.Generator, max_turns: int) -> tuple[np.ndarray, list[Turn]]:
    """Any of the `TASKS`, or words of a caption to read from a page that is drawn, each as often, with its image."""
    tasks = [ask for name, ask in TASKS.items() if name in example]
    number = int(rng.integers(len(tasks) + 1))
    if number < len(tasks):
        return example[IMAGE], tasks[number](example, rng, max_turns)
    if (rendered := ocr_turn(example, rng)) is None:
        return example[IMAGE], any_task_turns(example, rng, max_turns)
    page, words = rendered
    return page, [Turn(words, "What is written there?")]


def can_draw(font: Any, text: str) -> bool:
    """Return whether a font has a glyph for every letter: for what it lacks, all fonts draw one and the same box."""
    box = bytes(font.getmask(MISSING))
    return bool(text.strip()) and all(bytes(font.getmask(letter)) != box for letter in set(text) - {" "})


def exchanged(captions: Sequence[str], wrong: Sequence[bool]) -> list[str]:
    """Return captions, of which the wrong ones are replaced by the one before: noisy pairs."""
    return [captions[number - 1] if wrong[number] else caption for number, caption in enumerate(captions)]
