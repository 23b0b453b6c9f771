"""Token ids to text that is certain, as a streamer.

For the commands and the gateway; it needs no library.

A token may end in the middle of a letter (byte-level BPE) and a word may look different once the next token is known, so
the last few tokens are decoded together and only what cannot change any more is written.
Source of the two offsets: vLLM's and text-generation-inference's incremental detokenizers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.thin.channels import Sent, Thought, length_of_start
from swarm.thin.stops import Decoder, Stops
from swarm.thin.thoughts import NEAR_END, Reader, Reading

HALF_A_LETTER = "\ufffd"

NEAR_TOKENS = 1024
"""Most tokens that decide whether an answer ends."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of token ids whose texts are needed."""

    ids: Sequence[Sequence[int]]
    skips_special: bool = True


Parts = Generator[Runs, Sequence[str], None]
"""Work that is sent the texts of the runs that it gives out."""


async def driven(parts: Parts, decode_all: Callable[[Sequence[Sequence[int]], bool], Awaitable[Sequence[str]]]) -> None:
    """Run it to its end on an event loop."""
    with contextlib.suppress(StopIteration):
        runs = next(parts)
        while True:
            runs = parts.send(await decode_all(runs.ids, runs.skips_special))


class TextOut:
    """What transformers calls a streamer: the prompt comes first, then each new token.

    write: gets pieces of text as they become certain. stops: texts at which the answer ends; they are never written.
    ends: the checkpoint's stop strings; the text of the token in which one ends is written.

    Texts are decoded by `tokenizer`, which blocks. On an event loop, `putting` and `ending` do the same in parts: each part says which
    runs of ids it needs the texts of, and is sent them (`driven` does so).
    """

    def __init__(
        self,
        tokenizer: Decoder,
        write: Callable[[str], None],
        stops: Sequence[str] = (),
        ends: Stops | None = None,
        now_s: Callable[[], float] = time.monotonic,
        reading: Reading | None = None,
        think: Callable[[str], None] = lambda _: None,
    ) -> None:
        """reading: how to tell the model's thoughts from what it says; only the latter is written. think: gets pieces of the thoughts."""
        assert all(stops), "an empty text would end every answer"
        self._tokenizer, self._write, self._stops, self._ends = tokenizer, write, tuple(stops), ends
        self._now_s = now_s
        self._reading, self._think = reading, think
        self._reader: Reader | None = None
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
        self.newest = ""
        """Text that the last token has made certain; parts of it may not be written, such as thoughts and stop texts."""
        self.is_thinking = False
        """What came last is a thought, and no text."""
        self.stopped_by: str | None = None
        """The stop text at which it has ended."""

    def put(self, value: Any) -> None:
        """One call for the prompt, which is not written, then one per token or run of tokens."""
        self._run(self.putting(value.flatten().tolist() if hasattr(value, "flatten") else list(value)))

    def putting(self, ids: Sequence[int]) -> Parts:
        """`put`, in parts."""
        if not self._has_prompt:
            self._has_prompt, self._prompt = True, list(ids[-NEAR_TOKENS:])
            if self._reading is not None:
                (end,) = yield Runs([self._prompt[-NEAR_END:]], skips_special=False)
                self._reader = self._reading.begin(end)
            return
        self.last_s = self._now_s()
        self.first_s = self.first_s or self.last_s
        self.num_tokens += len(ids)
        for token in ids:
            if self.is_stopped:
                return
            yield from self._add(token)

    def insert(self, text: str) -> None:
        """A text that is no token's: it is certain, and comes behind what was put in before."""
        self._emit(text)

    def _add(self, token: int) -> Parts:
        self._ids.append(token)
        self.newest = self._certain(*(yield self._runs()))
        self._emit(self.newest)
        self._emit(self._reading.marks.get(token, "") if self._reading is not None else "")
        if self._ends is not None:
            near = [*self._prompt, *self._ids[-NEAR_TOKENS:]]
            texts = yield Runs(self._ends.runs(near), skips_special=False)
            self._is_over = self._is_over or self._ends.is_within(*texts)

    def _run(self, parts: Parts) -> None:
        texts: Sequence[str] | None = None
        with contextlib.suppress(StopIteration):
            while True:
                runs = parts.send(texts) if texts is not None else next(parts)
                texts = self._tokenizer.decode_all(runs.ids, skip_special_tokens=runs.skips_special)

    @property
    def is_stopped(self) -> bool:
        """The end has come: what follows is not written."""
        return self._is_stopped or self._is_over

    def halt(self) -> None:
        """Take no more tokens."""
        self._is_over = True

    def end(self) -> None:
        """Write what was held back. A second call does nothing."""
        self._run(self.ending())

    def ending(self) -> Parts:
        """`end`, in parts."""
        if self._has_ended:
            return
        self._has_ended = self._is_over = True
        before, after = yield self._runs()
        self._emit(after[len(before) :])
        if self._held and not self._is_stopped:
            self._put_out(self._held)
        self._held = ""
        self._write_said(self._reader.rest() if self._reader is not None else ())

    def _certain(self, before: str, after: str) -> str:
        """Text of the new tokens, or nothing while they end in half a letter."""
        if len(after) <= len(before) or after.endswith(HALF_A_LETTER):
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _runs(self) -> Runs:
        """The last tokens: without those that are not shown yet, and with them."""
        return Runs([self._ids[self._from : self._shown], self._ids[self._from :]])

    def _emit(self, piece: str) -> None:
        """Write all but what might be the beginning of a stop text."""
        if self._is_stopped or not piece:
            return
        text = self._held + piece
        found = [(index, stop) for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found, key=lambda one: one[0])
            self._is_stopped, self._held, text = True, "", text[:at]
        else:
            keep = max((length_of_start(text, stop) for stop in self._stops), default=0)
            self._held, text = text[len(text) - keep :], text[: len(text) - keep]
        self._put_out(text)

    def _put_out(self, text: str) -> None:
        self._write_said(self._reader.feed(text) if self._reader is not None else (text,))

    def _write_said(self, parts: Iterable[str | Sent | Thought]) -> None:
        """Write what is text; a message to a tool that this client does not have is."""
        for part in parts:
            text = part.whole if isinstance(part, Sent) else part
            self.is_thinking = isinstance(text, Thought)
            if isinstance(text, Thought):
                self._think(text.text)
            elif text:
                self.text += text
                self._write(text)
