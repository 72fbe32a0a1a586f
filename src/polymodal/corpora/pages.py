"""Web pages as a browser shows them: GIMP's manual in four languages, with every element's place.

`image` is the upper 800 x 1,280 px of a page; `elements` are all that are shown, with boxes in pixels of the page, so
those below 1,280 px stand under the image. `manuals` has the same pages, under the same keys, as text with figures
and as HTML. A page and its translations never straddle a split.

Chinese and Japanese are left out, because their fonts are not on every machine. Pixels depend on the browser's version
and on the fonts of the machine.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora._packages import members, unpack
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.manuals import MANUALS
from polymodal.errors import UserError, needs
from polymodal.modalities import Category, Image, Modality, Text, Webpage
from polymodal.modalities.image import encoded, open_image
from polymodal.modalities.text import stored_texts

LANGUAGES = ("en", "de", "fr", "ru")
WIDTH, HEIGHT = 800, 1280  # pixels of the window
PACKAGES = [MANUALS[language] for language in LANGUAGES]
ROOT = "usr/share/gimp/2.0/help/"

about = About(
    name="pages",
    description="2,740 web pages as a browser shows them: image, tree of elements, texts, boxes, XPaths",
    license="GFDL-1.2+",
    source=f"Debian: {', '.join(package.name for package in PACKAGES)}; rendered by Chromium",
    modalities=("image", "webpage", "text", "category"),
    download_bytes=sum(package.bytes for package in PACKAGES),
)

# Parents stand before children. An element's text is what stands directly in it, as what is typed stands in a field.
# Left out are those that are not shown, with all that is in them, and those without size or children, such as anchors,
# but for the options of a closed list. The page remembers the elements themselves as `shown`.
ELEMENTS = """
const found = [];
window.shown = [];
function visit(element, parent, path) {
  const style = getComputedStyle(element);
  if (style.display === 'none' || style.visibility === 'hidden') return;
  const box = element.getBoundingClientRect();
  if ((box.width < 1 || box.height < 1) && !element.children.length && element.tagName !== 'OPTION') return;
  shown.push(element);
  const typed = element.tagName === 'TEXTAREA' || element.tagName === 'INPUT' &&
    !['checkbox', 'radio', 'password', 'hidden'].includes(element.type);
  const text = typed ? element.value : Array.from(element.childNodes).filter(node => node.nodeType === Node.TEXT_NODE)
    .map(node => node.textContent).join(' ').replace(/\\s+/g, ' ').trim();
  const number = found.length;
  found.push([element.tagName.toLowerCase(), parent, text, path,
              box.left + scrollX, box.top + scrollY, box.right + scrollX, box.bottom + scrollY]);
  const seen = {};
  for (const child of element.children) {
    const tag = child.tagName.toLowerCase();
    seen[tag] = (seen[tag] || 0) + 1;
    const alike = Array.from(element.children).filter(other => other.tagName === child.tagName).length;
    visit(child, number, path + '/' + tag + (alike > 1 ? '[' + seen[tag] + ']' : ''));
  }
}
visit(document.body, -1, '/html/body');
return [document.title, found];
"""


def pages() -> Corpus:
    """Open the corpus, fetching and rendering it once (203 MB, half an hour).

    Raises UserError when that is not possible, such as without the package selenium or a browser.
    """
    columns: dict[str, Modality] = {"image": Image(), "elements": Webpage(), "title": Text(), "language": Category()}
    return open_prepared(about, columns, _rows, label="language")


def _rows(prepare: Preparation) -> Iterator[Row]:
    for language, package in zip(LANGUAGES, PACKAGES, strict=True):
        with tempfile.TemporaryDirectory() as folder, browser() as driver:
            files = members(prepare.fetch(package), lambda name: name.startswith(ROOT))
            unpack(prepare.track(files, f"Unpacking {package.name}"), Path(folder))
            root = Path(folder, ROOT)
            for page in prepare.track(sorted(root.rglob("*.html")), f"Rendering {package.name}"):
                name = page.relative_to(root).as_posix()
                title, image, elements = rendered(driver, page)
                if any(element["text"] for element in elements):
                    yield {
                        "key": f"gimp-help/{name.removesuffix('.html')}",
                        "split": split_by_hash(posixpath.basename(name)),
                        "image": encoded(image, "WEBP", quality=85),
                        "elements": elements,
                        "title": stored_texts(title, language=language),
                        "language": language,
                    }


@contextmanager
def browser(width: int = WIDTH, height: int = HEIGHT) -> Iterator[Any]:
    """Start a headless Chromium with this window size and no network; it is closed at the end.

    Selenium uses an installed one, or fetches one. Raises UserError when neither works.
    """
    try:
        from selenium import webdriver
        from selenium.common.exceptions import WebDriverException
    except ImportError as error:
        raise needs("selenium", "corpora", "Rendering web pages") from error
    options = webdriver.ChromeOptions()
    alone = ["--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        alone.append("--no-sandbox")  # Chromium refuses to run as root with it
    for argument in alone:
        options.add_argument(argument)
    found, service = shutil.which("chromium") or shutil.which("google-chrome"), webdriver.ChromeService()
    if found and (with_it := shutil.which("chromedriver")):
        options.binary_location, service = found, webdriver.ChromeService(with_it)
    os.environ.setdefault("SE_AVOID_STATS", "true")  # selenium would report its use to its makers
    try:
        driver = webdriver.Chrome(options, service)
    except WebDriverException as error:
        raise UserError(
            "Pages are rendered by Chromium, which could not be started; install Chrome, or on Debian: "
            "apt-get install chromium chromium-driver."
        ) from error
    except KeyboardInterrupt:  # while it starts
        service.stop()
        raise
    try:
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        yield driver
    finally:
        driver.quit()


def rendered(driver: Any, page: Path) -> tuple[str, PILImage.Image, list[Row]]:
    """Return the title of a page, a screenshot, and its elements as stored in the column `elements`."""
    driver.get(page.as_uri())
    title, elements = shown_elements(driver)
    return title, cut_empty(screenshot(driver)), elements


def shown_elements(driver: Any) -> tuple[str, list[Row]]:
    """Return the title of the open page, and its elements as stored in the column `elements`."""
    title, found = driver.execute_script(ELEMENTS)
    return title, [
        {"tag": tag, "parent": parent, "text": text, "xpath": path, "box": [round(place) for place in box]}
        for tag, parent, text, path, *box in found
    ]


def screenshot(driver: Any) -> PILImage.Image:
    return open_image(driver.get_screenshot_as_png()).convert("RGB")


def cut_empty(image: PILImage.Image) -> PILImage.Image:
    """Crop the lower part that has only one color."""
    pixels = np.asarray(image)
    rows = np.flatnonzero((pixels != pixels[-1, -1]).any(axis=(1, 2)))
    return image.crop((0, 0, image.width, min(image.height, int(rows[-1]) + 17))) if len(rows) else image
