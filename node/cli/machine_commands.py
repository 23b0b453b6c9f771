"""The commands of this machine: `doctor`, `bench`, `config`, `whoami`, `completion`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.cli.flags import completion, options
from node.cli.flags.command_options import BenchOptions, DoctorOptions, with_flags


def whoami_command(
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity",
            metavar="FILE",
            help="Of this key file, made if there is none; default: the node's.",
        ),
    ] = None,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Print a PeerID, for the lists of others (--allow, --deny, --trust)."""
    from node.cli.machine import whoami

    whoami.run(identity, data_dir, is_json=as_json)


def config_command(
    context: typer.Context,
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="The options of this command; none = of all.", show_default=False)
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a file with every key, to start from.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what every option is set to, and by what: a default, the file, or the environment."""
    from node.cli.flags import show_config

    show_config.run(context.obj, command, is_example=example, is_json=as_json)


@with_flags("flags", DoctorOptions)
def doctor_command(as_json: options.AsJson = False, *, flags: DoctorOptions) -> None:
    """Check this machine and its way into a swarm, and say what to fix. Exit code 1 if a check has failed."""
    from node.cli.machine import doctor

    raise typer.Exit(doctor.run(flags, is_json=as_json))


@with_flags("flags", BenchOptions)
def bench_command(model: options.Model, as_json: options.AsJson = False, *, flags: BenchOptions) -> None:
    """Measure this machine and a route for MODEL, and say what a node here would change."""
    from node.cli.machine import bench

    bench.run(model, flags, is_json=as_json)


def completion_command(
    shell: Annotated[completion.Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print what makes Tab complete `swarm` in a shell: eval "$(swarm completion bash)" in ~/.bashrc; zsh as bash, after compinit, in
    ~/.zshrc; swarm completion fish | source, in config.fish."""
    print(completion.script(shell), flush=True)
