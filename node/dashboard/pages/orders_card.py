"""The part of a peer's page where an operator orders.

It is shown to visitors who may give orders, and asks before each one what is about to happen.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from nicegui import ui

from node.dashboard.dashboard import Dashboard
from node.dashboard.operating import Operating, OrderRefusedError
from node.dashboard.pages import order_texts
from node.dashboard.pages.frame import button, heading
from node.dashboard.pages.tables import Redrawn
from node.dashboard.pages.visit import visitor_here
from node.watching.changes import label
from node.watching.look import only_here
from protocols.errors import SwarmError
from protocols.ids import PeerId, parse_peer_id, short_peer
from protocols.orders import Ban, Order, OrderReply

CONFIRM = "mm-confirm"
"""The id of what asks: it gets the focus, so that it is read out."""

Act = Callable[[], Coroutine[None, None, str]]
"""Does it; what was done."""


class OrdersCard:
    """What one visitor may order at one node. `draw` it again and again."""

    def __init__(self, dashboard: Dashboard, operating: Operating, peer: str, wanted: str = "") -> None:
        """wanted: the order that is asked for as soon as it is known that it may be given."""
        self._dashboard, self._operating, self._peer, self._wanted = dashboard, operating, PeerId(peer), wanted
        self._visitor = visitor_here()
        with ui.element("section").classes("mm-card").props('aria-label="Operator"') as self._card:
            heading("Operator")
            self._state = ui.label().classes("mm-quiet")
            self._buttons, self._bans, self._asking = Redrawn(), Redrawn(), Redrawn()
            self._told = ui.label().props('role="status"')
        self._card.set_visibility(False)

    def draw(self) -> None:
        """As it is now."""
        may = self._operating.visitor(self._visitor) is not None
        self._card.set_visibility(may)
        if not may:
            self._asking.is_new(None)
            return
        reply = self._operating.known(self._peer)
        bans = self._operating.bans()
        here = tuple(ban for ban in bans or () if ban.peer == self._peer)
        none = "This node takes no orders from this page's operator: its owner has not listed it, or it was not reached yet."
        avoided = f" This gateway avoids it for {order_texts.left(here[0].seconds)} more." if here else ""
        self._state.set_text((none if reply is None else order_texts.STATES[reply.state]) + avoided)
        self._draw_buttons(reply, None if bans is None else bool(here))
        self._draw_bans(reply)
        if reply is not None and self._wanted:
            wanted, self._wanted = self._wanted, ""
            if wanted in dict(order_texts.offered(reply)):
                self._ask(wanted)

    def _draw_buttons(self, reply: OrderReply | None, is_avoided: bool | None) -> None:
        """is_avoided: by this gateway; None = there is none."""
        offered = order_texts.offered(reply) if reply else []
        if not self._buttons.is_new((offered, is_avoided)):
            return
        with self._buttons.box, ui.element("div").classes("mm-buttons"):
            for action, name in offered:
                made = button(f"{name}…", lambda action=action: self._ask(action))  # type: ignore[misc]
                made.classes("mm-danger" if action in order_texts.DANGEROUS else "mm-plain")
            if is_avoided is not None:
                name = "Let this gateway use it again…" if is_avoided else "Let this gateway avoid it…"
                button(name, lambda: self._ask_here(is_avoided)).classes("mm-plain")

    def _draw_bans(self, reply: OrderReply | None) -> None:
        bans = reply.bans if reply else ()
        if not self._bans.is_new([(ban.peer, order_texts.left(ban.seconds)) for ban in bans]) or not bans:
            return
        with self._bans.box, ui.element("ul").classes("mm-bans").props('aria-label="Peers that it bans"'):
            for ban in bans:
                with ui.element("li"):
                    ui.label(f"bans {self._named(ban.peer)} for {order_texts.left(ban.seconds)} more")
                    button("Lift…", lambda ban=ban: self._ask_lift(ban)).classes("mm-plain")  # type: ignore[misc]

    # --- what is asked

    def _ask(self, action: str) -> None:
        alone = only_here(self._dashboard.watcher.look, self._peer)
        text = order_texts.question(action, self._named(self._peer), alone)
        if action == "ban":
            self._confirm(text, order_texts.NAMES[action], self._fields_of_ban)
        else:
            self._confirm(text, order_texts.NAMES[action], lambda: lambda: self._order(Order(action=action)), action)

    def _ask_lift(self, ban: Ban) -> None:
        text = f"Lift the ban of {self._named(ban.peer)} at {self._named(self._peer)}? {order_texts.SAYS['unban']}"
        self._confirm(text, "Lift the ban", lambda: lambda: self._order(Order(action="unban", peer=ban.peer)))

    def _ask_here(self, is_avoided: bool) -> None:
        who = self._named(self._peer)
        if is_avoided:
            self._confirm(f"Answers of this gateway may go over {who} again.", "Use it again", lambda: lambda: self._avoid(0))
            return
        text = f"No answer of this gateway goes over {who} for an hour; those that do now go on elsewhere. Other clients are not touched."
        self._confirm(text, "Avoid it", lambda: lambda: self._avoid(order_texts.SPANS_S[0][0]))

    def _confirm(self, text: str, verb: str, draw: Callable[[], Act], action: str = "") -> None:
        """Ask. draw: draws fields, if there are any, and gives what is done after a yes."""
        self._told.set_text("")
        self._asking.is_new(object())
        with self._asking.box, ui.element("div").classes("mm-confirm").props(f'id="{CONFIRM}" role="group" tabindex="-1"') as box:
            box.props('aria-label="Confirm the order"')
            ui.label(text)
            act = draw()
            with ui.element("div").classes("mm-buttons"):
                sure = button(f"Yes: {verb.lower()}", lambda: self._do(act))
                sure.classes("mm-danger" if action in order_texts.DANGEROUS else "")
                button("Cancel", self._cancel).classes("mm-plain")
        ui.run_javascript(f"setTimeout(() => document.getElementById('{CONFIRM}')?.focus(), 50)")

    def _fields_of_ban(self) -> Act:
        with ui.element("div").classes("mm-fields"):
            peer = ui.input("PeerID").props("outlined dense maxlength=52 stack-label").classes("mm-system")
            spans = dict(order_texts.SPANS_S)
            seconds = ui.select(spans, label="for", value=next(iter(spans))).props("outlined dense")

        async def ban() -> str:
            banned = parse_peer_id(str(peer.value or "").strip())
            return await self._order(Order(action="ban", peer=banned, seconds=int(seconds.value or 0)))

        return ban

    # --- what is done

    async def _do(self, act: Act) -> None:
        self._cancel()
        self._told.set_text("ordering")
        try:
            self._say(await act(), "mm-good")
        except (OrderRefusedError, SwarmError) as error:
            self._say(str(error), "mm-bad")
        self.draw()

    def _cancel(self) -> None:
        self._asking.is_new(None)

    def _say(self, text: str, classes: str) -> None:
        self._told.classes(replace=classes)
        self._told.set_text(text)

    async def _order(self, order: Order) -> str:
        return await self._operating.order(self._visitor, self._peer, order)

    async def _avoid(self, seconds: int) -> str:
        return self._operating.ban_here(self._visitor, self._peer, seconds)

    def _named(self, peer: PeerId) -> str:
        record = self._dashboard.watcher.look.peer(peer)
        return label(record.name, peer) if record else short_peer(peer)
