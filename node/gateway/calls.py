"""Turns text of an answer into calls of tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from node.gateway.answer import Called, End, Event, Piece
from node.gateway.refusal import RefusedError
from node.gateway.request import Request
from node.gateway.tool_calls import CallFinder, ToolCall, form_of, names_of


class Calls:
    """Of one request; one finder for each answer."""

    def __init__(self, request: Request, template: str | None) -> None:
        form = form_of(template) if template is not None and request.tools else None
        names = names_of(request.tools)
        self._finders = [] if form is None else [CallFinder(form, names) for _ in range(request.num_answers)]
        self._have_called = set[int]()

    def events(self, event: Event) -> Iterator[Event]:
        """What becomes of one event."""
        if not self._finders or isinstance(event, Called):
            yield event
        elif isinstance(event, Piece):
            if event.tokens:  # of calls, too
                yield Piece(choice=event.choice, text="", tokens=event.tokens)
            yield from self._found(event.choice, self._finders[event.choice].feed(event.text))
        else:
            yield from self._found(event.choice, self._finders[event.choice].rest())
            yield self._ended(event)

    def _found(self, choice: int, found: Iterable[str | ToolCall]) -> Iterator[Event]:
        for one in found:
            if isinstance(one, str):
                yield Piece(choice=choice, text=one)
            else:
                self._have_called.add(choice)
                yield Called(choice=choice, call=one)

    def _ended(self, end: End) -> End:
        is_waiting = end.choice in self._have_called and end.reason == "stop"
        return replace(end, reason="tool_calls") if is_waiting else end


def check_tools(tools: Sequence[Mapping[str, Any]], template: str | None) -> None:
    """RefusedError if tools are offered to a model that would not see them."""
    if tools and (template is None or "tools" not in template):
        raise RefusedError(
            "tools: this model's chat template knows none; leave them out, or ask a model that was made for them", "tools"
        )
