"""The commands of the cache: `swarm cache`, `swarm cache prune`."""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli.flags import completion, options

cache_app = typer.Typer(
    help="List what was fetched from peers and is kept on this disk; prune removes it.", invoke_without_command=True
)


@cache_app.callback()
def cache_command(
    context: typer.Context,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """List what was fetched from peers and is kept on this disk; `prune` removes it."""
    from node.cli.machine import cache

    if context.invoked_subcommand is None:
        cache.show(data_dir, is_json=as_json)


@cache_app.command("prune")
def prune_command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="NAME, NAME@DIGEST or the beginning of a digest.",
            show_default=False,
            autocompletion=completion.names,
        ),
    ] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="What was not used for so many days.")
    ] = None,
    remove_all: Annotated[bool, typer.Option("--all", help="All models.")] = False,
    max_gb: Annotated[
        float | None, typer.Option("--max-gb", metavar="GB", help="What was used longest ago, until the cache takes so much.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Remove fetched models; what a running node uses always stays."""
    from node.cli.machine import cache

    which = cache.Which(name=model, older_than_days=older_than, all=remove_all, max_gb=max_gb)
    above = context.parent.params if context.parent else {}  # `swarm cache --data-dir DIR prune` means the same
    cache.prune(data_dir or above.get("data_dir"), which, is_sure=yes, is_json=as_json or bool(above.get("as_json")))
