"""The last known peers of a swarm: addresses that have answered, in a small file, so that coming back needs no address.

One line per address: when it last answered (Unix time) and its multiaddr. The file is a hint, and whoever can write it could name other
peers, no more: each is asked for the proof of its PeerID and the swarm's name before it is joined.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from protocols.errors import ConfigError
from swarm.dht.address import PeerAddress

log = logging.getLogger(__name__)

MAX_PEERS = 16
"""Kept; those that answered last."""

MAX_AGE_S = 14 * 86_400.0
"""After so long without an answer an address is forgotten."""

GIVE_UP_S = 86_400.0
"""After so long it is forgotten as soon as it fails while another answers: then it is not our network that is down."""

MAX_FILE_BYTES = 16 << 10

Known = Mapping[PeerAddress, float]
"""When each last answered, Unix time."""


def file_of(data_dir: Path, swarm: str) -> Path:
    """Where the peers of a swarm are kept. A swarm's name may hold any letter, so the file is called by its hash."""
    return data_dir / "peers" / f"{hashlib.sha256(swarm.encode()).hexdigest()[:16]}.txt"


def parse(data: bytes, now_s: float) -> dict[PeerAddress, float]:
    """What a file says, newest first; lines that say something else, or are too old, are left out."""
    found: dict[PeerAddress, float] = {}
    for line in data[:MAX_FILE_BYTES].decode(errors="replace").splitlines():
        when, _, text = line.partition(" ")
        with contextlib.suppress(ConfigError, ValueError):
            seen_s = min(float(when), now_s)  # a clock that was wrong must not keep an address for ever
            if now_s - seen_s <= MAX_AGE_S:
                found[PeerAddress.parse(text)] = seen_s
    return _newest(found)


def merged(
    known: Known, answered: Collection[PeerAddress], failed: Collection[PeerAddress], now_s: float
) -> dict[PeerAddress, float]:
    """What is known after some have answered and some have not; newest first, at most MAX_PEERS."""
    is_online = bool(answered)
    kept = {
        address: seen_s
        for address, seen_s in known.items()
        if now_s - seen_s <= MAX_AGE_S and not (is_online and address in failed and now_s - seen_s > GIVE_UP_S)
    }
    return _newest(kept | dict.fromkeys(answered, now_s))


def _newest(known: Known) -> dict[PeerAddress, float]:
    return dict(sorted(known.items(), key=lambda item: -item[1])[:MAX_PEERS])


def load(file: Path, now_s: float) -> dict[PeerAddress, float]:
    """The peers in `file`; none where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return parse(opened.read(MAX_FILE_BYTES), now_s)
    except OSError:
        return {}


def update(file: Path, answered: Collection[PeerAddress], failed: Collection[PeerAddress], now_s: float) -> None:
    """Bring the file up to date, in one replacement: a reader sees the old or the new one. Where that fails, the log says so."""
    known = merged(load(file, now_s), answered, failed, now_s)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=file.stem)
        with os.fdopen(descriptor, "w") as opened:
            opened.writelines(f"{seen_s:.0f} {address}\n" for address, seen_s in known.items())
        os.replace(partial, file)
    except OSError as error:
        log.warning("the last known peers cannot be kept in %s: %s", file, error.strerror)
