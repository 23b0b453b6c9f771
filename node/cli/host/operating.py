"""`swarm operator`: an operator's key, and orders to nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.flags.asking import find_config
from node.cli.terminal import as_json
from node.cli.terminal.console import remark
from node.cli.terminal.waiting import shown
from protocols.errors import BadRequestError, ConfigError
from protocols.ids import PeerId, parse_peer_id, short_peer
from protocols.orders import Order, OrderReply
from protocols.records import PeerRecord
from protocols.words import counted, one_line
from swarm import places, waiting
from swarm.dht.address import PeerAddress
from swarm.meeting.entering import Entered
from swarm.peer import operator

if TYPE_CHECKING:
    from node.cli.flags.command_options import OperatorOptions
    from swarm.meeting.bootstrap import FindConfig
    from swarm.peer.thin_peer import ThinPeer

MAX_MODELS = 64
"""Models under which the node is looked for, those of most peers: any peer can make up names."""

LEAST_LETTERS = 6
"""Of the end of a PeerID that stands for the whole."""


@dataclass(frozen=True, slots=True)
class Target:
    """The node that an order goes to."""

    peer: PeerId
    name: str
    addresses: tuple[str, ...]
    certificate: bytes = b""


def key_file(given: Path | None, data_dir: Path | None) -> Path:
    """Where the operator's key is."""
    return given or (data_dir or places.data_dir()) / operator.DEFAULT_NAME


def new(given: Path | None, data_dir: Path | None, *, is_json: bool) -> None:
    """Make a key, and print its PeerID."""
    path = key_file(given, data_dir)
    peer = operator.make(path)
    if is_json:
        as_json.show({"peer": peer, "file": path})
    else:
        print(peer, flush=True)
    remark(
        f"the key is in {path}: keep it secret. The owner of a node puts this PeerID into a file: swarm node … --operators FILE"
    )


def run(node: str, action: str, flags: OperatorOptions, *, is_json: bool, peer: str | None = None, seconds: int = 0) -> None:
    """Order it, and print what was done.

    Errors as of `swarm.peer.operator.give`; ConfigError if no node is called `node`, or several are.
    """
    order = Order(action=action, peer=None if peer is None else parse_peer_id(peer), seconds=seconds)
    key = key_file(flags.operator_key, flags.data_dir)
    operator.read(key)
    into = flags.enter()
    into = replace(into, peers=into.peers or _way_in(node), entry=replace(into.entry, identity=key))
    find = find_config(into.swarm, flags.lan, flags.data_dir, into.entry.key)
    find.check(into.peers)
    with shown() as on_wait:
        on_wait(waiting.JOINING)
        target, reply = asyncio.run(_order(node, order, into, find))
    if is_json:
        bans = [{"peer": ban.peer, "seconds": ban.seconds} for ban in reply.bans]
        as_json.show({
            "node": target.peer, "name": target.name, "order": action, "done": reply.done, "state": reply.state,
            "may": reply.may, "bans": bans,
        })  # fmt: skip
    else:
        print(_text(target, reply), flush=True)


def _way_in(node: str) -> tuple[str, ...]:
    """A node that is named by its address is a way into its swarm, too."""
    return (node,) if "/" in node else ()


async def _order(node: str, order: Order, into: Entered, find: FindConfig) -> tuple[Target, OrderReply]:
    from swarm.peer.thin_peer import ThinPeer

    async with ThinPeer(into.peers, into.swarm, find, into.entry) as us:
        target = _by_address(node) if "/" in node else _one_of(node, await _announced(us))
        return target, await operator.give(us.pool, order, target.peer, target.addresses, target.certificate)


def _by_address(text: str) -> Target:
    address = PeerAddress.parse(text)
    return Target(address.peer, "", (address.grpc,))


async def _announced(us: ThinPeer) -> list[PeerRecord]:
    names = list(await us.directory.models())[:MAX_MODELS]
    snapshots = await asyncio.gather(*map(us.directory.snapshot, names))
    return list({record.peer: record for snapshot in snapshots for record in snapshot.peers}.values())


def _one_of(node: str, records: Sequence[PeerRecord]) -> Target:
    """The only node that is called so. Names are claims, and two may have one: then a PeerID says which."""
    end = node.removeprefix("…")
    found = [one for one in records if one.peer == node]  # whatever others call themselves
    if not found:
        found = [one for one in records if one.name == node or (len(end) >= LEAST_LETTERS and one.peer.endswith(end))]
    if found and found[0].peer != node and _is_peer(node):
        found = []
    if not found:
        raise BadRequestError(
            f"no node of the swarm is called {node[:80]!r}: expected a PeerID, its last {LEAST_LETTERS} letters or more, a name, or an "
            "address; swarm status --json lists them"
        )
    if len(found) > 1:
        listed = ", ".join(one.peer for one in found[:3])
        raise ConfigError(f"{counted(len(found), 'node')} are called {node[:80]!r}: name one by its PeerID ({listed})")
    one = found[0]
    return Target(one.peer, one.name, one.addresses, one.certificate)


def _is_peer(text: str) -> bool:
    try:
        parse_peer_id(text)
    except BadRequestError:
        return False
    return True


def _text(target: Target, reply: OrderReply) -> str:
    who = one_line(f"{target.name} {target.peer}".strip())
    lines = [f"{who}: {one_line(reply.done) or reply.state}"]
    if not reply.done:
        lines += [f"you may order: {', '.join(action for action in reply.may if action != 'ask')}"]
        lines += [f"bans {short_peer(ban.peer)} for {counted(ban.seconds, 'second')} more ({ban.peer})" for ban in reply.bans]
    return "\n".join(lines)
