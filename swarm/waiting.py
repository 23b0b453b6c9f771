"""What a client or node waits for, as values.

And how others are told.

A part that may wait takes a slot of `Waits`, and sets it to what it waits for, or to None. The slot that was set last counts: that is
what `on_wait` hears of. Nothing is printed here; `node/cli/terminal/waiting.py` decides what a terminal or a script sees.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from protocols.ids import Span

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One thing that is waited for. `kind` and `text` stay the same while it lasts; how far it is may change."""

    kind: str
    """One word for programs: joining, converting, encoding, hashing, loading, fetching, finding, routing, missing, reading, answering,
    replaying, training, checking or asking."""

    text: str
    """The same for people, without an end of line."""

    done: int = 0
    total: int = 0
    """How far it is, in any unit; total 0 = unknown."""

    since_s: float = 0.0
    """When the wait began, on the monotonic clock; 0 if `route_timeout_s` is None."""

    route_timeout_s: float | None = None
    """Seconds after which the call gives up; None = another limit ends the wait."""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two values of the same wait."""
        return self.kind, self.text

    @property
    def percent(self) -> int | None:
        """Rounded down: 100 is the end."""
        return 100 * self.done // self.total if self.total else None

    def at(self, done: int, total: int) -> Wait:
        """The same wait, further on."""
        return replace(self, done=done, total=total)

    def __str__(self) -> str:
        return self.text if self.percent is None else f"{self.text}: {self.percent} %"


ANSWERING = Wait(kind="answering", text="waiting for the nodes' answer")
"""A step is at the nodes. Set and cleared with each token, so it is never logged."""

JOINING = Wait(kind="joining", text="joining the swarm")
READING = Wait(kind="reading", text="reading the prompt")
BESIDE = Wait(kind="routing", text="no answer yet: trying other nodes as well")
FOLLOWING = Wait(kind="replaying", text="the version is served no more: replaying on the newest")
READING_DATA = Wait(kind="encoding", text="encoding the text")
FIRST_VERSION = Wait(kind="training", text="computing the first version")
ROUTING = Wait(kind="routing", text="looking for a route")


def loading(what: str) -> Wait:
    return Wait(kind="loading", text=f"loading {what}")


def trying(span: Span) -> Wait:
    return Wait(kind="loading", text=f"trying which engine is exact on blocks {span}")


def converting(what: str) -> Wait:
    return Wait(kind="converting", text=f"converting {what}")


def hashing(what: str) -> Wait:
    return Wait(kind="hashing", text=f"hashing the weights of {what}, which is done once")


def asking(num_peers: int) -> Wait:
    return Wait(kind="asking", text=f"asking {num_peers} node{'' if num_peers == 1 else 's'} for a sign of life")


def fetching(what: str) -> Wait:
    return Wait(kind="fetching", text=f"fetching {what}")


def looking_up(name: str, since_s: float, route_timeout_s: float) -> Wait:
    """No node serves any block of this model."""
    return Wait(
        kind="finding", text=f"waiting for a node that serves {name[:120]}", since_s=since_s, route_timeout_s=route_timeout_s
    )


def missing(spans: Sequence[Span], since_s: float, route_timeout_s: float) -> Wait:
    """Some blocks are at no live node. No spans: each block is, but no route leads over all of them."""
    blocks = ", ".join(map(str, spans[:8]))
    text = f"waiting for blocks {blocks}, no live node hosts them" if spans else "waiting for nodes that cover the model together"
    return Wait(kind="missing", text=text, since_s=since_s, route_timeout_s=route_timeout_s)


def missing_ends(since_s: float, route_timeout_s: float) -> Wait:
    """A thin client's case: all blocks are there."""
    text = "waiting for nodes with --ends that host the first and the last block"
    return Wait(kind="missing", text=text, since_s=since_s, route_timeout_s=route_timeout_s)


def replacing(span: Span) -> Wait:
    """A hop is lost, and another one is looked for."""
    return Wait(kind="replaying", text=f"a node was lost (blocks {span}): looking for another")


def replaying(span: Span) -> Wait:
    """The new hop is computing what the lost one held."""
    return Wait(kind="replaying", text=f"a node was lost (blocks {span}): replaying on another")


OnWait = Callable[["Wait | None"], None]
"""Called with what is waited for now, None = nothing; from any thread, so it must be quick."""


class Slot:
    """One part's place in `Waits`. From any thread."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    def set(self, wait: Wait | None) -> None:
        """This part waits for this now; None = for nothing."""
        self._waits.change(self, wait)


class Waits:
    """All that is waited for in the name of one model or node; the last that was set counts."""

    def __init__(self, on_wait: OnWait | None = None) -> None:
        self._on_wait = on_wait
        self._lock = threading.RLock()
        self._entries: dict[Slot, Wait] = {}
        self._told: Wait | None = None

    def slot(self) -> Slot:
        return Slot(self)

    @contextmanager
    def reporting(self) -> Iterator[Slot]:
        """A slot that is empty again when the block ends."""
        slot = self.slot()
        try:
            yield slot
        finally:
            slot.set(None)

    @contextmanager
    def on(self, wait: Wait) -> Iterator[Callable[[int, int], None]]:
        """Wait for this until the block ends. Gives a function that says how far it is: (done, total)."""
        with self.reporting() as slot:
            slot.set(wait)
            yield lambda done, total: slot.set(wait.at(done, total))

    def change(self, slot: Slot, wait: Wait | None) -> None:
        """What `Slot.set` does."""
        with self._lock:
            before = self._entries.pop(slot, None)
            if wait is not None:
                self._entries[slot] = wait
                if wait.kind != ANSWERING.kind and (before is None or before.key != wait.key):
                    log.info("%s", wait)
            self._tell(next(reversed(self._entries.values()), None))

    def _tell(self, now: Wait | None) -> None:
        """Once for each change that shows: a download has a thousand pieces, and a hundred per cent."""
        before, self._told = self._told, now
        if self._on_wait is None or now is before:
            return
        if now is None or before is None or (now.key, now.percent) != (before.key, before.percent):
            self._on_wait(now)
