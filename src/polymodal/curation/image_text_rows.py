"""Image-text rows from web pages, in the 17 columns of WIT: each step is a function with counts.

Pages are parsed (`page_images`), images get the texts of their media pages, and images, texts and languages are
filtered. Rows that are connected by an image, a near-duplicate of it, or a page, are in one split. Pages are parsed on
Daft (`pipeline.map_pages`); what follows needs all rows at once, and is in the memory of one machine.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from polymodal.constraints import NonNegativeInt, PositiveInt, UnitInterval, validate_constraints
from polymodal.corpora._html import parse_html, words
from polymodal.corpora._splits import Groups, connected_groups, difference_hash, join_alike, split_groups, thumbnail
from polymodal.corpora._svg import render_svg
from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.formats.csv import read_csv
from polymodal.corpora.saved import save_corpus
from polymodal.corpora.text_fields import CAPTIONS, COLUMNS, FIELDS, IMAGE, LANGUAGE, PAGE, stored_captions
from polymodal.curation.page_images import PageImage, ParsedPage, parse_page
from polymodal.curation.page_sources import PageImages
from polymodal.curation.pipeline import QUERY, Executor, map_pages
from polymodal.curation.quality import language_score, words_of
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Image, Text
from polymodal.modalities.image import IMAGE_SUFFIXES, open_header
from polymodal.modalities.text import UNKNOWN_LANGUAGE

PageRow = dict[str, Any]  # the columns of WIT
REF, ATTR, ALT = (FIELDS[name] for name in CAPTIONS)
SVG_SIDE = 512  # pixels of a rendered drawing
NEAR_DUPLICATES = 20_000  # images of which all are compared with all; of more, those of one difference hash
GENERIC_TEXTS = frozenset(
    ("image", "icon", "photo", "picture", "logo", "thumbnail", "refer to caption", "see caption", "alt text", "img")
)


@dataclass(frozen=True)
class RowFilters:
    """Filters of images, texts and languages. The thresholds of the paper are not in its repository: these are ours,
    but for `min_language_rows`."""

    min_side: PositiveInt = 100
    """Minimum width and height of an image in pixels."""
    min_shown: NonNegativeInt = 32
    """Minimum width and height in pixels that the page gives an image, where it does; smaller ones are markers, such as
    flags."""
    max_pages: NonNegativeInt = 100
    """Maximum number of pages that use an image; those of more are decoration. 0: no maximum."""
    generic_images: tuple[str, ...] = ("icon", "placeholder", "button", "blank", "spacer", "bullet", "arrow", "noimage")
    """Words of file names of images that are left out."""
    licenses: tuple[str, ...] = ()
    """Beginnings of licenses that are kept, such as cc or pd, where a media page or --media states one; empty: all."""
    min_characters: PositiveInt = 3
    """Minimum number of characters of a text."""
    language_score: UnitInterval = 0.5
    """Score of language identification from which an attribution is in the language of its page."""
    min_language_rows: PositiveInt = 1
    """Minimum number of rows of a language; 12,000 in the paper."""

    def __post_init__(self) -> None:
        validate_constraints(self)


@dataclass
class RowCounts:
    """Rows before and after a step, and why rows or texts were left out."""

    rows_in: int = 0
    rows_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class MediaPage:
    """texts: description by language, "" for none stated. license: as it is stated, "" for none."""

    texts: Mapping[str, str]
    license: str = ""


@dataclass
class ImageTextRows:
    """rows: in the columns of WIT. images: encoded, by image_url. groups: of each row, for splits. counts: by step."""

    rows: list[PageRow]
    images: dict[str, bytes]
    groups: list[str]
    counts: dict[str, RowCounts]


Step = Callable[[list[PageRow], Counter[str]], list[PageRow]]


def rows_of_pages(
    pages: Iterable[Mapping[str, str]],
    filters: RowFilters,
    images: PageImages,
    media: Mapping[str, MediaPage] | None = None,
    flagged: Sequence[str] = (),
    language: str = "",
    runner: Executor | None = None,
) -> ImageTextRows:
    """Make rows of pages, and filter them.

    pages: with key, html and base, and language where it is known. images: from page and address to the encoded image.
    media: of images, by the name of the file, beside the media pages among the pages. flagged: words of texts that are
    left out. language: of pages that state none. runner: parse pages on Daft, in one process per core or on the
    cluster; by default in this process. Raises UserError when nothing is left.
    """
    links: dict[tuple[str, str], str] = {}
    described = dict(media or {})
    rows: list[PageRow] = []
    counts = {"parse": RowCounts()}
    for key, stated, parsed in _parsed(pages, runner):
        counts["parse"].rows_in += 1
        if isinstance(parsed, MediaPage):
            described.setdefault(media_name(key), parsed)
            continue
        for place, image in enumerate(parsed.images):
            if any(0 < side < filters.min_shown for side in image.shown):  # one place; elsewhere it may be large
                counts["parse"].reasons["shown too small"] += 1
                continue
            row = page_row(key, parsed, place, stated or language)
            rows.append(row)
            links[row[PAGE], row[IMAGE]] = links.get((row[PAGE], row[IMAGE])) or image.link
    counts["parse"].rows_out = len(rows)
    loaded = LoadedImages(images)
    media_of = {(row[PAGE], row[IMAGE]): media_for(row[IMAGE], links[row[PAGE], row[IMAGE]], described) for row in rows}
    steps: dict[str, Step] = {
        "media": lambda rows, why: [
            with_attribution(row, media_of[row[PAGE], row[IMAGE]], filters.language_score) for row in rows
        ],
        "images": lambda rows, why: _kept(rows, why, lambda row: loaded.why_not(row, filters, media_of)),
        "frequency": lambda rows, why: infrequent(rows, why, filters.max_pages),
        "texts": lambda rows, why: with_clean_texts(rows, why, filters.min_characters),
        "safety": lambda rows, why: _kept(rows, why, lambda row: _flagged(row, frozenset(flagged))),
        "repeated": without_repeated,
        "languages": lambda rows, why: of_frequent_languages(rows, why, filters.min_language_rows),
    }
    for name, step in steps.items():
        counts[name] = count = RowCounts(len(rows))
        rows = step(rows, count.reasons)
        count.rows_out = len(rows)
    if not rows:
        reasons = sum((count.reasons for count in counts.values()), Counter[str]())
        listed = ", ".join(f"{reason} {times:,}" for reason, times in reasons.most_common(4))
        raise UserError(f"Nothing is left of {counts['parse'].rows_in:,} pages ({listed or 'they have no images'}).")
    kept = {row[IMAGE]: loaded.data[row[IMAGE]] for row in rows}
    return ImageTextRows(rows, kept, row_groups(rows, kept), counts)


def _parsed(
    pages: Iterable[Mapping[str, str]], runner: Executor | None
) -> Iterator[tuple[str, str, ParsedPage | MediaPage]]:
    """Yield key, stated language and content of each page."""
    if runner is None:
        for page in pages:
            yield page["key"], page.get("language", ""), _content(page)
        return
    remaining = iter(pages)
    while batch := list(itertools.islice(remaining, QUERY)):
        for table in map_pages(batch, _as_json, {"content": pa.string()}, ("key", "language"), runner):
            for row in table.to_pylist():
                yield row["key"], row["language"], _of_json(row["content"])


def _content(page: Mapping[str, str]) -> ParsedPage | MediaPage:
    is_media = is_media_page(page["key"])
    return media_page(page["html"]) if is_media else parse_page(page["html"], page.get("base", ""))


def _as_json(page: Mapping[str, str]) -> dict[str, str]:
    return {"content": json.dumps(dataclasses.asdict(_content(page)))}


def _of_json(text: str) -> ParsedPage | MediaPage:
    """Return the content whose fields `_as_json` wrote, where pages were parsed in other processes."""
    stored = json.loads(text)
    if "texts" in stored:
        return MediaPage(**stored)
    of_image = [[tuple(one) if isinstance(one, list) else one for one in image] for image in stored["images"]]
    return ParsedPage(**{**stored, "images": [PageImage._make(values) for values in of_image]})


def page_row(key: str, page: ParsedPage, place: int, language: str = "") -> PageRow:
    """Return the row of an image of a page; attribution, type and size come later."""
    image: PageImage = page.images[place]
    row: PageRow = dict.fromkeys(COLUMNS)
    section = page.sections[image.section] if image.section < len(page.sections) else ""
    row |= {
        LANGUAGE: page.language or language or UNKNOWN_LANGUAGE,
        PAGE: key,
        IMAGE: unquote(image.address) if "://" not in image.address else image.address,
        "page_title": page.title or None,
        "section_title": image.titles[-1] if image.titles else None,
        "hierarchical_section_title": " / ".join(filter(None, (page.title, *image.titles))) or None,
        REF: image.reference or None,
        ALT: image.alt or None,
        "is_main_image": place == page.main_image,
        FIELDS["page"]: page.description or None,
        FIELDS["section"]: section or None,
    }
    return row


def is_media_page(key: str) -> bool:
    """Return whether a page is that of an image, such as `File:Dome.jpg`, `File_Dome.jpg.html` or `dome.png.html`."""
    return media_name(key) != "" and PurePosixPath(media_name(key)).suffix.lower() in (*IMAGE_SUFFIXES, ".svg")


def media_name(address: str) -> str:
    """Return the name of the file that a page or an address is of, without `File:`, with blanks for underscores."""
    try:
        path = urlsplit(address).path if "://" in address else address.partition("#")[0].partition("?")[0]
    except ValueError:
        return ""
    name = unquote(path).rpartition("/")[2]
    name = re.sub(r"\.x?html?$", "", name, flags=re.IGNORECASE)
    return re.sub(r"^(?:file|image)[:_]", "", name, flags=re.IGNORECASE).replace("_", " ").strip()


def media_page(html: str) -> MediaPage:
    """Read descriptions with their languages, and the license, of a media page."""
    tree = parse_html(html)
    texts: dict[str, str] = {}
    nodes = tree.css(".description") or tree.css("p")
    for node in nodes:
        text = words(node.text(deep=True, separator=" "))
        stated = (node.attributes.get("lang") or "").strip()
        if text:
            texts[stated] = f"{texts[stated]} {text}" if stated in texts else text
    license = tree.css_first(".licensetpl_short, .license, a[rel=license]")
    return MediaPage(texts, words(license.text(deep=True)) if license is not None else "")


def media_table(file: Path | str) -> dict[str, MediaPage]:
    """Read descriptions of images from CSV or TSV with the columns image_url and description, and also language and
    license. Raises UserError for other files."""
    if not Path(file).is_file():
        raise UserError(f"There is no file {file}; --media takes CSV or TSV.")
    records = read_csv(Path(file))[0].to_pylist()
    if not records or not {IMAGE, "description"} <= {*records[0]}:
        raise UserError(f"{file} has no columns {IMAGE} and description with values.")
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    licenses: dict[str, str] = {}
    for record in records:
        name = media_name(record[IMAGE] or "")
        if record["description"]:
            texts[name][record.get("language") or ""] = record["description"]
        licenses[name] = record.get("license") or licenses.get(name, "")
    return {name: MediaPage(texts[name], license) for name, license in licenses.items()}


def media_for(image: str, link: str, described: Mapping[str, MediaPage]) -> MediaPage | None:
    """Return what is known of an image: the media page that it links to, else that of the name of its file."""
    return described.get(media_name(link)) or described.get(media_name(image))


def in_language(media: MediaPage, language: str, min_score: float) -> tuple[str, bool]:
    """Return the attribution of an image for a page, and whether it is in the language of the page.

    It is the part that is marked as in the language, else all parts, which language identification judges.
    """
    plain = language.partition("-")[0].lower()
    marked = next((text for spoken, text in media.texts.items() if spoken.lower() in (language.lower(), plain)), None)
    if marked is not None and plain:
        return marked, True
    text = " ".join(media.texts.values())
    is_judged = bool(text) and plain not in ("", UNKNOWN_LANGUAGE)
    return text, is_judged and language_score(text, plain) >= min_score


def with_attribution(row: PageRow, media: MediaPage | None, min_score: float) -> PageRow:
    """Return the row with the attribution of its image and the flag of language identification."""
    if media is None:
        return row
    text, passes = in_language(media, row[LANGUAGE], min_score)
    return row | {ATTR: text or None, "attribution_passes_lang_id": passes if text else None}


class LoadedImages:
    """Images by content; data: those that are readable, by the address under which they were found first.

    Pages may use one address for several images, as editions of a manual in several languages do; the name of a further
    one begins with its page.
    """

    def __init__(self, images: PageImages):
        self.images = images
        self.data: dict[str, bytes] = {}
        self._known: dict[bytes, tuple[str, str, int, int] | None] = {}  # by content

    def load(self, page: str, address: str) -> tuple[str, str, int, int] | None:
        """Return name, type, width and height; None for an image that is not there."""
        if (data := self.images(page, address)) is None:
            return None
        content = hashlib.sha256(data).digest()
        if content not in self._known:
            self._known[content] = None
            with suppress(UnreadableExample), open_header(data) as opened:
                is_drawing = address.lower().endswith(".svg")
                kind = "image/svg+xml" if is_drawing else PILImage.MIME.get(opened.format or "", "image/unknown")
                name = f"{page}/{address}" if address in self.data else address
                self._known[content], self.data[name] = (name, kind, *opened.size), data
        return self._known[content]

    def why_not(self, row: PageRow, filters: RowFilters, media: Mapping[tuple[str, str], MediaPage | None]) -> str:
        """Return why an image is left out, or "". Writes name, type and size into the row."""
        place, name = (row[PAGE], row[IMAGE]), PurePosixPath(row[IMAGE]).stem.lower()
        if {*re.split(r"[\W_\d]+", name)} & {*filters.generic_images}:
            return "generic name"
        license = (of_image.license if (of_image := media[place]) else "").lower().replace("-", " ")
        if filters.licenses and license and not license.startswith(tuple(one.lower() for one in filters.licenses)):
            return "license"
        if (facts := self.load(*place)) is None:
            return "no image"
        row[IMAGE], row["mime_type"], row["original_width"], row["original_height"] = facts
        return "too small" if min(facts[2:]) < filters.min_side else ""


def with_drawings(images: PageImages, root: Path | None) -> PageImages:
    """Return the images with SVG files below a folder rendered to PNG; a file that many pages use is read once."""
    if root is None:
        return images

    @functools.cache
    def of_file(address: str) -> bytes | None:
        if not address.lower().endswith(".svg") or "://" in address:
            return images("", address)
        path = (root / unquote(address)).resolve()
        with suppress(OSError, ValueError):
            return render_svg(path.read_bytes(), SVG_SIDE) if path.is_relative_to(root.resolve()) else None
        return None

    return lambda page, address: of_file(address)


def _kept(rows: Sequence[PageRow], why: Counter[str], why_not: Callable[[PageRow], str]) -> list[PageRow]:
    reasons = [why_not(row) for row in rows]
    why.update(filter(None, reasons))
    return [row for row, reason in zip(rows, reasons, strict=True) if not reason]


def infrequent(rows: Sequence[PageRow], why: Counter[str], max_pages: int) -> list[PageRow]:
    """Keep the images that at most so many pages use."""
    pages = Counter(image for image, _ in {(row[IMAGE], row[PAGE]) for row in rows})
    return _kept(rows, why, lambda row: "on too many pages" if 0 < max_pages < pages[row[IMAGE]] else "")


def why_no_text(column: str, text: str, image: str, min_characters: int) -> str:
    """Return why a text is left out: too short, or an alternative text that is a file name or a generic word."""
    if len(text) < min_characters or not any(character.isalpha() for character in text):
        return "too short"
    if column != ALT:
        return ""
    plain = text.casefold().strip(" .:")
    if plain in GENERIC_TEXTS:
        return "generic"
    is_name = PurePosixPath(plain).suffix in (*IMAGE_SUFFIXES, ".svg")
    return "file name" if is_name or plain == PurePosixPath(image).stem.casefold() else ""


def with_clean_texts(rows: Sequence[PageRow], why: Counter[str], min_characters: int) -> list[PageRow]:
    """Clean texts, set those that are left out to null, and drop rows without reference, attribution and alternative
    text."""
    cleaned = []
    for row in rows:
        texts: PageRow = {}
        for column in FIELDS.values():
            text = words(re.sub(r"<[^>]*>|\[\d+\]|\[\[|\]\]|'{2,}", " ", row[column] or ""))
            reason = why_no_text(column, text, row[IMAGE], min_characters) if text else ""
            why.update([f"{column.split('_')[1]} {reason}"] if reason else [])
            texts[column] = text if text and not reason else None
        if texts[ATTR] is None:
            texts["attribution_passes_lang_id"] = None
        cleaned.append(row | texts)
    return _kept(cleaned, why, lambda row: "" if any(row[column] for column in (REF, ATTR, ALT)) else "no text")


def _flagged(row: PageRow, flagged: frozenset[str]) -> str:
    texts = (row[column] or "" for column in (REF, ATTR, ALT)) if flagged else ()
    return "flagged word" if any(flagged & {*words_of(text)} for text in texts) else ""


def without_repeated(rows: Sequence[PageRow], why: Counter[str]) -> list[PageRow]:
    """Keep the first of rows with equal image, page and texts."""
    first: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows):
        first.setdefault(tuple(row[column] for column in (IMAGE, PAGE, REF, ATTR, ALT)), number)
    kept = {*first.values()}
    why["repeated"] += len(rows) - len(kept)
    return [row for number, row in enumerate(rows) if number in kept]


def of_frequent_languages(rows: Sequence[PageRow], why: Counter[str], min_rows: int) -> list[PageRow]:
    """Keep languages with so many rows; filters of images come before, so that decoration does not count."""
    counts = Counter(row[LANGUAGE] for row in rows)
    return _kept(rows, why, lambda row: "rare language" if counts[row[LANGUAGE]] < min_rows else "")


def row_groups(rows: Sequence[PageRow], images: Mapping[str, bytes]) -> list[str]:
    """Return the group of each row: rows that share an image, a near-duplicate of it, or a page are in one."""
    addresses = list(images)
    alike = Groups(len(addresses))
    small = np.stack([thumbnail(Image().decode(images[address])) for address in addresses])
    hashed: dict[int, list[int]] = defaultdict(list)
    for place, one in enumerate(small):
        hashed[int(difference_hash(one)) if len(addresses) > NEAR_DUPLICATES else 0].append(place)
    for places in hashed.values():
        of_hash = Groups(len(places))
        join_alike(of_hash, small[places])
        alike.join_equal((place, (places[0], of_hash.root(number))) for number, place in enumerate(places))
    root = {address: alike.root(place) for place, address in enumerate(addresses)}
    return connected_groups([root[row[IMAGE]] for row in rows], [row[PAGE] for row in rows])


def written_rows(result: ImageTextRows, out: Path | str, source: str, made: Mapping[str, Any]) -> Corpus:
    """Write rows and images as a corpus, whose splits share neither images nor pages. Raises UserError for a folder
    that is not empty."""

    def records() -> Iterator[dict[str, Any]]:
        split_of = split_groups([row[LANGUAGE] for row in result.rows], result.groups)
        for number, (row, group) in enumerate(zip(result.rows, result.groups, strict=True)):
            stored = {"image": result.images[row[IMAGE]], "text": stored_captions(row)}
            yield {"key": f"{row[PAGE]}#{number}", "split": split_of[group]} | row | stored

    about = About(
        name=Path(out).name,
        description=f"image-text rows made by wit from {source}",
        license="that of the pages",
        source=source,
        modalities=("image", "text"),
    )
    counts = {name: {**vars(count), "reasons": dict(count.reasons)} for name, count in result.counts.items()}
    return save_corpus(
        out,
        about,
        {"image": Image(), "text": Text()},
        records(),
        types=COLUMNS,
        made=lambda: {**made, "counts": counts},
    )
