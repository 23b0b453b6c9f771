"""`swarm invite`: prints an invitation to stdout.

What to know about it goes to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from node.cli.flags.asking import check_range
from node.cli.terminal import as_json
from node.cli.terminal.console import remark
from node.config import DEFAULT_SWARM
from protocols.errors import ConfigError
from protocols.swarm_key import SwarmKey
from swarm import places
from swarm.dht.address import PeerAddress
from swarm.meeting import invitation, keyring, known_peers, running_nodes
from swarm.meeting.invitation import Invitation
from swarm.suggestion import NodeCommand

MAX_DAYS = 3_650
MAX_NAMED = 6
"""Addresses in an invitation, if they are not named by --peer: enough that one answers, few enough to copy."""


def run(
    swarm: str,
    peers: tuple[str, ...],
    *,
    is_private: bool,
    days: float,
    is_new: bool,
    data_dir: Path | None,
    is_json: bool = False,
) -> None:
    """Print an invitation, with the key that is kept here if the swarm is private. ConfigError says what is missing."""
    check_range("--days", days, f"more than 0, at most {MAX_DAYS}", 0 < days <= MAX_DAYS)
    Invitation(swarm=swarm, peers=peers)  # refuses what no invitation can hold, before a key is replaced
    folder = data_dir or places.data_dir()
    key = _key(swarm, folder, is_private=is_private or is_new, is_new=is_new)
    named = [PeerAddress.parse(peer) for peer in peers] or _known(folder, keyring.known_as(swarm, key))
    if key is None and not named:
        raise ConfigError(
            f"no address of swarm `{swarm}` is known here, so the invitation would name no peer; start a node here first, "
            "give --peer, or make a private swarm (--private --swarm NAME)"
        )
    expires_s = time.time() + days * 86_400
    made = Invitation(swarm=swarm, peers=tuple(map(str, named)), key=key, expires_s=expires_s)
    if is_json:
        facts = {"swarm": made.swarm, "is_private": key is not None, "peers": made.peers, "expires_unix_s": round(expires_s)}
        as_json.show({"invitation": made.text(), **facts})
    else:
        print(made.text(), flush=True)
    _explain(made, named, folder)


def _key(swarm: str, folder: Path, *, is_private: bool, is_new: bool) -> SwarmKey | None:
    found = keyring.kept(folder, swarm)
    if not is_private or (found and not is_new):
        return found
    if swarm == DEFAULT_SWARM:
        raise ConfigError(f"a private swarm needs a name of its own: add --swarm NAME (`{DEFAULT_SWARM}` is the public one)")
    key = keyring.made()
    path = keyring.keep(folder, swarm, key)
    remark(f"made {'another' if found else 'the'} key of private swarm `{swarm}` (key {key.label}), kept in {path}")
    if found:
        remark("nodes and clients here use it from their next start on; those elsewhere need a new invitation")
    return key


def _known(folder: Path, known_as: str) -> list[PeerAddress]:
    """This machine's nodes, then the peers that answered last; those that others cannot use are left out if there are any else."""
    own = running_nodes.nodes(folder, known_as)
    found = list(dict.fromkeys((*own, *known_peers.load(known_peers.file_of(folder, known_as), time.time()))))
    return ([one for one in found if not one.is_loopback] or found)[:MAX_NAMED]


def _explain(made: Invitation, named: Sequence[PeerAddress], folder: Path) -> None:
    kind = "public" if made.key is None else "private"
    label = "" if made.key is None else f" (key {made.key.label})"
    addresses = "1 address" if len(made.peers) == 1 else f"{len(made.peers) or 'no'} addresses"
    until = invitation.date(made.expires_s or 0)
    remark(f"invitation to {kind} swarm `{made.swarm}`{label}, with {addresses}, for use until {until}")
    if made.key is not None:
        remark("anyone who has this invitation can join, invite others and keep the key: treat it as you would a password")
    if not named:
        command = NodeCommand(swarm=made.swarm, data_dir=folder).text("MODEL")
        remark(f"it names no address, since no node runs here yet: start one and invite again: {command}")
    elif all(one.is_loopback for one in named):
        remark("its addresses are of this machine only (127.0.0.1): for others, give --peer with an address that they can reach")
