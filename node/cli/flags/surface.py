"""Every option of every command, read from typer.

Configuration, `swarm config` and the documents are made from it.

A flag that is added to a command is here too, and with it its variable and its key in the file.
"""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from typer.models import OptionInfo

COMMAND_LINE_ONLY = (
    "version",
    "config_file",
    "example",
    "once",
    "yes",
    "remove_all",
    "older_than",
    "max_gb",
    "private",
    "new_key",
    "days",
    "prompt_file",
)
"""Options that make no sense in a file or a variable: they ask for something to be shown or removed, or say which file."""

TABLES = {"serve": "gateway"}
"""Commands whose table in the file has another name: `[[serve]]` says what a node serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of one command."""

    command: tuple[str, ...]
    """The command's words after `swarm`; () = an option of `swarm` itself."""

    name: str
    """The parameter of the function behind the command, as typer knows it."""

    flag: str
    """As typed: `--max-new-tokens`."""

    kind: type
    """str, int, float, bool or Path."""

    is_list: bool
    choices: tuple[str, ...]
    """The words that it may be; () = any."""

    default: Any
    help: str

    @property
    def table(self) -> tuple[str, ...]:
        """Its table in the file: the command's words."""
        return tuple(TABLES.get(word, word) for word in self.command)

    @property
    def key(self) -> str:
        """Its key in the file: `max-new-tokens`."""
        return self.flag.removeprefix("--")

    @property
    def variable(self) -> str:
        """Its variable in the environment: `SWARM_MAX_NEW_TOKENS`."""
        return "SWARM_" + self.key.upper().replace("-", "_")


def options(app: typer.Typer, command: tuple[str, ...] = ()) -> list[Option]:
    """All options of `app` and its commands, in the order of declaration."""
    found = list(_of(app.registered_callback.callback, command)) if app.registered_callback else []
    for one in app.registered_commands:
        assert one.callback is not None
        found += _of(one.callback, (*command, one.name or one.callback.__name__.replace("_", "-")))
    for group in app.registered_groups:
        assert group.typer_instance is not None and isinstance(group.name, str), "a group is added with its name"
        found += options(group.typer_instance, (*command, group.name))
    return found


def _of(function: Callable[..., Any] | None, command: tuple[str, ...]) -> Iterator[Option]:
    if function is None:
        return
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is not Annotated:
            continue
        kind, *notes = get_args(parameter.annotation)
        info = next((note for note in notes if isinstance(note, OptionInfo)), None)
        if info is not None and parameter.name not in COMMAND_LINE_ONLY:
            yield _option(command, parameter, kind, info)


def _option(command: tuple[str, ...], parameter: inspect.Parameter, kind: Any, info: OptionInfo) -> Option:
    words = [info.default] if isinstance(info.default, str) else []  # in Annotated, typer takes the first word for a default
    words += info.param_decls or []
    spelled = (part for word in words for part in word.split("/"))
    flag = next((word for word in spelled if word.startswith("--")), "--" + parameter.name.replace("_", "-"))
    base, is_list, choices = _simple(kind)
    return Option(
        command=command,
        name=parameter.name,
        flag=flag,
        kind=base,
        is_list=is_list,
        choices=choices,
        default=None if parameter.default is inspect.Parameter.empty else parameter.default,
        help=info.help or "",
    )


def _simple(kind: Any) -> tuple[type, bool, tuple[str, ...]]:
    """(one of str, int, float, bool, Path; is it a list; its choices) of an annotation like `list[str]` or `int | None`."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) in (list, tuple):
        base, _, choices = _simple(get_args(kind)[0])
        return base, True, choices
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return str, False, tuple(str(one.value) for one in kind)
    if get_args(kind):  # a Literal
        return str, False, tuple(map(str, get_args(kind)))
    assert kind in (str, int, float, bool, Path), f"an option of type {kind} has no form in a file"
    return kind, False, ()
