"""Error responses of the server, in one shape."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from polymodal.errors import UnreadableExample, UserError, unusable
from polymodal.serving.batching import DeadlineExceeded, QueueFull


class HTTPError(Exception):
    """Error response, with HTTP status, and code and message of the error."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self) -> JSONResponse:
        return JSONResponse({"error": {"code": self.code, "message": self.message}}, self.status, self.headers)


CLIENT_ERRORS = (
    HTTPError,
    UserError,
    UnreadableExample,
    QueueFull,
    DeadlineExceeded,
)  # errors that clients can cause, and timeouts


def error_response(error: Exception) -> HTTPError:
    """Return the response to one of `CLIENT_ERRORS`."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, QueueFull):
        return HTTPError(429, "busy", "Too many requests wait; try again in a second.", {"Retry-After": "1"})
    if isinstance(error, DeadlineExceeded):
        return HTTPError(504, "too_late", "The answer was not there before the deadline.")
    if isinstance(error, UnreadableExample):
        return HTTPError(400, "unreadable", str(unusable(error)))
    return HTTPError(400, "invalid_request", str(error))
