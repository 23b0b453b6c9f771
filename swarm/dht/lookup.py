"""An iterative lookup of Kademlia.

Which members are nearest to some keys, and what they store under them.

Differs from hivemind's in three points that a hostile member would use: the next nearest member replaces one that does not answer; what
was told before the time is over counts, however many have not answered; and one member is asked once for all keys.
Nothing here knows the network: whom to ask, and how, is passed in.
Source: Maymounkov and Mazieres 2002, section 2.3, https://pdos.csail.mit.edu/~petar/papers/maymounkov-kademlia-lncs.pdf
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.dictionary import Told

BEAM = 20
"""Members asked for each key: the nearest that answer."""

PARALLEL = 8
"""Questions at once."""

LATE_S = 0.75
"""Seconds after which a question no longer holds up the others; if only such are left, the lookup ends."""

MAX_ASKED = 64
"""Members asked in a lookup of one key; each further key adds BEAM. So a lookup ends that is told of ever nearer members."""

_MAX_KNOWN = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one member says to a question about some keys."""

    nearest: Mapping[int, Any] = field(default_factory=dict)
    """Node ids near the keys, and who has them."""
    told: Mapping[int, Told] = field(default_factory=dict)
    """Entries by key, signatures not checked."""


Query = Callable[[Any, Sequence[int]], Awaitable[Answer | None]]
"""Asks a member about keys; None if it does not answer. It has a time limit of its own, and raises nothing."""

_Node = tuple[int, Any]
"""A node id and the member that has it. Both, since any peer may say that a node id is another peer's."""


class Lookup:
    """One search for the members nearest `keys`, which are numbers like node ids."""

    def __init__(self, keys: Sequence[int], known: Iterable[_Node], ask: Query, me: object, always: Sequence[_Node] = ()) -> None:
        """known: where to begin. me: this peer, which is not asked. always: asked about every key, however far from it."""
        self._keys, self._ask, self._me = tuple(keys), ask, me
        self._always = [node for node in always if node[1] != me]
        self._known = {node for node in (*known, *self._always) if node[1] != me}
        self._asked: dict[_Node, set[int]] = {}
        """Keys that a node was asked about."""
        self._answered: set[_Node] = set()
        self.told: dict[int, list[Told]] = {key: [] for key in self._keys}
        """By key, one list for each member that had entries."""

    async def run(self, timeout_s: float) -> None:
        """Until all who are near have answered or are late, or the time is over; what has been found by then counts."""
        clock = asyncio.get_running_loop().time
        ends_s, asking = clock() + timeout_s, dict[asyncio.Task[None], tuple[float, _Node]]()
        try:
            while (left_s := ends_s - clock()) > 0:
                late = {node for began_s, node in asking.values() if clock() - began_s >= LATE_S}
                self._known -= late  # the next nearest take their places
                self._fill(asking, len(late))
                if not asking or (len(late) == len(asking) and self._answered):
                    return
                young = [began_s for began_s, node in asking.values() if node not in late]
                turn_s = min(young) + LATE_S - clock() if young else left_s
                done, _ = await asyncio.wait(asking, timeout=max(0.0, min(left_s, turn_s)), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del asking[task]
                    task.result()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _fill(self, asking: dict[asyncio.Task[None], tuple[float, _Node]], num_late: int) -> None:
        """Put further questions; who is late takes no place of PARALLEL."""
        while len(asking) - num_late < PARALLEL and (question := self._next()):
            asking[asyncio.create_task(self._put(*question))] = asyncio.get_running_loop().time(), question[0]

    def nearest(self, key: int, count: int) -> list[Any]:
        """Those nearest the key: first who has answered, then who may still do."""
        nodes = sorted(self._known, key=lambda node: (node not in self._answered, node[0] ^ key))
        return list(dict.fromkeys(peer for _node, peer in nodes))[:count]

    def has_answered(self, peer: object) -> bool:
        """Has this member answered any question?"""
        return any(peer == one for _node, one in self._answered)

    def _next(self) -> tuple[_Node, list[int]] | None:
        """The next node to ask, and about which keys: it is in the beams of these and was not asked about them yet."""
        if len(self._asked) >= MAX_ASKED + BEAM * (len(self._keys) - 1):
            return None
        always = [node for node in self._always if node in self._known]
        beams = {key: [*always, *self._nearest_of(key, BEAM)] for key in self._keys}
        nearest_first = itertools.chain.from_iterable(itertools.zip_longest(*beams.values()))  # of every key in turn
        for node in filter(None, nearest_first):
            done = self._asked.get(node, set())
            if about := [key for key, nodes in beams.items() if node in nodes and key not in done]:
                self._asked[node] = done | set(about)
                return node, about
        return None

    def _nearest_of(self, key: int, count: int) -> list[_Node]:
        return heapq.nsmallest(count, self._known, key=lambda node: node[0] ^ key)

    async def _put(self, node: _Node, keys: Sequence[int]) -> None:
        answer = await self._ask(node[1], keys)
        if answer is None:
            self._known.discard(node)
            return
        self._answered.add(node)
        self._known.add(node)
        for key, told in answer.told.items():
            if told and key in self.told:
                self.told[key].append(told)
        fresh = [one for one in itertools.islice(answer.nearest.items(), BEAM * len(keys)) if one[1] != self._me]
        self._known.update(one for one in fresh if one not in self._asked)  # who was silent stays out
        if len(self._known) > _MAX_KNOWN:
            self._known = (
                {near for key in self._keys for near in self._nearest_of(key, 2 * BEAM)}
                | self._answered
                | {node for node in self._always if node in self._known}
            )
