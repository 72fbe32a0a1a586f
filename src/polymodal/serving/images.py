"""Output images of commands."""

from __future__ import annotations

from pathlib import Path

from PIL import Image as PILImage

from polymodal.errors import UserError
from polymodal.files import written_aside


def save_image(image: PILImage.Image, path: str) -> None:
    """Save in the format of the file extension. Raises UserError for an unknown one, or an unwritable path."""
    kind = PILImage.registered_extensions().get(Path(path).suffix.lower())
    if kind not in PILImage.SAVE:
        raise UserError(f"'{path}' does not end like an image; name for example {path.split('.')[0]}.png.")
    try:
        with written_aside(Path(path)) as aside:
            image.save(aside, format=kind)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
