"""Images and clips as users name them: files, or folders of them."""

from __future__ import annotations

from pathlib import Path

from polymodal.errors import UserError


def media_files(words: list[str]) -> list[str]:
    """Return the files, and in place of a folder the images and clips in it and below, sorted.

    Raises UserError for a folder without any.
    """
    from polymodal.modalities.image import IMAGE_SUFFIXES
    from polymodal.modalities.video import SUFFIXES

    files = []
    for word in words:
        if not Path(word).is_dir():
            files.append(word)
            continue
        inside = [str(path) for path in sorted(Path(word).rglob("*")) if _is_media(path, (*IMAGE_SUFFIXES, *SUFFIXES))]
        if not inside:
            raise UserError(f"The folder {word} has no image and no clip; name another one, or the files.")
        files += inside
    return files


def _is_media(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(suffixes)
