"""Orders: what an operator asks of one node, and the node's answer.

An order has no signature of its own: the channel proves to the node who calls, and to the operator which node answers
(`swarm/rpc/auth.py`). So an order cannot be replayed at another node. Each order names the state that is wanted, so an order that arrives
twice has the effect of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocols import fields, frame
from protocols.errors import BadRequestError
from protocols.ids import PeerId, parse_peer_id

ACTIONS: Final = ("ask", "drain", "pause", "resume", "ban", "unban", "kill")
"""`ask` changes nothing: its answer says what the caller may order, and in which state the node is."""

ABOUT_A_PEER: Final = frozenset(("ban", "unban"))

STATES: Final = ("serving", "paused", "leaving")
"""`paused`: takes no new sessions; `leaving`: ends as soon as its sessions have, or their time is over."""

MAX_BAN_S: Final = 30 * 86_400
"""Longest ban in seconds; a longer one has to be renewed."""

MAX_BANS: Final = 256
"""Peers that one node, or one gateway, bans at once."""

MAX_DONE: Final = 300
"""Longest text, in letters, of what a node has done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order of the operator who calls. BadRequestError if the action does not fit what comes with it."""

    action: str
    peer: PeerId | None = None
    """Whom a ban is about; None for all else."""

    seconds: int = 0
    """How long a ban holds; 0 for all else."""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise BadRequestError(f"an order is one of {', '.join(ACTIONS)}, got {self.action[:40]!r}")
        if (self.peer is not None) != (self.action in ABOUT_A_PEER):
            raise BadRequestError(
                f"the order {self.action!r} names {'no peer' if self.peer else 'a peer'}: ban and unban name one, others none"
            )
        if self.action == "ban" and not 1 <= self.seconds <= MAX_BAN_S:
            raise BadRequestError(f"a ban holds from 1 to {MAX_BAN_S} seconds, got {self.seconds}")
        if self.action != "ban" and self.seconds:
            raise BadRequestError(f"the order {self.action!r} has no length, got {self.seconds} seconds")

    def encode(self) -> bytes:
        return frame.encode({"t": "order", "action": self.action, "peer": self.peer or "", "seconds": self.seconds})

    @classmethod
    def parse(cls, data: bytes) -> Order:
        header = frame.decode_kind(data, "order").header
        return cls(
            action=fields.one_of(header, "action", ACTIONS),
            peer=parse_peer_id(header["peer"]) if header.get("peer") else None,
            seconds=fields.integer(header, "seconds", 0, MAX_BAN_S),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """One peer that is refused."""

    peer: PeerId
    seconds: int
    """How long it will hold, from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderReply:
    """What was done, and the node's state afterwards."""

    done: str = ""
    """One line for people; empty after `ask`."""

    may: tuple[str, ...] = ()
    """What the caller may order, of ACTIONS."""

    state: str = "serving"
    """One of STATES."""

    bans: tuple[Ban, ...] = ()

    def encode(self) -> bytes:
        bans = [[ban.peer, ban.seconds] for ban in self.bans]
        return frame.encode(
            {"t": "ordered", "done": self.done[:MAX_DONE], "may": list(self.may), "state": self.state, "bans": bans}
        )

    @classmethod
    def parse(cls, data: bytes) -> OrderReply:
        """Actions that are unknown here, as a newer node may have, are left out."""
        header = frame.decode_kind(data, "ordered").header
        return cls(
            done=fields.text(header, "done", MAX_DONE),
            may=tuple(action for action in fields.texts(header, "may", 2 * len(ACTIONS), 16) if action in ACTIONS),
            state=fields.one_of(header, "state", STATES),
            bans=tuple(map(_ban, fields.array(header, "bans", MAX_BANS))),
        )


def _ban(pair: object) -> Ban:
    if not isinstance(pair, list) or len(pair) != 2:
        raise BadRequestError("a ban is [PeerID, seconds]")
    return Ban(peer=parse_peer_id(pair[0]), seconds=fields.integer({"seconds": pair[1]}, "seconds", 0, MAX_BAN_S))
