"""Calls of tools in answers that are messages in channels."""

from __future__ import annotations

from collections.abc import Iterator

from node.gateway.tools.call_layout import Tools, read_json
from node.gateway.tools.tool_calls import ToolCall, call_of
from swarm.thin.channels import ChannelReader, Sent, Thought


class ChannelFinder:
    """Splits one answer into thoughts, text and calls, as it comes: `feed` for each piece, `rest` at its end."""

    def __init__(self, tools: Tools) -> None:
        self._tools, self._reader = tools, ChannelReader()

    def feed(self, text: str) -> Iterator[str | ToolCall | Thought]:
        """What is certain now."""
        return map(self._made, self._reader.feed(text))

    def rest(self) -> Iterator[str | ToolCall | Thought]:
        """What was held back."""
        return map(self._made, self._reader.rest())

    def _made(self, one: str | Sent | Thought) -> str | ToolCall | Thought:
        """A call that is none stays text."""
        if not isinstance(one, Sent):
            return one
        try:
            return call_of(one.recipient, read_json(one.body), self._tools) or one.whole
        except (ValueError, RecursionError):
            return one.whole
