"""XML files of users, read by the standard library's parser, without entities or document types of their own.

An entity can stand for gigabytes of text (a "billion laughs" file) or for another file; annotations need none.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from xml.parsers import expat

from polymodal.errors import UserError

XmlElement = ET.Element
MAX_BYTES = 50_000_000


def read_xml(file: Path) -> XmlElement:
    """Return the root of an XML file. Raises UserError for one that is damaged, or defines entities."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file} has more than {MAX_BYTES:,} bytes, too many for annotations in XML.")
        return parse_xml(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error


def parse_xml(content: bytes, name: str) -> XmlElement:
    """Return the root of XML. name: of the file, for messages. Raises UserError as `read_xml` does."""

    def refuse(entity: str, *_: Any) -> None:
        raise UserError(f"{name} defines the XML entity '{entity}', which annotations have no need of; remove it.")

    declarations = expat.ParserCreate()
    declarations.EntityDeclHandler = refuse  # called before the entity is used
    try:
        declarations.Parse(content, True)
        return ET.fromstring(content)
    except (expat.ExpatError, ET.ParseError, ValueError, LookupError) as error:  # the last two: of an encoding
        raise UserError(f"{name} cannot be read as XML: {error}.") from error
