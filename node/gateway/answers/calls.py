"""Turns text of an answer into calls of tools, and thoughts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from node.gateway.answers.answer import Called, End, Event, Piece, Thinking, TokenText
from node.gateway.answers.request import Request
from node.gateway.http.refusal import RefusedError
from node.gateway.tools.call_forms import form_of
from node.gateway.tools.thoughts import finder_of
from node.gateway.tools.tool_calls import ToolCall, tools_of
from swarm.thin.channels import Thought
from swarm.thin.grammar.answer_form import CallForm, ThoughtForm
from swarm.thin.thoughts import thought_form


class Calls:
    """Of one request; one finder for each answer."""

    def __init__(self, request: Request, template: str | None, thought: ThoughtForm | None) -> None:
        """thought: how answers to this prompt begin with one; None = they do not."""
        form, tools = form_in(request, template), tools_of(request.tools)
        every = [finder_of(form, thought, tools) for _ in range(request.num_answers)]
        self._finders = [finder for finder in every if finder is not None]
        self._have_called = set[int]()
        self._scores_calls = request.scores_calls
        self._scored: dict[int, tuple[TokenText, ...]] = {}
        """By answer: tokens that may be of text or of a call."""

    def events(self, event: Event) -> Iterator[Event]:
        """What becomes of one event."""
        if not self._finders or isinstance(event, Called | Thinking):
            yield event
        elif isinstance(event, Piece):
            yield from self._scores(event)
            yield from self._found(event.choice, self._finders[event.choice].feed(event.text))
        else:
            yield from self._found(event.choice, self._finders[event.choice].rest())
            if left := self._scored.pop(event.choice, ()):
                yield Piece(choice=event.choice, text="", tokens=left)
            yield self._ended(event)

    def _scores(self, piece: Piece) -> Iterator[Event]:
        if not self._scores_calls:
            self._scored[piece.choice] = self._scored.get(piece.choice, ()) + piece.tokens
        elif piece.tokens:
            yield Piece(choice=piece.choice, text="", tokens=piece.tokens)

    def _found(self, choice: int, found: Iterable[str | ToolCall | Thought]) -> Iterator[Event]:
        for one in found:
            tokens = self._scored.pop(choice, ())
            if isinstance(one, Thought):
                yield Thinking(choice=choice, text=one.text)
            elif isinstance(one, str):
                yield Piece(choice=choice, text=one, tokens=tokens)
            else:
                self._have_called.add(choice)
                yield Called(choice=choice, call=one)

    def _ended(self, end: End) -> End:
        is_waiting = end.choice in self._have_called and end.reason == "stop"
        return replace(end, reason="tool_calls") if is_waiting else end


def form_in(request: Request, template: str | None) -> CallForm | None:
    """What has to be looked for in answers to this request; None = nothing: they are text."""
    form = form_of(template) if template is not None and request.is_conversation else None
    return form if form is not None and (request.tools or form.is_channels) else None


def thought_in(request: Request, template: str | None) -> ThoughtForm | None:
    """How answers to this request begin with a thought; None = they do not. Whether the prompt has begun the thought is not known yet."""
    return thought_form(template) if template is not None and request.is_conversation else None


def takes_tools(template: str | None) -> bool:
    """A chat template has a place for them."""
    return template is not None and "tools" in template


def check_tools(tools: Sequence[Mapping[str, Any]], template: str | None) -> None:
    """RefusedError if tools are offered to a model that would not see them."""
    if tools and not takes_tools(template):
        raise RefusedError(
            "tools: this model's chat template knows none; leave them out, or ask a model that was made for them", "tools"
        )


def check_budget(request: Request, template: str | None) -> None:
    """RefusedError if thoughts have a budget, and the model's thoughts are not known here."""
    if request.thought_budget is None:
        return
    form, param = form_in(request, template), request.budget_param
    if thought_in(request, template) is None and not (form is not None and form.is_channels):
        raise RefusedError(f"{param}: this model's chat template does not say that it thinks; leave it out", param)
