"""What a browser may ask of the page's server: what the page itself asks for, and nothing else."""

from __future__ import annotations

from polymodal.serving.limits import HTTPError

PAGE = "/page"  # has a login of its own
API = f"{PAGE}/gradio_api/"
# Beside these, gradio answers calls of functions by name, fetches addresses (`proxy=`), runs code of components, ...
NEEDED = (
    "app_id",
    "cancel",
    "file=",
    "heartbeat/",
    "info",
    "login_check",
    "queue/data",
    "queue/join",
    "reset",
    "startup-events",
    "theme.css",
    "token",
    "upload",
    "upload_progress",
    "user",
)
CLOSED = ("gradio_api", "monitoring")  # beside the page itself
FORM_BYTES = 2**20  # of what is asked on the page, without its files


def is_page(path: str) -> bool:
    """Only the page: `/pages` is none."""
    return path == PAGE or path.startswith(f"{PAGE}/")


def check_page_path(path: str) -> None:
    """Raises Refused for what the page does not need, and for files at an address, which gradio would fetch."""
    if path.startswith(API):
        asked = path.removeprefix(API)
        name = next((name for name in NEEDED if _is(asked, name)), None)
        allowed = name is not None and not (name == "file=" and "://" in asked)
    else:
        allowed = path.removeprefix(PAGE).lstrip("/").split("/")[0] not in CLOSED
    if not allowed:
        raise HTTPError(404, "no_such_place", "The page has nothing there.")


def largest_page_body(path: str, largest: int) -> int:
    """Bytes that a request of the page may have; largest: those of an upload."""
    return largest if path.rstrip("/") == f"{API}upload" else min(largest, FORM_BYTES)


def _is(asked: str, name: str) -> bool:
    return asked.startswith(name) if name[-1] in "=/" else asked.rstrip("/") == name
