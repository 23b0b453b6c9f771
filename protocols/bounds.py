"""What each kind of message may have at most.

Bytes, items and lists of its header, and buffers: one entry per kind.

`frame.decode` checks these bounds before msgpack builds anything, so that a short word (Close, Expect) cannot bring what only a
step needs. Each entry is what the kind's own fields can take, and space for fields that newer peers may add: a scalar or a small list
(`fork` of Open was added so) is ignored by a peer that does not know it, anything larger is refused. Buffers are never added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocols.defaults import (
    MAX_BUFFERS,
    MAX_GROUP_UNITS,
    MAX_HOPS,
    MAX_MEMBERS,
    MAX_OPS,
    MAX_RECORD_BYTES,
    MAX_ROW_INDICES,
    MAX_ROWS,
    MAX_RUN_UNITS,
    MAX_STEP_TOKENS,
)
from protocols.ids import MAX_MODEL_NAME, MAX_MODEL_TEXT
from protocols.timings import MAX_TIMES_BYTES
from protocols.units import MAX_UNIT_TEXT
from protocols.weights_id import CHAIN_BYTES


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one kind of message."""

    header_bytes: int
    """Bytes of the msgpack header."""
    items: int
    """Values in it, keys of maps and the map itself included."""
    lists: int
    """How many of these are lists or maps: each costs 60 bytes and more, even when it is empty."""
    buffers: int = 0
    """Raw buffers behind the header."""


SPARE: Final = Bounds(256, 32, 8)
"""Space in every header for fields of newer peers."""


def _row(header_bytes: int, items: int, lists: int = 1, buffers: int = 0) -> Bounds:
    return Bounds(header_bytes + SPARE.header_bytes, items + SPARE.items, lists + SPARE.lists, buffers)


_ADDRESS, _PEER, _LETTER = 283, 54, 4
"""Bytes that one address, PeerID and letter of a text take at most."""

_BLOCKS = len("decoder/9999:10000") + 2
"""Bytes that the text of blocks takes at most."""

_HOP = _PEER + MAX_RECORD_BYTES + _BLOCKS + 4 * 2
"""Addresses and certificate of a hop come from a record, so together they are shorter than one."""

_GROUP_BYTES = (
    MAX_MEMBERS * (_PEER + MAX_RECORD_BYTES) + MAX_GROUP_UNITS * (_BLOCKS + CHAIN_BYTES) + MAX_MODEL_NAME * _LETTER + 256
)
"""As of a route, addresses and certificate of a member come from its record."""

_GRANT = _row(MAX_HOPS * _HOP + 1_280 + 512, MAX_HOPS * (9 + 8) + 32, 2 * MAX_HOPS + 8)
_PART = len("decoder/ends/embed") + 2
_ROUTE = (MAX_HOPS * _HOP, MAX_HOPS * (9 + 8), 2 * MAX_HOPS + 1)
"""Bytes, items and lists of a route."""
_TOKENS_BYTES = MAX_ROWS + 5 * MAX_STEP_TOKENS + 512
_TOKENS_ITEMS = MAX_ROWS + MAX_STEP_TOKENS + 48

