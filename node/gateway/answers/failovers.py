"""Nodes that were lost and replaced in the middle of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.gateway.answers.models import Models
from protocols.ids import PeerId, short, short_peer
from protocols.inference import Route
from protocols.words import counted


@dataclass(slots=True)
class _Before:
    replaced: int
    route: Route


class Failovers:
    """Compares all open sessions of a gateway with what they were at the last look."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._before: dict[int, _Before] = {}

    def look(self) -> Iterator[tuple[str, str]]:
        """Kind and text of each failover since the last look, of sessions that are still open."""
        now: dict[int, _Before] = {}
        for name, model in self._models.all_open():
            for session in model.sessions:
                found = now[id(session)] = _Before(session.replaced, session.route)
                before = self._before.get(id(session), _Before(0, ()))
                if found.replaced > before.replaced:
                    yield (
                        "failover",
                        f"session {short(session.id)} over {name}: {_told(before.route, found.route, session.pauses_s)}",
                    )
        self._before = now


def _told(before: Route, now: Route, pauses_s: list[float]) -> str:
    old, new = {hop.peer for hop in before}, {hop.peer for hop in now}
    lost, came = (sorted(one - other) for one, other in ((old, new), (new, old)))
    paused = f", after {pauses_s[-1] * 1e3:.0f} ms" if pauses_s else ""
    if not old:
        return f"lost a node, and goes on over {_names(sorted(new))}{paused}"
    if not lost:
        return f"goes on by another route{paused}"
    return f"{_names(lost)} lost, {_names(came) or 'the others'} took over{paused}"


def _names(peers: list[PeerId]) -> str:
    return ", ".join(map(short_peer, peers)) if len(peers) < 4 else counted(len(peers), "node")
