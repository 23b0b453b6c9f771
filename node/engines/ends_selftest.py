"""Self-test of `Ends`: is it exact for many sequences in one run?

It runs at load, with the calls that will serve. Two sequences are embedded in two parts, both sequences together as in a batch, and the
result is compared with the plain model's own run over each whole sequence.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from node.engines.ends import Ends, Stretch
from protocols.errors import ModelNotSupportedError, SwarmError
from swarm.models.loading import EndsModel

log = logging.getLogger(__name__)

LENGTHS = (9, 5)
"""Tokens of the two test sequences."""

CUTS = (4, 2)
"""Tokens of each test sequence that are embedded first; the rest follows in a second run."""

EXACT, ROUGH = 1e-5, 2e-2
"""Largest error relative to the largest value, in float32 and in half precision (matrix products of other sizes round otherwise)."""


def choose_ends(ends: EndsModel, vocab_size: int) -> Ends:
    """The unit that is exact: all sequences in one run, else one run for each. ModelNotSupportedError with both reasons if neither is."""
    reasons = []
    for is_flat in (True, False):
        host = Ends(ends, vocab_size, is_flat=is_flat)
        reason = fault(host, ends.model)
        if reason is None:
            host.shape = replace(host.shape, can_pool=_can_pool(host, ends.model))
            return host
        reasons.append(f"{host.mode}: {reason}")
        log.info("embedding and head of %s cannot be run %s: %s", ends.model.config.model_type, host.mode, reason)
    raise ModelNotSupportedError(
        f"embedding and head of {ends.model.config.model_type!r} cannot be hosted ({'; '.join(reasons)})"
    )


@torch.inference_mode()
def fault(host: Ends, model: Any) -> str | None:
    """None if `host` computes what the model's own forward computes, else what is wrong, in one line."""
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, host.shape.vocab_size, (length,), generator=generator) for length in LENGTHS]
    try:
        expected = [_plain(host, model, sequence) for sequence in sequences]
        if expected[0][1].shape[-1] != host.shape.vocab_size:
            return f"its head gives {expected[0][1].shape[-1]} logits, its vocabulary has {host.shape.vocab_size}"
        for kind in ("ids", "embeds"):
            values = (
                sequences
                if kind == "ids"
                else [model.get_input_embeddings()(sequence.to(host.device)).cpu() for sequence in sequences]
            )
            if kind == "embeds":
                expected = [_plain(host, model, sequence, kind) for sequence in values]
            if not _close(_in_chunks(host, kind, values), torch.cat([embedded for embedded, _ in expected])):
                return f"{kind} come out otherwise than in the model's own run"
        hidden, logits = (torch.cat(parts) for parts in zip(*expected, strict=True))
        some = torch.tensor([0, 3, 8, 9, 13])  # as a batch asks: some tokens of several sequences
        if not _close(host.logits(hidden[some]), logits[some].float().cpu()):
            return "logits of some tokens alone are other than in the model's own run"
    except (SwarmError, AssertionError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # a family's own code fails as it likes on a path that is not for it
        log.debug("self-test of embedding and head failed", exc_info=error)
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return None


@torch.inference_mode()
def _can_pool(host: Ends, model: Any) -> bool:
    """Whether `host.final` is what transformers' model without head gives, and as wide as what leaves the blocks."""
    sequence = torch.randint(0, host.shape.vocab_size, (LENGTHS[0],), generator=torch.Generator().manual_seed(0))
    try:
        hidden, _ = _plain(host, model, sequence)
        given = {"use_cache": False} if host.has_cache else {}
        expected = model.base_model(input_ids=sequence.to(host.device)[None], **given).last_hidden_state[0]
        return expected.shape == hidden.shape and _close(host.final(hidden[3:]), expected[3:].float().cpu())
    except Exception as error:  # as above
        log.info("%s gives no embeddings of texts: %s", model.config.model_type, error)
        return False


def _plain(host: Ends, model: Any, sequence: Tensor, kind: str = "ids") -> tuple[Tensor, Tensor]:
    """One whole sequence alone through the model's own forward: the hidden states [T, H] that enter its blocks, and their logits [T, V]."""
    given: dict[str, Any] = {"input_ids" if kind == "ids" else "inputs_embeds": sequence.to(host.device)[None]}
    if host.has_cache:  # a cache of the model's own needs its blocks, which are not here
        given["use_cache"] = False
    host._tap.given = None
    logits = model(**given).logits[0]
    assert host._tap.taken is not None, "the model ran past the tap"
    return host._tap.taken[0].clone(), logits


def _in_chunks(host: Ends, kind: str, sequences: list[Tensor]) -> Tensor:
    """The sequences' embeddings [T, H], from two runs: the first tokens of both, then the rest of both."""
    first = [Stretch(0, cut) for cut in CUTS]
    second = [Stretch(cut, length - cut) for cut, length in zip(CUTS, LENGTHS, strict=True)]
    heads = host.embed(kind, torch.cat([sequence[:cut] for sequence, cut in zip(sequences, CUTS, strict=True)]), first).split(
        list(CUTS)
    )
    heads = [head.clone() for head in heads]
    tails = host.embed(kind, torch.cat([sequence[cut:] for sequence, cut in zip(sequences, CUTS, strict=True)]), second)
    rest = tails.split([stretch.count for stretch in second])
    return torch.cat([torch.cat(pair) for pair in zip(heads, rest, strict=True)])


def _close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return False
    bound = EXACT if expected.dtype == torch.float32 and got.dtype == torch.float32 else ROUGH
    error, scale = (got.float() - expected.float()).abs().max(), expected.float().abs().max()
    return bool(error <= bound * scale)
