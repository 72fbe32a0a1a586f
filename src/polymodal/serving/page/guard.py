"""Guard of the web page's routes: allows what the page itself requests, and nothing else."""

from __future__ import annotations

from polymodal.serving.http_errors import HTTPError

PAGE = "/page"  # has a login of its own
API = f"{PAGE}/gradio_api/"
# Other routes of gradio call functions by name, fetch addresses (`proxy=`), run code of components, ...
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
FORM_BYTES = 2**20  # maximum bytes of a form without its files


def is_page(path: str) -> bool:
    """Return whether a path is the page or below it; `/pages` is not."""
    return path == PAGE or path.startswith(f"{PAGE}/")


def check_page_path(path: str) -> None:
    """Raise HTTPError for routes that the page does not need, and for file URLs, which gradio would fetch."""
    if path.startswith(API):
        route = path.removeprefix(API)
        name = next((name for name in NEEDED if _is(route, name)), None)
        allowed = name is not None and not (name == "file=" and "://" in route)
    else:
        allowed = path.removeprefix(PAGE).lstrip("/").split("/")[0] not in CLOSED
    if not allowed:
        raise HTTPError(404, "no_such_place", "The page has nothing there.")


def largest_page_body(path: str, largest: int) -> int:
    """Return the maximum bytes of a page request; largest: of an upload."""
    return largest if path.rstrip("/") == f"{API}upload" else min(largest, FORM_BYTES)


def _is(route: str, name: str) -> bool:
    return route.startswith(name) if name[-1] in "=/" else route.rstrip("/") == name
