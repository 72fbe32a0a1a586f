"""Chat tab: questions about an image, answered token by token, by every run that answers or captions.

Methods answer each question on its own; earlier turns are shown, not given to the model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from starlette.concurrency import run_in_threadpool

from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.serving.limits import check_characters, check_lengths
from polymodal.serving.page.errors import alert, sentence
from polymodal.serving.page.html import thumbnail_tag, titled
from polymodal.serving.page.tab import PageTab
from polymodal.serving.service import Service
from polymodal.serving.vqa import stream_answer

MAX_TURNS, MAX_AGE = 20, 3600  # turns that are kept of a visitor, and seconds


class ChatTurn(NamedTuple):
    """A question, the thumbnail of its image (HTML), and the answer of each run."""

    image: str
    question: str
    answers: list[str]


def _runs(services: Sequence[Service]) -> list[Service]:
    able = [service for service in services if isinstance(service.run.model, CanGenerateText | CanClassifyAnswers)]
    return [service for service in able if "image" in getattr(service.run.processor, "columns", ())]


def _build(services: Sequence[Service]) -> None:
    turns = gr.State([], time_to_live=MAX_AGE)
    with gr.Row():
        chats = [gr.HTML(elem_classes="answers chat", min_width=300, js_on_load=None) for _ in services]
    problem = alert()
    with gr.Row():
        image = gr.File(label="Image", height=110, elem_id="asked", scale=1, min_width=200)
        with gr.Column(scale=2):
            question = gr.Textbox(
                label="Question", info="Each is answered on its own; empty: a caption", elem_id="question"
            )
            with gr.Row():
                button = gr.Button("Ask", variant="primary", elem_id="ask", min_width=80)
                stop = gr.Button("Stop", elem_id="stop", min_width=80)
                clear = gr.Button("Clear", min_width=80)

    async def ask(image: str | None, question: str | None, turns: list[ChatTurn]) -> AsyncIterator[list[Any]]:
        try:
            if image is None:
                raise UserError("Give an image.")
            async for turn in _answered(services, Path(image).read_bytes(), (question or "").strip()):
                talk = [*turns, turn][-MAX_TURNS:]
                yield [*_transcripts(services, talk), talk, ""]
        except Exception as error:
            yield [*_transcripts(services, turns), turns, sentence(error)]

    outputs = [*chats, turns, problem]
    event = gr.on(
        [button.click, question.submit],
        ask,
        [image, question, turns],
        outputs,
        show_progress="hidden",
        api_visibility="private",
    )
    stop.click(None, None, None, cancels=[event], api_visibility="private")
    clear.click(lambda: [*[""] * len(services), [], ""], None, outputs, cancels=[event], api_visibility="private")


async def _answered(services: Sequence[Service], file: bytes, question: str) -> AsyncIterator[ChatTurn]:
    """Yield the turn as it grows, run after run."""
    turn = ChatTurn("", question, [""] * len(services))
    for place, service in enumerate(services):
        ends = service.ends
        check_lengths([question], service.limits)
        check_characters(question)
        async with service.decoder.decoded({"image": [file]}, ends) as given:
            (image,) = given["image"]
            turn = turn._replace(image=turn.image or await run_in_threadpool(thumbnail_tag, image, "image", 72))
            write = partial(stream_answer, service.run, image, question)
            async for text in service.stream(write, ends):
                answers = [*turn.answers[:place], text, *turn.answers[place + 1 :]]
                turn = turn._replace(answers=answers)
                yield turn


def _transcripts(services: Sequence[Service], turns: Sequence[ChatTurn]) -> list[str]:
    several = len(services) > 1
    return [
        titled(service.run.name, "".join(_turn(turn, place) for turn in turns), several)
        for place, service in enumerate(services)
    ]


def _turn(turn: ChatTurn, place: int) -> str:
    question = escape(turn.question or "Caption")
    answer = escape(turn.answers[place]) or "..."
    return (
        f'<div class="turn"><div class="question">{turn.image}<span>{question}</span></div>'
        f'<div class="answer">{answer}</div></div>'
    )


tab = PageTab("Chat", _runs, _build)
