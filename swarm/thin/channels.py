"""Answers that are messages in channels: thoughts, text, calls.

gpt-oss says `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`; a call is a message to a function. What
stands in the channel `analysis` is a thought, and anything else that is no call is text.
Source: https://github.com/openai/openai-cookbook/blob/main/articles/openai-harmony.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

HEADS = ("<|channel|>", "<|start|>", "<|message|>", " to=")
"""What a message begins with that says where it goes."""

CHANNEL_MARK, BODY = "<|channel|>", "<|message|>"
"""The first stands in the head of a message, the second ends it."""

ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
"""What ends a message; the last one begins the next one, too."""

LONGEST = max(map(len, ENDS))

MAX_HEAD = 300
"""Letters of a head: what is longer is text."""

MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", BODY, "<|end|>", "<|call|>", "<|return|>")
"""All of them, which mostly are tokens of their own, and no text."""

CHANNEL, RECIPIENT = re.compile(r"<\|channel\|>\s*(\w+)"), re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
THOUGHTS = "analysis"
FINAL, THINK = f"<|channel|>final{BODY}", f"<|channel|>{THOUGHTS}{BODY}"
"""Before an answer that has to be JSON, and before a thought."""

NEXT = "<|start|>assistant"
"""Behind the end of a message, if another one follows."""


@dataclass(frozen=True, slots=True)
class Thought:
    """What the model says to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A message to a tool."""

    recipient: str
    """Without `functions.`, of which all tools of a client are."""
    body: str
    whole: str
    """With its head, as the model wrote it."""


class ChannelReader:
    """Splits one answer, as it comes: `feed` for each piece, `rest` at its end."""

    def __init__(self) -> None:
        self._held = ""
        self._head: str | None = None
        """Of the message that has begun; None: it has not."""

        self._num_seen = 0
        """Letters of what is held that begin no mark."""

        self._has_said = False
        """There was a message of text before."""

    @property
    def is_thinking(self) -> bool | None:
        """What came last is of a thought; None: a message has not begun."""
        return None if self._head is None else not (self._is_text or self._is_call)

    def feed(self, text: str) -> Iterator[str | Sent | Thought]:
        """What is certain now."""
        self._held += text
        while self._held:
            before = self._held, self._head
            yield from self._begin() if self._head is None else self._go_on()
            if (self._held, self._head) == before:
                return

    def rest(self) -> Iterator[str | Sent | Thought]:
        """What was held back."""
        if self._head is not None:
            yield from self._ended(self._held)
        elif self._held and not self._held.startswith(HEADS):  # else a head without its message
            yield self._held
        self._held, self._head = "", None

    def _begin(self) -> Iterator[str]:
        """Read the head of a message, if it is whole. What is no head, is text: its first letter is, whatever that is."""
        at = self._held.find(BODY)
        may_be_head = any(self._held.startswith(head[: len(self._held)]) for head in HEADS)
        is_long = len(self._held) > MAX_HEAD + len(BODY) and not 0 <= at <= MAX_HEAD
        if may_be_head and not is_long and at < 0:
            return
        first = ""
        if may_be_head and not is_long:
            self._head, self._held = self._held[:at], self._held[at + len(BODY) :]
        else:
            self._head, first, self._held = "", self._held[0], self._held[1:]
        if self._is_text:
            yield ("\n" if self._has_said else "") + first
            self._has_said = True

    def _go_on(self) -> Iterator[str | Sent | Thought]:
        """More of a message, or its end."""
        stops = [(at, mark) for mark in ENDS if (at := self._held.find(mark, self._num_seen)) >= 0]
        self._num_seen = 0 if stops else max(len(self._held) - LONGEST, 0)
        if stops:
            at, mark = min(stops)
            body, self._held = self._held[:at], self._held[at + (0 if mark == ENDS[-1] else len(mark)) :]
            yield from self._ended(body)
            self._head = None
        elif not self._is_call:
            keep = max(length_of_start(self._held, mark) for mark in ENDS)
            self._num_seen = 0
            certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            yield from self._said(certain)

    def _ended(self, body: str) -> Iterator[str | Sent | Thought]:
        found = RECIPIENT.search(self._head or "")
        if found is None:
            yield from self._said(body)
        else:
            yield Sent(found[1], body, f"{self._head}{BODY}{body}")

    def _said(self, text: str) -> Iterator[str | Thought]:
        if text:
            yield text if self._is_text else Thought(text)

    @property
    def _is_call(self) -> bool:
        return RECIPIENT.search(self._head or "") is not None

    @property
    def _is_text(self) -> bool:
        channel = CHANNEL.search(self._head or "")
        return not self._is_call and (channel is None or channel[1] != THOUGHTS)


def length_of_start(text: str, mark: str) -> int:
    """Letters at the end of `text` with which `mark` may begin."""
    most = min(len(mark) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(mark[:size])), 0)


class Tokenizer(Protocol):
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


def marks_of(tokenizer: Tokenizer, marks: Sequence[str] = MARKS) -> dict[int, str]:
    """Of these marks, those that are tokens of their own and left out of texts; blocks."""
    ids = {mark: tokenizer.encode(mark, add_special_tokens=False) for mark in marks}
    return {
        found[0]: mark for mark, found in ids.items() if len(found) == 1 and not tokenizer.decode(found, skip_special_tokens=True)
    }


def has_channels(template: str) -> bool:
    """Does a chat template show that answers are such messages?"""
    return CHANNEL_MARK in template and BODY in template
