"""Answers orders: whom this node obeys, and what it does.

A node obeys the peers that its owner has listed (`--operators`) and no other peer: there is no key that rules a swarm. Who calls is proved
by the channel (`swarm/rpc/auth.py`). One order is carried out at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from node.events import Event, OnEvent
from node.placement.announcing import Announcement
from node.serving.dispatcher import Dispatcher
from node.serving.handover import IDLE_CHECK_S
from protocols import services
from protocols.defaults import DRAIN_S
from protocols.errors import BadRequestError, DrainingError, NotAllowedError, SwarmError
from protocols.ids import PeerId, short_peer
from protocols.orders import ACTIONS, Order, OrderReply
from protocols.words import counted
from swarm import files
from swarm.bans import Bans
from swarm.peer.peer import Peer
from swarm.rpc.call import Call, Handler
from swarm.tasks import Tasks

log = logging.getLogger(__name__)

KILL_S = 0.1
"""Seconds from the answer to `kill` until the process is killed: the answer must have been sent."""


def bans_file(data_dir: Path, peer: PeerId) -> Path:
    """Where a node keeps whom its operators have banned; several nodes may have one data directory."""
    return data_dir / f"bans-{peer}.json"


def pause_file(data_dir: Path, peer: PeerId) -> Path:
    """It is there while an operator's pause lasts, so that a restart does not end it."""
    return data_dir / f"paused-{peer}"


