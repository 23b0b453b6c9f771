"""Engines, embedding and head on a device that is not the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from node.device.pending import Chunk, Pending
from node.device.work import HeldSequences, Step
from node.engines.ends_selftest import choose_ends
from node.engines.engine import choose_engine
from node.serving import batch as edges
from protocols.ids import PeerId, SessionId, Span
from protocols.inference import StepSpec
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_span
from tests.families import make_checkpoint
from tests.node.engines.test_engines import MODES
from tests.other_device import OTHER, present

FAMILIES = ("llama", "mixtral", "bloom", "mamba", "gpt_neo", "openai_gpt")
"""Families of each engine, and experts. All others of MODES pass, too, but falcon_alibi, whose attention has other numbers there."""


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_proves_exact_on_another_device(family: str, tmp_path: Path) -> None:
    """The self-test runs there, with batches, forks and crops. Mixed devices would fail it, or choose another engine."""
    span = load_span(open_checkpoint(make_checkpoint(family, tmp_path)), Span(0, 2), dtype=torch.float32)
    hidden = torch.randn(1, 5, span.hidden_size)
    with torch.inference_mode():
        expected = span(hidden)
    with present():
        span.to(OTHER)
        engine = choose_engine(span, 1 << 30)
        assert engine.mode == MODES[family] and engine.device == OTHER
        output = engine.step([(engine.open(), 5)], hidden.to(OTHER))
        assert output.device == OTHER and torch.allclose(output.cpu(), expected, atol=1e-4)


def test_a_batch_goes_to_the_device_and_its_outputs_come_back(tmp_path: Path) -> None:
    """Ids, hidden states and positions are on the CPU when they arrive; so are hidden states and logits when they leave."""
    checkpoint = open_checkpoint(make_checkpoint("llama", tmp_path))
    span, loaded = load_span(checkpoint, Span(0, 5), dtype=torch.float32), load_ends(checkpoint, dtype=torch.float32)
    ids = torch.tensor([5, 9, 7])
    with present():
        span.to(OTHER)
        loaded.model.to(OTHER)
        engine, ends = choose_engine(span, 1 << 30), choose_ends(loaded, 256)
        spec = StepSpec(kind="ids", result="logits", want=1)
        of_ids = whole(Step(session=session(), counts=(3,), values=ids, spec=spec))
        of_hidden = whole(Step(session=session(), counts=(2,), values=torch.randn(2, 64), positions=torch.tensor([4, 9])))
        batch = [(of_ids, [engine.open()]), (of_hidden, [engine.open()])]
        hidden = edges.begin(engine, ends, batch)
        assert hidden.device == OTHER
        items = [(sequences[0], chunk.size) for chunk, sequences in batch]
        places = torch.cat([edges.places(chunk, sequences) for chunk, sequences in batch]).to(OTHER)
        outputs = edges.finish(ends, [of_ids, of_hidden], engine.step(items, hidden[None], places)[0])
    assert [output.values.device.type for output in outputs] == ["cpu", "cpu"]
    assert [tuple(output.values.shape) for output in outputs] == [(1, 256), (2, 64)]


def test_what_mixes_devices_is_found_out() -> None:
    """Otherwise the tests above could not fail."""
    with present():
        there, here = torch.randn(3, 4).to(OTHER), torch.randn(4)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([there, here[None]])
        assert torch.equal((there[torch.tensor([2])] + here.to(OTHER)).cpu(), there.cpu()[2:] + here)


def whole(step: Step) -> Chunk:
    """All of a step, in one forward."""
    return Chunk(Pending(step), 0, sum(step.counts))


def session() -> HeldSequences:
    return HeldSequences(SessionId(bytes(16)), PeerId("client"))
