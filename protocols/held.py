"""In-memory checkpoints: a version that the stages of a run hold together.

    hold    Hold -> Holding      trainer -> stage: hold this version of your units, and copy those of others that fall to you

A checkpoint on a disk needs a keeper; this one needs memory at the stages only. Each holds its own units at that version, and copies of
some that it does not train (`swarm/training/buddies.py`). `run_status` says what each one has. Together it is a `Kept` if it has the whole
version's chain, and the run can go back to it as to any other checkpoint (`kept.py`).

Source: Zheng, Shi and Kalé 2004, "FTC-Charm++: an in-memory checkpoint-based fault tolerant runtime", IEEE Cluster: each process has a
buddy that holds its checkpoint, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from protocols import fields, frame
from protocols.errors import BadRequestError
from protocols.ids import ModelId
from protocols.kept import Kept, chain_of, pack_chains, parse_chains
from protocols.units import Unit
from protocols.weights_id import CHAIN_BYTES, MAX_VERSION

MAX_HELD: Final = 2
"""Versions that a stage holds: one that is whole, and the next one while it is copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Hold this version, which you have now."""

    run: ModelId
    kept: Kept

    def encode(self) -> bytes:
        return frame.encode({"t": "hold", "run": str(self.run), "kept": self.kept.pack()})

    @classmethod
    def parse(cls, data: bytes) -> Hold:
        header = frame.decode_kind(data, "hold").header
        return cls(run=fields.model(header, "run"), kept=Kept.parse(header.get("kept")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The answer to Hold: the stage holds its own units at that version, and copies others; `run_status` says when it has them."""

    version: int

    def encode(self) -> bytes:
        return frame.encode({"t": "holding", "version": self.version})

    @classmethod
    def parse(cls, data: bytes) -> Holding:
        return cls(version=fields.integer(frame.decode_kind(data, "holding").header, "version", 1, MAX_VERSION))


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one stage has in memory of one version."""

    version: int
    """At least 1."""
    whole: bytes
    """The chain of the whole version (`kept.chain_of`), 32 bytes: what others hold of it has the same one."""
    chains: Mapping[Unit, bytes]
    """Of the units whose state is here."""
    is_done: bool = True
    """Nothing more is being copied."""

    def pack(self) -> list[object]:
        return [self.version, self.whole, self.is_done, pack_chains(self.chains)]

    @classmethod
    def parse(cls, value: object) -> Held:
        if not isinstance(value, list) or len(value) != 4:
            raise BadRequestError("a held version is [version, chain, is done, chains of units]")
        table = {"version": value[0], "whole": value[1], "done": value[2], "chains": value[3]}
        version, whole = fields.integer(table, "version", 1, MAX_VERSION), fields.exactly(table, "whole", CHAIN_BYTES)
        chains = parse_chains(table, "chains", version)
        return cls(version=version, whole=whole, chains=chains, is_done=fields.flag(table, "done"))


def parse_held(header: fields.Header, key: str) -> tuple[Held, ...]:
    """At most MAX_HELD; none if the key is not there."""
    return tuple(map(Held.parse, fields.array(header, key, MAX_HELD))) if key in header else ()


def whole_versions(held: Iterable[Held]) -> list[Kept]:
    """What several stages have together of all units of a version, the newest last.

    The chain of the whole version covers every unit's own, so no part of another history and no unfinished set passes for one.
    """
    found: dict[tuple[int, bytes], dict[Unit, bytes]] = {}
    for one in held:
        found.setdefault((one.version, one.whole), {}).update(one.chains)
    return [
        Kept(version=version, chains=chains) for (version, whole), chains in sorted(found.items(), key=lambda item: item[0])
        if chain_of(chains) == whole
    ]  # fmt: skip
