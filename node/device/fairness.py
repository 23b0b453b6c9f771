"""Order of turns: device time is shared by clients and priorities.

A client's share is divided among its sessions, each in proportion to its priority. Every account has a *virtual time*: the milliseconds
that it was served, divided by its weight. The account with the least goes next, so that over time all that want more get the same; a client
with a hundred sessions gets as much as a client with one. An account that wanted nothing for a while starts again at the present, so that
no client can save up turns and then hold the device.

Source: start-time fair queueing (Goyal, Vin, Cheng 1996, https://doi.org/10.1145/248156.248171), in two levels.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

HALVING = 10
"""A priority lower by so much has half the weight: no step waits forever, and -100 gets a thousandth."""

MAX_IDLE = 256
"""Accounts that are kept although they want nothing; if there are more, all that are behind the present are forgotten."""


def weight_of(priority: int) -> float:
    """Weight of a step whose priority is 0 or lower."""
    return float(2 ** (min(0, priority) / HALVING))


@dataclass(slots=True)
class Accounts:
    """Virtual times by key. `present` is the least of those that were served last: it never goes back."""

    present: float = 0.0
    spent: dict[Hashable, float] = field(default_factory=dict)

    def of(self, key: Hashable) -> float:
        return max(self.spent.get(key, 0.0), self.present)

    def charge(self, key: Hashable, ms: float) -> None:
        """`key` was served for `ms`, weighted already."""
        self.spent[key] = self.of(key) + ms

    def advance(self, served: Iterable[Hashable]) -> None:
        """These were chosen next, and are charged after this: the least of them is the present. Accounts not ahead of it are forgotten."""
        self.present = max(self.present, min(map(self.of, served), default=0.0))
        if len(self.spent) > MAX_IDLE:
            self._forget()

    def _forget(self) -> None:
        """Accounts behind the present say nothing. If too many are ahead of it (clients that came once), the present moves on."""
        ahead = sorted(value for value in self.spent.values() if value > self.present)
        if len(ahead) > MAX_IDLE // 2:
            self.present = ahead[-MAX_IDLE // 2]
        self.spent = {key: value for key, value in self.spent.items() if value > self.present}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One step that waits."""

    client: Hashable
    session: Hashable
    cost_ms: float
    """What serving it would take, divided by its weight."""


class Ledger:
    """The accounts of all clients, and of the sessions of each."""

    def __init__(self) -> None:
        self.clients = Accounts()
        self._sessions: dict[Hashable, Accounts] = {}

    def advance(self, served: Collection[tuple[Hashable, Hashable]]) -> None:
        """These (client, session) were chosen next among steps of one kind, and are charged after this."""
        by_client: dict[Hashable, list[Hashable]] = {}
        for client, session in served:
            by_client.setdefault(client, []).append(session)
        self.clients.advance(by_client)
        for client, chosen in by_client.items():
            if client in self._sessions:
                self._sessions[client].advance(chosen)
        if len(self._sessions) > MAX_IDLE:
            known = self.clients.spent
            self._sessions = {client: held for client, held in self._sessions.items() if client in known}

    def charge(self, client: Hashable, session: Hashable, ms: float) -> None:
        """A session was served for `ms`, weighted already."""
        self.clients.charge(client, ms)
        self._sessions.setdefault(client, Accounts()).charge(session, ms)

    def order(self, claims: Sequence[Claim]) -> list[int]:
        """All claims, by index, in the order of service: as if each that is taken had been charged when the next is chosen. Pure."""
        by_client: dict[Hashable, list[int]] = {}
        for index, claim in enumerate(claims):
            by_client.setdefault(claim.client, []).append(index)
        queue = []
        for number, (client, indexes) in enumerate(by_client.items()):
            sessions = self._sessions.get(client, Accounts())
            indexes.sort(key=lambda index: (sessions.of(claims[index].session), index))
            queue.append((self.clients.of(client), number, indexes[::-1]))
        heapq.heapify(queue)
        order = []
        while queue:
            spent, number, indexes = heapq.heappop(queue)
            order.append(index := indexes.pop())
            if indexes:
                heapq.heappush(queue, (spent + claims[index].cost_ms, number, indexes))
        return order
