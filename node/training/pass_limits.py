"""How many passes a stage has in hand at once, by caller."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from protocols.errors import OverloadedError
from protocols.ids import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLimits:
    """Each pass keeps its input, and a graph if memory allows, until its gradient comes; one of a run is a micro-batch at most."""

    in_all: int = 64
    """Passes of training and of clients together."""
    per_caller: int = 32
    """Of one peer: a trainer, or the hop above."""
    of_clients: int = 32
    """Clients' autograd passes, of all clients."""
    per_client: int = 8
    """Of one client, where the route begins: the hops below know only the hop above, which holds each client to this."""
    client_s: float = 60.0
    """Seconds that a client's pass may take: its gradient comes from a program of the client's."""


class PassCounts:
    """The passes in hand."""

    def __init__(self, limits: PassLimits) -> None:
        self.limits = limits
        self._training: Counter[PeerId] = Counter()
        self._clients: Counter[PeerId] = Counter()

    def __len__(self) -> int:
        return self._training.total() + self._clients.total()

    @contextlib.contextmanager
    def entered(self, caller: PeerId, *, is_training: bool, is_first_hop: bool) -> Iterator[None]:
        """One more, for as long as this lasts. OverloadedError, with nothing changed, if it would pass a limit."""
        limits, own = self.limits, self._training if is_training else self._clients
        most = limits.per_client if is_first_hop and not is_training else limits.per_caller
        if own[caller] >= most:
            raise OverloadedError(f"you have {own[caller]} passes in hand here, the limit of one peer: wait, or ask a replica")
        if len(self) >= limits.in_all or (not is_training and own.total() >= limits.of_clients):
            raise OverloadedError(f"{len(self)} passes are in hand here, the limit: ask a replica, or again later")
        own[caller] += 1
        try:
            yield
        finally:
            own[caller] -= 1
            if not own[caller]:
                del own[caller]
