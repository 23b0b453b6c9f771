"""How much a model thinks, as its chat template takes it.

A template says by its variables what can be asked of it: `reasoning_effort` (gpt-oss), `enable_thinking` (Qwen3, GLM, SmolLM3),
`thinking` (DeepSeek V3.1), or `reasoning` (Cohere).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from node.gateway.http.refusal import RefusedError
from swarm.thin.channels import has_channels
from swarm.thin.thoughts import thought_form

Level = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
NONE, SOME = "none", "some"
"""The second: it thinks, as much as it does by itself."""

EFFORT = "reasoning_effort"
LEVELS = frozenset({"low", "medium", "high"})
"""Those that a template with that variable takes, and others that it names itself."""

VARIABLE = r"(?<![\w.'\"]){}(?!\w|\s*=[^=])"
"""It is read, and not only set."""

SWITCHES = {
    "enable_thinking": re.compile(VARIABLE.format("enable_thinking")),
    "thinking": re.compile(r"\bthinking is (not )?defined"),
    "reasoning": re.compile(r"(?<![\w.])reasoning is (not )?(un)?defined"),
}
"""The last two words stand in the prose of templates, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a request says of it."""

    level: str
    """NONE, SOME, or one of `Level`."""

    param: str
    """The field that says it, for errors."""

    is_wish: bool = False
    """A model that cannot do so answers all the same."""


def variables_of(effort: Effort | None, template: str | None) -> dict[str, str | bool]:
    """For the template; None = it makes no prompt here. RefusedError if that is not what this model can do."""
    if effort is None:
        return {}
    text, level = template or "", effort.level
    found: dict[str, str | bool] = {name: level != NONE for name, known in SWITCHES.items() if known.search(text)}
    takes_levels = re.search(VARIABLE.format(EFFORT), text) is not None
    if takes_levels and (level in LEVELS or re.search(f"['\"]{level}['\"]", text)):
        found[EFFORT] = level
    does_so_anyway = level == (SOME if thinks(text) or takes_levels else NONE)
    if found or effort.is_wish or does_so_anyway:
        return found
    raise RefusedError(_why_not(effort, takes_levels, text), effort.param)


def thinks(template: str) -> bool:
    """A chat template says that its model thinks."""
    return has_channels(template) or thought_form(template) is not None


def _why_not(effort: Effort, takes_levels: bool, template: str) -> str:
    if takes_levels:
        return f"{effort.param}: this model takes low, medium or high, got {effort.level}"
    if thinks(template):
        return f"{effort.param}: this model thinks, and its chat template has no variable that says how much; leave it out"
    return f"{effort.param}: this model's chat template does not say that it thinks; leave it out, or ask a model that thinks"
