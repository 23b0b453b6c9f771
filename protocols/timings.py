"""How long each hop had a step: travels with the step.

A client that wants to know sends `times` with a step, empty. Each hop appends one entry, and the last hop puts all of them into its reply.
A hop that does not know the field, or sends a retained step again after a loss, leaves entries out. The numbers are claims of the hops:
they are shown and counted, and nothing is decided by them.

    byte    0        1-4        5-8          9-12
            index    queue_us   compute_us   total_us        little-endian
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from protocols import fields
from protocols.defaults import MAX_HOPS
from protocols.errors import BadRequestError

_ENTRY = struct.Struct("<BIII")
_MOST_US = (1 << 32) - 1

MAX_TIMES_BYTES = MAX_HOPS * _ENTRY.size


@dataclass(frozen=True, slots=True, kw_only=True)
class HopTime:
    """One step at one hop."""

    index: int
    """The hop's place in the route."""
    queue_ms: float
    """It waited for the device, between its prefill chunks, too."""
    compute_ms: float
    """The forwards in which it ran; steps of other sessions ran in the same ones."""
    total_ms: float
    """From its taking until its output was ready to be sent."""

    @property
    def check_ms(self) -> float:
        """What is neither queue nor compute: checks, unpacking and packing."""
        return max(0.0, self.total_ms - self.queue_ms - self.compute_ms)


def appended(times: bytes | None, entry: HopTime) -> bytes | None:
    """`times` with one entry more; unchanged if there is no place for it, None if the client does not ask."""
    if times is None or len(times) >= MAX_TIMES_BYTES:
        return times
    return times + _ENTRY.pack(entry.index, *(_us(ms) for ms in (entry.queue_ms, entry.compute_ms, entry.total_ms)))


def _us(ms: float) -> int:
    return min(_MOST_US, max(0, round(ms * 1e3)))


def parse(header: fields.Header) -> bytes | None:
    """The field `times` of a step or reply; BadRequestError if it is not a number of whole entries."""
    if header.get("times") is None:
        return None
    times = fields.raw(header, "times", MAX_TIMES_BYTES)
    if len(times) % _ENTRY.size:
        raise BadRequestError(f"times of hops have {_ENTRY.size} bytes each, got {len(times)} in all")
    return times


def unpacked(times: bytes | None, num_hops: int) -> tuple[HopTime, ...]:
    """The entries of a route of so many hops; empty if they are not in its order: a hop has invented some."""
    found = tuple(
        HopTime(index=index, queue_ms=queue / 1e3, compute_ms=compute / 1e3, total_ms=total / 1e3)
        for index, queue, compute, total in _ENTRY.iter_unpack(times or b"")
    )
    indices = [one.index for one in found]
    is_ordered = indices == sorted(set(indices)) and (not indices or indices[-1] < num_hops)
    return found if is_ordered else ()
