"""Leases: a trainer gets micro-batches from the coordinating trainer.

    lease    LeaseRequest -> LeaseAnswer      trainer -> trainer: what I have done and still have in hand; give me more

Any trainer may be asked, at any time: the answer says if it coordinates, and if not, for which trainer it works. A request can be sent
again: it says the whole of what its sender has in hand, so an answer that was lost costs nothing. What counts is in the ledgers of the
stages; leases decide only which trainer computes what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocols import fields, frame
from protocols.errors import BadRequestError
from protocols.ids import ModelId, PeerId, parse_peer_id
from protocols.receipts import MAX_BYTES
from protocols.runs import MAX_MICRO_BATCHES, MAX_PASS_TOKENS
from protocols.training import MAX_LOSS
from protocols.weights_id import MAX_VERSION

MAX_LEASED: Final = 64
"""Micro-batches in one trainer's hands."""

MAX_DONE: Final = 256
"""Of one request; what is beyond travels with the next one."""

MAX_FINISHED: Final = 8
"""Finished versions of one answer."""

MAX_SECONDS: Final = 1e9
MAX_STAGES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A micro-batch that has come back: all parts of the model have it in their sums."""

    index: int
    loss_sum: float
    """Nats, over its target tokens."""
    num_targets: int
    num_bytes: int = 0
    """That the hops have sent to each other for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """What this trainer has done of `version`, what it has in hand of it, and how many more it wants."""

    run: ModelId
    version: int
    """Of `done` and `running`."""
    done: tuple[Done, ...] = ()
    running: tuple[int, ...] = ()
    """All that it still computes: what was leased to it and is neither here nor done is free again."""
    wanted: int = 0
    shown: int = 0
    """The newest finished version that it knows: the answer has those after it."""

    def encode(self) -> bytes:
        done = [[one.index, float(one.loss_sum), one.num_targets, one.num_bytes] for one in self.done]
        header = {"t": "lease?", "run": str(self.run), "version": self.version, "done": done, "running": list(self.running),
                  "wanted": self.wanted, "shown": self.shown}  # fmt: skip
        return frame.encode(header)

    @classmethod
    def parse(cls, data: bytes) -> LeaseRequest:
        header = frame.decode_kind(data, "lease?").header
        return cls(
            run=fields.model(header, "run"),
            version=fields.integer(header, "version", 0, MAX_VERSION),
            done=tuple(_done(item) for item in fields.array(header, "done", MAX_DONE)),
            running=_indices(header, "running"),
            wanted=fields.integer(header, "wanted", 0, MAX_LEASED),
            shown=fields.integer(header, "shown", 0, MAX_VERSION),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A version that all stages were told to apply, as the coordinating trainer saw it."""

    version: int
    """After the step."""
    loss_sum: float
    """Nats, over `num_targets` tokens: of the micro-batches whose loss the coordinating trainer was told."""
    num_targets: int
    seconds: float
    """From the version's beginning until all had applied."""
    closing_s: float
    """Of these, after the last micro-batch."""
    num_stages: int
    num_bytes: int
    """Between stages."""
    num_redone: int
    """Micro-batches that ran again, because a stage that held them died."""
    grad_norm: float = 0.0
    """Of the mean gradient of the whole model, before clipping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAnswer:
    """Which micro-batches of which version are yours; or, from a trainer that does not coordinate, which one it works for."""

    coordinator: PeerId | None
    """The peer that answers, if it coordinates; else the one that it works for, or None."""
    version: int = 0
    indices: tuple[int, ...] = ()
    deadline_s: float = 0.0
    """Seconds until they are leased to another trainer."""
    is_again: bool = False
    """Some stages may hold some of these indices already: ask them first."""
    finished: tuple[Finished, ...] = ()
    """The newest of those that the asking trainer does not know, in order."""

    def encode(self) -> bytes:
        rows = [[one.version, float(one.loss_sum), one.num_targets, float(one.seconds), float(one.closing_s), one.num_stages,
                 one.num_bytes, one.num_redone, float(one.grad_norm)] for one in self.finished]  # fmt: skip
        header = {"t": "lease", "peer": self.coordinator or "", "version": self.version, "indices": list(self.indices),
                  "deadline": float(self.deadline_s), "again": self.is_again, "finished": rows}  # fmt: skip
        return frame.encode(header)

    @classmethod
    def parse(cls, data: bytes) -> LeaseAnswer:
        header = frame.decode_kind(data, "lease").header
        return cls(
            coordinator=None if header.get("peer") == "" else parse_peer_id(header.get("peer")),
            version=fields.integer(header, "version", 0, MAX_VERSION),
            indices=_indices(header, "indices"),
            deadline_s=fields.number(header, "deadline", 0, MAX_SECONDS),
            is_again=fields.flag(header, "again"),
            finished=tuple(_finished(item) for item in fields.array(header, "finished", MAX_FINISHED)),
        )


def _indices(header: fields.Header, key: str) -> tuple[int, ...]:
    found = fields.integers(header, key, MAX_LEASED, 0, MAX_MICRO_BATCHES - 1)
    if len(set(found)) < len(found):
        raise BadRequestError(f"a micro-batch stands twice in {key!r}")
    return found


def _done(item: object) -> Done:
    named = _named(item, ("index", "loss", "targets", "bytes"))
    return Done(
        index=fields.integer(named, "index", 0, MAX_MICRO_BATCHES - 1),
        loss_sum=fields.number(named, "loss", -MAX_LOSS, MAX_LOSS),
        num_targets=fields.integer(named, "targets", 0, MAX_PASS_TOKENS),
        num_bytes=fields.integer(named, "bytes", 0, MAX_BYTES),
    )


def _finished(item: object) -> Finished:
    named = _named(item, ("version", "loss", "targets", "seconds", "closing", "stages", "bytes", "redone", "norm"))
    return Finished(
        version=fields.integer(named, "version", 1, MAX_VERSION),
        loss_sum=fields.number(named, "loss", -MAX_LOSS * MAX_MICRO_BATCHES, MAX_LOSS * MAX_MICRO_BATCHES),
        num_targets=fields.integer(named, "targets", 0, MAX_PASS_TOKENS * MAX_MICRO_BATCHES),
        seconds=fields.number(named, "seconds", 0, MAX_SECONDS),
        closing_s=fields.number(named, "closing", 0, MAX_SECONDS),
        num_stages=fields.integer(named, "stages", 0, MAX_STAGES),
        num_bytes=fields.integer(named, "bytes", 0, MAX_BYTES * MAX_MICRO_BATCHES),
        num_redone=fields.integer(named, "redone", 0, MAX_MICRO_BATCHES * MAX_MICRO_BATCHES),
        grad_norm=fields.number(named, "norm", 0, MAX_LOSS),
    )


def _named(item: object, names: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(item, list) or len(item) != len(names):
        raise BadRequestError(f"expected the list [{', '.join(names)}]")
    return dict(zip(names, item, strict=True))