BY_KIND: Final[dict[str, Bounds]] = {
    # hello, dialling back, directory
    "hello": _row(3 * 64 * _LETTER + 128, 16),
    "dial_back": _row(8 * _ADDRESS + 4_096 + 64, 16, 2),
    "dialled_back": _row(8 * _ADDRESS + 300 * _LETTER + 64, 16, 2),
    "about?": _row(16, 4),
    "about": _row(3 * 80 * _LETTER + 8 * (MAX_MODEL_NAME * _LETTER + 65 + 64) + 192, 8 * 7 + 32, 8 + 2),
    "directory?": _row((64 + MAX_MODEL_NAME) * _LETTER + 64, 8),
    "directory": _row(2_000 * 48 + 64, 2_000 * 4 + 16, 2_000 + 4, 1),
    "models": _row(4_096, 16, 2),
    # weights
    "manifest?": _row(MAX_MODEL_TEXT * _LETTER + 64, 8),
    "manifest": _row(64, 8, 2, 1),
    "weights?": _row(MAX_MODEL_TEXT * _LETTER + 64, 8),
    "hashes?": _row(64 * 5 + 64, 64 + 8, 2),
    "pieces?": _row(64 * 16 + 64, 64 * 4 + 8, 64 + 2),
    "file?": _row(64, 8),
    "holdings": _row(64, 8, 2, 2),
    "hashes": _row(64, 8, 2, 1),
    "piece": _row(64, 8, 2, 1),
    "file": _row(64, 16, 2, 1),
    # state of units
    "state?": _row(MAX_MODEL_TEXT * _LETTER + 64 * (MAX_UNIT_TEXT + 2) + 64, 64 + 12, 2),
    "state": _row(MAX_UNIT_TEXT + 2 * 34 + 64, 16, 2, 1),
    "state_part": _row(64, 8, 2, 1),
    # sessions
    "open": _GRANT,
    "reroute": _GRANT,
    "attach": _GRANT,
    "step": _row(
        _TOKENS_BYTES + 3 * MAX_ROW_INDICES + 16 * MAX_OPS + MAX_TIMES_BYTES + 48,
        _TOKENS_ITEMS + MAX_ROW_INDICES + 4 * MAX_OPS,
        2 * MAX_OPS + 8,
        2,
    ),
    "history": _row(_TOKENS_BYTES, _TOKENS_ITEMS, 8, 1),
    "close": _row(64, 8),
    "expect": _row(64, 16),
    "lost": _row((2_000 + 64) * _LETTER + 64, 16),
    "progress?": _row(64, 12),
    "progress": _row(96, 20),
    # operators
    "order": _row(_PEER + 96, 10),
    "ordered": _row(300 * _LETTER + 256 * (_PEER + 8) + 14 * 18 + 96, 256 * 3 + 14 + 12, 256 + 4),
    # training
    "pass": _row(_ROUTE[0] + 2_304 + MAX_RUN_UNITS * (_PART + 2), _ROUTE[1] + MAX_RUN_UNITS + 64, _ROUTE[2] + 10, 3),
    "output": _row(96, 20, 4, 1),
    "gradient": _row(96, 20, 4, 1),
    "result": _row(MAX_HOPS * 118 + MAX_RUN_UNITS * (_PART + 1) + 192, MAX_HOPS * 16 + MAX_RUN_UNITS + 24, MAX_HOPS * 4 + 6, 1),
    "pass_failed": _row((2_000 + 64) * _LETTER + 64, 12),
    "run_status?": _row(MAX_MODEL_TEXT * _LETTER + 64, 8),
    "run_status": _row(
        MAX_RUN_UNITS * (4 * _BLOCKS + 9 + 136 + 18 + 4) + 400, MAX_RUN_UNITS * 14 + 64, 4 * MAX_RUN_UNITS + 13, 1
    ),
    "publish": _row(
        MAX_RUN_UNITS * (_BLOCKS + 34 + 1) + MAX_MODEL_TEXT * _LETTER + 64, MAX_RUN_UNITS * 3 + 12, MAX_RUN_UNITS + 2
    ),
    "published": _row(64, 8),
    "restore": _row(
        MAX_RUN_UNITS * (_BLOCKS + 34 + 1) + MAX_MODEL_TEXT * _LETTER + 64, MAX_RUN_UNITS * 3 + 14, MAX_RUN_UNITS + 3
    ),
    "restored": _row(64, 8),
    "hold": _row(MAX_RUN_UNITS * (_BLOCKS + 34 + 1) + MAX_MODEL_TEXT * _LETTER + 80, MAX_RUN_UNITS * 3 + 16, MAX_RUN_UNITS + 3),
    "holding": _row(64, 8),
    "lease?": _row(MAX_MODEL_TEXT * _LETTER + 256 * 27 + 64 * 3 + 96, 256 * 5 + 64 + 16, 256 + 4),
    "lease": _row(_PEER + 64 * 3 + 8 * 70 + 96, 64 + 8 * 10 + 20, 8 + 4),
    "journal?": _row(MAX_MODEL_TEXT * _LETTER + 64, 12),
    "journal": _row(24_000 + _PEER + 128, 64 * (8 + 4 * 3) + 20, 64 * 6 + 4),
    # averaging
    "group": _row(_GROUP_BYTES, MAX_MEMBERS * 13 + MAX_GROUP_UNITS + 32, 2 * MAX_MEMBERS + 8),
    "card": _row(MAX_GROUP_UNITS * (9 + 1 + 32) + 512, 2 * MAX_GROUP_UNITS + 32, 8, 2),
    "prepare": _row(MAX_MEMBERS * 5 + 64, MAX_MEMBERS + 16, 2, 1),
    "prepared": _row(500 * _LETTER + 128, 16),
    "of_group": _row(64, 8),
    "values": _row(64, 8, 2, 1),
    "decide": _row(MAX_MEMBERS * 5 + 64, MAX_MEMBERS + 16, 2, 1),
    "decision": _row(96, 8),
    "closed": _row(2 * MAX_MEMBERS * _PEER + 500 * _LETTER + 256, 2 * MAX_MEMBERS + 32, 4, 2),
    "apply": _row(MAX_MODEL_TEXT * _LETTER + 64, 12),
    "applied": _row(MAX_GROUP_UNITS * (_BLOCKS + 9) + 96, 2 * MAX_GROUP_UNITS + 24, 4, 1),
    "reply": _row(MAX_ROWS + MAX_TIMES_BYTES + 520, MAX_ROWS + 60, 8, 3),
}
"""By the kind that a message says under its key `t`."""

OTHERS: Final = _row(768, 32, 8, MAX_BUFFERS)
"""Of a kind that is unknown here, and of a header that does not begin with its kind."""

RECORD: Final = Bounds(MAX_RECORD_BYTES, 512, 64)
"""Of a peer's record, which is no frame."""
