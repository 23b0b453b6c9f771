"""A model that answers, as `generate` and `chat` see it.

With embedding and head here (`full.py`) or without (`thin.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from node.cli.flags.asking import ClientSettings, Sampling
from node.cli.terminal.console import remark, write_piece
from swarm import garbage
from swarm.thin.settings import Settings
from swarm.thin.stops import Stops
from swarm.thin.text import TextOut
from swarm.thin.thoughts import Reading, reading_of
from swarm.thin.tokenizing.templates import Message

PLAIN_STOP = "\nUser:"
"""Where an answer ends, for a model that has no chat template and would go on with our part."""


class Speaker(Protocol):
    """One model of the swarm and one session of it, which keeps K/V of what it has seen until `forget`."""

    @property
    def tokenizer(self) -> Any:
        """Decodes ids."""
        ...

    @property
    def settings(self) -> Settings:
        """What the checkpoint says about generating."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Longest sequence of the model; None = not known here."""
        ...

    @property
    def has_template(self) -> bool: ...

    @property
    def journey(self) -> Any:
        """The session's way through the swarm; None before its first step."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain text."""
        ...

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the model speaks; ModelNotSupportedError in the template's words."""
        ...

    def answer(self, ids: Sequence[int], out: TextOut, max_new_tokens: int) -> int | None:
        """Stream the continuation of `ids` to `out`, until `out.is_stopped` at the latest; only what is new is sent.

        Returns the number of trips through the route, if that may not be one for each token. After an exception the next answer starts
        a new session.
        """
        ...

    def stop_now(self) -> None:
        """In a signal's handler: end the wait of `answer` with KeyboardInterrupt."""
        ...

    def forget(self) -> None:
        """End the session."""
        ...


def chat_out(speaker: Speaker) -> TextOut:
    """Where an answer in a conversation goes: as `new_out`. What the model thinks is left out, and that it thinks is said."""
    template = speaker.tokenizer.chat_template
    if template is None:
        return new_out(speaker, PLAIN_STOP)
    return new_out(speaker, reading=reading_of(speaker.tokenizer, template))


def new_out(speaker: Speaker, stop: str | None = None, reading: Reading | None = None) -> TextOut:
    """Where an answer goes: to stdout. stop: text at which it ends, beside the checkpoint's stop strings; it is not shown. reading: as
    `TextOut` has it."""
    texts = speaker.settings.stop_strings()
    ends = Stops(speaker.tokenizer, texts) if texts else None
    stops, think = () if stop is None else (stop,), _remark_once("the model thinks first; what it thinks is not shown")
    return TextOut(speaker.tokenizer, write_piece, stops, ends, reading=reading, think=think)


def _remark_once(line: str) -> Callable[[str], None]:
    lines = [line]

    def say(_: str) -> None:
        if lines:
            remark(lines.pop())

    return say


@contextmanager
def open_speaker(asking: ClientSettings, sampling: Sampling, is_thin: bool) -> Iterator[Speaker]:
    """The model, its swarm joined; closed again whatever happens. What its settings decide is said."""
    with _opened(asking, sampling, is_thin) as speaker:
        for line in speaker.settings.remarks(sampling.wanted):
            remark(line)
        yield speaker


def _opened(asking: ClientSettings, sampling: Sampling, is_thin: bool) -> AbstractContextManager[Speaker]:
    if is_thin:
        from node.cli.ask import thin

        return thin.open_speaker(asking, sampling)
    with garbage.importing():
        from node.cli.ask import full

    return full.open_speaker(asking, sampling)
