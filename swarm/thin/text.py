"""Token ids to text that is certain, as a streamer.

For the commands and the gateway; it needs no library.

A token may end in the middle of a letter (byte-level BPE) and a word may look different once the next token is known, so
the last few tokens are decoded together and only what cannot change any more is written.
Source of the two offsets: vLLM's and text-generation-inference's incremental detokenizers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from swarm.thin.stops import Decoder

HALF_A_LETTER = "\ufffd"

NEAR_TOKENS = 1024
"""Most tokens that decide whether an answer ends."""


class TextOut:
    """What transformers calls a streamer: the prompt comes first, then each new token.

    write: gets pieces of text as they become certain. stops: texts at which the answer ends; they are never written.
    is_end: whether the answer ends with the last of these ids, the last ones of prompt and answer; the text of that token is written.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        write: Callable[[str], None],
        stops: Sequence[str] = (),
        is_end: Callable[[Sequence[int]], bool] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        assert all(stops), "an empty text would end every answer"
        self._tokenizer, self._write, self._stops, self._is_end = tokenizer, write, tuple(stops), is_end
        self._now_s = now_s
        self._prompt: list[int] = []
        self._ids: list[int] = []
        self._from, self._shown = 0, 0
        self._held, self._has_prompt, self._is_stopped = "", False, False
        self._is_over = self._has_ended = False
        self.num_tokens = 0
        self.first_s = self.last_s = 0.0
        """Monotonic times of the first and the last token."""
        self.text = ""
        """All that was written."""

    def put(self, value: Any) -> None:
        """One call for the prompt, which is not written, then one per token or run of tokens."""
        ids = value.flatten().tolist() if hasattr(value, "flatten") else list(value)
        if not self._has_prompt:
            self._has_prompt, self._prompt = True, ids[-NEAR_TOKENS:]
            return
        self.last_s = self._now_s()
        self.first_s = self.first_s or self.last_s
        self.num_tokens += len(ids)
        for token in ids:
            if self.is_stopped:
                return
            self._add(token)

    def _add(self, token: int) -> None:
        self._ids.append(token)
        self._emit(self._certain())
        if self._is_end is not None and self._is_end([*self._prompt, *self._ids[-NEAR_TOKENS:]]):
            self._is_over = True

    @property
    def is_stopped(self) -> bool:
        """The end has come: what follows is not written."""
        return self._is_stopped or self._is_over

    def halt(self) -> None:
        """Take no more tokens."""
        self._is_over = True

    def end(self) -> None:
        """Write what was held back. A second call does nothing."""
        if self._has_ended:
            return
        self._has_ended = self._is_over = True
        before, after = self._decoded()
        self._emit(after[len(before) :])
        if self._held and not self._is_stopped:
            self._put_out(self._held)
        self._held = ""

    def _certain(self) -> str:
        """Text of the new tokens, or nothing while they end in half a letter."""
        before, after = self._decoded()
        if len(after) <= len(before) or after.endswith(HALF_A_LETTER):
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _decoded(self) -> list[str]:
        """Text of the last tokens: without those that are not shown yet, and with them."""
        runs = (self._ids[self._from : self._shown], self._ids[self._from :])
        return self._tokenizer.decode_all(runs, skip_special_tokens=True)

    def _emit(self, piece: str) -> None:
        """Write all but what might be the beginning of a stop text."""
        if self._is_stopped or not piece:
            return
        text = self._held + piece
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self._is_stopped, self._held, text = True, "", text[: min(found)]
        else:
            keep = max((_length_of_start(text, stop) for stop in self._stops), default=0)
            self._held, text = text[len(text) - keep :], text[: len(text) - keep]
        self._put_out(text)

    def _put_out(self, text: str) -> None:
        if text:
            self.text += text
            self._write(text)


def _length_of_start(text: str, stop: str) -> int:
    """Letters at the end of `text` with which `stop` may begin."""
    most = min(len(stop) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
