"""From a span to a host that can start.

Its tensors are fetched and loaded, and an engine proves exact on them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from node import hardware
from node.device.thread import Device
from node.engines.engine import Engine
from node.events import Event, OnEvent
from node.hosting.model_source import ModelSource
from node.placement import span_choice
from node.placement.presence import Presence
from node.serving.host import Host, HostEngines
from node.serving.unit_engines import UnitEngines, build
from node.units.host_units import HostReadings, HostUnits
from node.units.loaded import LoadedUnit
from protocols import units
from protocols.errors import CacheFullError, ModelNotSupportedError
from protocols.ids import Span
from swarm import waiting
from swarm.inference.hop.grants import Served
from swarm.models.checkpoint import Checkpoint
from swarm.models.loading import EndsModel, load_ends, load_parts
from swarm.models.parts import SpanParts
from swarm.models.sizes import kv_bytes_per_token, unit_bytes
from swarm.waiting import Waits


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMaker:
    """Makes this node's hosts, one after the other: all of one model, device and number format."""

    source: ModelSource
    checkpoint: Checkpoint
    presence: Presence
    device: str
    device_thread: Device
    """Of all hosts of this node."""
    num_to_load: int
    """Models of this node that are not loaded yet, this one included: each gets its part of the memory."""
    promised_bytes: int = 0
    """What sessions of this node's other models may still take for keys and values."""
    dtype: str
    ends: bool | None
    """Host embedding, norm and head too? None = if there is memory."""
    on_event: OnEvent
    waits: Waits

    async def make(self, span: Span) -> Host:
        """Fetch and load. Whatever fails leaves nothing behind but what was fetched."""
        free_bytes = self.room_bytes()
        beside_bytes = await asyncio.to_thread(unit_bytes, self.checkpoint, units.Ends(), self._kind)
        beside, reason = self._choose_beside(span, beside_bytes)
        await self.source.fetch([units.Blocks.of(span), *beside])
        with self.waits.on(waiting.loading(f"blocks {span}")) as progress:
            blocks = await asyncio.to_thread(self._load, span, progress)
        ends = await self._take_ends() if beside else None
        with self.waits.on(waiting.trying(span)):
            limit_bytes = self._limit_bytes(span, free_bytes - (beside_bytes if beside else 0))
            engines = await self._build(HostUnits(blocks=blocks, ends=ends), limit_bytes)
            block_ms = await asyncio.to_thread(measure_ms, engines.engine) / len(span)
        if engines.ends is None and beside:
            beside, reason = frozenset(), "they cannot be run exactly"
            engines = replace(engines, units=HostUnits(blocks=blocks), readings=HostReadings(blocks=engines.readings.blocks))
        self.on_event(Event("ends", f"hosted ({engines.ends.mode}): {reason}" if engines.ends else f"not hosted: {reason}"))
        return self._host(engines, self.presence.served(span, self.checkpoint.hidden_size, beside), block_ms)

    async def renew(self, host: Host) -> Host:
        """A host of the newest weights of a host's units, within the same budget for keys and values. It has not started."""
        assert host.unit_engines is not None
        limit_bytes = host.budget_bytes - self.device_thread.memory.used_bytes
        engines = await self._build(host.unit_engines.units, limit_bytes)
        beside = host.served.beside | units.ENDS if engines.ends else host.served.beside - units.ENDS
        served = replace(host.served, weights=engines.readings.weights, beside=beside)
        return self._host(engines, served, host.block_ms, host.budget_bytes)

    async def _build(self, own: HostUnits, limit_bytes: int) -> UnitEngines:
        engines = await asyncio.to_thread(build, own, limit_bytes, self.checkpoint.vocab_size)
        if engines.refusal is not None:
            if self.ends:
                engines.readings.close()
                raise engines.refusal
            self.on_event(Event("warning", str(engines.refusal)))
        return engines

    def _host(self, engines: UnitEngines, served: Served, block_ms: float, budget_bytes: int = 0) -> Host:
        try:
            return Host(
                HostEngines(engines.engine, engines.ends, engines.make_part, block_ms, engines),
                served,
                kv_bytes_per_token=kv_bytes_per_token(self.checkpoint.config, served.span, self._kind),
                max_positions=self.checkpoint.max_positions,
                device=self.device_thread,
                budget_bytes=budget_bytes,
            )
        except BaseException:
            engines.readings.close()
            raise

    def room_bytes(self) -> int:
        """What this model may take of the device's memory now, keys and values of all sessions included."""
        return hardware.room_bytes(self.device) // self.num_to_load

    def plan_bytes(self) -> int:
        """What its weights and their K/V reserve may take of it: nothing that sessions of other models count on."""
        return max(0, hardware.room_bytes(self.device) - self.promised_bytes) // self.num_to_load

    @property
    def _kind(self) -> torch.dtype:
        return hardware.torch_dtype(self.dtype)

    def _choose_beside(self, span: Span, beside_bytes: int) -> tuple[frozenset[units.Unit], str]:
        free_bytes = self.plan_bytes()
        capacity = span_choice.make_capacity(self.checkpoint, self.dtype, free_bytes, None)
        return span_choice.beside(self.ends, span, self.checkpoint.num_blocks, beside_bytes, free_bytes - capacity.takes(span))

    async def _take_ends(self) -> LoadedUnit[EndsModel] | None:
        """Load them. A family whose ends cannot be hosted is served without, unless they were asked for."""
        try:
            with self.waits.on(waiting.loading("embedding and head")) as progress:
                loaded = await asyncio.to_thread(
                    load_ends, self.checkpoint, dtype=self._kind, device=self.device, on_read=progress
                )
        except ModelNotSupportedError as error:
            if self.ends:
                raise
            self.on_event(Event("warning", str(error)))
            return None
        return LoadedUnit(units.Ends(), loaded, self.presence.weights)

    def _load(self, span: Span, progress: Callable[[int, int], None]) -> LoadedUnit[SpanParts]:
        _, parts = load_parts(self.checkpoint, span, dtype=self._kind, device=self.device, on_read=progress)
        return LoadedUnit(units.Blocks.of(span), parts, self.presence.weights)

    def _limit_bytes(self, span: Span, free_bytes: int) -> int:
        taken_bytes = unit_bytes(self.checkpoint, units.Blocks.of(span), self._kind)
        return int((free_bytes - taken_bytes) * hardware.KV_SHARE)


@torch.inference_mode()
def measure_ms(engine: Engine, rounds: int = 5) -> float:
    """Milliseconds of one token through the engine's span, the median of some; the engine holds nothing afterwards."""
    row = engine.open()
    hidden_1TH = torch.zeros(1, 1, engine.hidden_size, dtype=engine.dtype, device=engine.device)
    times_ms = []
    try:
        for _round in range(rounds):
            started = time.perf_counter()
            engine.step([(row, 1)], hidden_1TH).cpu()
            times_ms.append((time.perf_counter() - started) * 1e3)
    except CacheFullError:  # no memory for a single token: the runner will say so to the first session
        return 0.0
    finally:
        engine.close(row)
    return statistics.median(times_ms)
