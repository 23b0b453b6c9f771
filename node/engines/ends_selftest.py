"""Are the ends exact when many rows share them? Asked at load, of the very calls that will serve.

Two rows are embedded in pieces and together, as a batch does it, and compared with the plain model's own run over each whole row.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from node.engines.ends import Ends, Stretch
from protocols.errors import ModelNotSupportedError, SwarmError
from swarm.models.loading import EndsModel

log = logging.getLogger(__name__)

LENGTHS = (9, 5)
CUTS = (4, 2)
"""Tokens of each row that are embedded before the rest."""

EXACT, ROUGH = 1e-5, 2e-2
"""Largest error, relative to the largest value, in float32 and in half precision (products of other sizes round otherwise)."""


def choose_ends(ends: EndsModel, vocab_size: int) -> Ends:
    """The ends, in the first way that proves exact: all rows in one run, else row by row. ModelNotSupportedError with both reasons."""
    reasons = []
    for is_flat in (True, False):
        host = Ends(ends, vocab_size, is_flat=is_flat)
        reason = fault(host, ends.model)
        if reason is None:
            return host
        reasons.append(f"{host.mode}: {reason}")
        log.info("the ends of %s cannot be run %s: %s", ends.model.config.model_type, host.mode, reason)
    raise ModelNotSupportedError(f"the ends of {ends.model.config.model_type!r} cannot be hosted ({'; '.join(reasons)})")


@torch.inference_mode()
def fault(host: Ends, model: Any) -> str | None:
    """None where the host gives what the model's own forward gives, else what is wrong."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, host.shape.vocab_size, (length,), generator=generator) for length in LENGTHS]
    try:
        expected = [_plain(host, model, row) for row in rows]
        if expected[0][1].shape[-1] != host.shape.vocab_size:
            return f"its head gives {expected[0][1].shape[-1]} logits, its vocabulary has {host.shape.vocab_size}"
        for kind in ("ids", "embeds"):
            values = rows if kind == "ids" else [model.get_input_embeddings()(row.to(host.device)).cpu() for row in rows]
            if kind == "embeds":
                expected = [_plain(host, model, row, kind) for row in values]
            if not _close(_in_pieces(host, kind, values), torch.cat([embedded for embedded, _ in expected])):
                return f"{kind} come out otherwise than in the model's own run"
        hidden, logits = (torch.cat(parts) for parts in zip(*expected, strict=True))
        some = torch.tensor([0, 3, 8, 9, 13])  # as a batch asks: some tokens of several rows
        if not _close(host.logits(hidden[some]), logits[some].float().cpu()):
            return "logits of some tokens alone are other than in the model's own run"
    except (SwarmError, AssertionError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # a family's own code fails as it likes on a path that is not for it
        log.debug("self-test of the ends failed", exc_info=error)
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return None


def _plain(host: Ends, model: Any, row: Tensor, kind: str = "ids") -> tuple[Tensor, Tensor]:
    """One whole row through the model's own forward, which knows of no other: what enters its blocks, and the logits of that."""
    given: dict[str, Any] = {"input_ids" if kind == "ids" else "inputs_embeds": row.to(host.device)[None]}
    if host.has_cache:  # one of its own would ask for blocks that are not here
        given["use_cache"] = False
    host._tap.given = None
    logits = model(**given).logits[0]
    assert host._tap.taken is not None, "the model ran past the tap"
    return host._tap.taken[0].clone(), logits


def _in_pieces(host: Ends, kind: str, rows: list[Tensor]) -> Tensor:
    """The rows' embeddings, first a piece of each together, then the rest of both."""
    first = [Stretch(0, cut) for cut in CUTS]
    second = [Stretch(cut, length - cut) for cut, length in zip(CUTS, LENGTHS, strict=True)]
    heads = host.embed(kind, torch.cat([row[:cut] for row, cut in zip(rows, CUTS, strict=True)]), first).split(list(CUTS))
    heads = [head.clone() for head in heads]
    tails = host.embed(kind, torch.cat([row[cut:] for row, cut in zip(rows, CUTS, strict=True)]), second)
    rest = tails.split([stretch.count for stretch in second])
    return torch.cat([torch.cat(pair) for pair in zip(heads, rest, strict=True)])


def _close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return False
    bound = EXACT if expected.dtype == torch.float32 and got.dtype == torch.float32 else ROUGH
    error, scale = (got.float() - expected.float()).abs().max(), expected.float().abs().max()
    return bool(error <= bound * scale)
