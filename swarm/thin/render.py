"""Renders a chat template as transformers does.

In a sandbox (`sandbox_main.py`), because the template comes from an untrusted peer.

jinja2's own sandbox keeps a template from Python's internals; it cannot bound a loop within a loop or a text doubled forty times:
the process's limits do. The environment is transformers' (`utils/chat_template_utils.py`): same extensions, globals, filters and
variables. (imports jinja2)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`, and no way from there to the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def render(
    template: str,
    messages: Sequence[dict[str, Any]],
    variables: dict[str, Any],
    is_prompt: bool = True,
    day: str = "",
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """What the template makes of a conversation. variables: the special tokens by name. tools: what the model may call.

    is_prompt: end where the model speaks. day: what the template takes for now (ISO 8601); "" = this machine's clock.
    """
    asked = {
        **variables,
        "messages": messages,
        "tools": list(tools) or None,
        "documents": None,
        "add_generation_prompt": is_prompt,
    }
    if day:
        asked["strftime_now"] = datetime.fromisoformat(day).strftime  # a variable hides the function of the same name
    text: str = _compiled(template).render(**asked)
    return text


def num_letters(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> int:
    """Of a conversation: its texts, thoughts included, the calls in it, and the tools."""
    calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
    texts = sum(len(message["content"]) + len(message.get("reasoning_content", "")) for message in messages)
    return texts + len(json.dumps([calls, tools]))


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    """A training set renders one template thousands of times."""
    return _environment().from_string(template)


def _environment() -> Any:
    """jinja2's immutable sandbox with what transformers gives to templates."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model said, for training; here it is just its content."""

        tags = {"generation"}  # noqa: RUF012  (jinja2's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Callable[[], str]) -> str:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Refuses names that lead to Python's internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, values = args[0], dict(*args[1:], **kwargs)  # so that a template may name a value `self`
            for name in values:
                Namespace._check(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace._check(name)  # an attribute of `self` would be one of the template's values
            super().__setitem__(name, value)

        @staticmethod
        def _check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a template cannot set {name!r}")

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = Namespace
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
