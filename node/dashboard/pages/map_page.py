"""The map: which node serves which blocks, gaps, links and events."""

from __future__ import annotations

from collections.abc import Mapping

from nicegui import ui

from node.dashboard.dashboard import Dashboard
from node.dashboard.operating import Operating
from node.dashboard.pages.elements import EventsElement, GridElement
from node.dashboard.pages.frame import button, frame, heading
from node.dashboard.pages.order_texts import offered
from node.dashboard.pages.visit import dashboard_here, home_here, keep_up, visitor_here
from node.watching.changes import label
from node.watching.grid import LOADS, grid_of
from node.watching.look import Look, links
from node.watching.model_rows import ModelRows
from node.watching.verdict import verdict
from protocols.words import one_line

MAX_LINKS = 40
"""Links that are listed, the slowest first."""


def register() -> None:
    """Give the page its address."""
    ui.page("/")(show)


def show() -> None:
    """Build the page for one visitor."""
    with frame("Map"):
        with ui.element("h1").classes("mm-only-read"):
            ui.label("Map of the swarm")
        Map(dashboard_here(), home_here()).draw_always()


class Map:
    """What one visitor sees of a swarm."""

    def __init__(self, dashboard: Dashboard, home: str) -> None:
        self._dashboard, self._home, self._visitor = dashboard, home, visitor_here()
        self._problem = ui.label().classes("mm-problem").props('role="status"')
        self._models = ui.element("div")
        self._drawn: dict[tuple[str, str], Model] = {}
        self._look: Look | None = None
        _legend()
        with ui.element("section").props('aria-label="Events"').classes("mm-card"):
            heading("Events")
            self._events = EventsElement()

    def draw_always(self) -> None:
        """Until the visitor leaves."""
        keep_up(self._draw)

    def _draw(self) -> None:
        watcher = self._dashboard.watcher
        self._events.show(watcher.changes, watcher.num_changes)
        if watcher.look is self._look:
            self._draw_menus()
            return
        look = self._look = watcher.look
        self._problem.set_text(one_line(look.problem) or ("" if look.models else self._nobody()))
        self._problem.set_visibility(bool(self._problem.text))
        keys = {(rows.name, rows.digest): rows for rows in look.models}
        for key in self._drawn.keys() - keys.keys():
            self._drawn.pop(key).delete()
        for key, rows in keys.items():
            if key not in self._drawn:
                with self._models:
                    self._drawn[key] = Model(rows, look, self._dashboard, self._home)
            self._drawn[key].draw(rows, look)
        self._draw_menus()

    def _draw_menus(self) -> None:
        """What this visitor may order at each node, by its PeerID."""
        operating = self._dashboard.operating
        may = {} if operating is None or operating.visitor(self._visitor) is None else menus(operating, self._look)
        for model in self._drawn.values():
            model.draw_menus(may)

    def _nobody(self) -> str:
        return f"no node serves any model in swarm {self._dashboard.swarm}; be the first: {self._dashboard.hosting.text('MODEL')}"


class Model:
    """One model's part of the map."""

    def __init__(self, rows: ModelRows, look: Look, dashboard: Dashboard, home: str) -> None:
        self._dashboard = dashboard
        self._card = ui.element("section").classes("mm-card").props('aria-label="Model"')
        with self._card:
            with ui.element("div").classes("mm-line"):
                heading(one_line(rows.name))
                ui.label(f"@{rows.digest[:12]}, {rows.num_blocks} blocks").classes("mm-quiet")
            self._verdict = ui.label().classes("mm-verdict").props('role="status"')
            with ui.element("div").classes("mm-command") as self._fill:
                self._command = ui.element("code")
                button("Copy", self._copy).props('aria-label="Copy the command"')
            self._grid = GridElement(grid_of(rows, look), home)
            with ui.element("details").classes("mm-links"):
                with ui.element("summary"):
                    ui.label("Links, with measured round trips")
                self._links = ui.element("ul")
        self._shown_links: tuple[str, ...] = ()
        self._line = ""

    def delete(self) -> None:
        """Take it off the page."""
        self._card.delete()

    def draw(self, rows: ModelRows, look: Look) -> None:
        """As it is now."""
        self._grid.show(grid_of(rows, look))
        said, *command = verdict(rows, self._dashboard.hosting)
        self._verdict.set_text(one_line(said))
        self._verdict.classes(replace="mm-verdict " + ("mm-bad" if command else "mm-good"))
        self._fill.set_visibility(bool(command))
        line = one_line(command[0]) if command else ""
        if line != self._line:
            self._line = line
            self._command.clear()
            with self._command:
                ui.label(line)
        self._draw_links(rows, look)

    def draw_menus(self, menus: Mapping[str, list[tuple[str, str]]]) -> None:
        """By PeerID: orders that may be given, each with its address's last word and its name."""
        self._grid.show_menus(menus)

    def _draw_links(self, rows: ModelRows, look: Look) -> None:
        names = {row.peer: label(row.name, row.peer) for row in rows.peers}
        lines = tuple(
            f"{names[link.start] if link.start else 'here'} → {names[link.stop]}: {link.ms:.1f} ms"
            for link in links(look, names.keys())[:MAX_LINKS]
        )
        if lines != self._shown_links:
            self._shown_links = lines
            self._links.clear()
            with self._links:
                for line in lines:
                    with ui.element("li"):
                        ui.label(line)

    def _copy(self) -> None:
        ui.clipboard.write(self._line)
        ui.notify("copied")


def menus(operating: Operating, look: Look | None) -> dict[str, list[tuple[str, str]]]:
    """What the operator may order at each node that is seen and obeys."""
    known = {peer: operating.known(peer) for peer in (look.records if look else ())}
    return {peer: offered(reply) for peer, reply in known.items() if reply is not None}


def _legend() -> None:
    with ui.element("ul").classes("mm-legend").props('aria-label="Colours"'):
        kinds = [(f"mm-serving mm-load-{level}", word) for level, word in enumerate(LOADS)]
        for classes, text in (
            *kinds,
            ("mm-joining", "loads"),
            ("mm-draining", "no new sessions"),
            ("mm-silent", "does not answer"),
            ("mm-missing", "missing"),
        ):
            with ui.element("li"):
                ui.element("span").classes(f"mm-bar {classes}").props('aria-hidden="true"')
                ui.label(text)
