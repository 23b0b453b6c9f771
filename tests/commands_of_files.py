"""Commands of `swarm` that files show, read by its own parsers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import typer.main

from node.cli.app import app

GROUP: Any = typer.main.get_command(app)
PEER = "12D3KooWJ7NKEeJEXYdWmFd1HXJgn5minVvmV74PEhEpt76MVbY7"


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command, or group of commands, that the first words name, and the words after them; LookupError if there is none."""
    command = GROUP
    while words and hasattr(command, "commands"):
        name = words[0]
        if name not in command.commands:
            raise LookupError(f"no command {name!r} among {sorted(command.commands)}")
        command, words = command.commands[name], words[1:]
    return command, words


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command understands, by the names of its parameters; a click error says what is wrong with it.

    words: those after `swarm`. Nothing is run, and files need not exist.
    """
    command, rest = command_of(words)
    with command.make_context(words[0], rest) as context:
        return dict(context.params)


def in_shell(script: str, variables: Mapping[str, str] = {}) -> Iterator[list[str]]:
    """The words after `swarm` of each call in a script of `sh`; variables: what `$NAME` stands for, where the script does not say it."""
    script = re.sub(r"\\\n\s*", " ", script)
    script = re.sub(r"\$\$?\((?:[^()]|\([^)]*\))*\)", PEER, script)
    given = re.search(r"^\s*set -- (.*)$", script, re.M)
    for line in script.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line)
        for call in re.findall(r"(?:^|&&|\||;|exec )\s*swarm ([^&|;>]*)", line):
            call = call.replace('"$@"', given[1] if given else "")
            call = re.sub(
                r"\$\$?\{?(\w+)(?::-([^}]*))?\}?", lambda found: variables.get(found[1], found[2] or found[1].lower()), call
            )
            yield shlex.split(call)
