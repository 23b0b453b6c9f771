"""Guesses the next tokens from the text itself.

What followed the last words the last time, and how many of it to send.

Quotes, code, names and tables repeat; if text does, a guess costs nothing to make and saves a trip through the route for every
token that was right. What is wrong costs its compute at the hops, so the run is as long as its history says that it pays
(`run_length`). Pure but for the memory of `Lookup`.
Source: prompt lookup decoding (Saxena 2023); the expected length of a run: Leviathan et al. 2023, equation 1,
https://arxiv.org/abs/2211.17192.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import takewhile

LONGEST = 3
"""Last tokens that are looked up, at most; fewer if so many were not said before."""
TOKEN_COST = 0.05
"""What one more token of a step costs, as a share of the trip that it could save: a decode's arithmetic against a network's delay."""
REMEMBERED = 16
"""Runs that the length of the next one is taken from."""
_EXPECTED_RIGHT, _EXPECTED_TRIED = 3, 4
"""Tokens that count as tried, and as right, before anything was."""

_WIDTH = array("i").itemsize


def following(ids: Sequence[int], most: int, longest: int = LONGEST) -> list[int]:
    """What may come after `ids`, `most` tokens at most: what followed the latest earlier place that ends as they do.

    A place that ends in the last `longest` tokens is better than one that ends in fewer. If the text runs out, the guess continues
    with itself, so that a repeating pattern is continued. Empty if the last token did not occur before.
    """
    data = array("i", ids).tobytes()
    for size in range(min(longest, len(ids) - 1), 0, -1):
        at = _latest(data, len(ids) - size)
        if at is not None:
            text = list(ids)
            for index in range(at + size, at + size + most):
                text.append(text[index])
            return text[len(ids) :]
    return []


def _latest(data: bytes, start: int) -> int | None:
    """The last token before `start` where what stands from `start` to the end stands as well; both may overlap."""
    pattern = data[start * _WIDTH :]
    end = len(data) - _WIDTH
    while (found := data.rfind(pattern, 0, end)) >= 0:
        if found % _WIDTH == 0:
            return found // _WIDTH
        end = found + len(pattern) - 1  # between two tokens: on with what starts before
    return None


def run_length(runs: Sequence[tuple[int, int]], most: int, token_cost: float = TOKEN_COST) -> int:
    """How many tokens to guess, 1 to `most`. runs: (guessed, right) of earlier runs, the latest ones last.

    The number that gives the most tokens for the time of a step, if each guess after a right one is right as often as so far.
    """
    recent = runs[-REMEMBERED:]
    right = _EXPECTED_RIGHT + sum(count for _, count in recent)
    tried = _EXPECTED_TRIED + sum(min(guessed, count + 1) for guessed, count in recent)
    chance = min(right / tried, 0.99)

    def worth(length: int) -> float:
        return (1 - chance ** (length + 1)) / (1 - chance) / (1 + token_cost * length)

    return max(range(1, max(1, most) + 1), key=worth)


class Lookup:
    """A proposer (`generation.py`) for one text: it sees by what was said since whether its last guess was right."""

    def __init__(self, most: int, longest: int = LONGEST) -> None:
        self._most, self._longest = most, longest
        self._guess: list[int] = []
        self._length = 0
        self.runs: list[tuple[int, int]] = []
        """(guessed, right) of every run whose end is known."""

    def __call__(self, said: Sequence[int]) -> list[int]:
        came = said[self._length :]
        if self._guess and came:
            right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._guess, came, strict=False)))
            self.runs.append((len(self._guess), right))
        self._length = len(said)
        self._guess = following(said, run_length(self.runs, self._most), self._longest)
        return list(self._guess)
