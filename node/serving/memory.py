"""Who may take memory: keys and values are lent as sessions grow, and where they run short, by equal shares of the clients.

While there is plenty, anybody may take any amount. When it is short, or somebody was refused lately, a client that would pass its share
(all of it, divided by those who hold or lately wanted some) is refused first: its session goes on elsewhere, and what it held here is
free for the others.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

SHORT = 1 / 8
"""Memory is short while less than this part of it would be free."""
KEPT = 1 / 32
"""This part is kept for sessions that are under way: a new one is not let in to end one of them."""
WANTING_S = 30.0
"""A client that was refused counts among those who share for so long."""


def reason_against(
    *, needed: float, free: float, limit: float, held_by_client: float, num_clients: int, is_wanted: bool, is_new: bool
) -> str | None:
    """None where a client may take `needed` more; else why not. All in one unit.

    free: of `limit`, nobody's now; num_clients: those who share, this one included; is_wanted: another was refused lately;
    is_new: a session that holds nothing yet.
    """
    spare = free - needed
    if spare < (KEPT * limit if is_new else 0.0):
        return "there is no memory for it"
    share = limit / max(1, num_clients)
    is_short = is_wanted or spare < SHORT * limit
    if num_clients > 1 and is_short and held_by_client + needed > share:
        return f"memory is short, and you hold more than your share of it (one of {num_clients} clients)"
    return None


@dataclass(slots=True)
class Holdings:
    """Tokens that each client's sessions hold, and who was refused lately. Written by one thread; others may look."""

    tokens: dict[Hashable, int] = field(default_factory=dict)
    _refused_s: dict[Hashable, float] = field(default_factory=dict)

    def add(self, client: Hashable, num_tokens: int) -> None:
        """The client's sessions hold so many tokens more, or fewer."""
        total = self.tokens.get(client, 0) + num_tokens
        assert total >= 0
        if total:
            self.tokens[client] = total
        else:
            self.tokens.pop(client, None)

    def refused(self, client: Hashable, now_s: float) -> None:
        """The client wanted memory and got none."""
        self._refused_s = {other: since for other, since in self._refused_s.items() if now_s - since < WANTING_S}
        self._refused_s[client] = now_s

    def num_clients(self, client: Hashable, now_s: float) -> int:
        """Those who share: who holds something, whoever was refused lately, and `client`."""
        wanting = {other for other, since in list(self._refused_s.items()) if now_s - since < WANTING_S}
        return len({client, *list(self.tokens), *wanting})

    def is_wanted(self, client: Hashable, now_s: float) -> bool:
        """Was anybody but `client` refused lately?"""
        return any(other != client and now_s - since < WANTING_S for other, since in list(self._refused_s.items()))

    def part_of(self, client: Hashable) -> float:
        """The client's part of all that is held, in [0, 1]."""
        total = sum(list(self.tokens.values()))
        return self.tokens.get(client, 0) / total if total else 0.0
