"""What a machine has given is counted, and its hours without pauses."""

from __future__ import annotations

from node.training.contribution import Contribution
from swarm.clock import Clock


class Hands:
    """Of a clock that stands still."""

    s = 0.0


def test_counts_and_hours() -> None:
    clock = Hands()
    given = Contribution(Clock(now_s=lambda: clock.s))
    assert given.news() == ""
    for _ in range(1_204):
        given.add(1_024)
    for version in (1, 1, 2, 2):  # two groups step at each version
        given.stepped(version)
    clock.s += 2 * 3600
    given.pause(True)
    given.pause(True)
    clock.s += 5 * 3600
    given.pause(False)
    clock.s += 1800
    assert given.news() == "1,204 micro-batches, 1,232,896 tokens, 2 versions in 2 h 30 min"
    clock.s += 3600
    assert given.news() == "", "an hour alone is no news"
