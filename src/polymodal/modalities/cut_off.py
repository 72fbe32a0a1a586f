"""Files that end before their header says so: decoders would take half a recording or clip for a whole one.

Sizes that programs write to a pipe (all ones, or about 2^31 bytes) promise nothing.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

SLACK = 64  # bytes: headers that count themselves
PIPE = 0x7FFF0000  # sizes from here are of WAV that was written to a pipe
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
EBML, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
ID3_HEADER = 10
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"sidx", b"pnot")


def cut_off_sound(file: bytes) -> str:
    """Return how a WAV, RF64, W64, AIFF, Ogg or MP3 is cut off, as a clause; "" for whole and for other files.

    Ogg is whole when its last page and its last packet are. That page may lack the end-of-stream flag: the recorder of
    Android does not set it, nor does a live stream that is interrupted (RFC 7845, section 3: decoders have to expect
    it), see `with_end_of_stream`. A cut exactly between two pages, some 4 kB apart, is thus not
    recognized. MP3 says its length in a Xing, Info or VBRI header, if it has one.
    """
    start = file[:4]
    if start in (b"RIFF", b"RF64", b"FORM"):
        return _promised(*_chunk_of_samples(file))
    if file[:16] == W64:
        (size,) = struct.unpack_from("<Q", file, 16)
        return _promised(size, len(file))
    if start == b"OggS":
        return _ogg(file)
    return _promised(*_xing(file))


def cut_off_video(file: io.BufferedIOBase) -> str:
    """Return how an MP4, QuickTime, Matroska, WebM or AVI is cut off, as a clause; "" for whole and for other files."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        (promised,) = struct.unpack_from("<I", head, 4)
        return _promised(0 if promised >= PIPE else promised + 8, size)
    if head[:4] == EBML:
        return _promised(_matroska(file), size)
    if head[4:8] in ISO_BOXES:
        return _promised(max(_box_ends(file, size), default=0), size)
    return ""


def _promised(promised: int, there: int) -> str:
    """promised: bytes, 0 where nothing is said."""
    if promised <= there + SLACK:
        return ""
    return f"its header promises {promised:,} bytes, {there:,} are there"


def _chunk_of_samples(file: bytes) -> tuple[int, int]:
    """Bytes of samples that the header promises, and that are there; (0, 0) where nothing is promised."""
    order, samples = (">", b"SSND") if file[:4] == b"FORM" else ("<", b"data")
    place, of_rf64 = 12, 0
    while place + 8 <= len(file):
        name, (size,) = file[place : place + 4], struct.unpack_from(f"{order}I", file, place + 4)
        place += 8
        if name == b"ds64" and len(file) >= place + 16:  # RF64: sizes of more than 32 bits
            (of_rf64,) = struct.unpack_from("<Q", file, place + 8)
        if name == samples:
            promised = of_rf64 if of_rf64 and size == 0xFFFFFFFF else size
            return (0, 0) if promised >= PIPE and not of_rf64 else (promised, len(file) - place)
        place += size + size % 2
    return 0, 0


def _ogg(file: bytes) -> str:
    """RFC 3533, section 6: flag 4 of a page's header marks the last page of a stream; a last segment of 255 bytes is
    part of a packet that goes on in the next page."""
    page = file.rfind(b"OggS")
    header = file[page : page + 27]
    segments = file[page + 27 : page + 27 + header[26]] if len(header) == 27 else b""
    end = page + 27 + len(segments) + sum(segments)
    if len(header) < 27 or len(segments) < header[26] or end > len(file) or file[end:] in (b"O", b"Og", b"Ogg"):
        return "its last page is not whole"
    if header[5] & 4:
        return ""
    if header[5] & 2 or not segments:  # a first page, with headers alone
        return "it ends within its headers"
    return "its last packet goes on in a page that is not there" if segments[-1] == 255 else ""


def with_end_of_stream(file: bytes) -> bytes:
    """Return an Ogg file with the end-of-stream flag on its last page, or any other file as it is. Without the flag,
    libsndfile reads Vorbis to its end, but no Opus."""
    page = file.rfind(b"OggS")
    if file[:4] != b"OggS" or len(file) < page + 27 or file[page + 5] & 4:
        return file
    changed = bytearray(file[page:])
    changed[5] |= 4
    changed[22:26] = bytes(4)
    changed[22:26] = _ogg_checksum(bytes(changed)).to_bytes(4, "little")
    return file[:page] + bytes(changed)


def _ogg_checksum(page: bytes) -> int:
    """RFC 3533, section 6: CRC-32 that begins with 0 and takes the highest bit first; that of zlib takes the lowest."""
    mirrored = zlib.crc32(page.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _xing(file: bytes) -> tuple[int, int]:
    """Bytes of MP3 frames that a Xing, Info or VBRI header promises, and that are there; (0, 0) without a header."""
    place = 0
    while file[place : place + 3] == b"ID3" and len(file) >= place + ID3_HEADER:
        sizes = file[place + 6 : place + ID3_HEADER]
        place += ID3_HEADER + sum((byte & 0x7F) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=True))
    head = file[place : place + 256]
    if len(head) < 60 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # synchronization, and layer III
        return 0, 0
    mpeg_1, mono = head[1] & 0x18 == 0x18, head[3] >> 6 == 3
    tag = 4 + ((17 if mono else 32) if mpeg_1 else (9 if mono else 17))
    there = len(file) - place
    if head[tag : tag + 4] in (b"Xing", b"Info"):
        (flags,) = struct.unpack_from(">I", head, tag + 4)
        if flags & 2:
            (promised,) = struct.unpack_from(">I", head, tag + (12 if flags & 1 else 8))
            return promised, there
    if head[36:40] == b"VBRI":
        (promised,) = struct.unpack_from(">I", head, 46)
        return promised, there
    return 0, 0


def _matroska(file: io.BufferedIOBase) -> int:
    """The end that the Segment element promises; 0 where its size is unknown, as in live recordings."""
    place = 0
    for _ in range(2):
        file.seek(place)
        head = file.read(12)
        if not head or not head[0]:
            return 0
        id_length = 9 - head[0].bit_length()
        if len(head) <= id_length or not head[id_length]:
            return 0
        size_length = 9 - head[id_length].bit_length()
        digits = head[id_length : id_length + size_length]
        size = int.from_bytes(digits, "big") - (1 << (7 * size_length))  # without the marker of the length
        unknown = size == (1 << (7 * size_length)) - 1
        place += id_length + size_length
        if head[:id_length] == SEGMENT:
            return 0 if unknown else place + size
        place += size
    return 0


def _box_ends(file: io.BufferedIOBase, size: int) -> Iterator[int]:
    """The ends of the top-level boxes of an ISO base media file, up to what is no box, such as a camera's own data."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        (length,) = struct.unpack_from(">I", head)
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack_from(">Q", head, 8)
        if length < 8 or not all(0x20 <= byte < 0x7F for byte in head[4:8]):  # 0: to the end of the file
            return
        place += length
        yield place
