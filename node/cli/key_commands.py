"""The commands of the gateway's keys: `swarm keys add`, `list`, `revoke`."""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli.flags import options

keys_app = typer.Typer(help="Say who may ask a gateway (`swarm serve`), and how much.")


@keys_app.command("add")
def add_key_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose it is: 1 to 64 letters, digits and ._@-.", show_default=False)
    ],
    requests_per_minute: Annotated[
        int | None,
        typer.Option("--requests-per-minute", metavar="N", help="Answer so many requests in any minute; default: all."),
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-day", metavar="N", help="Tokens of prompts and answers together in a day of UTC; default: no limit."
        ),
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="Let it give orders on the page of a gateway that has an operator's key.")
    ] = False,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Make a key and print it, once."""
    from node.cli.host import gateway_keys

    gateway_keys.add(data_dir, name, requests_per_minute, tokens_per_day, operator, is_json=as_json)


@keys_app.command("list")
def list_keys_command(
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """List the keys with their limits; what is secret is not kept."""
    from node.cli.host import gateway_keys

    gateway_keys.show(data_dir, is_json=as_json)


@keys_app.command("revoke")
def revoke_key_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `swarm keys list` says.", show_default=False)],
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """End a key; a running gateway refuses it from its next request on."""
    from node.cli.host import gateway_keys

    gateway_keys.revoke(data_dir, name, is_json=as_json)
