"""Places for requests that are answered at once, and their queue.

A free place goes to the caller that has the fewest, callers with equally many get one after the other, and of a caller's requests the
oldest comes first. So one that floods the queue waits behind the others, and its requests are those that are refused if it is full.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from node.gateway.http.refusal import RefusedError

AGAIN_S = 1


class Place:
    """The place of one request, from its arrival to its end."""

    def __init__(self, caller: str, wait_s: float) -> None:
        self.caller, self._wait_s = caller, wait_s
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it has its place; an error if it gets none."""

    @property
    def is_taken(self) -> bool:
        return self.outcome.done() and not self.outcome.cancelled() and self.outcome.exception() is None

    async def granted(self) -> None:
        """Wait in the queue; RefusedError (429) if no place became free in time, or the queue is full."""
        try:
            async with asyncio.timeout(self._wait_s):
                await asyncio.shield(self.outcome)
        except TimeoutError:
            raise _refused(f"no place became free within {self._wait_s:g} s") from None


class Places:
    """All methods belong to one event loop."""

    def __init__(self, most: int, most_waiting: int, wait_s: float) -> None:
        self.most, self.most_waiting, self.wait_s = most, most_waiting, wait_s
        self._taken = Counter[str]()
        self._served: dict[str, int] = {}
        """Caller -> the number of its last place, so that two callers cannot keep a third one waiting. There are as many as keys."""
        self._num_served = 0
        self._waiting: list[Place] = []

    @property
    def num_taken(self) -> int:
        return self._taken.total()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def place(self, caller: str) -> Iterator[Place]:
        """A place in the queue, then one of those that are answered. RefusedError (429) if the queue is full."""
        place = Place(caller, self.wait_s)
        self._enter(place)
        try:
            yield place
        finally:
            self._leave(place)

    def _enter(self, place: Place) -> None:
        if self.num_taken < self.most:  # then the queue is empty
            self._grant(place)
            return
        if self.num_waiting >= self.most_waiting:
            out = evicted([one.caller for one in self._waiting], place.caller)
            if out is None:
                raise _refused(f"{self.num_waiting} more wait, as many as may")
            self._waiting.pop(out).outcome.set_exception(_refused("others, who have fewer requests here, came first"))
        self._waiting.append(place)

    def _leave(self, place: Place) -> None:
        if place.is_taken:
            self._taken[place.caller] -= 1
            self._taken += Counter()  # forget who has none
        elif place in self._waiting:
            self._waiting.remove(place)
            place.outcome.cancel()
        elif place.outcome.done() and not place.outcome.cancelled():
            place.outcome.exception()  # it has been told, or has gone
        while self._waiting and self.num_taken < self.most:
            self._grant(self._waiting.pop(next_served([one.caller for one in self._waiting], self._taken, self._served)))

    def _grant(self, place: Place) -> None:
        self._taken[place.caller] += 1
        self._num_served += 1
        self._served[place.caller] = self._num_served
        place.outcome.set_result(None)


def next_served(waiting: Sequence[str], taken: Mapping[str, int], served: Mapping[str, int]) -> int:
    """Of the callers that wait, oldest request first, the index of the one that comes next.

    It has the fewest places; of several such callers, it is the one that got its last place before the others got theirs, or the oldest.
    served: the number of each caller's last place, in the order in which places were given.
    """
    return min(range(len(waiting)), key=lambda at: (taken.get(waiting[at], 0), served.get(waiting[at], 0), at))


def evicted(waiting: Sequence[str], newcomer: str) -> int | None:
    """Which request leaves a full queue for one of `newcomer`: the newest of the caller with the most; None = the newcomer's itself."""
    counts = Counter(waiting)
    heaviest = max(counts, key=lambda caller: counts[caller], default=newcomer)
    if counts[heaviest] <= counts[newcomer] + 1:
        return None
    return max(index for index, caller in enumerate(waiting) if caller == heaviest)


def _refused(why: str) -> RefusedError:
    return RefusedError(
        f"this gateway is answering as many requests as it may, and {why}; try again in a moment",
        code="too_many_requests", status=429, retry_after_s=AGAIN_S,
    )  # fmt: skip
