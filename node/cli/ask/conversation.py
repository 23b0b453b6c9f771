"""A conversation with a model, and what of it fits.

A turn sends only what is new. If the chat template renders the past differently than it was generated, or the oldest turns no
longer fit, K/V are cut back to what both have in common.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from node.cli.ask.speaking import Speaker, chat_out
from node.cli.flags.asking import say_followed, summary, versions_of
from node.cli.terminal.console import remark, write_piece
from node.cli.terminal.interruption import Interruption
from protocols.errors import BadRequestError
from protocols.words import counted
from swarm.thin.text import TextOut
from swarm.thin.tokenizing.templates import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a conversation is held."""

    max_new_tokens: int
    """Longest answer."""

    system: str | None = None
    """What the model is told before the first turn."""

    keeps_all: bool = False
    """Refuse a turn that does not fit, instead of forgetting the oldest ones."""

    with_stats: bool = False
    """Say what each answer cost."""


class Conversation:
    """The turns so far, and the speaker whose session holds them."""

    def __init__(self, speaker: Speaker, manner: Manner, interruption: Interruption | None = None) -> None:
        """interruption: Ctrl-C stops an answer; None = it ends the command."""
        self._speaker, self._manner, self._interruption = speaker, manner, interruption
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system's words; the session at the nodes ends."""
        system = self._manner.system
        self.messages = [{"role": "system", "content": system}] if system else []
        self._speaker.forget()

    def resume(self, messages: Sequence[Message]) -> None:
        """Go on after these; the next turn sends all of them."""
        self.messages = list(messages)
        self._speaker.forget()

    def say(self, line: str) -> None:
        """One question and its answer, which goes to stdout as it comes. If it fails, it was never asked."""
        out = chat_out(self._speaker)
        started_s = time.monotonic()
        kept, trips = [*self.messages, {"role": "user", "content": line}], None
        versions = versions_of(self._speaker.journey)
        try:
            with self._interruptible(out):
                kept, ids = self._fitting(kept)
                trips = self._answer(ids, out)
        finally:
            out.end()  # if it was stopped in the middle of a wait, no code has ended the line yet
            if out.text:
                write_piece("\n")
        if not out.num_tokens:
            remark("stopped before a word was said: the question is forgotten")
            return
        if out.is_thinking:
            remark("the answer has ended with a thought; --max-new-tokens allows longer ones")
        self.messages = [*kept, {"role": "assistant", "content": out.text.strip()}]
        say_followed(versions, self._speaker.journey)
        if self._manner.with_stats:
            remark(summary(out, started_s, self._speaker.journey, trips))

    def _interruptible(self, out: TextOut) -> AbstractContextManager[None]:
        return self._interruption.answering(out.halt, self._speaker.stop_now) if self._interruption else nullcontext()

    def _answer(self, ids: list[int], out: TextOut) -> int | None:
        limit, most_new = self._speaker.max_positions, self._manner.max_new_tokens
        if limit is not None:
            most_new = min(most_new, limit - len(ids) + 1)
        trips = self._speaker.answer(ids, out, most_new)
        if most_new < self._manner.max_new_tokens and out.num_tokens >= most_new:
            remark(f"the answer ends here, at this model's limit of {limit} tokens; /reset starts over")
        return trips

    def _fitting(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        """The messages that are kept and their token ids; BadRequestError if even the last one is too long."""
        ids, limit = self._speaker.render(messages), self._speaker.max_positions
        if limit is None:
            return messages, ids
        most = limit - room_tokens(limit, self._manner.max_new_tokens)
        kept, kept_ids, dropped = fitting(messages, ids, self._speaker.render, most)
        if dropped and self._manner.keeps_all:
            raise BadRequestError(
                f"the conversation does not fit any more: {counted(len(ids), 'token')} and an answer, this model's limit is {limit}; "
                "/reset starts over, or leave out --keep-all"
            )
        if len(kept_ids) > limit:
            raise BadRequestError(
                f"the message is too long: {counted(len(kept_ids), 'token')} with what the chat puts around it, "
                f"this model's limit is {limit}; "
                f"shorten it by {len(kept_ids) - limit}"
            )
        if dropped:
            turns = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
            remark(f"the conversation is longer than this model's {limit} tokens: {turns} forgotten (--keep-all refuses instead)")
        return kept, kept_ids


def room_tokens(limit: int, max_new_tokens: int) -> int:
    """Positions that an answer must find: all that it may take, but no more than a quarter of the model's. (The last is never fed.)"""
    return min(max_new_tokens, max(1, limit // 4)) - 1


def fitting(
    messages: list[Message], ids: list[int], render: Callable[[Sequence[Message]], list[int]], most: int
) -> tuple[list[Message], list[int], int]:
    """Drop the oldest question with its answer until `most` tokens hold the rest: what is kept, its ids, and how many were dropped.

    What the system said and the last question always stay, even if they do not fit. ids: of all messages.
    """
    dropped = 0
    while len(ids) > most:
        first = 1 if messages[0]["role"] == "system" else 0
        if len(messages) - first < 3:
            break
        messages = messages[:first] + messages[first + 2 :]
        ids, dropped = render(messages), dropped + 1
    return messages, ids, dropped
