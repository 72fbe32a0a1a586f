"""HTML of the page: images as data URIs, so that no file of a result is kept; every text is escaped."""

from __future__ import annotations

import base64
from html import escape

from PIL import Image as PILImage

from polymodal.modalities.image import encoded

STYLE = """
.hits { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
.hits figure, .turn { margin: 0; padding: 8px; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: var(--background-fill-secondary); color: var(--body-text-color); overflow-wrap: anywhere; }
.hits img { width: 100%; height: 120px; object-fit: contain; margin: 0; }
.hits figcaption { font-size: 13px; line-height: 1.35; }
.hits small, .runs small { color: var(--body-text-color-subdued); display: block; }
.runs { display: flex; flex-wrap: wrap; gap: 6px 32px; color: var(--body-text-color); }
.runs h1, .answers h2 { font-size: 20px; margin: 0; color: var(--body-text-color); }
.answers h2 { font-size: 15px; margin-bottom: 8px; }
.runs b, .hits b { color: var(--body-text-color); }
.answers img.sheet { max-width: 100%; margin: 0 0 8px; }
.turn { margin-bottom: 8px; }
.turn .question { display: flex; gap: 10px; align-items: flex-start; color: var(--body-text-color-subdued); }
.turn .question img { max-width: 72px; max-height: 72px; margin: 0; }
.turn .answer { margin-top: 6px; color: var(--body-text-color); white-space: pre-wrap; }
.problem p { margin: 0; padding: 8px 12px; border-radius: 8px; color: var(--error-text-color);
  background: var(--error-background-fill); border: 1px solid var(--error-border-color); }
.answers table { color: var(--body-text-color); font-size: 13px; }
.answers td, .answers th { padding: 2px 10px 2px 0; text-align: left; }
"""


def image_tag(file: bytes, kind: str, about: str, css_class: str = "") -> str:
    """Return an image, of encoded bytes of the type image/`kind`. about: its alternative text."""
    data = base64.b64encode(file).decode()
    return f'<img class="{css_class}" alt="{escape(about)}" src="data:image/{kind};base64,{data}">'


def fitted(image: PILImage.Image, side: int) -> PILImage.Image:
    """Return the image with at most `side` pixels a side; a smaller one as it is."""
    small = image.copy()
    small.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    return small


def thumbnail_tag(image: PILImage.Image, about: str, side: int = 160) -> str:
    """Return a small image."""
    return image_tag(encoded(fitted(image, side).convert("RGB"), "JPEG"), "jpeg", about)


def titled(title: str, content: str, several: bool) -> str:
    """Return the answer of a run, under its name if several runs answer."""
    heading = f"<h2>{escape(title)}</h2>" if several else ""
    return f"{heading}{content}" if content else ""
