"""What a peer of a test hosts: the units of its record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols.hosted import Hosted, Load
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.units import Blocks, Ends
from protocols.weights_id import Weights


def hosted(
    model: ModelId,
    span: Span,
    num_blocks: int = 4,
    *,
    ends: bool = False,
    dtype: str = "float32",
    state: str = "",
    capacity_blocks: int = 0,
    **load: Any,
) -> tuple[Hosted, ...]:
    """Blocks, and embedding and head beside them if `ends`. load: of the blocks."""
    blocks = Hosted(
        unit=Blocks.of(span), weights=Weights(model), num_blocks=num_blocks, dtype=dtype, state=state, load=Load(**load),
        capacity_blocks=capacity_blocks,
    )  # fmt: skip
    beside = Hosted(unit=Ends(), weights=Weights(model), num_blocks=num_blocks, dtype=dtype, state=state)
    return (blocks, beside) if ends else (blocks,)


def loaded(record: PeerRecord, **load: Any) -> PeerRecord:
    """The same with other numbers in the load of its blocks."""
    found = (replace(one, load=replace(one.load, **load)) if one.is_blocks else one for one in record.hosted)
    return replace(record, hosted=tuple(found))
