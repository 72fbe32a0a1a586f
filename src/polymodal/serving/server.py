"""HTTP server of a run: embeddings, search, scores, classes and generation, as JSON.

Requests of many clients are batched. Their size is limited, nothing in them is fetched or opened by name, and every
error has one shape: `{"error": {"code": ..., "message": ...}}`.
"""

import asyncio
import base64
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, Self

from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image as PILImage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.evaluation.tasks.image_generation import CanGenerateImages
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import encoded
from polymodal.serving.batching import MicroBatcher
from polymodal.serving.filters import MAX_CHARACTERS
from polymodal.serving.image_generation import generate_images
from polymodal.serving.index import Index
from polymodal.serving.limits import (
    CLIENT_ERRORS,
    Bodies,
    HTTPError,
    Limits,
    bounded_route,
    check_characters,
    error_response,
    usable_key,
)
from polymodal.serving.page_guard import check_page_path, is_page, largest_page_body
from polymodal.serving.service import CALL, Service
from polymodal.serving.vqa import answer_about
from polymodal.training.run import Run

log = logging.getLogger("polymodal.server")
OPEN = ("/healthz", "/readyz")  # without API key


class RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _no_surrogates(self) -> Self:
        for name, value in self:
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    check_characters(text, f"{name}: ")
        return self


class EmbedRequest(RequestModel):
    text: list[str] = Field([], description="Texts.")
    image: list[str] = Field([], description="Encoded images (PNG, JPEG, WebP ...) in base64.")
    sound: list[str] = Field([], description="Encoded sounds (WAV, FLAC, Ogg ...) in base64.")


CONDITION = (
    "A condition on key, split and metadata, such as price < 10 AND shop IN ('north', 'south'): comparisons of a "
    "column with numbers, 'strings' ('' is a quote), true or false by =, !=, <, <=, >, >=, IN, BETWEEN, LIKE and "
    "IS NULL, joined by AND, OR, NOT and parentheses."
)


class SearchRequest(RequestModel):
    text: str | None = None
    image: str | None = Field(None, description="Query image in base64, instead of text.")
    sound: str | None = Field(None, description="Query sound in base64, instead of text.")
    top: int = Field(10, ge=1, le=100)
    where: str | None = Field(None, max_length=MAX_CHARACTERS, description=CONDITION)
    hybrid: bool = Field(False, description="Hybrid search: also match the words in the captions.")
    thumbnails: bool = Field(False, description="Include thumbnails, JPEG in base64.")


class ClassifyRequest(RequestModel):
    image: list[str] = []
    sound: list[str] = []
    labels: list[str] = Field(min_length=1)
    template: str = Field("{}", description="Prompt template, in which {} is the label.")


class GenerateRequest(RequestModel):
    image: list[str] = Field([], description="Images to caption or to answer a question about, in base64.")
    question: str = Field("", description="Question about each image; without it, a caption.")
    words: list[str] = Field([], description="Class names or text prompts of images to generate.")
    count: int = Field(1, ge=1, le=16, description="Number of images per class or prompt.")
    steps: int = Field(8, ge=1, le=100)
    seed: int = Field(0, ge=0, lt=2**63)


class OpenAIEmbeddingRequest(RequestModel):
    model_config = ConfigDict(extra="ignore")
    input: str | list[str]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"


def create_app(
    run: Run,
    index: Index | None = None,
    limits: Limits | None = None,
    api_key: str | None = None,
    max_batch_size: int = 64,
    queue_size: int = 1024,
    page: bool = False,
    extra_indexes: Sequence[tuple[Run, Index]] = (),
) -> FastAPI:
    """Create the application.

    max_batch_size: maximum number of values per batch; queue_size: maximum number of queued values. page: add a web
    page at /page; extra_indexes: further runs on that page. With an API key, the page asks for it as the password of
    the user `polymodal`.
    """
    api_key, limits = usable_key(api_key), limits or Limits()
    registry = CollectorRegistry()
    steps = (1, 2, 4, 8, 16, 32, 64, 128)
    sizes = Histogram("polymodal_batch_size", "Values computed together", registry=registry, buckets=steps)

    def service_of(run: Run, index: Index | None) -> Service:
        def compute(kind: str, values: list[Any]) -> list[Any]:
            if kind == CALL:
                return [call() for call in values]
            return list(run.embed(max_batch_size, **{kind: values})[kind].numpy())

        return Service(
            run,
            index,
            limits,
            MicroBatcher(compute, max_batch_size, queue_size=queue_size, computed=sizes.observe, alone=(CALL,)),
        )

    service = service_of(run, index)
    services = [service, *(service_of(*other) for other in extra_indexes)]
    waiting = Gauge("polymodal_waiting", "Values that wait", registry=registry)
    waiting.set_function(lambda: sum(each.batcher.waiting + each.searches.waiting for each in services))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        for each in services:
            each.batcher.start()
        service.ready = True
        yield
        service.ready = False
        for each in services:
            await each.batcher.stop()
            await each.searches.stop()

    app = FastAPI(title=f"polymodal: {run.name}", version="1", lifespan=life, redoc_url=None)
    app.add_middleware(_Guard, service=service, api_key=api_key, registry=registry)
    app.router.route_class = bounded_route(limits)
    _errors(app)
    _status_routes(app, service, registry)
    _routes(app, service)
    if page:
        from polymodal.serving.web_page import mount_page

        mount_page(app, services, api_key)
    return app


