"""Whether tools must be called, may be, and how often.

What the model would do by itself is not enough then: a mask of tokens keeps it to the form (`swarm/thin/grammar/call_grammar.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.gateway.http.refusal import RefusedError
from node.gateway.tools.call_forms import form_of
from node.gateway.tools.tool_calls import tools_of
from swarm.thin.grammar.answer_form import CallRules, OfferedCall, schema_of

ANYTHING = '{"type": "object"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """What a request says of calls, if it says something."""

    param: str
    """The field that says it, for errors."""

    is_forced: bool = False
    """At least one tool is called, and nothing else is said."""

    is_single: bool = False
    """At most one."""

    only: str | None = None
    """The one that must be called; None = any of those that are offered."""

    strict: frozenset[str] = frozenset()
    """Those whose arguments must be of their schema. If calls are forced, those of all are, as far as the schema is supported."""


def calling_of(
    tools: Sequence[Mapping[str, Any]],
    strict: Iterable[str],
    *,
    param: str,
    is_forced: bool,
    only: str | None,
    single: str | None,
) -> Calling | None:
    """None if nothing has to be kept to. param: the field that forces calls. single: the one that allows only one; None = none does.

    RefusedError if a call is forced that is not offered.
    """
    names, strict = tools_of(tools), frozenset(strict)
    if is_forced and (not names or (only is not None and only not in names)):
        raise RefusedError(f"{param} forces a call of {only or 'a tool'}, which tools does not offer", param)
    if not names or not (is_forced or single or strict):
        return None
    field = param if is_forced else single or "tools"
    return Calling(param=field, is_forced=is_forced, is_single=single is not None, only=only, strict=strict)


def rules_of(calling: Calling | None, tools: Sequence[Mapping[str, Any]], template: str | None) -> CallRules | None:
    """For the mask of tokens. RefusedError if the calls of this template's family are not known."""
    if calling is None:
        return None
    form = form_of(template or "")
    if form is None:
        raise RefusedError(
            f"{calling.param}: how this model writes calls is not known here, so it can be kept to nothing; leave it out, and find the "
            "calls in its text",
            calling.param,
        )
    functions = [tool["function"] for tool in tools]
    offered = [_offered(one, calling) for one in functions if calling.only in (None, one["name"])]
    return CallRules(form=form, tools=tuple(offered), is_forced=calling.is_forced, is_single=calling.is_single)


def _offered(function: Mapping[str, Any], calling: Calling) -> OfferedCall:
    name, parameters = function["name"], function["parameters"]
    is_strict = name in calling.strict
    if not (is_strict or calling.is_forced):
        return OfferedCall(name=name, schema=ANYTHING)
    if parameters.get("type", "object") != "object":
        raise RefusedError(f"tools: the parameters of {name} are no object, so no call has such arguments", "tools")
    return OfferedCall(name=name, schema=schema_of(parameters, is_strict))
