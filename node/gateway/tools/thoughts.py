"""A thought before text and calls, and its number of tokens."""

from __future__ import annotations

from collections.abc import Iterator

from node.gateway.tools.call_layout import Tools
from node.gateway.tools.channels import ChannelFinder
from node.gateway.tools.tool_calls import CallFinder, ToolCall
from swarm.thin.channels import ChannelReader, Thought
from swarm.thin.grammar.answer_form import CallForm, ThoughtForm
from swarm.thin.thoughts import Reader, ThoughtReader


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


class ThoughtTokens:
    """Counts the tokens of an answer's thoughts, those of their marks included."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._num_open = reader, 0
        """The second: tokens of which the next ones say whether they begin a thought."""
        self.num = 0

    @property
    def is_thinking(self) -> bool:
        """The answer is in a thought."""
        return self._reader.is_thinking is True

    def add(self, text: str) -> None:
        """One token more. text: what it has made certain, with its mark; "" if it ends in half a letter."""
        before, has_thought = self._reader.is_thinking, any(isinstance(one, Thought) for one in [*self._reader.feed(text)])
        self._num_open += 1
        if before or has_thought or self.is_thinking:
            self.num, self._num_open = self.num + self._num_open, 0
        elif before is False or self._reader.is_thinking is False:
            self._num_open = 0


def reader_of(form: CallForm | None, thought: ThoughtForm | None) -> Reader | None:
    """Of one answer; None: it has no thoughts. Both as of `finder_of`."""
    if form is not None and form.is_channels:
        return ChannelReader()
    return None if thought is None else ThoughtReader(thought)


def finder_of(
    form: CallForm | None, thought: ThoughtForm | None, tools: Tools
) -> CallFinder | ChannelFinder | ThoughtFinder | None:
    """For one answer; None: it is text. form: None = no calls are looked for. thought: the same."""
    calls = None if form is None else ChannelFinder(tools) if form.is_channels else CallFinder(form, tools)
    return calls if thought is None else ThoughtFinder(thought, calls)