def _status_routes(app: FastAPI, service: Service, registry: CollectorRegistry) -> None:
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        if not service.ready:
            raise HTTPError(503, "not_ready", "The server is starting or stopping.")
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")


def _routes(app: FastAPI, service: Service) -> None:
    run, examples = service.run, {name: Body(openapi_examples=of) for name, of in _examples(service.run).items()}

    @app.post("/embed")
    async def embed(asked: Annotated[EmbedRequest, examples["embed"]]) -> dict[str, list[list[float]]]:
        """L2-normalized embeddings, in the order of the inputs."""
        found = await service.vectors(**asked.model_dump())
        return {name: vectors.tolist() for name, vectors in found.items()}

    @app.post("/score")
    async def score(asked: Annotated[EmbedRequest, examples["score"]]) -> dict[str, list[list[float]]]:
        """Cosine similarities of every text (rows) with every image or sound (columns)."""
        if not asked.text or bool(asked.image) == bool(asked.sound):
            raise HTTPError(400, "invalid_request", "Give texts, and images or sounds to compare them with.")
        found = await service.vectors(**asked.model_dump())
        return {"similarity": (found["text"] @ found["image" if asked.image else "sound"].T).tolist()}

    @app.post("/classify")
    async def classify(
        asked: Annotated[ClassifyRequest, examples["classify"]],
    ) -> dict[str, list[dict[str, float]]]:
        """Zero-shot classification: probabilities of the labels per image or sound, by a softmax over similarities."""
        if bool(asked.image) == bool(asked.sound):
            raise HTTPError(400, "invalid_request", "Give images or sounds to classify.")
        column = "image" if asked.image else "sound"
        found = await service.likely(column, getattr(asked, column), asked.labels, asked.template)
        return {"probabilities": found}

    @app.post("/search", include_in_schema=service.index is not None)
    async def search(asked: Annotated[SearchRequest, examples["search"]]) -> dict[str, list[dict[str, Any]]]:
        """The examples of the index most similar to a text, an image or a sound, best first."""
        given = {name: value for name in ("text", "image", "sound") if (value := getattr(asked, name)) is not None}
        if len(given) != 1 or (asked.hybrid and asked.text is None):
            raise HTTPError(400, "invalid_request", "Give a text, an image or a sound; hybrid search needs a text.")
        ((column, value),) = given.items()
        found = await service.found(column, value, asked.top, asked.where, asked.hybrid)
        return {"results": [hit.record(asked.thumbnails) for hit in found]}

    @app.post("/v1/embeddings")
    async def openai_embeddings(
        asked: Annotated[OpenAIEmbeddingRequest, examples["openai"]],
    ) -> dict[str, Any]:
        """Text embeddings, compatible with OpenAI's API."""
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        vectors = (await service.vectors(text=texts))["text"].astype("<f4")
        packed = asked.encoding_format == "base64"
        listed = [base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist() for vector in vectors]
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(listed)]
        tokenizer = getattr(run.processor, "tokenizer", None)
        count = int(tokenizer(texts).lengths.sum()) if tokenizer is not None else 0
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": run.name, "usage": usage}

    @app.post(
        "/generate", include_in_schema=isinstance(run.model, CanGenerateText | CanClassifyAnswers | CanGenerateImages)
    )
    async def generate(asked: Annotated[GenerateRequest, examples["generate"]]) -> dict[str, Any]:
        """Generated texts about images, or generated images, depending on the run's method."""
        if bool(asked.image) == bool(asked.words):
            raise HTTPError(400, "invalid_request", "Give images to say something of, or words to make images of.")
        ends = service.ends
        if asked.words:
            if not isinstance(run.model, CanGenerateImages):
                raise UserError(f"The run '{run.name}' cannot generate.")
            async with service.decoder.decoded({"text": asked.words}, ends) as given:
                words = given["text"]
                made = await service.call(
                    lambda: generate_images(run, words, asked.count, asked.steps, asked.seed), ends
                )
            return {"images": [[_png(image) for image in row] for row in made]}
        if not isinstance(run.model, CanGenerateText | CanClassifyAnswers):
            raise UserError(f"The run '{run.name}' cannot answer.")
        async with service.decoder.decoded({"image": asked.image}, ends) as given:
            images = given["image"]
            texts = await service.call(lambda: answer_about(run, images, asked.question, Decoding(), asked.seed), ends)
        return {"texts": texts}


