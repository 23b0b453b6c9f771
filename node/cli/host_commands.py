"""The commands by which people host: `node`, `up`, `invite`."""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli.flags import options
from node.cli.flags.command_options import Hosting, UpOptions, with_flags
from node.config import DEFAULT_SWARM
from protocols.errors import ConfigError
from swarm.meeting.invitation import VALID_DAYS


@with_flags("hosting", Hosting)
def node_command(context: typer.Context, hosting: Hosting, model: options.Models = []) -> None:  # noqa: B006
    """Join the swarm and serve a span of MODEL's blocks, or train in a run (--run). Ctrl-C leaves in order."""
    from node.cli.flags import serve_tables
    from node.cli.host import node

    if hosting.run is not None and model:
        raise ConfigError(f"--run {hosting.run} says which model it is, got MODEL {model[0]} too: leave one out")
    run = node.run_of(hosting.run, context.obj.fields)
    serve = serve_tables.chosen(model, context.obj.serve) if run is None else [serve_tables.of_run(run)]
    if not serve:
        raise ConfigError(
            "Missing argument 'MODEL': a directory or a name; --run RUN; or a [[serve]] table in the file of options"
        )
    node.run(serve, hosting, run)


@with_flags("flags", UpOptions)
def up_command(context: typer.Context, flags: UpOptions, model: options.Models = []) -> None:  # noqa: B006
    """Host MODEL's blocks and serve it by HTTP to programs on this machine, in one process. Ctrl-C leaves in order."""
    from node.cli.flags import serve_tables
    from node.cli.host import up

    serve = serve_tables.chosen(model, context.obj.serve)
    if not serve:
        raise ConfigError("Missing argument 'MODEL': a directory or a name; or a [[serve]] table in the file of options")
    up.run(serve, flags)


def invite_command(
    private: Annotated[
        bool,
        typer.Option("--private", help="Make a private swarm, with a key, if there is none of this name in the data directory."),
    ] = False,
    swarm: options.Swarm = DEFAULT_SWARM,
    peer: Annotated[
        list[str],
        typer.Option(
            "--peer",
            metavar="MULTIADDR",
            help="Name this address in the invitation. Repeatable; none = this machine's nodes and the last known peers.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    days: Annotated[
        float, typer.Option("--days", metavar="N", help="The invitation can be used for so many days; the key in it has no end.")
    ] = VALID_DAYS,
    new_key: Annotated[
        bool,
        typer.Option("--new-key", help="Change the key of the private swarm: members without a new invitation are excluded."),
    ] = False,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Print an invitation: the swarm's name, addresses and, if it is private, its key. Others pass it by --join."""
    from node.cli.host import invite

    invite.run(swarm, tuple(peer), is_private=private, days=days, is_new=new_key, data_dir=data_dir, is_json=as_json)
