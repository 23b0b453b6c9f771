"""The known peers of a swarm, in a small file.

Addresses that have answered, so that a restart needs no address.

One line per address: when it last answered (Unix time), its multiaddr, and when it first answered. A line without the last part is of an
older version. Those stay that have answered for longest, and few of one network or one PeerID: new identities cost nothing, so they must
not push out what has been known for weeks. The file is only a hint: each peer in it is asked
for the proof of its PeerID and the swarm's name before it is joined, so a changed file can name other peers, no more.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import ConfigError
from swarm import files
from swarm.dht.address import PeerAddress
from swarm.prefixes import prefix
from swarm.recent import MAX_PER_PREFIX

log = logging.getLogger(__name__)

MAX_PEERS = 16
"""Addresses that are kept."""

MAX_PER_PEER = 2
"""Of these, addresses of one PeerID, the last ones."""

MAX_AGE_S = 14 * 86_400.0
"""After so long without an answer an address is forgotten."""

GIVE_UP_S = 86_400.0
"""After so long it is forgotten as soon as it fails while another answers: then it is not our network that is down."""

MAX_FILE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Seen:
    """When an address answered, Unix time."""

    first_s: float
    last_s: float


Known = Mapping[PeerAddress, Seen]


def file_of(data_dir: Path, swarm: str) -> Path:
    """Where the peers of a swarm are kept."""
    return data_dir / "peers" / f"{files.stem_of(swarm)}.txt"


_SHORTEST = 52
"""Letters of a PeerID: a shorter line names no peer."""


def parse(data: bytes, now_s: float) -> dict[PeerAddress, Seen]:
    """What a file says, the longest known first; lines that say something else, or are too old, are left out."""
    found: dict[PeerAddress, Seen] = {}
    for line in data[:MAX_FILE_BYTES].decode(errors="replace").splitlines():
        if len(line) < _SHORTEST:
            continue
        last, _, rest = line.strip().partition(" ")
        text, _, first = rest.strip().partition(" ")
        with contextlib.suppress(ConfigError, ValueError):
            last_s = min(float(last), now_s)  # a clock that was wrong must not keep an address for ever
            if now_s - last_s <= MAX_AGE_S:
                found[PeerAddress.parse(text)] = Seen(min(last_s, float(first or last)), last_s)
    return kept(found)


def merged(
    known: Known, answered: Collection[PeerAddress], failed: Collection[PeerAddress], now_s: float
) -> dict[PeerAddress, Seen]:
    """What is known after some have answered and some have not; the longest known first, at most MAX_PEERS."""
    is_online = bool(answered)
    still = {
        address: seen
        for address, seen in known.items()
        if now_s - seen.last_s <= MAX_AGE_S and not (is_online and address in failed and now_s - seen.last_s > GIVE_UP_S)
    }
    fresh = {address: Seen(min(still[address].first_s, now_s) if address in still else now_s, now_s) for address in answered}
    return kept({**still, **fresh})


def kept(known: Known) -> dict[PeerAddress, Seen]:
    """The ones to keep: those that have answered for longest, few of one network; then others, while there are free places."""
    ranked = sorted(_newest_of_each_peer(known), key=lambda item: (item[1].first_s - item[1].last_s, item[1].first_s))
    networks: Counter[str] = Counter()
    chosen: list[tuple[PeerAddress, Seen]] = []
    spare: list[tuple[PeerAddress, Seen]] = []
    for address, seen in ranked:
        group = prefix(address.host)
        networks[group] += 1
        (chosen if networks[group] <= MAX_PER_PREFIX else spare).append((address, seen))
    return dict([*chosen, *spare][:MAX_PEERS])


def _newest_of_each_peer(known: Known) -> Iterator[tuple[PeerAddress, Seen]]:
    """Where a peer has moved, its last places count."""
    peers: Counter[str] = Counter()
    for address, seen in sorted(known.items(), key=lambda item: -item[1].last_s):
        peers[address.peer] += 1
        if peers[address.peer] <= MAX_PER_PEER:
            yield address, seen


def load(file: Path, now_s: float) -> dict[PeerAddress, Seen]:
    """The peers in `file`; none if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return parse(opened.read(MAX_FILE_BYTES), now_s)
    except OSError:
        return {}


def update(file: Path, answered: Collection[PeerAddress], failed: Collection[PeerAddress], now_s: float) -> None:
    """Bring the file up to date, in one replacement: a reader sees the old or the new one. Where that fails, the log says so."""
    known = merged(load(file, now_s), answered, failed, now_s)
    try:
        files.replace(file, "".join(_lines(known)))
    except OSError as error:
        log.warning("the last known peers cannot be kept in %s: %s", file, error.strerror)


def _lines(known: Known) -> Iterator[str]:
    return (f"{seen.last_s:.0f} {address} {seen.first_s:.0f}\n" for address, seen in known.items())
