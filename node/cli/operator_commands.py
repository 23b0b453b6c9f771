"""The commands of operators: `swarm operator new`, and orders to nodes."""

from __future__ import annotations

import typer

from node.cli.flags import options
from node.cli.flags.command_options import OperatorOptions, with_flags

operator_app = typer.Typer(help="Drain, pause and ban at nodes whose owners let you (`swarm node --operators`).")

ORDERS = {
    "ask": "Say how a node stands, and what you may order.",
    "pause": "Let no new sessions begin at a node; it keeps its blocks, and open sessions go on.",
    "resume": "Let new sessions begin at a paused node again.",
    "drain": "End a node: its sessions may end, or go on at other nodes, and its process ends as by SIGTERM.",
    "kill": "End a node of a test swarm at once, as by kill -9, to see what a death costs.",
}
"""Orders that need to know the node only -> what their command's help says."""


@operator_app.command("new")
def new_operator_command(
    operator_key: options.OperatorKey = None,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Make an operator's key, and print its PeerID for the owners of nodes."""
    from node.cli.host import operating

    operating.new(operator_key, data_dir, is_json=as_json)


def _add_order(action: str, text: str) -> None:
    @operator_app.command(action, help=text)
    @with_flags("flags", OperatorOptions)
    def order_command(node: options.Node, as_json: options.AsJson = False, *, flags: OperatorOptions) -> None:
        from node.cli.host import operating

        operating.run(node, action, flags, is_json=as_json)


for _action, _text in ORDERS.items():
    _add_order(_action, _text)


@operator_app.command("ban")
@with_flags("flags", OperatorOptions)
def ban_node_command(
    node: options.Node,
    banned: options.Banned,
    seconds: options.BanSeconds = 3_600,
    as_json: options.AsJson = False,
    *,
    flags: OperatorOptions,
) -> None:
    """Let a node refuse PEER's calls and not call it, for some time; a restart of the node changes nothing."""
    from node.cli.host import operating

    operating.run(node, "ban", flags, is_json=as_json, peer=banned, seconds=seconds)


@operator_app.command("unban")
@with_flags("flags", OperatorOptions)
def unban_node_command(
    node: options.Node, banned: options.Banned, as_json: options.AsJson = False, *, flags: OperatorOptions
) -> None:
    """End a ban."""
    from node.cli.host import operating

    operating.run(node, "unban", flags, is_json=as_json, peer=banned)