class Orders:
    """Of one node: `keep` as soon as there is a peer, `connect` when it has met others; orders that come before are refused."""

    def __init__(
        self, dispatcher: Dispatcher, bans: Bans, on_event: OnEvent, *, is_test: bool = False, drain_s: float = DRAIN_S
    ) -> None:
        """bans: those of the peer's gate. is_test: a node of a test swarm, which `kill` may end."""
        self._dispatcher, self._bans, self._on_event, self._is_test, self._drain_s = dispatcher, bans, on_event, is_test, drain_s
        self._peer: Peer | None = None
        self._pause_file: Path | None = None
        self._announcement: Announcement | None = None
        self._lifetime = asyncio.timeout(None)
        self._one_at_a_time = asyncio.Lock()
        self._tasks = Tasks()

    def keep(self, peer: Peer, data_dir: Path) -> None:
        """Bans and a pause of earlier runs hold from now on. ConfigError if the file of bans is damaged.

        A pause holds only if there are operators: else it could be ended by hand only.
        """
        self._bans.keep_in(bans_file(data_dir, peer.peer_id))
        peer.gate.renew_bans()
        self._pause_file = pause_file(data_dir, peer.peer_id)
        if self._pause_file.exists() and peer.gate.access.operators:
            self._dispatcher.is_paused = True
            self._on_event(Event("order", f"still paused by an operator, since before this start, until `swarm operator resume`; "
                                          f"or remove {self._pause_file} and start again"))  # fmt: skip

    def connect(self, peer: Peer, announcement: Announcement) -> None:
        """The node has met others: carry out orders from now on."""
        self._peer, self._announcement = peer, announcement
        announcement.is_paused = self._dispatcher.is_paused

    @contextlib.asynccontextmanager
    async def until_left(self) -> AsyncIterator[None]:
        """The node runs within this block. An order to leave cancels what runs there, and the block ends without an exception."""
        try:
            async with self._lifetime:
                yield
        except TimeoutError:
            if not self._lifetime.expired():
                raise
        finally:
            await self._tasks.stop()

    def handlers(self) -> dict[str, Handler]:
        """By method name, for the peer's server."""
        return {services.ORDER.name: self._answer}

    async def _answer(self, request: bytes, call: Call) -> bytes:
        peer = self._peer
        if peer is None:
            raise DrainingError("this node is still starting: order again in a moment")
        if not peer.gate.access.may_order(call.peer):
            raise NotAllowedError(_not_an_operator(call.peer))
        order = Order.parse(request)
        if order.action not in self._may():
            raise NotAllowedError(
                "`kill` is for test swarms, and this node was started without --test-swarm; `drain` ends it in order"
            )
        async with self._one_at_a_time:
            done = "" if order.action == "ask" else await self._obey(order, call.peer, peer)
        if done:
            log.info("operator %s ordered %s: %s", call.peer, order.action, done)
            self._on_event(Event("order", f"{order.action}, by operator {call.peer}: {done}"))
        return OrderReply(done=done, may=self._may(), state=self._state, bans=self._bans.listed()).encode()

    def _may(self) -> tuple[str, ...]:
        return tuple(action for action in ACTIONS if action != "kill" or self._is_test)

    @property
    def _state(self) -> str:
        assert self._announcement is not None
        return "leaving" if self._announcement.is_leaving else "paused" if self._dispatcher.is_paused else "serving"

    async def _obey(self, order: Order, operator: PeerId, peer: Peer) -> str:
        """Carry it out. Returns what was done, in words for people."""
        match order.action:
            case "pause":
                return await self._pause(True)
            case "resume":
                return await self._pause(False)
            case "drain":
                return await self._drain()
            case "kill":
                asyncio.get_running_loop().call_later(KILL_S, os.kill, os.getpid(), signal.SIGKILL)
                return "its process ends now, as by kill -9"
            case "ban":
                assert order.peer is not None
                return await self._ban(order.peer, order.seconds, operator, peer)
            case _:
                assert order.action == "unban" and order.peer is not None
                was_banned = self._bans.lift(order.peer)
                peer.gate.renew_bans()
                return f"{short_peer(order.peer)} {'is banned no more' if was_banned else 'was not banned'}"

    async def _pause(self, is_paused: bool) -> str:
        assert self._announcement is not None
        if self._announcement.is_leaving:
            raise DrainingError("this node is leaving already, and takes no sessions any more")
        self._dispatcher.is_paused = self._announcement.is_paused = is_paused
        problem = await asyncio.to_thread(self._keep_pause, is_paused)
        await self._announce()
        if not is_paused:
            return f"takes new sessions again{problem}"
        going_on = f", {self._open_sessions()} served to the end" if self._dispatcher.num_sessions else ""
        return f"paused: no new session begins{going_on}{problem}"

    def _keep_pause(self, is_paused: bool) -> str:
        """For the next start; what is wrong with that, in words."""
        assert self._pause_file is not None
        try:
            if is_paused:
                files.replace(self._pause_file, "An operator has paused this node; `swarm operator resume` removes this file.\n")
            else:
                self._pause_file.unlink(missing_ok=True)
        except OSError as error:
            return f"; only until its restart, since {self._pause_file} cannot be changed: {error.strerror}"
        return ""

    async def _drain(self) -> str:
        assert self._announcement is not None
        if not self._announcement.is_leaving:
            self._dispatcher.is_paused = self._announcement.is_leaving = True
            self._tasks.keep(self._leave(), "leaving by an order")
        if not self._dispatcher.num_sessions:
            return "leaves the swarm: no session is open"
        return f"leaves the swarm: {self._open_sessions()} served here for {self._drain_s:.0f} s at most, then by other nodes"

    async def _announce(self) -> None:
        """Tell the swarm the new state. If that fails, the next renewal of the record tells it, within RECORD_RENEW_S."""
        assert self._announcement is not None
        with contextlib.suppress(SwarmError):
            await self._announcement.tell()

    async def _leave(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self._announce()
                while self._dispatcher.num_sessions:  # noqa: ASYNC110  (sessions end in many ways)
                    await asyncio.sleep(IDLE_CHECK_S)
        self._lifetime.reschedule(asyncio.get_running_loop().time())

    async def _ban(self, banned: PeerId, seconds: int, operator: PeerId, peer: Peer) -> str:
        if banned in (peer.peer_id, operator) or banned in peer.gate.access.operators:
            who = "this node itself" if banned == peer.peer_id else "an operator of this node: its owner takes it off the list"
            raise BadRequestError(f"{short_peer(banned)} is not banned: it is {who}")
        self._bans.add(banned, seconds)
        peer.gate.renew_bans()
        await peer.pool.forget_refused()
        return f"{short_peer(banned)} is refused and not called for {counted(seconds, 'second')}"

    def _open_sessions(self) -> str:
        number = self._dispatcher.num_sessions
        return f"{counted(number, 'open session')} {'is' if number == 1 else 'are'}"


def _not_an_operator(peer: PeerId) -> str:
    return (
        f"this node takes no orders from {peer}: it obeys the peers that its owner lists in a file, one PeerID a line "
        "(swarm node --operators FILE), and you are not among them"
    )
