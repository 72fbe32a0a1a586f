"""Conversations of several turns about any number of images, each of which stands at a place in a text."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.image import Image, to_rgb
from polymodal.modalities.modality import write_text

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
PLACEHOLDER = "<image>"
# Roles as data sets name them: LLaVA, OpenAI and TRL, ShareGPT (calls of functions and their results), ms-swift.
ROLES = {
    "system": SYSTEM, "developer": SYSTEM, "user": USER, "human": USER, "prompter": USER, "tool": USER,
    "function": USER, "observation": USER, "tool_response": USER, "assistant": ASSISTANT, "gpt": ASSISTANT,
    "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
    "function_call": ASSISTANT, "tool_call": ASSISTANT,
}  # fmt: skip
TEXT_PARTS, IMAGE_PARTS = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")


class Message(NamedTuple):
    """What one side says. role: system, user or assistant. parts: texts and images in order."""

    role: str
    parts: tuple[Any, ...]

    @property
    def text(self) -> str:
        return " ".join(part for part in self.parts if isinstance(part, str))


class _Place(NamedTuple):
    """A place for an image. image: as it is stored; None for the next one of the example's list."""

    image: Any = None


@dataclass(frozen=True)
class Conversations:
    """Column of conversations: messages with roles, and the images at the placeholders in their texts, in order.

    A message is a record of `role` and `content`, or of `user` and `assistant` for two. Its content is a text, in which
    every `<image>` is a place, or a list of parts `{"type": "text", "text"}` and `{"type": "image"}`, as OpenAI and TRL
    have them; these may hold an image of their own. root: folder of relative paths.
    """

    root: Path | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        message = pa.struct({"role": pa.string(), "content": pa.string()})
        return pa.struct({"messages": pa.list_(message), "images": pa.list_(pa.binary())})

    def decode(self, value: Mapping[str, Any]) -> list[Message]:
        """Open the images without decoding pixels yet.

        Images without any place stand in front of the first question. Messages of the assistant
        without a text, such as calls of tools, are left out. Raises UnreadableExample for another number of places than
        of images, an unknown role, a part that is no text and no image, and where nothing is answered.
        """
        messages = [message for record in value["messages"] or () for message in messages_of(record)]
        messages = [message for message in messages if message.role != ASSISTANT or not _is_empty(message)]
        if value.get("system"):
            messages.insert(0, Message(SYSTEM, (value["system"],)))
        images = [image for image in value.get("images") or () if image not in (None, "")]
        places = [part for message in messages for part in message.parts if isinstance(part, _Place)]
        if not places and images:
            messages = _in_front(messages, [_Place(image) for image in images])
            images = []
        missing = sum(place.image is None for place in places)
        if missing != len(images):
            raise UnreadableExample(f"it has {missing} places for images in its texts, and {len(images)} images")
        if not any(message.role == ASSISTANT and message.text.strip() for message in messages):
            raise UnreadableExample("there is no answer of the assistant")
        left = iter(images)
        return [Message(role, tuple(self._opened(part, left) for part in parts)) for role, parts in messages]

    def _opened(self, part: Any, left: Iterator[Any]) -> Any:
        if isinstance(part, str):
            return part
        stored = next(left) if part.image is None else part.image
        return Image(self.root).decode(_of_address(stored) if isinstance(stored, str) else stored)

    def texts(self, value: Mapping[str, Any]) -> list[str]:
        """Return all texts of a stored conversation, without its images. Raises UnreadableExample as `decode`."""
        messages = (message for record in value["messages"] or () for message in messages_of(record))
        texts = [part for message in messages for part in message.parts if isinstance(part, str)]
        return [value["system"], *texts] if value.get("system") else texts

    def describe(self, value: list[Message]) -> str:
        images = sum(not isinstance(part, str) for message in value for part in message.parts)
        answer = next(message.text for message in value if message.role == ASSISTANT)
        return f"{len(value)} messages and {images} images: {value[0].text[:40]} ... {answer[:40]}"

    def plot(self, value: list[Message], axes: Any) -> None:
        """Plot the first messages, and the first image in the lower half."""
        write_text(axes, "\n".join(f"{m.role}: {m.text}" for m in value), lines=8, size=6, width=52)
        image = next((part for message in value for part in message.parts if not isinstance(part, str)), None)
        if image is not None:
            inset = axes.inset_axes((0.05, 0.0, 0.9, 0.5))
            inset.imshow(to_rgb(image))
            inset.axis("off")


def without_images(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with their texts alone."""
    return [Message(m.role, tuple(part for part in m.parts if isinstance(part, str))) for m in messages]


def messages_of(record: Mapping[str, Any]) -> Iterator[Message]:
    """Yield the one or two messages of a record, whose parts are texts and places. Raises UnreadableExample."""
    if "role" not in record:
        for role in (USER, ASSISTANT):
            if record.get(role) is not None:
                yield Message(role, tuple(_of_text(record[role])))
        return
    name = str(record["role"]).strip().lower()
    if name not in ROLES:
        raise UnreadableExample(f"'{record['role']}' is no role; roles are system, user and assistant")
    content = record.get("content")
    parts = (
        itertools.chain.from_iterable(map(_of_part, content)) if isinstance(content, list) else _of_text(content or "")
    )
    yield Message(ROLES[name], tuple(parts))


def _of_text(text: str) -> Iterator[Any]:
    """Yield the text between places and the places; white space around a place belongs to neither."""
    pieces = text.split(PLACEHOLDER)
    for number, piece in enumerate(pieces):
        if number:
            yield _Place()
        if stripped := piece.strip() if len(pieces) > 1 else piece:
            yield stripped


def _of_part(part: Any) -> Iterator[Any]:
    """Yield a text or a place, nothing for an empty text; of a part without a type, which is a text in a column that
    also has lists of parts, the texts and places of it."""
    if isinstance(part, str):
        yield part
        return
    if part.get("type") is None and part.get("text") is not None:
        yield from _of_text(part["text"])
        return
    kind = part.get("type") or "image"
    if kind in TEXT_PARTS:
        if part.get("text"):
            yield part["text"]
        return
    if kind not in IMAGE_PARTS:
        raise UnreadableExample(f"a message has a part of type '{kind}'; texts and images are read")
    image = next((part[name] for name in ("image", "image_url", "url", "path") if part.get(name)), None)
    if isinstance(image, Mapping) and "bytes" not in image:
        image = next((image[name] for name in ("url", "path", "text") if image.get(name)), None)
    yield _Place(image)


def _is_empty(message: Message) -> bool:
    return not any(part.strip() if isinstance(part, str) else part for part in message.parts)


def _in_front(messages: list[Message], places: list[_Place]) -> list[Message]:
    first = next((number for number, message in enumerate(messages) if message.role != SYSTEM), None)
    if first is None:
        return messages
    messages[first] = Message(messages[first].role, (*places, *messages[first].parts))
    return messages


def _of_address(address: str) -> Any:
    """Return the bytes of a `data:` address, or the path. Raises UnreadableExample for an address in the web."""
    scheme, _, rest = address.partition(":")
    if scheme == "data":
        try:
            return base64.b64decode(rest.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise UnreadableExample("an image's data: address is no base64") from error
    if scheme in ("http", "https"):
        raise UnreadableExample(f"the image is at {address}; download it and name its file")
    return rest.removeprefix("//") if scheme == "file" else address
