"""The default dtype's lock: shared by forwards, exclusive for a builder.

A builder goes before forwards that come later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.default_dtype import SharedLock, computing
from swarm.models.loading import load_span
from tests.families import make_checkpoint

WAIT_S = 30.0


def entered(enter: Callable[[], AbstractContextManager[None]]) -> tuple[threading.Event, threading.Event]:
    """(set once a thread is inside, to be set to let it go)."""
    inside, leave = threading.Event(), threading.Event()

    def run() -> None:
        with enter():
            inside.set()
            leave.wait(WAIT_S)

    threading.Thread(target=run, daemon=True).start()
    return inside, leave


def test_forwards_run_side_by_side() -> None:
    lock = SharedLock()
    first, leave_first = entered(lock.shared)
    second, leave_second = entered(lock.shared)
    assert first.wait(WAIT_S) and second.wait(WAIT_S)
    leave_first.set()
    leave_second.set()


def test_a_builder_waits_for_forwards_and_goes_before_those_that_come_later() -> None:
    lock = SharedLock()
    forward, end_forward = entered(lock.shared)
    assert forward.wait(WAIT_S)
    building, end_building = entered(lock.alone)
    while not lock._num_waiting:
        assert not building.wait(0.01), "it builds beside a forward"
    later, end_later = entered(lock.shared)
    assert not later.wait(0.05), "a forward went before the builder that waits"
    end_forward.set()
    assert building.wait(WAIT_S) and not later.is_set()
    end_building.set()
    assert later.wait(WAIT_S)
    end_later.set()


def test_loading_a_span_waits_for_a_forward_that_runs(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint("llama", tmp_path / "llama"))
    done = threading.Event()
    with computing():
        thread = threading.Thread(target=lambda: (load_span(checkpoint, Span(0, 2), dtype=torch.bfloat16), done.set()))
        thread.start()
        assert not done.wait(0.5), "transformers set the default dtype beside a forward"
        assert torch.get_default_dtype() == torch.float32
    assert done.wait(WAIT_S)
