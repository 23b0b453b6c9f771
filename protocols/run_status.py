"""The state of one stage of a run, and published versions.

    run_status    StatusRequest -> RunStatus       any peer -> stage or keeper: how far each of its units is
    publish       Publish -> Published             trainer -> stage: this version of all units becomes one that sessions may run on

Records in the directory say who takes part (`protocols/roles.py`); versions change every second, so they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocols import fields, frame
from protocols.defaults import MAX_RUN_UNITS
from protocols.errors import BadRequestError
from protocols.groups import GROUP_ID_BYTES
from protocols.held import Held, parse_held
from protocols.ids import ModelId
from protocols.kept import Kept, pack_chains, parse_chain, parse_chains, parse_elementary
from protocols.masks import split_masks
from protocols.parts_of_units import Part, parts_of
from protocols.receipts import MAX_MS
from protocols.runs import MAX_MICRO_BATCHES
from protocols.units import Unit
from protocols.weights_id import MAX_VERSION

MAX_QUEUE = 1 << 20
MAX_SERVED = 8
"""Published versions that one stage lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """How far are your units of this run?"""

    run: ModelId

    def encode(self) -> bytes:
        return frame.encode({"t": "run_status?", "run": str(self.run)})

    @classmethod
    def parse(cls, data: bytes) -> StatusRequest:
        return cls(run=fields.model(frame.decode_kind(data, "run_status?").header, "run"))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStatus:
    """One elementary unit: its version, and which micro-batches of the next one are in its sums."""

    unit: Unit
    version: int
    chain: bytes
    """32 bytes, which tell apart two runs of the same number of steps; b"" at version 0."""
    ledger: Mapping[Part, int]
    """For each of `parts_of(unit)` the mask of the micro-batches that are in its sum (`masks.py`)."""
    agreed: bytes = b""
    """Id of the group that has agreed on the unit's next step, which is not done yet; b"": none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One peer's word on its part of a run: a stage's, or a keeper's, which may have no units."""

    num_micro_batches: int
    """Of one version's batch, 1 to MAX_MICRO_BATCHES: the bits of every mask."""
    units: tuple[UnitStatus, ...] = ()
    queue: int = 0
    """Micro-batches in hand: computing, waiting for the device, or for the next hop."""
    forward_ms: float = 0.0
    backward_ms: float = 0.0
    """Of one block and one micro-batch, measured; 0 = not yet."""
    is_catching_up: bool = False
    """It fetches a newer version of some unit, and takes no micro-batch meanwhile."""
    is_paused: bool = False
    """Its owner has paused it: it takes no micro-batch, but its sums count, and it steps with the others."""
    served: tuple[int, ...] = ()
    """Published versions on which sessions may run here, the newest last."""
    kept: Kept | None = None
    """The newest checkpoint that this peer keeps: it gives the state of all units at that version."""
    held: tuple[Held, ...] = ()
    """What it has in memory of versions that the stages hold together: it gives these units at these versions."""
    has_memory: bool = False
    """It has memory for copies of units that it does not train."""

    def encode(self) -> bytes:
        header = {"t": "run_status", "batch": self.num_micro_batches,
                  "units": [[str(one.unit), one.version, one.chain, one.agreed] for one in self.units], "queue": self.queue,
                  "forward": self.forward_ms, "backward": self.backward_ms, "behind": self.is_catching_up, "paused": self.is_paused,
                  "served": list(self.served), **({"memory": True} if self.has_memory else {}),
                  **({} if self.kept is None else {"kept": self.kept.pack()}),
                  **({"held": [one.pack() for one in self.held]} if self.held else {})}  # fmt: skip
        size, masks = -(-self.num_micro_batches // 8), (one.ledger[part] for one in self.units for part in parts_of(one.unit))
        return frame.encode(header, [b"".join(mask.to_bytes(size, "little") for mask in masks)])

    @classmethod
    def parse(cls, data: bytes) -> RunStatus:
        received = frame.decode_kind(data, "run_status")
        header = received.header
        num = fields.integer(header, "batch", 1, MAX_MICRO_BATCHES)
        rows = [_row(item) for item in fields.array(header, "units", MAX_RUN_UNITS)]
        if len({row[0] for row in rows}) < len(rows):
            raise BadRequestError("a unit stands twice in a run's status")
        return cls(
            num_micro_batches=num,
            units=_with_ledgers(rows, frame.buffers_of(received, 1)[0], num),
            queue=fields.integer(header, "queue", 0, MAX_QUEUE),
            forward_ms=fields.number(header, "forward", 0, MAX_MS),
            backward_ms=fields.number(header, "backward", 0, MAX_MS),
            is_catching_up=fields.flag(header, "behind"),
            is_paused=fields.flag(header, "paused"),
            served=fields.integers(header, "served", MAX_SERVED, 0, MAX_VERSION),
            kept=None if header.get("kept") is None else Kept.parse(header["kept"]),
            held=parse_held(header, "held"),
            has_memory=fields.flag(header, "memory") if "memory" in header else False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Version `version` of the run, whose units have these chains, becomes one that sessions may run on."""

    run: ModelId
    version: int
    chains: Mapping[Unit, bytes]
    """Of every elementary unit of the run."""

    def encode(self) -> bytes:
        chains = pack_chains(self.chains)
        return frame.encode({"t": "publish", "run": str(self.run), "version": self.version, "chains": chains})

    @classmethod
    def parse(cls, data: bytes) -> Publish:
        header = frame.decode_kind(data, "publish").header
        version = fields.integer(header, "version", 0, MAX_VERSION)
        return cls(run=fields.model(header, "run"), version=version, chains=parse_chains(header, "chains", version))


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The answer to Publish: the newest version that this stage serves, or is about to."""

    version: int

    def encode(self) -> bytes:
        return frame.encode({"t": "published", "version": self.version})

    @classmethod
    def parse(cls, data: bytes) -> Published:
        return cls(version=fields.integer(frame.decode_kind(data, "published").header, "version", 0, MAX_VERSION))


_Row = tuple[Unit, int, bytes, bytes]


def _row(item: object) -> _Row:
    if not isinstance(item, list) or len(item) != 4:
        raise BadRequestError("a unit's status is [unit, version, chain, group that has agreed]")
    version = fields.integer({"version": item[1]}, "version", 0, MAX_VERSION)
    agreed = fields.exactly({"agreed": item[3]}, "agreed", 0, GROUP_ID_BYTES)
    return parse_elementary(item[0]), version, parse_chain(item[2], version), agreed


def _with_ledgers(rows: list[_Row], data: memoryview, num: int) -> tuple[UnitStatus, ...]:
    """Each unit with its masks, which follow each other in the order of `rows`."""
    size, parts = -(-num // 8), [parts_of(row[0]) for row in rows]
    if len(data) != size * sum(map(len, parts)):
        raise BadRequestError(f"{sum(map(len, parts))} masks of {num} bits take {size} bytes each, got {len(data)} in all")
    masks = split_masks(data, size)
    if any(mask >> num for mask in masks):
        raise BadRequestError(f"a mask of {num} micro-batches has a bit beyond them")
    following = iter(masks)
    return tuple(
        UnitStatus(unit=unit, version=version, chain=chain, ledger=dict(zip(own, following, strict=False)), agreed=agreed)
        for (unit, version, chain, agreed), own in zip(rows, parts, strict=True)
    )
