"""What a device has computed for sessions since its node's start."""

from __future__ import annotations

from node.device.work import HeldSequences


class Tally:
    """Counts for all hosts of the device; only the device's thread notes, and any thread reads."""

    def __init__(self) -> None:
        self.num_sessions = self.num_steps = self.num_tokens = 0

    def note(self, session: HeldSequences, num_tokens: int, *, is_last: bool) -> None:
        """So many tokens of one step were computed. is_last: the step has ended."""
        self.num_tokens += num_tokens
        self.num_steps += is_last
        if not session.is_counted:
            session.is_counted = True
            self.num_sessions += 1
