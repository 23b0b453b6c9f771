"""A thought before text and calls of tools."""

from __future__ import annotations

from collections.abc import Iterator

from node.gateway.tools.call_layout import Tools
from node.gateway.tools.channels import ChannelFinder
from node.gateway.tools.tool_calls import CallFinder, ToolCall
from swarm.thin.channels import Thought
from swarm.thin.grammar.answer_form import CallForm, ThoughtForm
from swarm.thin.thoughts import ThoughtReader


class ThoughtFinder:
    """Splits one answer into its thought, text and calls, as it comes: `feed` for each piece, `rest` at its end."""

    def __init__(self, thought: ThoughtForm, behind: CallFinder | ChannelFinder | None) -> None:
        """behind: finds calls in what follows the thought; None = that is text."""
        self._reader, self._behind = ThoughtReader(thought), behind

    def feed(self, text: str) -> Iterator[str | ToolCall | Thought]:
        """What is certain now."""
        return self._found(self._reader.feed(text))

    def rest(self) -> Iterator[str | ToolCall | Thought]:
        """What was held back."""
        yield from self._found(self._reader.rest())
        if self._behind is not None:
            yield from self._behind.rest()

    def _found(self, parts: Iterator[str | Thought]) -> Iterator[str | ToolCall | Thought]:
        for part in parts:
            if isinstance(part, Thought) or self._behind is None:
                yield part
            else:
                yield from self._behind.feed(part)


def finder_of(
    form: CallForm | None, thought: ThoughtForm | None, tools: Tools
) -> CallFinder | ChannelFinder | ThoughtFinder | None:
    """For one answer; None: it is text. form: None = no calls are looked for. thought: the same."""
    calls = None if form is None else ChannelFinder(tools) if form.is_channels else CallFinder(form, tools)
    return calls if thought is None else ThoughtFinder(thought, calls)
