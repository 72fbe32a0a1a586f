"""Rendering of SVG images."""

from __future__ import annotations


def render_svg(svg: bytes, side: int) -> bytes:
    """Render to a PNG with `side` pixels on the longer side and a transparent background. Raises ValueError for
    invalid SVG."""
    import resvg_py

    text = svg.decode("utf-8", errors="replace")
    dpi = 96.0  # for sizes in cm and pt
    return bytes(resvg_py.svg_to_bytes(svg_string=text, width=side, height=side, dpi=dpi, skip_system_fonts=True))
