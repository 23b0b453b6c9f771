"""From a name to weights, for one client or node.

What counts is what is served, which peers answer, and what the name meant here before.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from protocols.ids import ModelId, PeerId
from protocols.records import PeerRecord
from swarm.asking import HELLO_S, Ping, answers, is_there
from swarm.weights import remembered
from swarm.weights.election import tallies
from swarm.weights.remembered import NameMemory

POLL_S = 10.0
"""Longest time, in seconds, to find out who serves what, if a name is served with several weights and never was used here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How one user's names are understood."""

    greet: Ping
    memory: NameMemory = field(default_factory=NameMemory)
    accepts_new: bool = False
    """Take what most answering nodes serve, whatever the name meant before."""

    @classmethod
    def of(
        cls,
        ping: Ping,
        data_dir: Path,
        known_as: str,
        accepts_new: bool,
    ) -> Naming:
        """For a peer's `ping`, with the memory in `data_dir` of the swarm `known_as` (`keyring.known_as`)."""
        memory = NameMemory(remembered.file_of(data_dir, known_as))
        return cls(greet=ping, memory=memory, accepts_new=accepts_new)

    def meant_before(self, name: str) -> str | None:
        """The digest that has to stay; None = any will do."""
        return None if self.accepts_new else self.memory.digest_of(name)

    def keep(self, model: ModelId) -> None:
        """The user has these weights by this name now."""
        self.memory.keep(model.name, model.digest, time.time())

    async def answering(self, records: Iterable[PeerRecord], name: str | None, prefix: str) -> set[PeerId]:
        """Those of `records` that answer, asked in random order. Ends HELLO_S after those who have answered make a complete route."""
        asked = _shuffled([record for record in records if record.addresses])
        found: set[PeerId] = set()
        is_complete = False
        try:
            async with asyncio.timeout(POLL_S) as limit, aclosing(answers(asked, partial(is_there, self.greet))) as replies:
                async for record, is_alive in replies:
                    found |= {record.peer} if is_alive else set()
                    if is_alive and not is_complete and tallies(asked, name, prefix, found)[0].on_route:
                        is_complete = True
                        limit.reschedule(asyncio.get_running_loop().time() + HELLO_S)
        except TimeoutError:
            pass
        return found


def _shuffled(records: Sequence[PeerRecord]) -> list[PeerRecord]:
    return random.sample(records, len(records))
