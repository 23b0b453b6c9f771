"""Peers that an operator has banned here, each until a time.

A file keeps them, so a restart does not end them. A ban names a PeerID, which each connection proves. A person who makes a new identity
is another peer, and is not banned.
"""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from weakref import WeakSet

from protocols.errors import BadRequestError, ConfigError
from protocols.ids import PeerId, parse_peer_id
from protocols.orders import MAX_BAN_S, MAX_BANS, Ban
from swarm import files
from swarm.clock import SYSTEM, Clock

_MAX_BYTES = 1 << 16


class Bans:
    """What is banned now; one for each node, and one for all peers of a gateway. Methods belong to one event loop."""

    def __init__(self, path: Path | None = None, clock: Clock = SYSTEM) -> None:
        """path: read now, and written at each change. ConfigError if it is damaged. None = kept in memory until `keep_in`."""
        self._path, self._clock = path, clock
        self._until_s: dict[PeerId, float] = {} if path is None else _read(path)
        self._watching: WeakSet[asyncio.Event] = WeakSet()

    def keep_in(self, path: Path) -> None:
        """From now on those of the file are banned, too, and the file is written. ConfigError if it is damaged."""
        self._until_s = {**_read(path), **self._until_s}
        self._path = path

    def now(self) -> frozenset[PeerId]:
        """The peers that are banned now."""
        now_s = self._clock.unix_s()
        return frozenset(peer for peer, until_s in self._until_s.items() if until_s > now_s)

    def listed(self) -> tuple[Ban, ...]:
        """The bans that hold now, each with the seconds that are left; the one that ends first comes first."""
        now_s, banned = self._clock.unix_s(), self.now()
        left = [Ban(peer=peer, seconds=_seconds(until_s - now_s)) for peer, until_s in self._until_s.items() if peer in banned]
        return tuple(sorted(left, key=lambda ban: (ban.seconds, ban.peer)))

    def add(self, peer: PeerId, seconds: int) -> None:
        """Ban it from now on, for so long. BadRequestError if there are MAX_BANS others; ConfigError, and no ban, if it cannot be kept."""
        others, now_s = self._others(peer), self._clock.unix_s()
        if sum(until_s > now_s for until_s in others.values()) >= MAX_BANS:
            raise BadRequestError(f"{MAX_BANS} peers are banned here, as many as may be at once: lift a ban first")
        self._keep({**others, peer: now_s + seconds})

    def lift(self, peer: PeerId) -> bool:
        """End a ban. Returns whether there was one. ConfigError, and the ban stays, if that cannot be kept."""
        was_banned = peer in self.now()
        self._keep(self._others(peer))
        return was_banned

    def watch(self) -> asyncio.Event:
        """An event that is set at each change, and that its holder clears. It is forgotten with the last reference to it."""
        self._watching.add(change := asyncio.Event())
        return change

    def _others(self, peer: PeerId) -> dict[PeerId, float]:
        """All bans except that of `peer`, read from the file anew: another gateway of the same data directory may have written it."""
        known = self._until_s if self._path is None or not self._path.exists() else _read(self._path)
        return {one: until_s for one, until_s in known.items() if one != peer}

    def _keep(self, until_s: dict[PeerId, float]) -> None:
        now_s = self._clock.unix_s()
        kept = {peer: end_s for peer, end_s in until_s.items() if end_s > now_s}
        if self._path is not None:
            try:
                files.replace(self._path, json.dumps({"bans": kept}, indent=1) + "\n")
            except OSError as error:
                raise ConfigError(
                    f"bans cannot be kept in {self._path}: {error.strerror}; make space there, or name another --data-dir"
                ) from None
        self._until_s = kept
        for change in self._watching:
            change.set()


def _seconds(left_s: float) -> int:
    return min(MAX_BAN_S, max(1, math.ceil(left_s)))


def _read(path: Path) -> dict[PeerId, float]:
    try:
        return _parsed(files.read(path, _MAX_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"the bans in {path} cannot be read: {error.strerror}") from None
    except (BadRequestError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"the bans in {path} are damaged ({str(error)[:200]}); remove the file, and ban again whom you want to"
        ) from None


def _parsed(data: bytes) -> dict[PeerId, float]:
    listed = json.loads(data)["bans"]
    if not isinstance(listed, dict) or len(listed) > MAX_BANS:
        raise ValueError(f"expected at most {MAX_BANS} peers with their times")
    found = {parse_peer_id(peer): float(until_s) for peer, until_s in listed.items()}
    if not all(0 <= until_s < 1e12 for until_s in found.values()):
        raise ValueError("a time is no Unix time")
    return found
