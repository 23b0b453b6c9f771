"""How much a model thinks, as clients of chats say it.

By OpenAI's field, or by variables of the chat template, as they are sent to vLLM and SGLang.
"""

from __future__ import annotations

from node.gateway.answers.effort import NONE, SOME, Effort, Level
from node.gateway.http.form import Strict
from node.gateway.http.refusal import RefusedError


class TemplateVariables(Strict):
    """Those that say how much a model thinks; no others are taken."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning: bool | None = None
    reasoning_effort: Level | None = None


def effort_of(level: Level | None, variables: TemplateVariables | None) -> Effort | None:
    """None: nothing is said of it. RefusedError if two fields say different things."""
    said: dict[str, str] = {"reasoning_effort": level} if level else {}
    for name, value in variables or ():
        if value is not None:
            said[f"chat_template_kwargs.{name}"] = value if isinstance(value, str) else SOME if value else NONE
    if (NONE in said.values() and set(said.values()) != {NONE}) or len(set(said.values()) - {NONE, SOME}) > 1:
        raise RefusedError(f"{' and '.join(said)} say different things; send one of them", list(said)[-1])
    param = next((name for name, value in said.items() if value != SOME), next(iter(said), ""))
    return Effort(level=said[param], param=param) if said else None
