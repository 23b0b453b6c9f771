"""How an API writes an answer, as a whole or streamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from node.gateway.answers.answer import Event, TokenText, Usage
from node.gateway.http.refusal import Refusal
from node.gateway.tools.tool_calls import ToolCall


@dataclass(slots=True)
class Made:
    """One answer, complete."""

    choice: int
    text: str = ""
    thoughts: str = ""
    """What the model has said to itself."""

    reason: str = ""
    stop: str | None = None
    tokens: list[TokenText] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)


class Writer(Protocol):
    """Of one request. Either `whole` is called, or `opening`, `event` for each event, and `ending` or `failure`."""

    stream_type: ClassVar[str]
    """The media type of a stream; a whole answer is JSON."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def whole(self, made: Sequence[Made], usage: Usage) -> bytes: ...

    def opening(self) -> Iterable[bytes]:
        """Parts of a stream before its first event."""
        ...

    def event(self, one: Event) -> bytes:
        """The bytes of one event; empty if the API has none for it."""
        ...

    def ending(self, usage: Usage) -> Iterable[bytes]:
        """Parts after the last event, if nothing has failed."""
        ...

    def failure(self, refusal: Refusal) -> bytes:
        """The last part of a stream that failed."""
        ...
