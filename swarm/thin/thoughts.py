"""Answers that begin with a thought: `<think>…</think>`, then text.

Qwen3, DeepSeek R1 and its distillations, SmolLM3 and many others; a model's chat template names the marks. Some templates put the first
mark into the prompt, or both of them if the model shall not think.
Source: https://github.com/vllm-project/vllm/tree/main/vllm/reasoning
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from swarm.thin.channels import (
    ENDS,
    MARKS,
    NEXT,
    THINK,
    ChannelReader,
    Sent,
    Thought,
    Tokenizer,
    has_channels,
    length_of_start,
    marks_of,
)
from swarm.thin.grammar.answer_form import ThoughtForm

FORMS = (
    ThoughtForm(begin="<think>", end="</think>"),
    ThoughtForm(begin="[THINK]", end="[/THINK]"),
    ThoughtForm(begin="<seed:think>", end="</seed:think>"),
    ThoughtForm(begin="<|START_THINKING|>", end="<|END_THINKING|>", around=("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    ThoughtForm(begin="<|START_THINKING|>", end="<|END_THINKING|>", around=("<|START_TEXT|>", "<|END_TEXT|>")),
)
"""The first counts of which a template names the second mark, and those around the text. The second is Magistral's, the third Seed-OSS';
the others are Cohere's: Command R7B, A, and A Reasoning; and the models after them."""

MESSAGE = ThoughtForm(begin=THINK, end=ENDS[0], behind=NEXT)
"""gpt-oss': a message in a channel, of which `ChannelReader` reads the answers."""

MAX_BLANKS = 64
"""Letters of white space before a mark that are dropped; what has more before its first mark, is text."""

NEAR_END = 32
"""Tokens at the end of a prompt in which a mark is looked for."""


class Reader(Protocol):
    """Splits one answer, as it comes."""

    @property
    def is_thinking(self) -> bool | None:
        """What came last is of a thought, or of its marks; None: what comes next says so."""
        ...

    def feed(self, text: str) -> Iterator[str | Sent | Thought]:
        """What is certain now."""
        ...

    def rest(self) -> Iterator[str | Sent | Thought]:
        """What was held back."""
        ...


class ThoughtReader:
    """Splits one answer into its thought and its text, as it comes; white space around the marks is dropped."""

    def __init__(self, form: ThoughtForm) -> None:
        self._form, self._held = form, ""
        self._step: Callable[[], Iterator[str | Thought]] = self._think if form.is_open else self._begin
        self._drops_blanks = form.is_open
        """Nothing has come of the thought, or of the text behind it."""

    @property
    def is_thinking(self) -> bool | None:
        """As of `Reader`."""
        return None if self._step == self._begin else self._step == self._think

    def feed(self, text: str) -> Iterator[str | Thought]:
        """What is certain now."""
        self._held += text
        step = self._step
        yield from step()
        while step != self._step:
            step = self._step
            yield from step()

    def rest(self) -> Iterator[str | Thought]:
        """What was held back. A thought that does not end is one."""
        if self._held:
            yield Thought(self._held) if self._step == self._think else self._held
        self._held = ""

    def _begin(self) -> Iterator[str | Thought]:
        text = self._held.lstrip()
        is_far, begin = len(self._held) - len(text) > MAX_BLANKS, self._form.begin
        if not is_far and text.startswith(begin):
            self._held, self._step, self._drops_blanks = text[len(begin) :], self._think, True
        elif is_far or not begin.startswith(text):
            self._step, self._drops_blanks = self._say, self._form.is_over
        yield from ()

    def _think(self) -> Iterator[Thought]:
        self._drop_blanks()
        at = self._held.find(self._form.end)
        before = self._held[: at if at >= 0 else len(self._held) - length_of_start(self._held, self._form.end)]
        certain = before[: max(len(before.rstrip()), len(before) - MAX_BLANKS)]
        if certain:
            self._drops_blanks = False
            yield Thought(certain)
        if at >= 0:
            self._held, self._step, self._drops_blanks = self._held[at + len(self._form.end) :], self._say, True
        else:
            self._held = self._held[len(certain) :]

    def _say(self) -> Iterator[str]:
        for mark in self._form.around:
            self._held = self._held.replace(mark, "")
        self._drop_blanks()
        keep = max((length_of_start(self._held, mark) for mark in self._form.around), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if text:
            self._drops_blanks = False
            yield text

    def _drop_blanks(self) -> None:
        if self._drops_blanks:
            self._held = self._held.lstrip()


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model's answers are read."""

    marks: Mapping[int, str]
    """By their tokens, those that texts leave out."""

    begin: Callable[[str], Reader]
    """For one answer, by the end of its prompt."""


def reading_of(tokenizer: Tokenizer, template: str) -> Reading | None:
    """None: the answers of a model with this chat template are text. Blocks."""
    if has_channels(template):
        return Reading(marks_of(tokenizer, MARKS), lambda _: ChannelReader())
    form = thought_form(template)
    if form is None:
        return None
    return Reading(marks_of(tokenizer, (form.begin, form.end)), lambda prompt: ThoughtReader(form_behind(prompt, form)))


def thought_form(template: str) -> ThoughtForm | None:
    """None: nothing in a chat template says that the model thinks before its text."""
    if has_channels(template):
        return None
    return next((form for form in FORMS if all(mark in template for mark in (form.end, *form.around))), None)


def form_behind(prompt: str, form: ThoughtForm) -> ThoughtForm:
    """What it is in answers to a prompt that ends so."""
    end = prompt.rstrip()
    return replace(form, is_open=end.endswith(form.begin), is_over=end.endswith(form.end))


def form_behind_ids(tokenizer: Tokenizer, ids: Sequence[int], form: ThoughtForm) -> ThoughtForm:
    """The same, by the prompt's tokens; blocks."""
    return form_behind(tokenizer.decode(ids[-NEAR_END:], skip_special_tokens=False), form)
