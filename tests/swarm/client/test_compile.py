"""`torch.compile` leaves a remote forward as it is.

Logits, tokens and gradients are the same; a whole graph is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from protocols.errors import BadRequestError
from swarm.client.model import SwarmModelForCausalLM
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from tests.swarm.client.ideal_hops import IdealBackend
from tests.swarm.client.local_backend import local_model

IDS = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(1))
GREEDY: dict[str, Any] = dict(max_new_tokens=4, do_sample=False)


@pytest.fixture(params=["full", "thin"])
def ours(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], reference: Callable[[str], Any]) -> Iterator[Any]:
    """A model of its own: `model.compile()` changes it."""
    path = checkpoint("llama")
    if request.param == "full":
        yield local_model(path, 2)[0]
    else:
        yield build_thin(open_checkpoint(path), IdealBackend(reference("llama")), SwarmModelForCausalLM)
    torch._dynamo.reset()


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "compiled", [lambda model: torch.compile(model, backend="eager"), compiled_in_place], ids=["new", "in place"]
)
def test_a_compiled_model_gives_what_the_model_gives(
    ours: Any, compiled: Callable[[Any], Any], reference: Callable[[str], Any]
) -> None:
    theirs = reference("llama")
    model = compiled(ours)
    with torch.no_grad():
        expected = theirs(IDS).logits
        first = model(IDS)
        torch.testing.assert_close(first.logits, expected, rtol=1e-4, atol=1e-4)
        two = torch.cat([IDS, IDS[:, :1]], dim=1)
        next_logits = model(IDS[:, :1], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(next_logits[:, -1], theirs(two).logits[:, -1], rtol=1e-4, atol=1e-4)
    assert model.generate(IDS, **GREEDY).tolist() == theirs.generate(IDS, **GREEDY).tolist()
    with pytest.raises(BadRequestError, match="out of range"):
        model(IDS + 250)
    if next(ours.parameters(), None) is not None:  # a thin model has none
        ours.lm_head.weight.requires_grad_()
        model(IDS, labels=IDS).loss.backward()
        theirs.lm_head.weight.requires_grad_()
        (expected,) = torch.autograd.grad(theirs(IDS, labels=IDS).loss, theirs.lm_head.weight)
        torch.testing.assert_close(ours.lm_head.weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_compiled_function_may_call_it(ours: Any, reference: Callable[[str], Any]) -> None:
    graphs = []

    def count(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    @torch.compile(backend=count)
    def chances(ids: torch.Tensor) -> torch.Tensor:
        return torch.softmax(ours(ids + 1).logits * 2, -1)

    with torch.no_grad():
        expected = torch.softmax(reference("llama")(IDS + 1).logits * 2, -1)
        torch.testing.assert_close(chances(IDS), expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 2  # before the forward and after it: the rest was compiled


def test_a_whole_graph_is_refused_with_the_reason(ours: Any) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="its blocks run at nodes of a swarm"):
        torch.compile(ours, backend="eager", fullgraph=True)(IDS)
    with pytest.raises(BadRequestError, match="cannot be exported or traced: its blocks run at nodes of a swarm"):
        torch.export.export(ours, (IDS,))
