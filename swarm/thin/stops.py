"""Stop strings: texts at which an answer ends, found the same way with and without guessing ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


def decoded(tokenizer: Decoder, runs: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
    """The text of each run of ids; with one hop, if the tokenizer is at the other end of a pipe."""
    if (decode_all := getattr(tokenizer, "decode_all", None)) is not None:
        return list(decode_all(runs, skip_special_tokens=skip_special_tokens))
    return [tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in runs]


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
        near = list(ids[-self._near :])
        before, text = decoded(self._tokenizer, [near[:-1], near], skip_special_tokens=False)
        same = next(
            (at for at, (old, new) in enumerate(zip(before, text, strict=False)) if old != new), min(len(before), len(text))
        )
        return any(text.find(stop, max(0, same - len(stop) + 1)) >= 0 for stop in self._texts)
