"""What a node has computed lately: sessions and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from node.device.work import HeldSequences


@dataclass(frozen=True, slots=True)
class Worked:
    """Work of one period, from one `take` to the next."""

    num_sessions: int = 0
    num_tokens: int = 0
    """Tokens that went through the blocks, prompts included."""

    def __add__(self, other: Worked) -> Worked:
        return Worked(self.num_sessions + other.num_sessions, self.num_tokens + other.num_tokens)


class WorkCounter:
    """Counts for one reader. `note` is called by the thread that computes, `take` by another one."""

    def __init__(self) -> None:
        self._period = 1
        self._num_sessions = self._num_tokens = 0

    def note(self, session: HeldSequences, num_tokens: int) -> None:
        """Count `num_tokens` computed for a session; the session counts once until the next `take`."""
        self._num_tokens += num_tokens
        if session.worked_in != self._period:
            session.worked_in = self._period
            self._num_sessions += 1

    def take(self) -> Worked:
        """The work since the last `take`. A step that ends during the call may be counted in the next one."""
        worked = Worked(self._num_sessions, self._num_tokens)
        self._period += 1
        self._num_sessions -= worked.num_sessions
        self._num_tokens -= worked.num_tokens
        return worked
