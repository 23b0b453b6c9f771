"""Gives peers that watch a run what its trainer has noted.

Who asks here takes no part in the run. What a caller may cost is bounded, by its PeerID and by its network.
"""

from __future__ import annotations

from collections.abc import Callable

from node.runs.trainer.notes import Notes
from protocols import services
from protocols.errors import ModelNotFoundError, OverloadedError
from protocols.ids import ModelId, PeerId
from protocols.journal import JournalPart, JournalRequest
from swarm.clock import SYSTEM, Clock
from swarm.meter import Meter
from swarm.prefixes import is_local, prefix
from swarm.rpc.call import Call, Handlers

MAX_PER_CALLER, MAX_PER_PREFIX = 60, 600
"""Answers in WINDOW_S; loopback and private networks have no second bound. A whole journal is 30 answers at most."""

WINDOW_S = 10.0


class JournalServer:
    """Answers `journal` of one run, which is opened after the peer listens. Belongs to one event loop."""

    def __init__(self, on_sent: Callable[[int], None] = lambda num_bytes: None, clock: Clock = SYSTEM) -> None:
        """on_sent: told the bytes of each answer, which do not wait for an upload rate."""
        self._run: ModelId | None = None
        self._notes = Notes()
        self._coordinator: Callable[[], PeerId | None] = lambda: None
        self._on_sent = on_sent
        self._answers = Meter(MAX_PER_CALLER, WINDOW_S, clock.now_s)
        self._answers_of_prefix = Meter(MAX_PER_PREFIX, WINDOW_S, clock.now_s)

    def open(self, run: ModelId, notes: Notes, coordinator: Callable[[], PeerId | None]) -> None:
        """From now on, these notes are given. coordinator: the trainer that coordinates the run now, if it is known."""
        self._run, self._notes, self._coordinator = run, notes, coordinator

    def handlers(self) -> Handlers:
        return {services.JOURNAL.name: self._on_journal}

    async def _on_journal(self, request: bytes, call: Call) -> bytes:
        asked = JournalRequest.parse(request)
        if asked.run != self._run:
            raise ModelNotFoundError(f"run {asked.run.name} ({asked.run.digest[:12]}) has no trainer here: ask another peer")
        self._spend(call)
        notes, last = self._notes.after(asked.after if asked.journal == self._notes.id else 0)
        part = JournalPart(
            journal=self._notes.id, last=last, newest=self._notes.newest, notes=tuple(notes), coordinator=self._coordinator()
        )
        answer = part.encode()
        self._on_sent(len(answer))
        return answer

    def _spend(self, call: Call) -> None:
        group = prefix(call.address)
        is_bound = bool(call.address) and not is_local(group)
        if not self._answers.spend(call.peer) or (is_bound and not self._answers_of_prefix.spend(group)):
            raise OverloadedError(f"you have asked for this journal too often within {WINDOW_S:.0f} s: ask again later")
