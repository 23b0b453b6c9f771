"""`swarm`: the table of commands, and how they fail.

Nothing heavy is imported here: torch, transformers and hivemind come in with the body of the command that needs them, so
that `swarm --help` answers at once. Flags are frozen by tests/node/cli/test_flags.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
import typer.main

from node import logs
from node.cli import (
    ask_commands,
    cache_commands,
    failures,
    first_steps,
    host_commands,
    key_commands,
    machine_commands,
    operator_commands,
    train_commands,
)
from node.cli.flags import arguments, completion, configuration, surface
from node.cli.flags.configuration import Settings
from node.cli.terminal import console, stopping, utf8
from node.cli.terminal.console import remark

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in failures.EXIT_CODES.items()) + "."

COMMANDS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Host a model": {
        "node": host_commands.node_command,
        "up": host_commands.up_command,
        "invite": host_commands.invite_command,
        "keys": key_commands.keys_app,
        "operator": operator_commands.operator_app,
    },
    "Ask a model": {
        "generate": ask_commands.generate_command,
        "chat": ask_commands.chat_command,
        "serve": ask_commands.serve_command,
        "status": ask_commands.status_command,
        "top": ask_commands.top_command,
    },
    "Train a model": {
        "train": train_commands.train_command,
        "runs": train_commands.runs_command,
        "eval": train_commands.eval_command,
        "report": train_commands.report_command,
    },
    "This machine": {
        "doctor": machine_commands.doctor_command,
        "bench": machine_commands.bench_command,
        "config": machine_commands.config_command,
        "cache": cache_commands.cache_app,
        "whoami": machine_commands.whoami_command,
        "completion": machine_commands.completion_command,
    },
}
"""All commands, by their headings in `swarm --help`: a function whose parameters are the flags, or a group of commands."""

SETTINGS: dict[str, dict[str, Any]] = {"train": {"allow_extra_args": True, "ignore_unknown_options": True}}
"""Of commands that take the fields of a run file as options, too."""

app = typer.Typer(
    name="swarm",
    help="Host a slice of a large model, or prompt the whole of it, with other volunteers' machines.",
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0, or one line on stderr and the code of `failures.EXIT_CODES`."""
    console.open_closed()
    if completion.is_asked():
        sys.exit(completion.answer(app))
    given, debug = arguments.without_debug(list(sys.argv[1:] if words is None else words))
    settings: Settings | None = None
    try:
        utf8.check_arguments(given)
        given, file = arguments.without_config(given)
        given, form = arguments.without_log_format(given)
        given, fields = arguments.without_fields(given)
        settings = dataclasses.replace(_settings(given, file), fields=fields)
        is_node = given[:1] in (["node"], ["up"])
        os.environ.pop("SWARM_JOIN", None)  # it may hold a key, which our child processes need not have
        debug = debug or any(value.value is True for (_, flag), value in settings.values.items() if flag == "--debug")
        goes_on = is_node or given[:1] == ["serve"]
        level = "DEBUG" if debug else "WARNING" if goes_on else "ERROR"  # a client says it in its one line
        logs.set_up(level, _log_format(form, settings))
        if not given:
            print(first_steps.text(), flush=True)
            sys.exit(2)  # a script that forgot the command must not go on
        command: Any = typer.main.get_command(app)
        line: dict[str, Any] = dict(args=given, default_map=settings.default_map(), obj=settings)
        with contextlib.nullcontext() if is_node else stopping.as_by_ctrl_c():  # a node has handlers of its own
            code = command(prog_name="swarm", standalone_mode=False, **line)
            sys.stdout.flush()
    except BaseException as error:
        sys.exit(_fail(error, debug, given, settings))
    sys.exit(code if isinstance(code, int) else 0)


def _settings(given: list[str], file: Path | None) -> Settings:
    """Settings of the environment and the file; help is printed even if those are wrong."""
    known = surface.options(app)
    own = given[: given.index("--")] if "--" in given else given
    is_help = not own or not {"-h", "--help", "--version"}.isdisjoint(own)
    return configuration.read(known, {} if is_help else os.environ, None if is_help else file)


def _log_format(given: str | None, settings: Settings) -> Any:
    """Of the command line, else of the environment or the file."""
    return given or next((found.value for (_, flag), found in settings.values.items() if flag == arguments.LOG_FORMAT), "auto")


def _fail(error: BaseException, debug: bool, given: list[str], settings: Settings | None) -> int:
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        error = error.__context__  # rich, and click below typer, make an exit with 1 of it
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    text, code = failures.describe(failures.first_cause(error))
    if code == 141:  # or Python complains once more when it flushes at exit
        console.forget_readers()
        return code
    if debug:
        console.trace(error)
    if text:
        with contextlib.suppress(OSError):  # stderr may be full, or without a reader
            remark(f"error: {settings.sources(text, given) if settings else text}")
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"murmuration {metadata.version('murmuration')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log line.")] = False,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Options from this TOML file; default: $SWARM_CONFIG, or ~/.config/murmuration/config.toml if there is one. "
            "This, --debug and --log-format may stand anywhere in the line.",
        ),
    ] = None,
    log_format: Annotated[
        Literal["auto", "text", "json"],
        typer.Option("--log-format", help="How log lines on stderr look; auto: text on a terminal, else JSON."),
    ] = "auto",
) -> None:
    pass


def _register() -> None:
    for heading, commands in COMMANDS.items():
        for name, command in commands.items():
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name, rich_help_panel=heading)
            else:
                app.command(name, rich_help_panel=heading, context_settings=SETTINGS.get(name))(command)


_register()
