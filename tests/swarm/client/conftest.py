"""Tiny checkpoints, and transformers' own model of each, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families import make_checkpoint
from tests.swarm.client.local_backend import LocalBackend, local_model

Pair = tuple[Any, Any, LocalBackend]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(family: str) -> Path:
        return make_checkpoint(family, tmp_path_factory.mktemp(family))

    return make


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """transformers' own model of a family: what every test is compared with."""

    @cache
    def load(family: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32).eval()

    return load


@pytest.fixture(scope="session")
def pair(checkpoint: Callable[[str], Path], reference: Callable[[str], Any]) -> Callable[[str], Pair]:
    """(transformers' model, ours over spans 0:2 and 2:5, its backend); counters of the backend start at what they are."""

    @cache
    def load(family: str) -> Pair:
        return (reference(family), *local_model(checkpoint(family), 2))

    def fresh(family: str) -> Pair:
        theirs, ours, backend = load(family)
        backend.calls.clear()
        backend.num_opened = backend.num_closed = 0
        return theirs, ours, backend

    return fresh
