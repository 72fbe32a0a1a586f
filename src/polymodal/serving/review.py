"""The review page: a person says of each collected pair whether it is authentic and whether image and text agree.

It is for annotators at this machine: it answers at the loopback address only, to requests that name it, and opens
nothing that a request names; pairs go by their number in the queue.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image as PILImage

from polymodal.corpora.contact_sheet import image_of
from polymodal.corpora.corpus import Corpus
from polymodal.curation.annotation import QUESTIONS, Judgement, Judgements, checked_annotator
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities.image import encoded

HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY = 2000  # bytes of an answer
MAX_SIDE = 800  # pixels of an image on the page
PAGE = Path(__file__).with_name("review.html")
DECIDED = "Others have decided this pair in the meantime; this is the next one."
MISSING = PILImage.new("RGB", (320, 200), (200, 200, 200))  # of an image that cannot be decoded


class Queue:
    """Pairs in the order of the corpus, and the answers about them; several browsers may ask at a time."""

    def __init__(self, corpus: Corpus, judgements: Judgements):
        self.corpus, self.judgements, self.lock = corpus, judgements, threading.Lock()
        self.keys = [corpus.key(row) for row in range(len(corpus))]

    def answer(self, number: int, annotator: str, answers: dict[str, bool]) -> bool:
        """Keep an answer, and return whether it counts: not where others have decided the pair in the meantime.

        An annotator may change an earlier answer.
        """
        key = self.keys[_in(number, self)]
        with self.lock:
            annotator = self.judgements.spelled(annotator)
            given = self.judgements.of_key.get(key, {})
            counts = annotator in given or self.judgements.waits_for(key, annotator)
            if counts:
                self.judgements.add(Judgement(key, annotator, **answers))
            return counts

    def state(self, annotator: str, number: int | None = None) -> dict[str, Any]:
        """Return what the page shows: a pair, or none, and the progress.

        number: of the pair; by default the first one that waits for the annotator, disputed ones of others included.
        """
        with self.lock:
            annotator = self.judgements.spelled(annotator)
            if number is None:
                waiting = (n for n, key in enumerate(self.keys) if self.judgements.waits_for(key, annotator))
                number = next(waiting, None)
            return self._state(annotator, number)

    def _state(self, annotator: str, number: int | None) -> dict[str, Any]:
        status = [self.judgements.status(key) for key in self.keys]
        answered = sum(annotator in self.judgements.of_key.get(key, {}) for key in self.keys)
        waiting = sum(self.judgements.waits_for(key, annotator) for key in self.keys)
        progress = {"answered": answered, "waiting": waiting, "pairs": len(self.keys)}
        progress |= {name: status.count(name) for name in ("validated", "rejected", "disputed")}
        return {"progress": progress, "pair": None if number is None else self._pair(number, annotator)}

    def _pair(self, number: int, annotator: str) -> dict[str, Any]:
        raw = {name: self.corpus.raw(number, name) or "" for name in ("concept", "category", "culture", "note")}
        texts = [text["text"] for text in self.corpus.raw(number, "text")]
        given = self.judgements.of_key.get(self.keys[number], {}).get(annotator)
        answers = None if given is None else {name: getattr(given, name) for name in QUESTIONS}
        return {"number": number, "text": texts[-1] if texts else "", "answers": answers, **raw}


def create_review(corpus: Corpus, judgements: Judgements) -> FastAPI:
    """Create the application of the review page."""
    queue, app = Queue(corpus, judgements), FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = PAGE.read_text(encoding="utf-8")
    policy = _content_policy(page)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        refused = _refusal(request)
        response = await call_next(request) if refused is None else JSONResponse({"error": refused}, 403)
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(UserError)
    async def sentence(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/next")
    def next_pair(annotator: str) -> dict[str, Any]:
        return queue.state(checked_annotator(annotator))

    @app.get("/pair/{number}")
    def pair(number: int, annotator: str) -> dict[str, Any]:
        return queue.state(checked_annotator(annotator), _in(number, queue))

    @app.get("/image/{number}")
    def image(number: int) -> Response:
        return Response(_shown(corpus, _in(number, queue)), media_type="image/png")

    @app.post("/answer")
    async def answer(request: Request) -> JSONResponse:
        number, name, answers = _answer_of(await _body(request))
        if queue.answer(number, name, answers):
            return JSONResponse(queue.state(name))
        return JSONResponse(queue.state(name) | {"error": DECIDED}, 409)

    return app


def _refusal(request: Request) -> str | None:
    """Return why a request is refused: it names another host, or comes from a page of another place."""
    host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
    if host not in HOSTS:
        return "This page is for this machine only."
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{request.headers['host']}":
        return "Answers come from the page itself only."
    # Browsers say where a request comes from; images of the page, say, come without an origin.
    same = request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    if not same and (request.url.path != "/" or request.headers.get("sec-fetch-mode") != "navigate"):
        return "Other pages may link to this page, and no more."
    if request.method == "POST" and request.headers.get("content-type") != "application/json":
        return "Answers are JSON."
    return None


async def _body(request: Request) -> Any:
    import json

    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise UserError("An answer is longer than answers are.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError("An answer is no JSON.") from error


def _answer_of(given: Any) -> tuple[int, str, dict[str, bool]]:
    """Return number, annotator and answers of the JSON of a request. Raises UserError for any other form."""
    if not isinstance(given, dict) or given.keys() != {"number", "annotator", *QUESTIONS}:
        raise UserError(f"An answer has number, annotator, {' and '.join(QUESTIONS)}.")
    number, name, answers = given["number"], given["annotator"], {one: given[one] for one in QUESTIONS}
    if type(number) is not int or not isinstance(name, str) or not all(type(one) is bool for one in answers.values()):
        raise UserError("A number is whole, a name is a text, and answers are true or false.")
    return number, checked_annotator(name), answers


def _in(number: int, queue: Queue) -> int:
    if not 0 <= number < len(queue.keys):
        raise UserError(f"There is no pair {number}.")
    return number


def _shown(corpus: Corpus, row: int) -> bytes:
    """Return an image of the corpus as PNG, reduced for the page; a gray one if it cannot be decoded."""
    try:
        shown = image_of(corpus, row)
    except UnreadableExample:
        shown = MISSING.copy()
    shown.thumbnail((MAX_SIDE, MAX_SIDE))
    return encoded(shown)


def _content_policy(page: str) -> str:
    """Return the policy by which a browser runs the page's own script alone, and loads from this server only."""

    def digest(tag: str) -> str:
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src 'self'; connect-src 'self'; script-src {digest('script')}; "
        f"style-src {digest('style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
