"""Output images of commands."""

from __future__ import annotations

from PIL import Image as PILImage

from polymodal.errors import UserError


def save_image(image: PILImage.Image, path: str) -> None:
    """Save in the format of the file extension. Raises UserError for an unknown one, or an unwritable path."""
    try:
        image.save(path)
    except ValueError as error:
        raise UserError(f"'{path}' does not end like an image; name for example {path.split('.')[0]}.png.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