def _errors(app: FastAPI) -> None:
    """Return every error in one shape; unexpected ones are logged."""

    async def answered(request: Request, error: Exception) -> JSONResponse:
        return error_response(error).response()

    for kind in CLIENT_ERRORS:
        app.add_exception_handler(kind, answered)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(_printable(str(part)) for part in first["loc"] if part != "body")
        return HTTPError(
            400, "invalid_request", f"{where}: {first['msg']}." if where else f"{first['msg']}."
        ).response()

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # of the body alone
            said = "The body is not JSON in UTF-8, is nested too deeply, or has a number of too many digits."
            return HTTPError(400, "invalid_request", said).response()
        said = f"{request.method} {request.url.path} is not answered; /docs shows what is."
        return HTTPError(error.status_code, "no_such_place", said, dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s failed", request.url.path, exc_info=error)
        return HTTPError(500, "internal", "Something went wrong; the server's log says what.").response()


class _Guard:
    """Middleware for the API key, the size of request bodies, and metrics of requests."""

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None, registry: CollectorRegistry):
        self.app, self.service, self.api_key = app, service, api_key
        self.bodies = Bodies(service.limits)
        self.requests = Counter("polymodal_requests", "Requests", ("path", "status"), registry=registry)
        self.seconds = Histogram("polymodal_request_seconds", "Time to the answer", ("path",), registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        except CLIENT_ERRORS as error:
            await error_response(error).response()(scope, receive, noted)
        except _Left:
            status = 499
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.requests.labels(path, str(status)).inc()
            self.seconds.labels(path).observe(time.perf_counter() - begin)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_key(scope)
        page, largest = is_page(scope["path"]), self.service.limits.body_bytes
        if page:
            check_page_path(scope["path"])
            largest = largest_page_body(scope["path"], largest)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        body = await self.bodies.receive(length, receive, largest)
        try:
            if page:
                await self.app(scope, _again(body, receive), send)
            else:
                await _while_connected(self.app(scope, _again(body, _never), send), receive)
        finally:
            self.bodies.release(body)

    def _check_key(self, scope: Scope) -> None:
        if self.api_key is None or scope["path"] in OPEN or is_page(scope["path"]):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
            raise HTTPError(401, "no_key", "Send the key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"})


class _Left(Exception):
    """The client closed the connection."""


async def _while_connected(answer: Awaitable[None], receive: Receive) -> None:
    """Cancel the response when the client disconnects. Raises _Left."""
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
            return
        answering.cancel()
        await asyncio.wait((answering,))
        raise _Left
    finally:
        for task in (answering, leaving):
            task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def _again(body: bytes, receive: Receive) -> Receive:
    """Replay the body once, then forward later messages, such as a disconnect."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _png(image: PILImage.Image) -> str:
    return base64.b64encode(encoded(image)).decode()


def _examples(run: Run) -> dict[str, dict[str, Any]]:
    """Return example requests for this run, for the documentation at /docs."""
    columns = getattr(run.processor, "columns", {"text": None, "image": None})
    image = _png(PILImage.new("RGB", (32, 32), (200, 30, 30)))
    shown = {"image": [image]} if "image" in columns else {}
    text = {"text": ["a red fruit"]} if "text" in columns else {}
    made = (
        {"image": [image], "question": "What is it?"}
        if isinstance(run.model, CanGenerateText | CanClassifyAnswers)
        else {}
    )
    if isinstance(run.model, CanGenerateImages):
        made = {"words": ["a red fruit"]}
    values = {
        "embed": text | shown,
        "score": text | shown,
        "classify": shown | {"labels": ["fruit", "animal"], "template": "a picture of {}"},
        "search": {"text": "a red fruit", "top": 5},
        "openai": {"input": ["a red fruit"], "model": run.name},
        "generate": made,
    }
    return {name: {"one": {"value": value}} for name, value in values.items()}
