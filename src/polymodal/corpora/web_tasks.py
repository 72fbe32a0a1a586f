"""Tasks on web pages: an instruction, the page as a browser shows it, and what an expert does next.

Thirty of MiniWoB's tasks (Shi et al. 2017; Liu et al. 2018), played in Chromium by experts of ours, a few lines each.
An example is a step: the page before it, what was done `before`, and the `action`, whose target is the number of an
element of this very page. Elements on which something was done before and that are gone have no number any more.
Kept are the episodes for which the task gave its full reward. An instruction stands on one side of the split only;
`test_new` has four tasks of which the other splits have nothing.

Pixels depend on the browser's version and on the fonts of the machine.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polymodal.corpora._packages import PyPIPackage, members, unpack
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora._web_experts import EXPERTS
from polymodal.corpora._web_screen import Element, Expert, Lost, Move, Screen
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.pages import browser, screenshot, shown_elements
from polymodal.modalities import Actions, Category, Image, Modality, Text, Webpage
from polymodal.modalities.image import encoded
from polymodal.modalities.text import stored_texts

PACKAGE = PyPIPackage("miniwob", "1.1.0", "297006e84219d56ad037e843527ed773a4a82509dc43b6031ec4a3ad3e3e61d9", 1_878_300)
NEW = ("multi-layouts", "navigate-tree", "phone-book", "social-media")  # tasks that only test_new has
EPISODES = 80  # of each task that are tried
MAX_STEPS = 16  # actions
WIDTH, HEIGHT = 160, 210  # pixels of a task, as its makers set them
NAMES = ("click", "type", "select")

about = About(
    name="web_tasks",
    description="5,563 steps of an expert in 30 tasks on web pages: instruction, image, elements, what is done next",
    license="MIT",
    source="PyPI: miniwob; played in Chromium",
    modalities=("image", "webpage", "text", "actions", "category"),
    download_bytes=PACKAGE.bytes,
    composed="tasks are drawn by MiniWoB's pages; actions are those of experts written for them",
)

# Nothing ends an episode but the task itself, nothing moves by itself, and only the task is shown.
START = """
core.EPISODE_MAX_TIME = 1e8;
if (window.jQuery) {
  jQuery.fx.off = true;
  if (jQuery.ui && jQuery.ui.autocomplete) jQuery.ui.autocomplete.prototype.options.delay = 0;
}
for (const name of ['reward-display', 'click-canvas']) {
  const element = document.getElementById(name);
  if (element) element.style.display = 'none';
}
Math.seedrandom(arguments[0]);
core.startEpisodeReal();
return core.getUtterance();
"""
# What experts know beside what `shown_elements` says: numbers that stay, and what is not in the instruction.
DETAILS = """
window.numbered = window.numbered || 0;
for (const element of shown) if (element.number === undefined) element.number = numbered++;
return shown.map(element => [
  element.number, element.closest('#query') !== null, element.textContent.replace(/\\s+/g, ' ').trim(),
  (element.getAttribute('class') || '').split(/\\s+/), element.type || '', element.id, element.style.backgroundColor,
]);
"""
SETTLE = """
const [element, done] = arguments;
if (element) element.scrollIntoView({block: 'nearest', behavior: 'instant'}); else scrollTo(0, 0);
requestAnimationFrame(() => requestAnimationFrame(done));
"""


def web_tasks() -> Corpus:
    """Open the corpus, fetching and playing it once (2 MB, some minutes).

    Raises UserError when that is not possible, such as without the package selenium or a browser.
    """
    columns: dict[str, Modality] = {
        "image": Image(),
        "elements": Webpage(),
        "instruction": Text(),
        "before": Actions(NAMES),
        "action": Actions(NAMES),
        "task": Category(tuple(EXPERTS)),
    }
    return open_prepared(about, columns, _rows, label="task")


def _rows(prepare: Preparation) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder, browser(WIDTH, HEIGHT) as driver:
        unpack(members(prepare.fetch(PACKAGE), lambda name: name.startswith("miniwob/html/")), Path(folder))
        for task, expert in EXPERTS.items():
            driver.get(Path(folder, "miniwob/html/miniwob", f"{task}.html").as_uri())
            for episode in prepare.track(range(EPISODES), f"Playing {task}"):
                instruction, steps = play(driver, expert, f"{task}/{episode}")
                split = "test_new" if task in NEW else split_by_hash(instruction)
                for number, step in enumerate(steps):
                    yield {
                        "key": f"{task}/{episode:02d}/{number}",
                        "split": split,
                        "instruction": stored_texts(instruction),
                        "task": task,
                        **step,
                    }


def play(driver: Any, expert: Expert, seed: str) -> tuple[str, list[Row]]:
    """Play an episode of the open task: return its instruction and the expert's steps, none if it failed."""
    from selenium.common.exceptions import WebDriverException

    instruction = driver.execute_script(START, seed)
    steps: list[Row] = []
    done: list[Move] = []
    with contextlib.suppress(Lost, StopIteration, WebDriverException):  # the last, of an element that is covered
        row, screen, numbers = _look(driver)
        moves = expert(instruction, screen)
        move = next(moves)
        while len(steps) < MAX_STEPS:
            before = [_stored(one, numbers) for one in done]
            steps.append(row | {"before": before, "action": [_stored(move, numbers)]})
            _make(driver, move, numbers)
            done.append(move)
            if driver.execute_script("return WOB_DONE_GLOBAL"):
                break
            row, screen, numbers = _look(driver)
            move = moves.send(screen)
    reward = driver.execute_script("return WOB_DONE_GLOBAL ? WOB_RAW_REWARD_GLOBAL : 0")
    return instruction, steps if reward == 1 else []


def _look(driver: Any) -> tuple[Row, Screen, dict[int, int]]:
    """Return image and elements, the expert's view, and the list index of each element id."""
    driver.execute_async_script(SETTLE, None)
    _, elements = shown_elements(driver)
    details = driver.execute_script(DETAILS)
    seen = [
        Element(
            number, details[node["parent"]][0] if node["parent"] >= 0 else -1, node["tag"], text, tuple(classes), *rest
        )
        for node, (number, asked, text, classes, *rest) in zip(elements, details, strict=True)
        if not asked
    ]
    row = {"image": encoded(screenshot(driver)), "elements": elements}
    return row, Screen(tuple(seen)), {number: place for place, (number, *_) in enumerate(details)}


def _stored(move: Move, places: dict[int, int]) -> Row:
    return {"name": move.name, "target": places.get(move.element.number), "text": move.text or None}


def _make(driver: Any, move: Move, places: dict[int, int]) -> None:
    """Raise Lost for an element that is no longer visible."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import Select

    if move.element.number not in places:
        raise Lost
    element = driver.execute_script("return shown[arguments[0]]", places[move.element.number])
    driver.execute_async_script(SETTLE, element)
    ActionChains(driver, duration=0).move_to_element(element).perform()  # or it may rest on a list that opens
    if move.name == "click":
        element.click()
    elif move.name == "type":
        element.send_keys(move.text)
    else:
        Select(element).select_by_visible_text(move.text)
