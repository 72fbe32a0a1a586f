"""Scripted experts for MiniWoB's tasks: an expert reads the instruction and the page, and makes one move after another.

Each is a generator that yields a `Move` and is sent the resulting screen. It sees what a person sees, so it searches
behind tabs and on later pages where needed. The task itself decides whether the expert succeeded.
"""

from __future__ import annotations

import re

from polymodal.corpora._web_screen import Expert, Lost, Move, Moves, Screen, any_of, click


def quoted(instruction: str) -> list[str]:
    return re.findall(r'"([^"]*)"', instruction)


def _between(instruction: str, before: str, after: str) -> str:
    found = re.search(f"{before}(.*?){after}", instruction)
    if found is None:
        raise Lost
    return found[1].strip()


def _listed(instruction: str, after: str) -> list[str]:
    names = _between(instruction, "Select ", after)
    return [] if names == "nothing" else names.split(", ")


def _submit(screen: Screen) -> Move:
    return click(screen.first(tag="button", classes="secondary-action"))


def click_button(asked: str, screen: Screen) -> Moves:
    yield click(screen.first(tag="button", text=quoted(asked)[0]))


def click_link(asked: str, screen: Screen) -> Moves:
    yield click(screen.first(classes="alink", text=quoted(asked)[0]))


def click_tab(asked: str, screen: Screen) -> Moves:
    yield click(screen.first(tag="a", text=_between(asked, "Click on ", r"\.")))


def search_tabs(asked: str, screen: Screen) -> Moves:
    for number, tab in enumerate(screen.all(tag="a", classes="ui-tabs-anchor")):
        if number:
            screen = yield click(tab)
        if screen.all(classes="alink", text=quoted(asked)[0]):
            break
    yield from click_link(asked, screen)


def search_sections(asked: str, screen: Screen) -> Moves:
    for heading in screen.all(tag="h3"):
        screen = yield click(heading)
        if screen.all(classes="alink", text=quoted(asked)[0]):
            break
    yield from click_link(asked, screen)


def click_choices(asked: str, screen: Screen) -> Moves:
    for name in _listed(asked, " and click Submit"):
        screen = yield click(screen.inside(screen.first(tag="label", text=name)).first(tag="input"))
    yield _submit(screen)


def select_options(asked: str, screen: Screen) -> Moves:
    for name in _listed(asked, " from the "):
        screen = yield Move("select", screen.first(tag="select"), name)
    yield _submit(screen)


def click_dialog(asked: str, screen: Screen) -> Moves:
    name = quoted(asked)[0]
    closing = screen.all(tag="button", classes="ui-dialog-titlebar-close")
    yield click(closing[0] if name == "x" and closing else screen.first(tag="button", text=name))


def click_widget(asked: str, screen: Screen) -> Moves:
    name = quoted(asked)[0]
    yield click(screen.first(tag=name) if name in ("button", "textarea") else screen.first(tag="input", kind=name))


def click_color(asked: str, screen: Screen) -> Moves:
    color = _between(asked, "Click on the ", " colored box")
    yield click(any_of(box for box in screen.all(classes="color") if box.color == color))


def click_coordinate(asked: str, screen: Screen) -> Moves:
    place = _between(asked, "coordinate ", r"\.$")
    yield click(any_of(point for point in screen.all(tag="circle") if point.id == place))


def focus_field(asked: str, screen: Screen) -> Moves:
    yield click(screen.all(tag="input", kind="text")[int(_between(asked, "the ", "(st|nd|rd)")) - 1])


def fill_in(asked: str, screen: Screen) -> Moves:
    """Return the quoted strings in order, repeating the last one for remaining fields."""
    texts = quoted(asked)
    fields = [field for field in screen.all(tag="input") if field.kind in ("text", "password")]
    for number, field in enumerate(fields):
        text = texts[min(number, len(texts) - 1)]
        screen = yield Move("type", field, text)
    yield _submit(screen)


def type_cased(asked: str, screen: Screen) -> Moves:
    text = quoted(asked)[0]
    cased = text.upper() if "upper case" in asked else text.lower()
    screen = yield Move("type", screen.first(tag="input", kind="text"), cased)
    yield _submit(screen)


def enter_date(asked: str, screen: Screen) -> Moves:
    screen = yield Move("type", screen.first(tag="input", kind="date"), _between(asked, "Enter ", " as the date"))
    yield _submit(screen)


def enter_time(asked: str, screen: Screen) -> Moves:
    said = re.sub(r"\s", "", _between(asked, "Enter ", " as the time"))
    screen = yield Move("type", screen.first(tag="input", kind="time"), said.zfill(len("12:00PM")))
    yield _submit(screen)


def find_word(asked: str, screen: Screen) -> Moves:
    words = screen.first(tag="p").text.split()
    word = words[int(_between(asked, "Find the ", "(st|nd|rd|th) word")) - 1]
    screen = yield Move("type", screen.first(tag="input"), re.sub("[^a-zA-Z]", "", word))
    yield _submit(screen)


