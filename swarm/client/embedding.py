"""Embeddings of texts, in Python.

The mean over a text's tokens of its last hidden states, behind the final norm, of length 1. A thin model gets the sum from the last hop
(`swarm/thin/embedding.py`); a full one has the norm itself.

Shapes: n texts, T tokens of one, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from protocols.errors import BadRequestError
from protocols.step_spec import StepSpec
from swarm.client import stepping
from swarm.client.backend import Backend, StepRequest

POOLED = StepSpec(kind="ids", result="pooled")

Texts = str | Sequence[str] | Sequence[Sequence[int]]
"""One text, several, or their token ids."""


@torch.no_grad()
def embed(model: Any, texts: Texts, is_thin: bool) -> Tensor:
    """[n, H] float32, on the CPU; one text after the other. BadRequestError for a text without tokens."""
    rows = [_ids(model, text) for text in ([texts] if isinstance(texts, str) else texts)]
    sums = [_from_last_hop(model.remote.backend, ids) if is_thin else _from_here(model, ids) for ids in rows]
    if not sums:
        raise BadRequestError("there is nothing to embed: 0 texts, expected at least 1")
    return torch.nn.functional.normalize(torch.stack(sums).double(), dim=-1).float()


def _ids(model: Any, text: str | Sequence[int]) -> list[int]:
    ids = [int(token) for token in (model.tokenizer(text).input_ids if isinstance(text, str) else text)]
    if not ids:
        raise BadRequestError("a text to embed is empty: 0 tokens, expected at least 1")
    return ids


def _from_last_hop(backend: Backend, ids: Sequence[int]) -> Tensor:
    """[H]"""
    session = backend.open()
    try:
        tokens = torch.tensor([ids], dtype=torch.int32)
        return stepping.step(session, StepRequest(counts=(len(ids),), tokens=tokens, spec=POOLED))[0].double().sum(0)
    finally:
        session.close()


def _from_here(model: Any, ids: Sequence[int]) -> Tensor:
    """[H]"""
    few = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    given = torch.tensor([ids], device=model.device)
    last = model(input_ids=given, output_hidden_states=True, use_cache=False, **few).hidden_states[-1]
    total: Tensor = last[0].double().sum(0).cpu()
    return total
