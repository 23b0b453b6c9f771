"""Judges which hop keeps a session's steps. Pure.

A swallower may say anything but not everything: steps that it has received and not computed are with it; steps that it says it has passed
on, and that the hop below says never came, are lost between the two, and nothing shows which of them is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from protocols.progress import Progress

FACTOR = 20
"""A reply is late after so many times the time that its step should take."""

TOKENS_OF_A_STEP = 8
"""So many tokens of a prompt are taken for as much work as one decode step: fewer than they are on most devices."""

LONGEST_S = 60.0
"""Longest time until a reply counts as late, whatever the nodes announce."""


class Kind(Enum):
    SILENT = "gives no answer"
    IDLE = "passes nothing on"
    TORN = "a step was lost between the two"
    BUSY = "says that it is computing"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a step is stuck: the places in the route of those who may keep it, two if nothing shows which, and what they say."""

    kind: Kind
    places: tuple[int, ...]


def work(num_tokens: int) -> float:
    """How many decode steps a step of so many tokens is worth."""
    return 1 + num_tokens / TOKENS_OF_A_STEP


def late_s(expected_ms: float, least_s: float) -> float:
    """Seconds after which a reply is late that should take `expected_ms`."""
    return max(least_s, min(LONGEST_S, FACTOR * expected_ms / 1e3))


def judge(words: Sequence[Progress | None], needed: int, epoch: int) -> Verdict:
    """Where the step number `needed - 1` is stuck, whose reply has not come. words: of each hop in order, None = it gave no answer."""
    for place, word in enumerate(words):
        boundary = (place - 1, place) if place else (0,)  # the client knows that it has sent the step itself
        if word is None:
            return Verdict(Kind.SILENT, (place,))
        if word.epoch != epoch:
            return Verdict(Kind.TORN if place else Kind.IDLE, boundary)
        if word.is_busy and min(word.computed, word.sent) < needed:
            return Verdict(Kind.BUSY, (place,))
        if word.received < needed:
            return Verdict(Kind.TORN if place else Kind.IDLE, boundary)
        if word.computed < needed or (word.sent < needed and place + 1 == len(words)):
            return Verdict(Kind.IDLE, (place,))
        if word.sent < needed and words[place + 1] is not None:
            return Verdict(Kind.TORN, (place, place + 1))
    return Verdict(Kind.IDLE, (len(words) - 1,))  # it says that it has answered, and no answer came


def accusers(words: Sequence[Progress | None], lost: int) -> tuple[int, ...]:
    """Hops that may have invented the report that hop `lost` is gone, if that hop denies it.

    These are the lowest hop that says it passed the report on, and the hop below that one, which denies it. The first hop counts as
    having passed it on, because it told us.
    """
    told = [place for place in range(1, lost) if (word := words[place]) is not None and word.lost == lost]
    lowest = max(told, default=0)
    return tuple(place for place in (lowest, lowest + 1) if place < lost)


def has_said_it_itself(word: Progress | None) -> bool:
    """Does a hop that was reported lost say the same, or nothing?"""
    return word is None or word.has_given_up
