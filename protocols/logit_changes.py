"""Changes of single logits, made by the last hop.

They are a client's penalties and biases. With them, only the largest logits have to cross the network.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from protocols.errors import BadRequestError

MAX_CHANGES_BYTES = 1 << 18
LEAST_PENALTY, MOST_PENALTY = 1e-3, 1e3

MOST_CHANGE = 2.0**100
"""Added or subtracted: no logit becomes infinite by all changes together, as if the node that makes them were damaged."""

_HEAD = struct.Struct("<fIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitChanges:
    """In this order, all in float32: `bias` is added; what is in `repeated` is multiplied by `penalty` if it is below 0, else divided;
    `less` is subtracted. Each token stands once in each."""

    penalty: float = 1.0
    repeated: tuple[int, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    less: tuple[tuple[int, float], ...] = ()

    @property
    def num_bytes(self) -> int:
        return _HEAD.size + 4 * len(self.repeated) + 8 * (len(self.bias) + len(self.less))

    @property
    def may_travel(self) -> bool:
        """Whether a node takes them, by their size and their numbers."""
        values = (value for _, value in (*self.bias, *self.less))
        return self.num_bytes <= MAX_CHANGES_BYTES and _are_within(self.penalty, values)

    def pack(self) -> bytes:
        """16 bytes, 4 for each repeated token, and 8 for each other change."""
        head = _HEAD.pack(self.penalty, len(self.repeated), len(self.bias), len(self.less))
        pairs = (*self.bias, *self.less)
        ids = [*self.repeated, *(token for token, _ in pairs)]
        return head + struct.pack(f"<{len(ids)}i{len(pairs)}f", *ids, *(value for _, value in pairs))

    @classmethod
    def parse(cls, data: bytes, vocab_size: int) -> LogitChanges:
        """BadRequestError unless these are changes of logits of `vocab_size` tokens."""
        if not _HEAD.size <= len(data) <= MAX_CHANGES_BYTES:
            raise BadRequestError(f"changes of logits have {_HEAD.size} to {MAX_CHANGES_BYTES} bytes, got {len(data)}")
        penalty, repeated, bias, less = _HEAD.unpack_from(data)
        num_ids, num_values = repeated + bias + less, bias + less
        if len(data) != _HEAD.size + 4 * (num_ids + num_values):
            raise BadRequestError(f"changes of {repeated}, {bias} and {less} logits do not have {len(data)} bytes")
        ids = struct.unpack_from(f"<{num_ids}i", data, _HEAD.size)
        values = struct.unpack_from(f"<{num_values}f", data, _HEAD.size + 4 * num_ids)
        parts = ids[:repeated], ids[repeated : repeated + bias], ids[repeated + bias :]
        if any(len(set(part)) != len(part) for part in parts) or (ids and not 0 <= min(ids) <= max(ids) < vocab_size):
            raise BadRequestError(f"changes of logits are of tokens 0 to {vocab_size - 1}, each once")
        if not _are_within(penalty, values):
            raise BadRequestError(
                f"a repetition penalty is {LEAST_PENALTY} to {MOST_PENALTY:.0f} and other changes are finite, {MOST_CHANGE:.0e} at "
                f"most; got {penalty} and others"
            )
        return cls(penalty=penalty, repeated=parts[0], bias=tuple(zip(parts[1], values[:bias], strict=True)),
                   less=tuple(zip(parts[2], values[bias:], strict=True)))  # fmt: skip


def _are_within(penalty: float, values: Iterable[float]) -> bool:
    return LEAST_PENALTY <= penalty <= MOST_PENALTY and all(abs(value) <= MOST_CHANGE for value in values)
