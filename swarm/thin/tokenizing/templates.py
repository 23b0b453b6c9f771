"""A conversation as text.

By the model's chat template, rendered in a sandbox, else as plain turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from protocols.errors import ModelNotSupportedError
from swarm.thin.tokenizing.render import num_letters
from swarm.thin.tokenizing.sandbox import Sandbox, SandboxEndedError

RENDER_CPU_S_PER_MB = 0.5
"""Processor time of a template beside `CpuLimits.render_s`, by the letters of the conversation."""

MAX_WORDS = 300
"""Letters of a template's own words that are shown."""

Message = dict[str, Any]
"""`role` and `content`, which are texts; `tool_calls` of an answer that had some, its thoughts (`thoughts_of`), and the `name` of the tool
of a result."""

T = TypeVar("T")


class Tokenizer(Protocol):
    """Text to token ids and back, and what a conversation is rendered with and in."""

    sandbox: Sandbox

    @property
    def names(self) -> Mapping[str, Any]: ...

    @property
    def chat_template(self) -> str | None: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]: ...


def thoughts_of(thoughts: str | None, content: str) -> Message:
    """Of an answer, by the names that templates have for them; the second is Cohere's. content: of the answer; gpt-oss's template takes one
    of the two."""
    if not thoughts:
        return {}
    return {"reasoning_content": thoughts, "tool_plan": thoughts} | ({} if content else {"thinking": thoughts})


async def conversation_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation so far, up to where the model speaks. ModelNotSupportedError if the template fails."""
    return await _aside(tokenizer.sandbox, lambda: ids_of(tokenizer, messages))


def ids_of(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    variables: Mapping[str, str | bool] = MappingProxyType({}),
) -> list[int]:
    """The same; blocks. tools: what the model may call, as OpenAI's API describes functions. variables: of the template itself."""
    if tokenizer.chat_template is None:
        return tokenizer.encode(plain(messages))
    text = render(tokenizer.sandbox, tokenizer.chat_template, messages, {**variables, **tokenizer.names}, tools)
    return tokenizer.encode(text, add_special_tokens=False)


async def _aside(sandbox: Sandbox, work: Callable[[], T]) -> T:
    """Run `work` in a thread. If the caller is cancelled, the sandbox is stopped, which ends the thread."""
    try:
        return await asyncio.to_thread(work)
    except asyncio.CancelledError:
        sandbox.stop()
        raise


def plain(messages: Sequence[Message]) -> str:
    """`User:` and `Assistant:` turns, for models that have no template."""
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    return "\n".join([*(names[message["role"]] + message["content"] for message in messages), "Assistant:"])


class TemplateError(Exception):
    """A template makes no text of these messages; the text says why, in the template's own words or as its failure."""

    def __init__(self, words: str, is_refusal: bool) -> None:
        super().__init__(_shortened(words))
        self.is_refusal = is_refusal
        """Did the template itself say no (`raise_exception`)?"""


def render(
    sandbox: Sandbox,
    template: str,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text that an untrusted template makes of the messages; ModelNotSupportedError says why there is none."""
    try:
        return rendered(sandbox, template, messages, variables, tools=tools)
    except TemplateError as error:
        raise (refused if error.is_refusal else failed)(str(error)) from None


def rendered(
    sandbox: Sandbox,
    template: str,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    is_prompt: bool = True,
    day: str = "",
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The same; TemplateError. is_prompt: end where the model speaks. day (ISO 8601): now, for the template; "" = by the clock."""
    request = {
        "action": "render",
        "template": template,
        "messages": list(messages),
        "variables": dict(variables),
        "tools": list(tools),
    }
    size = num_letters(messages, tools)
    limit_s = sandbox.limits.render_s + RENDER_CPU_S_PER_MB * size / 1e6
    try:
        made = sandbox.ask({**request, "is_prompt": is_prompt, "day": day}, limit_s)
    except SandboxEndedError as error:
        raise TemplateError(error.what, False) from None
    if isinstance(made.get("refusal"), str):
        raise TemplateError(made["refusal"], True)
    text = made.get("text")
    if not isinstance(text, str):
        raise TemplateError(str(made.get("failure")), False)
    _refuse_surrogates(text)
    return text


def refused(words: str) -> ModelNotSupportedError:
    """The template itself says no (`raise_exception`): to the system role, say, or to roles that do not alternate."""
    return ModelNotSupportedError(
        f"the model's chat template refuses this conversation: {_quoted(words)}; leave out --system if it is about that role, "
        "or use `swarm generate`, which needs no template"
    )


def failed(reason: str) -> ModelNotSupportedError:
    """The template cannot be rendered at all."""
    return ModelNotSupportedError(
        f"the model's chat template cannot be rendered: {_shortened(reason)}; use `swarm generate`, which needs none"
    )


def _refuse_surrogates(text: str) -> None:
    """TemplateError if it has half a letter, as JSON can spell one: no tokenizer takes that."""
    at = next((at for at, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
    if at is not None:
        raise TemplateError(f"it makes text that is not Unicode, with {text[at]!r} at letter {at}", False)


def _quoted(words: str) -> str:
    return repr(_shortened(words))


def _shortened(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= MAX_WORDS else line[:MAX_WORDS] + "…"
