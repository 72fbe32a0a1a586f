"""HTTP server of a run: embeddings, search, scores, classes and generation, as JSON.

Requests of many clients are batched. Their size is limited, nothing in them is fetched or opened by name, and every
error has one shape: `{"error": {"code": ..., "message": ...}}`.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from polymodal.errors import lacks_memory, one_line
from polymodal.serving.batching import MicroBatcher
from polymodal.serving.http_errors import CLIENT_ERRORS, HTTPError, error_response
from polymodal.serving.index import Index
from polymodal.serving.limits import Limits
from polymodal.serving.request_body import bounded_route
from polymodal.serving.request_guard import RequestGuard, usable_key
from polymodal.serving.routes import add_routes
from polymodal.serving.service import CALL, Service
from polymodal.training.run import Run

log = logging.getLogger("polymodal.server")


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

    batching: dict[str, Any] = {"max_batch_size": max_batch_size, "queue_size": queue_size, "computed": sizes.observe}
    service = _service(run, index, limits, **batching)
    services = [service, *(_service(*other, limits, **batching) for other in extra_indexes)]
    waiting = Gauge("polymodal_waiting", "Values that wait", registry=registry)
    waiting.set_function(lambda: sum(each.batcher.waiting + each.searches.waiting for each in services))
    app = FastAPI(title=f"polymodal: {run.name}", version="1", lifespan=_lifespan(services), redoc_url=None)
    app.add_middleware(RequestGuard, service=service, api_key=api_key, registry=registry)
    app.router.route_class = bounded_route(limits)
    _errors(app)
    _status_routes(app, service, registry)
    add_routes(app, service)
    if page:
        from polymodal.serving.page.page import mount_page

        mount_page(app, services, api_key)
    return app


def _service(
    run: Run,
    index: Index | None,
    limits: Limits,
    max_batch_size: int,
    queue_size: int,
    computed: Callable[[int], None],
) -> Service:
    """Return the service of a run. computed: called with the size of every batch."""

    def compute(kind: str, values: list[Any]) -> list[Any]:
        if kind == CALL:
            return [call() for call in values]
        return list(run.embed(max_batch_size, **{kind: values})[kind].numpy())

    batcher = MicroBatcher(compute, max_batch_size, queue_size=queue_size, computed=computed, alone=(CALL,))
    return Service(run, index, limits, batcher)


def _lifespan(services: Sequence[Service]) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return what starts the services with the server, of which the first is ready then, and stops them with it."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        for each in services:
            each.batcher.start()
        services[0].ready = True
        yield
        services[0].ready = False
        for each in services:
            await each.batcher.stop()
            await each.searches.stop()

    return life


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
        if lacks_memory(error):
            log.error("%s failed: not enough memory (%s)", request.url.path, one_line(error))
            message = "The server has not enough memory for this request; try again in a second, or send less."
            return HTTPError(503, "no_memory", message, {"Retry-After": "1"}).response()
        log.error("%s failed", request.url.path, exc_info=error)
        return HTTPError(500, "internal", "Something went wrong; the server's log says what.").response()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
