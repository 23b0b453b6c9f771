"""The user's lists of PeerIDs, read again when they change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from protocols.errors import BadRequestError, ConfigError
from protocols.ids import PeerId, parse_peer_id, short_peer
from protocols.words import counted
from swarm import places
from swarm.access import Access, Gate

LOOK_S = 1.0
"""Seconds between two looks at the files; a change counts once two looks see the same, since an editor may write in parts."""

MAX_FILE_BYTES = 1 << 20
MAX_PEERS = 10_000
_MAX_NAMED = 5

Stamps = tuple[tuple[int, int, int] | None, ...]
"""When each file was changed, its size and its inode; None = it is not there."""

PeerList = Path | frozenset[PeerId] | None
"""A file of PeerIDs, the PeerIDs themselves, or no list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Where the lists are."""

    allow: PeerList = None
    deny: PeerList = None
    trust: PeerList = None
    operators: PeerList = None

    def read(self) -> Access:
        """The lists as they are now; ConfigError names file, line, what it holds and what was expected."""
        allow = None if self.allow is None else _peers("allow", self.allow)
        if allow is not None and not allow:
            where = f"{self.allow} (--allow)" if isinstance(self.allow, Path) else "allow"
            raise ConfigError(f"{where} is empty, so every peer would be refused; expected at least one PeerID, or no list")
        deny, trust, operators = _peers("deny", self.deny), _peers("trust", self.trust), _peers("operators", self.operators)
        return Access(allow=allow, deny=deny, trust=trust, operators=operators)

    @property
    def files(self) -> tuple[Path, ...]:
        lists = (getattr(self, field.name) for field in fields(self))
        return tuple(found for found in lists if isinstance(found, Path))


NO_LISTS = Lists()


def parse(text: str, name: str, flag: str) -> frozenset[PeerId]:
    """PeerIDs, one a line; `#` begins a comment. ConfigError names the line of the file `name` that is something else."""
    found: set[PeerId] = set()
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            found.add(parse_peer_id(word))
        except BadRequestError:
            hint = "; of an address, only what follows /p2p/" if "/p2p/" in word else ""
            raise ConfigError(
                f"{name} (--{flag}), line {number}: expected a PeerID (52 letters from 12D3KooW on), a # comment or nothing, "
                f"got {word[:60]!r}{hint}"
            ) from None
    if len(found) > MAX_PEERS:
        raise ConfigError(f"{name} (--{flag}) names {len(found)} peers; expected at most {MAX_PEERS}")
    return frozenset(found)


def of_argument(name: str, value: object) -> PeerList:
    """A list as Python callers give it: a file's name, or PeerIDs."""
    if value is None:
        return None
    if isinstance(value, str | Path):
        return places.expanded(value)
    if not isinstance(value, Iterable):
        raise BadRequestError(f"{name} is a file of PeerIDs, or a list of them, got {type(value).__name__}")
    return frozenset(map(parse_peer_id, value))


def _peers(flag: str, source: PeerList) -> frozenset[PeerId]:
    if not isinstance(source, Path):
        return source or frozenset()
    try:
        with source.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError(
            f"{source} (--{flag}) cannot be read: {error.strerror}; expected a file with one PeerID a line"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source} (--{flag}) is no text; expected one PeerID a line") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{source} (--{flag}) is larger than {MAX_FILE_BYTES >> 20} MiB; expected one PeerID a line")
    return parse(text, str(source), flag)


def changes(before: Access, after: Access) -> str:
    """What is new, for people: `deny: 1 more (…abc123), 0 less`."""
    said = []
    for name in ("allow", "deny", "trust", "operators"):
        old, new = (frozenset(getattr(one, name) or ()) for one in (before, after))
        if old != new:
            said.append(f"{name}: {_named('more', new - old)}, {_named('less', old - new)}")
    return "; ".join(said) or "nothing changed"


def _named(word: str, peers: frozenset[PeerId]) -> str:
    shown = [short_peer(peer) for peer in sorted(peers)[:_MAX_NAMED]] + ["…"] * (len(peers) > _MAX_NAMED)
    return f"{len(peers)} {word}" + (f" ({', '.join(shown)})" if shown else "")


async def keep_reading(
    lists: Lists, gate: Gate, on_change: Callable[[], Awaitable[object]], say: Callable[[str], None], look_s: float = LOOK_S
) -> None:
    """Renew the gate whenever a file has changed, or a ban has begun or ended, until cancelled. What cannot be read is
    said, and the lists stay as they were.

    on_change: awaited after a renewal.
    """
    used: Stamps | None = None  # a file may have changed since the gate was made: the first look reads, too
    seen, banned = _stamps(lists), asyncio.Event() if gate.bans is None else gate.bans.watch()
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(banned.wait(), look_s)
        banned.clear()
        if gate.renew_bans():
            await on_change()
        now = _stamps(lists)
        if now == used or now != seen:
            seen = now
            continue
        used = now
        try:
            access = await asyncio.to_thread(lists.read)
        except ConfigError as error:
            say(f"{error}; the lists stay as they were")
            continue
        before = gate.access
        if replace(access, banned=before.banned) == before:
            continue
        gate.renew(access)
        await on_change()
        say(f"the lists of peers were read again: {changes(before, access)}, {_total(access)}")


def _total(access: Access) -> str:
    allowed = "everybody" if access.allow is None else counted(len(access.allow), "peer")
    obeyed = f", {counted(len(access.operators), 'operator')}" if access.operators else ""
    return f"now {allowed} allowed, {len(access.deny)} denied, {len(access.trust)} trusted{obeyed}"


def _stamps(lists: Lists) -> Stamps:
    return tuple(map(_stamp, lists.files))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
