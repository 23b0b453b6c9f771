"""A device's memory for keys and values: one budget, shared by clients.

All hosts of a device allocate from one budget as their sessions grow. While most of it is free, a client may take any amount. If memory is
short, or if another client was refused lately, a client that would exceed its share is refused first. A share is the budget, divided by
the clients that hold or lately wanted memory. A refused session continues at a replica, and its memory here becomes free.

Sequences that are kept after their session has ended count as free memory: `make_room` frees them before open sessions come short.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from node.device.kept import NO_CLIENT, KeptSequences
from protocols.errors import CacheFullError
from protocols.words import counted

if TYPE_CHECKING:
    from node.engines.engine import Engine

SHORT = 1 / 8
"""Limit of the free part of the budget, below which memory is short."""
KEPT = 1 / 32
"""Part of the budget that is kept for open sessions: a new session is refused before it can end one of them."""
WANTING_S = 30.0
"""Seconds for which a refused client counts among the clients that share."""


def reason_against(
    *, needed: float, free: float, limit: float, held_by_client: float, num_clients: int, is_wanted: bool, is_new: bool
) -> str | None:
    """None if a client may take `needed` more; else the reason against it. All in one unit.

    free: the part of `limit` that no client holds; num_clients: clients that share, this one included; is_wanted: another client was
    refused lately; is_new: the session holds nothing yet.
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
    """Tokens that each client's sessions hold at one host. Only the device's thread writes; any thread may read."""

    tokens: dict[Hashable, int] = field(default_factory=dict)

    def add(self, client: Hashable, num_tokens: int) -> None:
        """Add `num_tokens`, which may be negative, to what the client's sessions hold."""
        total = self.tokens.get(client, 0) + num_tokens
        assert total >= 0
        if total:
            self.tokens[client] = total
        else:
            self.tokens.pop(client, None)

    def part_of(self, client: Hashable) -> float:
        """The client's part of all tokens held at this host, in [0, 1]."""
        total = sum(list(self.tokens.values()))
        return self.tokens.get(client, 0) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """One host that takes from the budget."""

    engines: Engines
    holdings: Holdings
    limit_bytes: int
    """The device's budget in bytes, measured when this host entered."""


class Memory:
    """The budget. Call `enter` and `leave` in one event loop, the rest in any thread."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        """limit_bytes: None = what the newest host measured as free, and what the other hosts held then."""
        self._limit_bytes = limit_bytes
        self._tenants: tuple[Tenant, ...] = ()
        """The newest last. Replaced, never changed: several threads read it."""
        self._refused_s: dict[Hashable, float] = {}
        self.kept = KeptSequences()

    @property
    def limit_bytes(self) -> int:
        """The budget for the sequences of all hosts."""
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
        """What no open session holds. Bytes of kept sequences are estimated, by their part of all tokens."""
        return self.limit_bytes - self.used_bytes + int(self.held_by(NO_CLIENT))

    def make_room(self, needed_bytes: int) -> None:
        """Free kept sequences until `needed_bytes` fit and memory is not short, or none is kept. Only in the device's thread."""
        while self.limit_bytes - self.used_bytes - needed_bytes < 2 * SHORT * self.limit_bytes and self.kept.free_one():
            pass

    def enter(self, engines: Engines, holdings: Holdings, limit_bytes: int, budget_bytes: int = 0) -> None:
        """Add a host, for which `limit_bytes` were measured as free. budget_bytes: of the host that it replaces; 0 = it replaces none."""
        self._tenants = (*self._tenants, Tenant(engines, holdings, budget_bytes or limit_bytes + self.used_bytes))

    def leave(self, engines: Engines) -> None:
        """Remove the host. A second call changes nothing."""
        self._tenants = tuple(tenant for tenant in self._tenants if tenant.engines is not engines)

    def lend(self, engine: Engine) -> None:
        """Set the engine's limit to all that the other engines leave; call it before sequences of `engine` grow."""
        engine.limit_bytes = self.limit_bytes - (self.used_bytes - engine.used_bytes)

    def judge(self, client: Hashable, needed_bytes: int, num_tokens: int, now_s: float, *, is_new: bool) -> None:
        """CacheFullError if the client may not take `needed_bytes` more; it then counts as refused. is_new: as `reason_against` has it."""
        free, limit = self.free_bytes, self.limit_bytes
        reason = reason_against(
            needed=needed_bytes, free=free, limit=limit, held_by_client=self.held_by(client),
            num_clients=self.num_clients(client, now_s), is_wanted=self.is_wanted(client, now_s), is_new=is_new,
        )  # fmt: skip
        if reason is not None:
            self.refused(client, now_s)
            raise CacheFullError(
                f"no memory for {counted(num_tokens, 'more token')}: {reason}; they take {needed_bytes} bytes, "
                f"{free} of {limit} are free; end a session, or ask another peer"
            )

    def is_short(self, client: Hashable, now_s: float) -> bool:
        """Whether `judge` must decide on growth; if not, the engine's own limit is enough."""
        return self.is_wanted(client, now_s) or self.free_bytes < 2 * SHORT * self.limit_bytes

    def held_by(self, client: Hashable) -> float:
        """Bytes that the client's sessions hold at all hosts."""
        return sum(tenant.engines.used_bytes * tenant.holdings.part_of(client) for tenant in self._tenants)

    def refused(self, client: Hashable, now_s: float) -> None:
        """Note that the client wanted memory and got none."""
        self._refused_s = {other: since for other, since in self._refused_s.items() if now_s - since < WANTING_S} | {
            client: now_s
        }

    def num_clients(self, client: Hashable, now_s: float) -> int:
        """Number of clients that share: those that hold memory, those that were refused lately, and `client`."""
        wanting = {other for other, since in self._refused_s.items() if now_s - since < WANTING_S}
        return len({client, *wanting}.union(*(list(tenant.holdings.tokens) for tenant in self._tenants)) - {NO_CLIENT})

    def is_wanted(self, client: Hashable, now_s: float) -> bool:
        """Whether another client was refused in the last WANTING_S seconds."""
        return any(other != client and now_s - since < WANTING_S for other, since in self._refused_s.items())
