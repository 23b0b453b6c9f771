"""The gradient of a client's input, through a route of stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from node.training.pass_limits import PassLimits
from protocols import compression
from protocols.ids import Span
from protocols.training import Gradient, Pass
from protocols.weights_id import Weights
from swarm.training.chain import PassCall, PassError, train
from tests.node.training.passes import assert_sums, failed, of_one_process, route_of, thirds
from tests.node.training.toy_run import (
    RUN,
    TrainingNode,
    batch,
    pass_of,
    running,
)
from tests.node.training.toy_stage import H, whole
from tests.swarm.inference.toy import until


def of_client(route: tuple[Any, ...], hidden: torch.Tensor, **changes: Any) -> Pass:
    fields: dict[str, Any] = {"index": None, "weights": Weights(RUN), "payload": compression.pack(hidden), "labels": None,
                              "num_targets": 0, "want": "hidden"}  # fmt: skip
    return pass_of(route, 0, **{**fields, **changes})


async def test_a_client_gets_the_gradient_of_its_input_through_three_hops_and_nothing_is_added() -> None:
    nodes = thirds()
    for node in nodes:
        node.servicer._frozen = lambda sent, node=node: node.stage  # type: ignore[misc]
    own = batch(5, is_packed=True)
    of_output = torch.randint(-3, 4, (2, 5, H)).float()
    right = of_one_process(own, of_output=of_output)
    hidden = whole(0, own.ids, own.labels).hidden
    async with running(*nodes) as pool:
        sent = of_client(route_of(nodes), hidden, positions=compression.pack(own.positions))  # type: ignore[arg-type]
        async with PassCall(pool, sent) as call:
            output = compression.unpack((await call.output()).hidden)
            await call.send(Gradient(gradient=compression.pack(of_output)))
            result = await call.result()
        assert torch.equal(output, right.hidden) and result.gradient is not None
        assert torch.equal(compression.unpack(result.gradient), right.of_hidden)
        loss = await train(pool, of_client(route_of(nodes), hidden, want="loss", labels=compression.pack(own.labels),
                                           num_targets=own.num_targets, positions=sent.positions))  # fmt: skip
        plain = of_one_process(own)
        assert loss.loss_sum == plain.loss_sum and loss.gradient is not None
        assert torch.equal(compression.unpack(loss.gradient), plain.of_hidden)
        assert not any(receipt.added or receipt.held for receipt in (*result.receipts, *loss.receipts))
    assert_sums(nodes, {})


async def test_a_client_that_sends_no_gradient_is_dropped_after_a_while_and_may_not_have_many() -> None:
    node = TrainingNode(Span(0, 6), limits=PassLimits(client_s=60.0, per_client=1))
    node.servicer._frozen = lambda sent: node.stage
    async with running(node) as pool:
        async with PassCall(pool, of_client((node.hop(),), torch.zeros(2, 5, H))) as call:
            await call.output()
            assert (await failed(pool, of_client((node.hop(),), torch.zeros(2, 5, H)))).cause.code == "overloaded"
        await until(lambda: node.servicer.num_passes == 0)
        node.servicer._counts.limits = PassLimits(client_s=0.5, per_client=1)
        async with PassCall(pool, of_client((node.hop(),), torch.zeros(2, 5, H))) as call:
            with pytest.raises(PassError, match=r"not done within 0\.5 s"):
                await call.output()
                await call.result()
        await until(lambda: node.servicer.num_passes == 0)
    assert_sums([node], {})


async def test_a_client_s_gradient_of_another_shape_is_refused() -> None:
    node = TrainingNode(Span(0, 6))
    node.servicer._frozen = lambda sent: node.stage
    async with running(node) as pool, PassCall(pool, of_client((node.hop(),), torch.zeros(2, 5, H))) as call:
        await call.output()
        await call.send(Gradient(gradient=compression.pack(torch.zeros(2, 4, H))))
        with pytest.raises(PassError, match="was due"):
            await call.result()
    assert_sums([node], {})


async def test_a_client_of_a_node_without_a_stage_for_it_is_told_so() -> None:
    node = TrainingNode(Span(0, 6))
    async with running(node) as pool:
        assert (await failed(pool, of_client((node.hop(),), torch.zeros(2, 5, H)))).cause.code == "span_not_served"


# --- status
