"""How a command enters a swarm: what --join, --swarm, --peer, --allow, --deny, --trust and --identity come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.cli.console import remark
from protocols.errors import ConfigError
from protocols.ids import PeerId, short_peer
from protocols.words import counted
from swarm import keyring, places
from swarm.access import Access
from swarm.access_lists import ANYBODY, Entry, Lists
from swarm.dht.address import PeerAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Entering:
    """Which swarm, by whom, and with what."""

    swarm: str
    peers: tuple[str, ...]
    entry: Entry = ANYBODY


def entering(
    *, swarm: str, peer: Sequence[str], data_dir: Path | None, join: str | None, lists: Lists, identity: Path | None = None
) -> Entering:
    """Read the invitation, the keys that are kept here and the lists; ConfigError names what is wrong.

    lists: as the flags name them. identity: of a client.
    """
    member = keyring.membership(join, swarm, peer, data_dir or places.data_dir())
    access = lists.read()
    _check_given(member.peers, access)
    if access.allow is not None and (left := access.trust - access.allow):
        remark(f"warning: --trust names {counted(len(left), 'peer')} that --allow leaves out: {_some(left)}; they stay refused")
    if left := access.deny & access.trust:
        remark(f"warning: --trust names {counted(len(left), 'peer')} that --deny refuses: {_some(left)}; they stay refused")
    return Entering(swarm=member.swarm, peers=member.peers, entry=Entry(key=member.key, lists=lists, identity=identity))


def _check_given(peers: Sequence[str], access: Access) -> None:
    """ConfigError if the lists leave none of the peers by which the swarm would be entered."""
    given = [PeerAddress.parse(address).peer for address in peers]
    if given and not any(map(access.may_be_dialled, given)):
        flag = "--deny refuses" if set(given) & access.deny else "--allow leaves out"
        raise ConfigError(
            f"{flag} every peer that is named by --peer or --join ({_some(frozenset(given))}); "
            "expected at least one to enter the swarm by"
        )


def _some(peers: frozenset[PeerId]) -> str:
    named = sorted(peers)
    return ", ".join(short_peer(peer) for peer in named[:3]) + (", …" if len(named) > 3 else "")
