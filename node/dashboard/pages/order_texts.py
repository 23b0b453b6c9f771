"""What orders are called on the page, and what they do. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.orders import OrderReply
from protocols.words import counted

NAMES = {
    "pause": "Pause",
    "resume": "Resume",
    "drain": "Drain",
    "kill": "Kill",
    "ban": "Ban a peer there",
    "unban": "Lift a ban there",
}
"""Of the buttons, in their order."""

DANGEROUS = frozenset(("drain", "kill"))
"""Orders that end a process: only the node's owner can start it again."""

SAYS = {
    "pause": "It takes no new sessions and keeps its blocks. Open sessions are served to their end.",
    "resume": "New sessions may begin there again.",
    "drain": "It takes no new sessions, and its process ends after 10 s at most. Sessions that are left then go on at other nodes. "
    "Only its owner can start it again.",
    "kill": "Its process ends at once, as by kill -9. Answers go on at other nodes. Only its owner can start it again.",
    "ban": "It refuses the calls and sessions of that peer, and does not call it, also after a restart.",
    "unban": "That peer may call it again.",
}

STATES = {
    "serving": "It takes new sessions.",
    "paused": "It is paused: it takes no new sessions, keeps its blocks, and serves open sessions to their end.",
    "leaving": "It is leaving: its process ends in some seconds.",
}

SPANS_S: Sequence[tuple[int, str]] = ((3_600, "1 hour"), (86_400, "1 day"), (7 * 86_400, "7 days"), (30 * 86_400, "30 days"))
"""How long a ban may hold, as it is offered."""


def offered(reply: OrderReply) -> list[tuple[str, str]]:
    """Orders that make sense now, with their names: not two of which one undoes the other, and none to a node that leaves."""
    hidden = {"unban", "pause" if reply.state == "paused" else "resume"}
    if reply.state == "leaving":
        hidden |= {"pause", "resume", "drain"}
    return [(action, name) for action, name in NAMES.items() if action in reply.may and action not in hidden]


def question(action: str, who: str, alone: Sequence[str] = ()) -> str:
    """What a visitor is asked to confirm. alone: what no other node serves."""
    ends = action in ("pause", "drain", "kill")
    gap = f" No other node serves {', and '.join(alone)}: without it they are missing." if alone and ends else ""
    asked = f"Which peer shall {who} ban?" if action == "ban" else f"{NAMES[action]} {who}?"
    return f"{asked} {SAYS[action]}{gap}"


def left(seconds: int) -> str:
    """How long a ban still holds."""
    for length, word in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= length:
            return counted(round(seconds / length), word)
    return counted(seconds, "second")
