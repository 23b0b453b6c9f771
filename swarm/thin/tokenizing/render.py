"""Renders a chat template as transformers does.

In a sandbox (`sandbox_main.py`), because the template comes from an untrusted peer.

jinja2's own sandbox keeps a template from Python's internals; it cannot bound a loop within a loop or a text doubled forty times:
the process's limits do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any


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
    from swarm.thin.tokenizing.template_environment import environment  # jinja2 is not needed to count letters

    return environment().from_string(template)
