"""How a peer takes part in a swarm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from protocols.errors import ConfigError
from swarm.dht.address import PeerAddress
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import ANYBODY, Entry
from swarm.meeting.invitation import check_name

WATCH_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """Name, ways in and out, and identity of one peer."""

    swarm: str = "public"
    """Name of the swarm: 1 to 64 printable letters. All keys in the DHT carry it."""

    bootstrap: tuple[str, ...] = ()
    """Multiaddrs of any peers of the swarm; none = those that `find` finds, or be the first."""

    find: FindConfig = field(default_factory=FindConfig)
    """Which further peers to ask; none, by default."""

    listen: tuple[str, int] | None = ("127.0.0.1", 0)
    """Host and port of p2pd; gRPC takes the next port; 0 = a free pair; None = listen nowhere (clients)."""

    announce: tuple[str, int] | None = None
    """Host and port under which others reach `listen`, where that is another (a forwarded port)."""

    data_dir: Path | None = None
    """Folder of the default identity; None = that of this user (`places.data_dir`)."""

    identity_path: Path | None = None
    """Identity file; None = the first one in `data_dir` that no other process uses, or, for a client, a fresh identity."""

    name: str = ""
    """What the volunteer calls this machine, at most 64 letters."""

    client_mode: bool = False
    """Ask only: no server, no records kept for others; the start fails if no given peer answers."""

    entry: Entry = ANYBODY
    """The key of a private swarm, and the lists of whom we talk to."""

    dial_back_s: float = 3.0
    """How long we try to reach a caller that asks to be dialled back."""

    watch_s: float = WATCH_S
    """How often we look whether peers of the DHT have gone; with them may have gone copies of our record."""

    on_join: Callable[[bool, str], None] | None = None
    """Told (True, text) when peers were met, and (False, text) after every round in which none answered."""

    def __post_init__(self) -> None:
        check_name(self.swarm)
        if self.listen is None and not self.client_mode:
            raise ConfigError("a peer that listens nowhere must be a client (client_mode=True)")
        for address in self.bootstrap:
            PeerAddress.parse(address)
