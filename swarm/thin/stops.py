"""Stop strings: texts at which an answer ends.

Found the same way with and without guessing ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each run of ids."""


class Stops:
    """Whether an answer ends with its last token: a stop string that ends within the text of that token, as in transformers.

    transformers' own criterion sees only the last token of a run, so that guessing ahead would change the text.
    """

    def __init__(self, tokenizer: Decoder, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        self._near = max((len(text.encode("utf-8", "surrogatepass")) for text in texts), default=0) + 8
        """Tokens that may hold a stop string: one byte each, and some that are no text."""

    def is_end(self, ids: Sequence[int]) -> bool:
        """ids: the newest token last, what came before it in front, prompt included."""
        if not self._texts:
            return False
        return self.is_within(*self._tokenizer.decode_all(self.runs(ids), skip_special_tokens=False))

    def runs(self, ids: Sequence[int]) -> list[list[int]]:
        """What `is_within` needs the texts of, special tokens included."""
        near = list(ids[-self._near :])
        return [near[:-1], near]

    def is_within(self, before: str, text: str) -> bool:
        """`is_end`, by the texts of `runs`."""
        same = next(
            (at for at, (old, new) in enumerate(zip(before, text, strict=False)) if old != new), min(len(before), len(text))
        )
        return any(text.find(stop, max(0, same - len(stop) + 1)) >= 0 for stop in self._texts)
