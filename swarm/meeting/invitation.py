"""An invitation: one word with a swarm's addresses and key.

    swarm1 + base32(checksum, JSON of name, addresses, key and expiry)

Small letters and digits only, so a double click selects it; blanks and line ends that mail adds are taken out. The key is there if the
swarm is private: then the text is a secret, since it is enough to join.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols import fields
from protocols.errors import BadRequestError, ConfigError
from protocols.swarm_key import SwarmKey
from swarm.dht.address import PeerAddress

PREFIX = "swarm1"
MAX_LETTERS = 8_192
MAX_PEERS = 8
MAX_SWARM = 64
VALID_DAYS = 7.0
"""Days for which an invitation can be used, if not said otherwise."""

CLOCK_TOLERANCE_S = 600.0
"""Seconds by which a reader's clock may be ahead of the writer's."""

_CHECKSUM_BYTES = 4
_FAR_S = 2**40
_ASK = "ask a member for a new one (`swarm invite`)"
_AGAIN = f"copy it again as a whole, or {_ASK}"


def check_name(swarm: str) -> None:
    """ConfigError unless `swarm` can be a swarm's name."""
    if not 1 <= len(swarm) <= MAX_SWARM or not swarm.isprintable():
        raise ConfigError(f"a swarm's name (--swarm) is 1 to {MAX_SWARM} printable letters, got {swarm[:80]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What a newcomer needs of a swarm."""

    swarm: str
    """The swarm's name."""

    peers: tuple[str, ...] = ()
    """Multiaddrs of members, at most MAX_PEERS; none = remembered ones, or neighbours."""

    key: SwarmKey | None = None
    """The secret of a private swarm; None = the swarm is public."""

    expires_s: float | None = None
    """Unix time after which it is refused; None = never. It bounds this text, not the key."""

    def __post_init__(self) -> None:
        check_name(self.swarm)
        if len(self.peers) > MAX_PEERS:
            raise ConfigError(f"an invitation holds at most {MAX_PEERS} addresses, got {len(self.peers)}")
        for peer in self.peers:
            PeerAddress.parse(peer)

    def text(self) -> str:
        """The word to hand on."""
        held: dict[str, Any] = {"swarm": self.swarm, "peers": list(self.peers)}
        if self.key is not None:
            held["key"] = base64.b64encode(self.key.secret).decode()
        if self.expires_s is not None:
            held["expires"] = int(self.expires_s)
        body = json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode()
        return PREFIX + base64.b32encode(_checksum(body) + body).decode().rstrip("=").lower()

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """Read `text`; ConfigError says what is wrong, and repeats nothing of what may be a secret."""
        word = "".join(text[: 2 * MAX_LETTERS].split()).lower()
        if not word.startswith(PREFIX):
            raise ConfigError(f"an invitation begins with {PREFIX}, got {len(word)} letters that do not; {_AGAIN}")
        if len(word) > MAX_LETTERS:
            raise ConfigError(f"an invitation has at most {MAX_LETTERS} letters, got more; {_AGAIN}")
        letters = word.removeprefix(PREFIX)
        try:
            data = base64.b32decode(letters.upper() + "=" * (-len(letters) % 8))
        except ValueError:  # binascii.Error is one; so is what letters outside ASCII raise
            raise ConfigError(f"the invitation holds letters that none has, or lacks its end; {_AGAIN}") from None
        body = data[_CHECKSUM_BYTES:]
        if not body or data[:_CHECKSUM_BYTES] != _checksum(body):
            raise ConfigError(f"the invitation was changed or cut on its way (its checksum is wrong); {_AGAIN}")
        try:
            return cls._of(_object(body))
        except (BadRequestError, ValueError) as error:
            raise ConfigError(f"the invitation's content cannot be used ({str(error)[:200]}); {_ASK}") from None

    @classmethod
    def _of(cls, held: Mapping[str, Any]) -> Invitation:
        secret = base64.b64decode(fields.text(held, "key", 64), validate=True) if "key" in held else None
        return cls(
            swarm=fields.text(held, "swarm", MAX_SWARM),
            peers=fields.texts(held, "peers", MAX_PEERS, 400),
            key=None if secret is None else SwarmKey(secret),
            expires_s=fields.number(held, "expires", 0, _FAR_S) if "expires" in held else None,
        )

    def check_expiry(self, now_s: float) -> None:
        """ConfigError if its time is over at the Unix time `now_s`."""
        if self.expires_s is not None and now_s > self.expires_s + CLOCK_TOLERANCE_S:
            raise ConfigError(
                f"this invitation to swarm `{self.swarm}` expired on {date(self.expires_s)} (this machine's clock says {date(now_s)}); "
                f"{_ASK}"
            )


def read(value: str) -> Invitation:
    """An invitation, or the one in the file of that name; ConfigError says what is wrong."""
    if value.strip().lower().startswith(PREFIX) and len(value) > 2 * len(PREFIX):
        return Invitation.parse(value)
    path = Path(value)
    try:
        with path.expanduser().open(encoding="utf-8") as file:
            text = file.read(2 * MAX_LETTERS)
    except (OSError, ValueError, RuntimeError) as error:
        shown = repr(value) if len(value) <= 60 else f"{len(value)} letters"
        why = getattr(error, "strerror", None) or "no file can have that name"
        raise ConfigError(f"--join is an invitation ({PREFIX}…) or a file that holds one, got {shown}: {why}") from None
    try:
        return Invitation.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def date(time_s: float) -> str:
    """A Unix time for people, in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))
    except (ValueError, OverflowError, OSError):
        return f"{time_s:.0f} s after 1970"


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:_CHECKSUM_BYTES]


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        held = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError("it is no JSON") from None
    return fields.table(held, "invitation")
