"""Fair order of steps: clients share the device's time by priority.

A client's share is divided among its sessions, each in proportion to its priority. Every account has a *virtual time*: the milliseconds
that it was served, divided by its weight. The account with the least virtual time goes next: over time all accounts with work get the same,
and a client with a hundred sessions gets as much as a client with one. An account without work for a while starts again at the present, so
that no client can accumulate unused time and then occupy the device.

Source: start-time fair queueing (Goyal, Vin, Cheng 1996, https://doi.org/10.1145/248156.248171), in two levels.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

HALVING = 10
"""Difference of priorities that halves the weight: no step waits forever, and priority -100 gets a thousandth."""

MAX_IDLE = 256
"""Limit of the accounts that are kept; if there are more, those that are not ahead of the present are dropped."""


def weight_of(priority: int) -> float:
    """Weight of a step whose priority is 0 or lower."""
    return float(2 ** (min(0, priority) / HALVING))


@dataclass(slots=True)
class Accounts:
    """Virtual times by key. `present` is the least of the accounts that were served last; it never decreases."""

    present: float = 0.0
    spent: dict[Hashable, float] = field(default_factory=dict)

    def of(self, key: Hashable) -> float:
        return max(self.spent.get(key, 0.0), self.present)

    def charge(self, key: Hashable, ms: float) -> None:
        """Add `ms`, divided by the weight, to the account of `key`."""
        self.spent[key] = self.of(key) + ms

    def advance(self, served: Iterable[Hashable]) -> None:
        """Move the present to the least of `served`: the accounts that were chosen next, before they are charged."""
        self.present = max(self.present, min(map(self.of, served), default=0.0))
        if len(self.spent) > MAX_IDLE:
            self._forget()

    def _forget(self) -> None:
        """Drop accounts that are not ahead of the present. If too many are ahead (clients that came once), the present moves."""
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
    """Estimated milliseconds of serving it, divided by its weight."""


class Ledger:
    """The accounts of all clients, and of the sessions of each."""

    def __init__(self) -> None:
        self.clients = Accounts()
        self._sessions: dict[Hashable, Accounts] = {}

    def advance(self, served: Collection[tuple[Hashable, Hashable]]) -> None:
        """Note (client, session) of the steps of one kind that were chosen next; call it before they are charged."""
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
        """Add `ms`, divided by the weight, to the accounts of a client and its session."""
        self.clients.charge(client, ms)
        self._sessions.setdefault(client, Accounts()).charge(session, ms)

    def order(self, claims: Sequence[Claim]) -> list[int]:
        """Indexes of all claims in the order of service: as if each claim was charged before the next is chosen. Pure."""
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
