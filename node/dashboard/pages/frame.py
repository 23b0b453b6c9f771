"""The frame of every page: its head, the ways to others, style."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nicegui import ui

from node.dashboard.pages.visit import dashboard_here, home_here

STYLE = Path(__file__).with_name("style.css").read_text()

PAGES = (("", "Map"), ("chat", "Chat"), ("training", "Training"), ("what-if", "What-if"))
"""Address below the first page, and name."""


@contextmanager
def frame(name: str) -> Iterator[None]:
    """The page `name`; what is made within stands in its main part."""
    ui.page_title(f"{name}: Murmuration")
    ui.add_head_html('<meta name="description" content="A swarm that runs a large language model">')
    ui.add_css(STYLE)
    ui.context.client.page.language = "en-US"
    home = home_here()
    with ui.element("header").classes("mm-head"):
        ui.link("Skip to the content", "#content").classes("mm-skip")
        link("Murmuration", home).classes("mm-title")
        with ui.element("nav").props('aria-label="Pages"'):
            for address, text in PAGES:
                made = link(text, home + address)
                if text == name:
                    made.props('aria-current="page"')
        ui.label(f"swarm {dashboard_here().swarm}").classes("mm-swarm")
    with ui.element("main").classes("mm-main").props('id="content" tabindex="-1"'):
        yield


def link(text: str, address: str) -> ui.element:
    """A plain one: NiceGUI's puts the prefix of the pages before an address that has it already."""
    with ui.element("a").props(f'href="{address}"') as made:
        ui.label(text)
    return made


def button(text: str, on_click: Callable[[], object]) -> ui.element:
    """A plain one: the browser makes it work with keys, and our style gives it enough contrast."""
    with ui.element("button").classes("mm-button").props('type="button"').on("click", on_click) as made:
        ui.label(text)
    return made


def heading(text: str) -> None:
    """A heading within a page."""
    with ui.element("h2"):
        ui.label(text)
