"""One peer: what it says of itself, and what to mend."""

from __future__ import annotations

import asyncio
from dataclasses import astuple

from nicegui import ui

from node.dashboard.dashboard import Dashboard
from node.dashboard.pages.elements import EventsElement
from node.dashboard.pages.frame import frame, heading
from node.dashboard.pages.orders_card import OrdersCard
from node.dashboard.pages.tables import Redrawn, fact_list, table
from node.dashboard.pages.visit import dashboard_here, keep_up
from node.watching import abouts
from node.watching.changes import label
from node.watching.look import links
from node.watching.peer_facts import facts, fixes, units
from protocols.about import About
from protocols.errors import SwarmError
from protocols.words import one_line

HEADS = ("unit", "model", "state", "precision", "step", "one block", "waiting", "free tokens", "could host")

ABOUT_S = 2.0
"""Between two questions to the peer about itself, while its page is open."""

MAX_TOLD = 300
"""Letters of why it does not say anything."""

GONE = "this peer is not announced now; what is below is the last that was seen of it"
UNKNOWN = "no such peer is announced, and none was seen since this page was opened for the first time; the map has those that are"


def register() -> None:
    """Give the page its address."""
    ui.page("/peer/{peer}")(show)


def show(peer: str, order: str = "") -> None:
    """Build the page for one visitor. order: what the visitor is asked to confirm at once, as the map's menu says it."""
    with frame("Peer"):
        Peer(dashboard_here(), peer[:100], order[:20])


class Peer:
    """What one visitor sees of a peer."""

    def __init__(self, dashboard: Dashboard, peer: str, order: str) -> None:
        self._watcher, self._peer, self._was_seen = dashboard.watcher, peer, False
        with ui.element("h1").classes("mm-h1"):
            self._title = ui.label()
        self._gone = ui.label().classes("mm-problem").props('role="status"')
        with ui.element("div") as self._cards:
            self._draw_cards(dashboard, order)
        self._about: About | None = None
        asking = asyncio.create_task(self._ask_always(), name="asking a peer about itself")
        ui.context.client.on_delete(asking.cancel)
        keep_up(self._draw, 0.5)

    def _draw_cards(self, dashboard: Dashboard, order: str) -> None:
        with ui.element("section").classes("mm-card").props('aria-label="Facts"'):
            self._fixes, self._facts = Redrawn(), Redrawn()
        self._orders = None if dashboard.operating is None else OrdersCard(dashboard, dashboard.operating, self._peer, order)
        with ui.element("section").classes("mm-card").props('aria-label="Machine and work"'):
            heading("Machine and work, as it says")
            self._about_told = ui.label("asking it").classes("mm-quiet").props('role="status"')
            self._said = Redrawn()
        with ui.element("section").classes("mm-card").props('aria-label="Hosted units"'):
            self._units = Redrawn()
        with ui.element("section").classes("mm-card").props('aria-label="Round trips"'):
            self._links = Redrawn()
        with ui.element("section").classes("mm-card").props('aria-label="Events"'):
            heading("Events")
            self._events = EventsElement()

    async def _ask_always(self) -> None:
        while True:
            source, record = self._watcher.source, self._watcher.look.peer(self._peer)
            if source is not None and record is not None:
                try:
                    self._about = await abouts.ask(source.pool, record)
                    self._about_told.set_text("")
                except SwarmError as error:
                    self._about_told.set_text(one_line(f"it does not say more of itself: {error}")[:MAX_TOLD])
                self._about_told.set_visibility(bool(self._about_told.text))
            await asyncio.sleep(ABOUT_S)

    def _draw(self) -> None:
        look = self._watcher.look
        record = look.peer(self._peer)
        changes = [one for one in self._watcher.changes if one.peer == self._peer]
        self._events.show(changes, len(changes))
        is_known = record is not None or bool(changes) or self._was_seen
        self._gone.set_text("" if record else GONE if is_known else look.problem or UNKNOWN)
        self._gone.set_visibility(record is None)
        self._cards.set_visibility(is_known)
        if self._orders is not None:
            self._orders.draw()
        if record is None:
            self._title.set_text(one_line(self._peer))
            return
        self._was_seen = True
        self._title.set_text(label(record.name, record.peer))
        said, mended = list(facts(record, look)), list(fixes(record, look))
        if self._facts.is_new(said):
            with self._facts.box:
                fact_list(said)
        if self._fixes.is_new(mended):
            with self._fixes.box, ui.element("ul").classes("mm-fixes").props('aria-label="What to mend"'):
                for text in mended:
                    with ui.element("li"):
                        ui.label(text)
        self._draw_about()
        rows = [astuple(row) for row in units(record)]
        if self._units.is_new(rows):
            with self._units.box:
                table("What it hosts", HEADS, rows, num_texts=4)
        names = {one.peer: label(one.name, one.peer) for one in look.records.values()}
        trips = [link for link in links(look, names.keys()) if self._peer in (link.start, link.stop)]
        lines = [(f"{names[link.start] if link.start else 'here'} → {names[link.stop]}", f"{link.ms:.1f}") for link in trips]
        if self._links.is_new(lines):
            with self._links.box:
                table("Measured round trips", ("link", "ms"), lines)

    def _draw_about(self) -> None:
        if self._about is None:
            return
        lines = [*abouts.machine(self._about), *abouts.work(self._about)]
        if self._said.is_new(lines):
            with self._said.box:
                fact_list(lines)
