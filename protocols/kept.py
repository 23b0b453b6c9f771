"""Checkpoints of a run at peers, and the call to restore one.

    restore    Restore -> Restored      trainer -> stage: take your units of this checkpoint from a keeper, also if yours are newer

A keeper says in its `run_status` which version it keeps. A stage that is behind takes it by itself; one that is ahead goes back only if it
is told to, and finds that no stage has a later version of some unit (`node/runs/stage/restoring.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from protocols import fields, frame
from protocols.defaults import MAX_RUN_UNITS
from protocols.errors import BadRequestError
from protocols.ids import ModelId
from protocols.parts_of_units import parts_of
from protocols.units import Unit, parse_unit
from protocols.weights_id import CHAIN_BYTES, MAX_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One version of all units of a run."""

    version: int
    """At least 1."""
    chains: Mapping[Unit, bytes]
    """Of every elementary unit at that version: 32 bytes each, which tell apart two histories of equal length."""

    @property
    def chain(self) -> bytes:
        """Of the whole version."""
        return chain_of(self.chains)

    def pack(self) -> list[object]:
        return [self.version, pack_chains(self.chains)]

    @classmethod
    def parse(cls, value: object) -> Kept:
        if not isinstance(value, list) or len(value) != 2:
            raise BadRequestError("a kept version is [version, chains]")
        table = {"version": value[0], "chains": value[1]}
        version = fields.integer(table, "version", 1, MAX_VERSION)
        return cls(version=version, chains=parse_chains(table, "chains", version))


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Go to this version: a keeper has it."""

    run: ModelId
    kept: Kept

    def encode(self) -> bytes:
        return frame.encode({"t": "restore", "run": str(self.run), "kept": self.kept.pack()})

    @classmethod
    def parse(cls, data: bytes) -> Restore:
        header = frame.decode_kind(data, "restore").header
        return cls(run=fields.model(header, "run"), kept=Kept.parse(header.get("kept")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The answer to Restore: the stage goes to that version, or has it; `run_status` says when all its units do."""

    version: int

    def encode(self) -> bytes:
        return frame.encode({"t": "restored", "version": self.version})

    @classmethod
    def parse(cls, data: bytes) -> Restored:
        return cls(version=fields.integer(frame.decode_kind(data, "restored").header, "version", 1, MAX_VERSION))


def chain_of(chains: Mapping[Unit, bytes]) -> bytes:
    """The chain of a version of the whole model: SHA-256 over its units' texts and chains, sorted."""
    found = hashlib.sha256()
    for unit, chain in sorted(chains.items()):
        found.update(f"{unit} ".encode() + chain)
    return found.digest()


def pack_chains(chains: Mapping[Unit, bytes]) -> list[object]:
    """What `parse_chains` reads."""
    return [[str(unit), chain] for unit, chain in chains.items()]


def parse_chains(header: fields.Header, key: str, version: int) -> dict[Unit, bytes]:
    """The chains of elementary units at one version, each unit once."""
    chains: dict[Unit, bytes] = {}
    for item in fields.array(header, key, MAX_RUN_UNITS):
        if not isinstance(item, list) or len(item) != 2:
            raise BadRequestError("a unit's chain is [unit, chain]")
        unit = parse_elementary(item[0])
        if unit in chains:
            raise BadRequestError(f"{unit} stands twice in the chains of a version")
        chains[unit] = parse_chain(item[1], version)
    return chains


def parse_elementary(text: object) -> Unit:
    """A unit of training: one block, or embedding and head."""
    unit = parse_unit(text)
    parts_of(unit)  # BadRequestError for one that is not elementary
    return unit


def parse_chain(value: object, version: int) -> bytes:
    """32 bytes, or none at version 0."""
    return fields.exactly({"chain": value}, "chain", CHAIN_BYTES if version else 0)
