"""What computes with one version of a host's units.

An engine of all blocks, embedding and head, and engines of parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.engines.ends import Ends
from node.engines.ends_selftest import choose_ends
from node.engines.engine import Engine, choose_engine
from node.units.host_units import HostReadings, HostUnits
from protocols.errors import ModelNotSupportedError
from protocols.ids import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitEngines:
    """Engines whose modules share the parameters of `readings`; call `readings.close()` once none of them computes any more."""

    units: HostUnits
    readings: HostReadings
    engine: Engine
    ends: Ends | None
    refusal: ModelNotSupportedError | None = None
    """Why `ends` is None, although the host has the unit."""

    def make_part(self, part: Span, limit_bytes: int) -> Engine:
        """An engine of some of the blocks; errors as of `choose_engine`."""
        return choose_engine(self.readings.blocks.holding.cut(part), limit_bytes)


def build(units: HostUnits, limit_bytes: int, vocab_size: int) -> UnitEngines:
    """Read the newest version, and choose engines that pass their self-test on it. Takes as long as some forwards.

    limit_bytes: for keys and values. ModelNotSupportedError if no engine runs the blocks; what was read is closed then.
    """
    readings = units.read()
    try:
        blocks = readings.blocks.holding
        engine = choose_engine(blocks.cut(blocks.span), limit_bytes)
        ends, refusal = _own_ends(readings, vocab_size)
    except BaseException:
        readings.close()
        raise
    return UnitEngines(units=units, readings=readings, engine=engine, ends=ends, refusal=refusal)


def _own_ends(readings: HostReadings, vocab_size: int) -> tuple[Ends | None, ModelNotSupportedError | None]:
    if readings.ends is None:
        return None, None
    try:
        return choose_ends(readings.ends.holding.twin(), vocab_size), None
    except ModelNotSupportedError as error:
        return None, error.with_traceback(None)  # its frames would keep the rejected modules in memory
