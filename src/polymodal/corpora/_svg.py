"""Vector drawings to images."""

from __future__ import annotations


def render_svg(svg: bytes, side: int) -> bytes:
    """A PNG whose longer side has `side` pixels, transparent where nothing is drawn. Raises ValueError for no SVG."""
    import resvg_py

    text = svg.decode("utf-8", errors="replace")
    dpi = 96.0  # for sizes in cm and pt
    return bytes(resvg_py.svg_to_bytes(svg_string=text, width=side, height=side, dpi=dpi, skip_system_fonts=True))