def read_table(asked: str, screen: Screen) -> Moves:
    name = screen.first(tag="td", text=_between(asked, "the value of ", " into"))
    value = screen.all(tag="td")[screen.all(tag="td").index(name) + 1]
    screen = yield Move("type", screen.first(tag="input"), value.text)
    yield _submit(screen)


def complete(asked: str, screen: Screen) -> Moves:
    start, *rest = quoted(asked)
    screen = yield Move("type", screen.first(tag="input"), start)
    end = rest[0] if rest else ""
    offered = screen.all(tag="li", classes="ui-menu-item")
    screen = yield click(any_of(item for item in offered if item.text.startswith(start) and item.text.endswith(end)))
    yield _submit(screen)


def search_results(asked: str, screen: Screen) -> Moves:
    place = int(_between(asked, "click the ", "(st|nd|rd|th) search")) - 1
    screen = yield Move("type", screen.first(tag="input"), quoted(asked)[0])
    screen = yield click(screen.first(tag="button", text="Search"))
    page, place = divmod(place, 3)  # results of a page
    if page:
        screen = yield click(screen.first(tag="a", text=str(page + 1)))
    yield click(screen.all(classes="search-title")[place])


def search_folders(asked: str, screen: Screen) -> Moves:
    name = quoted(asked)[0]
    opened: set[int] = set()
    while not (found := [one for one in screen.all(tag="span") if one.text == name]):
        folder = any_of(folder for folder in screen.all(classes="folder") if folder.number not in opened)
        opened.add(folder.number)
        screen = yield click(folder)
    yield click(found[0])


def search_contacts(asked: str, screen: Screen) -> Moves:
    name, detail = _between(asked, "Find ", " in the"), _between(asked, "on their ", r"( number)?\.$")
    seen: set[str] = set()
    while (shown := screen.first(classes="name").text) != name:
        if shown in seen:
            raise Lost
        seen.add(shown)
        screen = yield click(screen.first(tag="a", text=">"))
    yield click(screen.first(tag="a", classes=detail))


def handle_email(asked: str, screen: Screen) -> Moves:
    name = _between(asked, "email by ", " and ")
    sender = screen.first(classes="email-sender", text=name)
    thread = any_of(one for one in screen.around(sender) if "email-thread" in one.classes)
    icon = "trash" if "trash icon" in asked else "star" if "star icon" in asked else ""
    if icon:
        yield click(screen.inside(thread).first(classes=icon))
        return
    screen = yield click(sender)
    if "forward" in asked:
        screen = yield click(screen.first(classes="email-forward"))
        field, text = screen.first(classes="forward-sender"), _between(asked, "that email to ", r"\.$")
    else:
        screen = yield click(screen.first(classes="email-reply"))
        field, text = screen.first(tag="textarea"), quoted(asked)[0]
    screen = yield Move("type", field, text)
    yield click(any_of(one for one in screen.elements if one.id in ("send-reply", "send-forward")))


def handle_post(asked: str, screen: Screen) -> Moves:
    name, wanted = _between(asked, "For the user ", ","), quoted(asked)[0]
    user = screen.first(classes="username", text=name)
    post = any_of(one for one in screen.around(user) if "media" in one.classes)
    if wanted in ("Reply", "Retweet", "Like"):
        yield click(screen.inside(post).first(classes=wanted.lower()))
        return
    screen = yield click(screen.inside(post).first(classes="more"))
    yield click(any_of(item for item in screen.inside(post).all(tag="li") if item.text.startswith(wanted)))


def search_films(asked: str, screen: Screen) -> Moves:
    asked_for = {
        "genre": _between(asked, "Search for ", " movies"),
        "director": _between(asked, "directed by ", " from"),
        "year|date": _between(asked, "from year ", r"\.$"),
    }
    for field in screen.all(tag="input", kind="text"):
        label = next(one.text for one in screen.around(field) if one.text)
        text = next(text for name, text in asked_for.items() if re.search(name, label, re.IGNORECASE))
        screen = yield Move("type", field, text)
    yield click(any_of(one for one in screen.elements[::-1] if re.fullmatch("Search|Submit|Go!", one.text)))


EXPERTS: dict[str, Expert] = {
    "choose-list": select_options,
    "click-button": click_button,
    "click-checkboxes": click_choices,
    "click-checkboxes-large": click_choices,
    "click-collapsible-2": search_sections,
    "click-color": click_color,
    "click-dialog-2": click_dialog,
    "click-link": click_link,
    "click-option": click_choices,
    "click-scroll-list": select_options,
    "click-tab": click_tab,
    "click-tab-2": search_tabs,
    "click-widget": click_widget,
    "email-inbox": handle_email,
    "enter-date": enter_date,
    "enter-password": fill_in,
    "enter-text": fill_in,
    "enter-text-2": type_cased,
    "enter-time": enter_time,
    "find-word": find_word,
    "focus-text-2": focus_field,
    "grid-coordinate": click_coordinate,
    "login-user": fill_in,
    "multi-layouts": search_films,
    "navigate-tree": search_folders,
    "phone-book": search_contacts,
    "read-table": read_table,
    "search-engine": search_results,
    "social-media": handle_post,
    "use-autocomplete": complete,
}
