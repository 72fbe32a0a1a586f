"""Web page (Gradio), mounted beside the server's routes: a tab for each kind of capability of the runs.

Its requests use the same queue and limits as those of the server.
"""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr
from fastapi import FastAPI

from polymodal.serving.page import boxes_tab, chat_tab, classes_tab, examples_tab, search_tab, training_tab
from polymodal.serving.page.blocks import GuardedBlocks
from polymodal.serving.page.guard import PAGE
from polymodal.serving.page.header import header
from polymodal.serving.page.html import STYLE
from polymodal.serving.service import Service

TABS = (search_tab.tab, chat_tab.tab, boxes_tab.tab, classes_tab.tab)  # where visitors try a run
INSTEAD = examples_tab.tab  # for runs that no other tab is for


def mount_page(app: FastAPI, services: Sequence[Service], api_key: str | None) -> None:
    """Mount the page at /page. With an API key, it is the password of the user `polymodal`."""
    page, login = build_page(services), ("polymodal", api_key) if api_key else None
    largest = services[0].limits.body_bytes
    gr.mount_gradio_app(app, page, PAGE, auth=login, max_file_size=largest, css=STYLE, footer_links=[])
    page.mark_as_launched()


def build_page(services: Sequence[Service]) -> GuardedBlocks:
    """Build the page. services: the served run first; others are shown beside it."""
    tabs = [tab for tab in TABS if tab.runs(services)] or [INSTEAD]
    with GuardedBlocks(title=f"polymodal: {services[0].run.name}") as page:
        gr.HTML(header(services), js_on_load=None)
        for tab in [*tabs, training_tab.tab]:
            if runs := tab.runs(services):
                with gr.Tab(tab.title):
                    tab.build(runs)
    return page
