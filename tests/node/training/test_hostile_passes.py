"""Passes of hostile trainers and hops: each is refused where it arrives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from protocols import compression, training
from protocols.errors import SwarmError
from protocols.ids import ModelId, Span
from protocols.parts_of_units import EMBED
from protocols.receipts import Receipt
from protocols.route import Hop
from protocols.services import TRAIN
from protocols.tensors import WireTensor
from protocols.training import Gradient, Output, Pass, PassFailed, Result
from protocols.units import Blocks
from swarm.rpc import ChannelPool, RpcServer, Stream, tls
from tests.node.training.passes import assert_sums, failed, route_of, thirds
from tests.node.training.toy_run import (
    NUM_MICRO_BATCHES,
    TRAINER,
    TrainingNode,
    batch,
    new_identity,
    pass_of,
    running,
)
from tests.node.training.toy_stage import H, V


def wire(values: list[list[int]]) -> WireTensor:
    return compression.pack(torch.tensor(values, dtype=torch.int32))


def of_shape(shape: tuple[int, int]) -> dict[str, Any]:
    own = batch(0, shape)
    return {"payload": compression.pack(own.ids), "labels": compression.pack(own.labels), "num_targets": own.num_targets}


REFUSED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "an unknown run": ("model_not_found", 0, {"run": ModelId("toy", "cd" * 32)}),
    "another version": ("version_mismatch", 0, {"version": 1}),
    "an index beyond the batch": ("bad_request", 0, {"index": NUM_MICRO_BATCHES}),
    "more sequences than a micro-batch": ("bad_request", 0, of_shape((3, 5))),
    "longer sequences than the run's": ("bad_request", 0, of_shape((2, 6))),
    "an evaluation of longer sequences": ("bad_request", 0, {"index": None, **of_shape((2, 6))}),
    "an id beyond the table": ("bad_request", 0, {"payload": wire([[1, 2, 3, 4, V]] * 2)}),
    "an id below 0": ("bad_request", 0, {"payload": wire([[1, 2, 3, 4, -1]] * 2)}),
    "a label beyond the table": ("bad_request", 2, {"labels": wire([[1, 2, 3, 4, V]] * 2), "num_targets": 10}),
    "another number of targets": ("bad_request", 0, {"num_targets": 7}),
    "hidden states from the trainer": ("bad_request", 0, {"payload": compression.pack(torch.zeros(2, 5, H))}),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
async def test_a_hostile_pass_is_refused_by_the_hop_that_sees_it_and_adds_nothing(what: str) -> None:
    code, hop, changes = REFUSED[what]
    nodes = thirds()
    async with running(*nodes) as pool:
        error = await failed(pool, dataclasses.replace(pass_of(route_of(nodes), 3), **changes))
        assert (error.cause.code, error.hop) == (code, hop), error
        assert error.peer == nodes[hop].identity.peer_id
        assert not any(node.servicer.num_passes for node in nodes)
    assert_sums(nodes, {})


async def sent_raw(pool: ChannelPool, node: TrainingNode, *frames: bytes) -> training.Message:
    channel = await pool.channel(node.identity.peer_id, (node.address,), node.certificate.der)
    stream = await channel.stream(TRAIN)
    for frame in frames:
        await stream.send(frame)
    data = await stream.receive()
    stream.cancel()
    assert data is not None
    return training.parse(data)


async def test_a_pass_in_another_s_name_or_place_is_refused() -> None:
    nodes = thirds()
    async with running(*nodes) as pool:
        sent = pass_of(route_of(nodes), 3)
        hidden = compression.pack(torch.zeros(2, 5, H))
        answer = await sent_raw(pool, nodes[1], sent.below(hidden, 9_000).encode())
        assert isinstance(answer, PassFailed) and (answer.hop, answer.code) == (1, "not_allowed")
        answer = await sent_raw(pool, nodes[1], sent.encode())
        assert isinstance(answer, PassFailed) and answer.code == "bad_request" and "not this one" in answer.message
        error = await failed(pool, dataclasses.replace(sent, route=(nodes[0].hop(), nodes[1].hop(Span(2, 6)))))
        assert (error.hop, error.cause.code) == (1, "span_not_served")
        with pytest.raises(SwarmError, match="first message must be Pass"):
            await sent_raw(pool, nodes[0], Gradient(gradient=hidden).encode())
        nodes[0].servicer.is_draining = True
        assert (await failed(pool, sent)).cause.code == "draining"
    assert_sums(nodes, {})


@pytest.mark.parametrize(("values", "code"), [(float("nan"), "nonsense_from_above"), (1e38, "non_finite_gradient")])
async def test_hidden_states_that_poison_are_refused(values: float, code: str) -> None:
    """The first hop of the route is the trainer itself."""
    nodes = thirds()[1:]
    async with running(*nodes) as pool:
        own = pass_of((hop_of_trainer(), *route_of(nodes)), 3)
        error = await failed(pool, own.below(compression.pack(torch.full((2, 5, H), values)), 9_000))
    assert error.cause.code == code
    assert_sums(nodes, {})


def hop_of_trainer() -> Hop:
    return Hop(TRAINER.peer_id, (), b"", Blocks(0, 2))


class Liar:
    """A hop below that answers every pass with the same message."""

    def __init__(self, answer: Callable[[Pass, Any], bytes]) -> None:
        self.identity, self._answer = new_identity(), answer
        self.certificate = tls.make(self.identity)
        self.server = RpcServer(self.identity, self.certificate, {TRAIN.name: self.train})

    async def train(self, stream: Stream, call: object) -> None:
        data = await stream.receive()
        assert data is not None
        sent = training.parse(data)
        assert isinstance(sent, Pass)
        await stream.send(self._answer(sent, self.identity.peer_id))

    async def hop(self, span: Span) -> Hop:
        port = await self.server.start()
        return Hop(self.identity.peer_id, (f"127.0.0.1:{port}",), self.certificate.der, Blocks.of(span))


def answered(value: float, width: int = H) -> Callable[[Pass, Any], bytes]:
    gradient = compression.pack(torch.full((2, 5, width), value))
    return lambda sent, peer: Result(gradient=gradient, receipts=(Receipt(peer=peer),)).encode()


def with_receipts(receipts: Callable[[Any], tuple[Receipt, ...]]) -> Callable[[Pass, Any], bytes]:
    return lambda sent, peer: Result(gradient=sent.payload, receipts=receipts(peer)).encode()


ANSWERS: dict[str, tuple[str, int, Callable[[Pass, Any], bytes]]] = {
    "NaN": ("nonsense_from_above", 1, answered(float("nan"))),
    "a gradient without bounds": ("non_finite_gradient", 0, answered(1e30)),
    "a gradient of another shape": ("nonsense_from_above", 1, answered(1.0, H + 1)),
    "no receipt": ("nonsense_from_above", 1, with_receipts(lambda peer: ())),
    "a receipt of another peer": ("nonsense_from_above", 1, with_receipts(lambda peer: (Receipt(peer=TRAINER.peer_id),))),
    "a receipt of our blocks": ("nonsense_from_above", 1, with_receipts(lambda peer: (Receipt(peer=peer, added=(EMBED,)),))),
    "an output": ("nonsense_from_above", 1, lambda sent, peer: Output(hidden=sent.payload).encode()),
    "a pass": ("nonsense_from_above", 1, lambda sent, peer: sent.encode()),
    "the failure of the hop above": ("nonsense_from_above", 1, lambda sent, peer: PassFailed(hop=0, code="draining", message="").encode()),
    "no frame": ("bad_frame", 1, lambda sent, peer: b"hello"),
}  # fmt: skip


@pytest.mark.parametrize("what", ANSWERS)
async def test_a_hop_below_that_lies_is_named_and_nothing_is_added_above_it(what: str) -> None:
    code, hop, answer = ANSWERS[what]
    node, liar = TrainingNode(Span(0, 2)), Liar(answer)
    async with running(node) as pool:
        error = await failed(pool, pass_of((node.hop(), await liar.hop(Span(2, 6))), 3))
        await liar.server.stop()
    assert (error.cause.code, error.hop) == (code, hop), error
    assert_sums([node], {})
