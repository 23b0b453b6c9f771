"""How a peer enters a swarm: invitation, kept keys, lists.

Commands and Python enter through `enter`, so that both refuse the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import ConfigError
from protocols.ids import PeerId, short_peer
from protocols.swarm_key import SwarmKey
from protocols.words import counted
from swarm.access import Access, Gate
from swarm.access_lists import NO_LISTS, Lists
from swarm.bans import Bans
from swarm.dht.address import PeerAddress
from swarm.meeting import invitation, keyring
from swarm.meeting.invitation import Invitation
from swarm.suggestion import DEFAULT_SWARM


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a peer enters a swarm with."""

    key: SwarmKey | None = None
    """The secret of a private swarm; None = the swarm is public."""

    lists: Lists = NO_LISTS
    """Whom it talks to."""

    identity: Path | None = None
    """Identity file of a client; None = a fresh identity each time."""

    bans: Bans | None = None
    """Of an operator: shared by all peers that enter with this; None = there never are any."""

    @property
    def changes(self) -> bool:
        """May lists or bans change while a peer runs?"""
        return bool(self.lists.files) or self.bans is not None

    def gate(self) -> Gate:
        """Key, lists and bans, for the parts of a peer."""
        return Gate(self.key, self.lists.read(), self.bans)


ANYBODY = Entry()
"""A public swarm, all of its peers, and a fresh identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """Which swarm, by which peers, and with what."""

    swarm: str = DEFAULT_SWARM
    peers: tuple[str, ...] = ()
    entry: Entry = ANYBODY


def enter(
    *,
    swarm: str,
    data_dir: Path,
    join: str | None = None,
    peers: Sequence[str] = (),
    lists: Lists = NO_LISTS,
    identity: Path | None = None,
    warn: Callable[[str], None],
    now_s: float | None = None,
) -> Entered:
    """Read the invitation, the keys that are kept in `data_dir`, and the lists; ConfigError says what is wrong.

    join: an invitation, or a file that holds one. A key that came by it is kept, so the next start needs none.
    warn: told of peers in `trust` that another list refuses. now_s: Unix time; None = now.
    """
    invitation.check_name(swarm)
    for peer in peers:
        PeerAddress.parse(peer)
    if join is None:
        key = keyring.kept(data_dir, swarm)
    else:
        found = invitation.read(join)
        if swarm not in (DEFAULT_SWARM, found.swarm):
            raise ConfigError(f"the invitation is to swarm `{found.swarm}`, --swarm says `{swarm}`: leave --swarm out")
        key = _accepted(found, data_dir, time.time() if now_s is None else now_s)
        swarm, peers = found.swarm, (*peers, *found.peers)
    access = lists.read()
    _check_way_in(peers, access)
    _warn_of_trust(access, warn)
    return Entered(swarm=swarm, peers=tuple(dict.fromkeys(peers)), entry=Entry(key=key, lists=lists, identity=identity))


def _accepted(found: Invitation, data_dir: Path, now_s: float) -> SwarmKey | None:
    """The invitation's key, kept here from now on. If it is kept already, the invitation may have expired; another is never replaced."""
    before = keyring.kept(data_dir, found.swarm) if found.key else None
    if found.key is not None and found.key == before:
        return before
    found.check_expiry(now_s)
    if before is not None:
        raise ConfigError(
            f"the invitation has another key of swarm `{found.swarm}` than {keyring.file_of(data_dir, found.swarm)}; "
            "if its members have changed the key, remove that file and join again"
        )
    if found.key is not None:
        keyring.keep(data_dir, found.swarm, found.key)
    return found.key


def _check_way_in(peers: Sequence[str], access: Access) -> None:
    """ConfigError if the lists leave none of the peers by which the swarm would be entered."""
    given = [PeerAddress.parse(address).peer for address in peers]
    if given and not any(map(access.may_be_dialled, given)):
        flag = "--deny refuses" if set(given) & access.deny else "--allow leaves out"
        raise ConfigError(
            f"{flag} every peer that is named by --peer or --join ({_some(frozenset(given))}); "
            "expected at least one to enter the swarm by"
        )


def _warn_of_trust(access: Access, warn: Callable[[str], None]) -> None:
    left_out = frozenset() if access.allow is None else access.trust - access.allow
    for words, peers in (("--allow leaves out", left_out), ("--deny refuses", access.trust & access.deny)):
        if peers:
            warn(f"warning: --trust names {counted(len(peers), 'peer')} that {words}: {_some(peers)}; they stay refused")


def _some(peers: frozenset[PeerId]) -> str:
    named = sorted(peers)
    return ", ".join(short_peer(peer) for peer in named[:3]) + (", …" if len(named) > 3 else "")
