"""Renders one chat template in a process of its own: a stranger's program, sandboxed, with a limit on time, memory and output.

Run by `templates.py` as `python -I render.py`: a JSON object {template, messages, variables} on stdin, the text or one line of
error on stdout. It imports nothing of ours. jinja2's sandbox keeps a template from Python's internals; it cannot bound a loop
within a loop or a text doubled forty times: the process limits do. (door: jinja2)

The environment is transformers' (`utils/chat_template_utils.py`): same extensions, globals and filters.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

CPU_S = 2
MEMORY_BYTES = 1 << 30
MAX_OUTPUT = 1 << 20
"""Letters of a rendered conversation."""


def main() -> None:
    asked = json.load(sys.stdin)
    import jinja2  # before the limit on memory: its own modules count

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        text = render(asked["template"], {**asked["variables"], "messages": asked["messages"], "add_generation_prompt": True})
    except Exception as error:  # a template is a stranger's program: it raises what it likes
        is_own = type(error) is jinja2.TemplateError  # raised by `raise_exception` alone: the template's own words
        words = " ".join((str(error) if is_own else f"{type(error).__name__}: {error}").split())[:1_000]
        answer = {"refusal" if is_own else "error": words}
    else:
        too_long = f"it makes {len(text)} letters, the limit is {MAX_OUTPUT}"
        answer = {"text": text} if len(text) <= MAX_OUTPUT else {"error": too_long}
    json.dump(answer, sys.stdout)


def render(template: str, variables: dict[str, Any]) -> str:
    """What the template makes of the variables."""
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

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a template cannot set {name!r}")
            super().__setitem__(name, value)

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
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    environment.globals["namespace"] = Namespace
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render(**variables)


if __name__ == "__main__":
    main()
