"""How torch's threads wait; set before torch is imported."""

from __future__ import annotations

import os


def wait_quietly() -> None:
    """Let them sleep, unless the user said otherwise.

    Threads that spin while they wait take the cores of what they wait for: 12 s instead of 0.9 s on a busy machine (docs/log.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
