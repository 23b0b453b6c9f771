"""What a caller is told while a step is at the nodes.

How far it is, or why it is late.
"""

from __future__ import annotations

from swarm import waiting
from swarm.waiting import Slot, Wait


class StepWaits:
    """What a step waits for. Between steps no caller waits, even if a route is repaired: then nothing is told."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._progress: Wait | None = None
        self._trouble: Wait | None = None

    def begin(self) -> None:
        """A step is asked for."""
        self._set(waiting.ANSWERING)

    def reads(self, num_tokens: int) -> None:
        """The step is a long prompt, which goes in parts."""
        self._set(waiting.READING.at(0, num_tokens))

    def has_read(self, num_tokens: int) -> None:
        """The last hop has answered so many tokens more: each part is answered, also if nothing of it was wanted."""
        if self._progress is not None and self._progress.total:
            self._set(self._progress.at(self._progress.done + num_tokens, self._progress.total))

    def end(self) -> None:
        """The step has its answer, or has failed."""
        self._set(None)

    def late(self, trouble: Wait | None) -> None:
        """Why answers are late; None = they come again."""
        if trouble is not self._trouble:
            self._trouble = trouble
            self._tell()

    def _set(self, progress: Wait | None) -> None:
        self._progress = progress
        self._tell()

    def _tell(self) -> None:
        self._slot.set(None if self._progress is None else self._trouble or self._progress)
