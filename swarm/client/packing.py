"""Packed sequences: several in one line of a batch.

`position_ids` that start anew tell them apart; each becomes a sequence of the step, as transformers isolates them.

transformers 5.23 does that if neither an attention mask nor a cache is there, in families that hand their positions to the mask.
Otherwise it takes each batch row for one sequence with the positions that came, and so does this.

Shapes: B batch rows, q columns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from protocols.defaults import MAX_ROWS
from protocols.errors import BadRequestError
from swarm.client import checks

log = logging.getLogger(__name__)

_AS_ROWS = "pass each sequence as a batch row of its own, padded on the left, with an attention_mask"


def lengths(positions_Bq: Tensor) -> list[int] | None:
    """Tokens of each sequence, in batch order; None if each batch row is one. A sequence ends where positions do not go on by 1."""
    is_start = torch.ones_like(positions_Bq, dtype=torch.bool)
    is_start[:, 1:] = positions_Bq.diff(dim=1).ne(1)
    starts: list[int] = is_start.flatten().nonzero().flatten().tolist()
    if len(starts) == len(positions_Bq):
        return None
    return [stop - start for start, stop in pairwise([*starts, positions_Bq.numel()])]


def check(config: Any, is_stateful: bool, keeps_apart: bool | None, positions_Bq: Tensor, sequences: Sequence[int]) -> None:
    """BadRequestError if the session would give other numbers than transformers."""
    family = config.get_text_config(decoder=True).model_type
    if keeps_apart is None or checks.running_state(config, is_stateful) is not None:
        raise BadRequestError(
            f"position_ids start anew within a batch row, but {family} does not keep packed sequences apart in all blocks; {_AS_ROWS}"
        )
    if len(sequences) > MAX_ROWS:
        raise BadRequestError(
            f"position_ids start anew {len(sequences)} times, and a step has at most {MAX_ROWS} sequences; pass fewer at a time"
        )
    chunk = getattr(config.get_text_config(decoder=True), "attention_chunk_size", None)
    if chunk and any(first % chunk for first in _firsts(positions_Bq, sequences)):
        raise BadRequestError(
            f"packed sequences of {family} must start at position 0 or at a multiple of its attention_chunk_size {chunk}; {_AS_ROWS}"
        )


def _firsts(positions_Bq: Tensor, sequences: Sequence[int]) -> list[int]:
    starts = torch.tensor([0, *sequences[:-1]]).cumsum(0)
    firsts: list[int] = positions_Bq.flatten()[starts.to(positions_Bq.device)].tolist()
    return firsts


@cache
def warn_together() -> None:
    """Once in a process."""
    log.warning(
        "position_ids start anew within a batch row, but a cache is used, and then transformers takes the batch row for one sequence; "
        "to keep packed sequences apart, pass use_cache=False, no attention_mask and no past_key_values"
    )
