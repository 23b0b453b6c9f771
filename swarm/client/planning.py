"""Plans the step of one forward from its arguments.

Whatever is wrong with them is said here, before a byte is sent.

Shapes: B sequences, q new columns, k = columns so far + q, T real tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from protocols.errors import BadRequestError
from protocols.inference import WANT_ALL
from swarm.client import checks, forward_options, packing, windows
from swarm.client.blocks import StepPlan
from swarm.client.cache import RemoteCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a model and its family say of masks, positions and lengths."""

    config: Any
    vocab_size: int
    max_positions: int | None

    cache_key: str | None
    """As of `Remote`."""

    is_stateful: bool
    """What transformers says of the model's class."""

    hops_skip_padding: bool
    """If no positions are given, the hops count real tokens only, but transformers counts padding too."""

    keeps_packed_apart: Callable[[], bool | None]
    """As of `swarm.models.packing`; asked only if sequences are packed, since it takes a forward of a small model."""


def plan(given: Mapping[str, Any], cache: RemoteCache | None, family: Family, *, wants_hidden: bool) -> StepPlan:
    """What the forward with the arguments `given` wants from its blocks; BadRequestError if that cannot be."""
    size, columns = checks.check_inputs(given.get("input_ids"), given.get("inputs_embeds"), family.vocab_size)
    past, lengths = (0, None) if cache is None else (cache.columns, cache.rows)
    checks.check_rows(size, lengths)
    mask = given.get("attention_mask")
    is_dropped = mask is None and family.cache_key == "cache_params"  # these pass no mask after the prompt: all is real
    real = None if is_dropped else checks.check_mask(mask, size, columns, past, lengths)
    positions = checks.wide_positions(given.get("position_ids"), size, columns)
    packed = None if mask is not None or positions is None else _packed(positions, cache, family)
    is_padded = real is not None or any(length != past for length in lengths or ())
    hole = _checked_padding(mask, positions, family) if mask is not None and is_padded else None
    counts = packed or ([columns] * size if real is None else real.sum(1).tolist())
    before = lengths or [0] * len(counts)
    checks.check_length(max(old + new for old, new in zip(before, counts, strict=True)), family.max_positions)
    forward_options.check_labels(given, real, size, columns, family.vocab_size)
    want = _want(given, columns, wants_all=wants_hidden or packed is not None)
    if want != WANT_ALL and real is not None:
        checks.check_last_column(real, before, counts)
    if hole is not None and positions is None:
        positions = windows.column_positions(hole, columns)
    else:
        positions = checks.custom_positions(positions, real, counts, before)
    sequences = None if packed is None else tuple(packed)
    return StepPlan(cache=cache, real_Bq=real, positions_T=positions, want=want, sequences=sequences)


def _packed(positions_Bq: Tensor, cache: RemoteCache | None, family: Family) -> list[int] | None:
    """Tokens of each sequence that is packed in the batch rows, if transformers would keep them apart."""
    sequences = packing.lengths(positions_Bq)
    if sequences is None or family.keeps_packed_apart() is False:
        return None
    if cache is not None:
        packing.warn_together()
        return None
    packing.check(family.config, family.is_stateful, family.keeps_packed_apart(), positions_Bq, sequences)
    return sequences


def _checked_padding(mask_Bk: Tensor, positions_Bq: Tensor | None, family: Family) -> Tensor | None:
    """The mask if it has padding between real tokens, of which the user is warned once."""
    hole = mask_Bk if windows.has_hole(mask_Bk) else None
    if hole is not None:
        windows.warn_of_hole(family.config, hole)
    if positions_Bq is None and family.hops_skip_padding and windows.is_padded_before(mask_Bk):
        raise BadRequestError(
            "this family has a table of positions, and transformers counts padding if no position_ids are given; "
            "pass position_ids, such as (attention_mask.cumsum(1) - 1).clamp(min=0)"
        )
    return hole


def _want(given: Mapping[str, Any], columns: int, *, wants_all: bool) -> int:
    """Of how many last columns the output is wanted."""
    keep = given.get("logits_to_keep")
    forward_options.check_keep(keep, columns)
    if wants_all or given.get("labels") is not None:
        return WANT_ALL
    return keep if isinstance(keep, int) and keep > 0 else WANT_ALL
