"""Receipts: what each hop did with one micro-batch.

Trainers keep them: a version's batch is complete once every part has added every index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocols import fields
from protocols.defaults import MAX_RUN_UNITS
from protocols.errors import BadRequestError
from protocols.ids import PeerId, parse_peer_id
from protocols.parts_of_units import Part, parse_part

MAX_PARTS: Final = MAX_RUN_UNITS + 1
"""Parts of all units of a run: `Ends` has two."""

MAX_MS: Final = 1e9
MAX_BYTES: Final = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One hop's word on what it did with a pass."""

    peer: PeerId
    added: tuple[Part, ...] = ()
    """Parts whose gradient it added to its sums."""
    held: tuple[Part, ...] = ()
    """Parts that held the index already: nothing was added."""
    queue_ms: float = 0.0
    """Waiting for the device, forward and backward together."""
    forward_ms: float = 0.0
    backward_ms: float = 0.0
    """Computing, the last hop's loss included."""
    wait_ms: float = 0.0
    """From the output's sending to the arrival of its gradient."""
    num_bytes: int = 0
    """Of the values that it sent: hidden states down, gradients up."""

    def pack(self) -> dict[str, object]:
        """The map that travels."""
        times = [self.queue_ms, self.forward_ms, self.backward_ms, self.wait_ms]
        return {"p": self.peer, "a": part_texts(self.added), "h": part_texts(self.held), "ms": times, "n": self.num_bytes}

    @classmethod
    def parse(cls, value: object) -> Receipt:
        """BadRequestError if a field is missing or out of its bounds."""
        table = fields.table(value, "receipt")
        times = [fields.number({"ms": item}, "ms", 0, MAX_MS) for item in fields.array(table, "ms", 4)]
        if len(times) != 4:
            raise BadRequestError(f"a receipt has 4 times, got {len(times)}")
        return cls(
            peer=parse_peer_id(table.get("p")),
            added=read_parts(table, "a"),
            held=read_parts(table, "h"),
            queue_ms=times[0],
            forward_ms=times[1],
            backward_ms=times[2],
            wait_ms=times[3],
            num_bytes=fields.integer(table, "n", 0, MAX_BYTES),
        )


def part_texts(parts: Sequence[Part]) -> list[str]:
    """As parts travel."""
    return [str(part) for part in parts]


def read_parts(header: fields.Header, key: str) -> tuple[Part, ...]:
    """A list of at most MAX_PARTS parts."""
    return tuple(parse_part(item) for item in fields.array(header, key, MAX_PARTS))
