"""Tasks on web pages: experts find what they are asked for, and what is stored leads to the task's full reward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_modules import module
from polymodal.corpora import _web_experts as experts
from polymodal.corpora._packages import fetch, members, unpack
from polymodal.corpora._web_screen import Element, Lost, Screen
from polymodal.modalities import Actions, Webpage

tasks = module("web_tasks")


def element(number: int, tag: str, text: str = "", classes: str = "", parent: int = -1, kind: str = "") -> Element:
    return Element(number, parent, tag, text, tuple(classes.split()), kind, "", "")


def test_a_link_is_looked_for_behind_tabs_and_the_search_ends_where_it_is() -> None:
    tabs = [element(number, "a", f"Tab #{number + 1}", "ui-tabs-anchor") for number in range(3)]
    link = element(9, "span", "amet", "alink")
    moves = experts.search_tabs('Find and click on the link "amet".', Screen((*tabs, element(8, "span", "dolor"))))
    first = next(moves)
    assert (first.name, first.element) == ("click", tabs[1])
    assert moves.send(Screen((*tabs, link))).element == link
    with pytest.raises(StopIteration):
        moves.send(Screen((*tabs, link)))


def test_an_icon_is_that_of_the_email_which_is_asked_for() -> None:
    emails: list[Element] = []
    for thread, name in ((0, "Ann"), (10, "Bea")):
        emails += [
            element(thread, "div", name, "email-thread"),
            element(thread + 1, "div", name, "email-sender", parent=thread),
            element(thread + 2, "span", classes="trash", parent=thread),
        ]
    asked = "Find the email by Bea and click the trash icon to delete it."
    assert next(experts.handle_email(asked, Screen(tuple(emails)))).element.number == 12


def test_fields_are_filled_in_the_order_of_the_instruction() -> None:
    fields = [element(0, "input", kind="text"), element(1, "input", kind="password")]
    screen = Screen((*fields, element(2, "button", "Login", "secondary-action")))
    moves = experts.fill_in('Enter the username "vina" and the password "x1" and press login.', screen)
    made = [next(moves), moves.send(screen), moves.send(screen)]
    assert [(move.name, move.element.number, move.text) for move in made] == [
        ("type", 0, "vina"),
        ("type", 1, "x1"),
        ("click", 2, ""),
    ]


def test_what_is_not_there_is_lost() -> None:
    with pytest.raises(Lost):
        next(experts.click_button('Click on the "Yes" button.', Screen((element(0, "button", "No"),))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("miniwob")
    unpack(members(fetch(tasks.PACKAGE, "tests"), lambda name: name.startswith("miniwob/html/")), root)
    return root / "miniwob/html/miniwob"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with tasks.browser(tasks.WIDTH, tasks.HEIGHT) as opened:
        yield opened


@pytest.mark.corpora
@pytest.mark.parametrize("task", tasks.EXPERTS)
def test_an_expert_solves_its_task_and_again_alike(task: str, folder: Path, driver: Any) -> None:
    driver.get((folder / f"{task}.html").as_uri())
    instruction, steps = tasks.play(driver, tasks.EXPERTS[task], "a seed")
    assert instruction
    assert steps
    for number, step in enumerate(steps):
        (action,) = Actions(tasks.NAMES).decode(step["action"])
        assert 0 <= action.target < len(Webpage().decode(step["elements"]))
        assert len(step["before"]) == number
    again, same = tasks.play(driver, tasks.EXPERTS[task], "a seed")
    assert again == instruction
    assert [step["action"] for step in same] == [step["action"] for step in steps]


@pytest.mark.corpora
def test_the_target_is_the_element_that_is_named(folder: Path, driver: Any) -> None:
    driver.get((folder / "click-button.html").as_uri())
    for seed in range(5):
        instruction, (step,) = tasks.play(driver, tasks.EXPERTS["click-button"], str(seed))
        node = Webpage().decode(step["elements"])[step["action"][0]["target"]]
        assert (node.tag, node.text) == ("button", experts.quoted(instruction)[0])


@pytest.mark.corpora
def test_an_expert_that_does_wrong_gives_nothing(folder: Path, driver: Any) -> None:
    def wrong(asked: str, screen: Screen) -> experts.Moves:
        yield experts.click(next(one for one in screen.all(tag="button") if one.text != experts.quoted(asked)[0]))

    driver.get((folder / "click-dialog-2.html").as_uri())
    assert tasks.play(driver, wrong, "a seed")[1] == []
