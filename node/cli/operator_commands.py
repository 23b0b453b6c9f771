"""The commands of operators: `swarm operator new`, and orders to nodes."""

from __future__ import annotations

import typer

from node.cli.flags import options
from node.cli.flags.command_options import OperatorOptions, with_flags

operator_app = typer.Typer(help="Drain, pause and ban at nodes whose owners let you (`swarm node --operators`).")


@operator_app.command("new")
def new_operator_command(
    operator_key: options.OperatorKey = None,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Make an operator's key, and print its PeerID for the owners of nodes."""
    from node.cli.host import operating

    operating.new(operator_key, data_dir, is_json=as_json)


@operator_app.command("ask")
@with_flags("flags", OperatorOptions)
def ask_node_command(node: options.Node, as_json: options.AsJson = False, *, flags: OperatorOptions) -> None:
    """Say how a node stands, and what you may order."""
    from node.cli.host import operating

    operating.run(node, "ask", flags, is_json=as_json)


@operator_app.command("pause")
@with_flags("flags", OperatorOptions)
def pause_node_command(node: options.Node, as_json: options.AsJson = False, *, flags: OperatorOptions) -> None:
    """Let no new sessions begin at a node; it keeps its blocks, and open sessions go on."""
    from node.cli.host import operating

    operating.run(node, "pause", flags, is_json=as_json)


@operator_app.command("resume")
@with_flags("flags", OperatorOptions)
def resume_node_command(node: options.Node, as_json: options.AsJson = False, *, flags: OperatorOptions) -> None:
    """Let new sessions begin at a paused node again."""
    from node.cli.host import operating

    operating.run(node, "resume", flags, is_json=as_json)


@operator_app.command("drain")
@with_flags("flags", OperatorOptions)
def drain_node_command(node: options.Node, as_json: options.AsJson = False, *, flags: OperatorOptions) -> None:
    """End a node: its sessions may end, or go on at other nodes, and its process ends as by SIGTERM."""
    from node.cli.host import operating

    operating.run(node, "drain", flags, is_json=as_json)


@operator_app.command("kill")
@with_flags("flags", OperatorOptions)
def kill_node_command(node: options.Node, as_json: options.AsJson = False, *, flags: OperatorOptions) -> None:
    """End a node of a test swarm at once, as by kill -9, to see what a death costs."""
    from node.cli.host import operating

    operating.run(node, "kill", flags, is_json=as_json)


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
