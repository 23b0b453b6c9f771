"""A device's memory for keys and values: one budget, shared by clients.

All hosts of a device take from one budget as their sessions grow; if it runs short, clients get equal shares.
While there is plenty, a client may take any amount. If it is short, or if another client was refused lately, a client that would pass its
share (all of it, divided by the clients that hold or lately wanted some) is refused first: its session goes on elsewhere, and what it held
here is free for the others.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from protocols.errors import CacheFullError
from protocols.words import counted

if TYPE_CHECKING:
    from node.engines.engine import Engine

SHORT = 1 / 8
"""Memory is short while less than this part of it would be free."""
KEPT = 1 / 32
"""This part is kept for sessions that are under way: a new one is not let in to end one of them."""
WANTING_S = 30.0
"""A client that was refused counts among those who share for so long."""


def reason_against(
    *, needed: float, free: float, limit: float, held_by_client: float, num_clients: int, is_wanted: bool, is_new: bool
) -> str | None:
    """None if a client may take `needed` more; else the reason against it. All in one unit.

    free: the part of `limit` that no client holds; num_clients: clients that share, this one included; is_wanted: another was refused
    lately; is_new: the session holds nothing yet.
    """
    spare = free - needed
    if spare < (KEPT * limit if is_new else 0.0):
        return "there is no memory for it"
    share = limit / max(1, num_clients)
    is_short = is_wanted or spare < SHORT * limit
    if num_clients > 1 and is_short and held_by_client + needed > share:
        return f"memory is short, and you hold more than your share of it (one of {num_clients} clients)"
    return None


class Engines(Protocol):
    """All engines of one host (`node/serving/part_engines.py`)."""

    @property
    def used_bytes(self) -> int: ...


@dataclass(slots=True)
class Holdings:
    """Tokens that each client's sessions hold at one host. Written by the device's thread; others may look."""

    tokens: dict[Hashable, int] = field(default_factory=dict)

    def add(self, client: Hashable, num_tokens: int) -> None:
        """The client's sessions hold so many tokens more, or fewer."""
        total = self.tokens.get(client, 0) + num_tokens
        assert total >= 0
        if total:
            self.tokens[client] = total
        else:
            self.tokens.pop(client, None)

    def part_of(self, client: Hashable) -> float:
        """The client's part of all that is held, in [0, 1]."""
        total = sum(list(self.tokens.values()))
        return self.tokens.get(client, 0) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """One host's share of the account."""

    engines: Engines
    holdings: Holdings
    limit_bytes: int
    """The device's budget, measured when this host came."""


class Memory:
    """The budget. `enter` and `leave` belong to an event loop; the rest to any thread."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        """limit_bytes: None = what the newest host measured as free beside what the others held then."""
        self._limit_bytes = limit_bytes
        self._tenants: tuple[Tenant, ...] = ()
        """The newest last. Replaced and never changed, since two threads read it."""
        self._refused_s: dict[Hashable, float] = {}

    @property
    def limit_bytes(self) -> int:
        """For the sequences of all hosts together."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        return self._tenants[-1].limit_bytes if self._tenants else 0

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes

    @property
    def used_bytes(self) -> int:
        return sum(tenant.engines.used_bytes for tenant in self._tenants)

    @property
    def free_bytes(self) -> int:
        return self.limit_bytes - self.used_bytes

    def enter(self, engines: Engines, holdings: Holdings, limit_bytes: int, budget_bytes: int = 0) -> None:
        """A host comes, for which `limit_bytes` were measured as free. budget_bytes: of the host that it replaces; 0 = it replaces none."""
        self._tenants = (*self._tenants, Tenant(engines, holdings, budget_bytes or limit_bytes + self.used_bytes))

    def leave(self, engines: Engines) -> None:
        """It goes. A second call changes nothing."""
        self._tenants = tuple(tenant for tenant in self._tenants if tenant.engines is not engines)

    def lend(self, engine: Engine) -> None:
        """Before sequences of `engine` grow: it may take what all others leave."""
        engine.limit_bytes = self.limit_bytes - (self.used_bytes - engine.used_bytes)

    def judge(self, client: Hashable, needed_bytes: int, num_tokens: int, now_s: float, *, is_new: bool) -> None:
        """CacheFullError if the client may not take so much more now; then it counts among those who want some. is_new: as below."""
        used, limit = self.used_bytes, self.limit_bytes
        reason = reason_against(
            needed=needed_bytes, free=limit - used, limit=limit, held_by_client=self.held_by(client),
            num_clients=self.num_clients(client, now_s), is_wanted=self.is_wanted(client, now_s), is_new=is_new,
        )  # fmt: skip
        if reason is not None:
            self.refused(client, now_s)
            raise CacheFullError(
                f"no memory for {counted(num_tokens, 'more token')}: {reason}; they take {needed_bytes} bytes, "
                f"{limit - used} of {limit} are free; end a session, or ask another peer"
            )

    def is_short(self, client: Hashable, now_s: float) -> bool:
        """Is it worth asking who may take what? Else an engine itself refuses what does not fit."""
        return self.is_wanted(client, now_s) or self.free_bytes < 2 * SHORT * self.limit_bytes

    def held_by(self, client: Hashable) -> float:
        """Bytes that the client's sessions hold, at all hosts."""
        return sum(tenant.engines.used_bytes * tenant.holdings.part_of(client) for tenant in self._tenants)

    def refused(self, client: Hashable, now_s: float) -> None:
        """The client wanted memory and got none."""
        self._refused_s = {other: since for other, since in self._refused_s.items() if now_s - since < WANTING_S} | {
            client: now_s
        }

    def num_clients(self, client: Hashable, now_s: float) -> int:
        """Those who share: that hold something, that were refused lately, and `client`."""
        wanting = {other for other, since in self._refused_s.items() if now_s - since < WANTING_S}
        return len({client, *wanting}.union(*(list(tenant.holdings.tokens) for tenant in self._tenants)))

    def is_wanted(self, client: Hashable, now_s: float) -> bool:
        """Was another client refused lately?"""
        return any(other != client and now_s - since < WANTING_S for other, since in self._refused_s.items())
