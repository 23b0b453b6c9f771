"""Passes over real hops: exact gradients, each index once, typed refusals."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from node.training.pass_limits import PassLimits
from protocols import compression, training
from protocols.errors import DrainingError, SwarmError
from protocols.ids import ModelId, Span
from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.receipts import Receipt
from protocols.route import Hop
from protocols.run_status import RunStatus, StatusRequest
from protocols.services import RUN_STATUS, TRAIN
from protocols.tensors import WireTensor
from protocols.training import Gradient, Output, Pass, PassFailed, Result
from protocols.units import Blocks, Ends
from protocols.weights_id import Weights
from swarm.rpc import ChannelPool, RpcServer, Stream, tls
from swarm.training.chain import PassCall, PassError, train
from tests.node.training.toy_run import (
    NUM_BLOCKS,
    NUM_MICRO_BATCHES,
    RUN,
    THIRDS,
    TRAINER,
    Batch,
    TrainingNode,
    batch,
    new_identity,
    pass_of,
    running,
)
from tests.node.training.toy_stage import H, V, Whole, whole
from tests.swarm.inference.toy import until

ALL_PARTS = {*(Part.block(number) for number in range(NUM_BLOCKS)), EMBED, HEAD}


def of_one_process(own: Batch, **options: Any) -> Whole:
    return whole(NUM_BLOCKS, own.ids, own.labels, own.positions, **options)


def expected(parts: dict[Part, list[Whole]]) -> dict[str, torch.Tensor]:
    """Sums by "unit name" of the parts that took these micro-batches."""
    sums: dict[str, torch.Tensor] = {}
    for part, wholes in parts.items():
        for each in wholes:
            for name, gradient in each.by_part[part].items():
                key = f"{part.unit} {name}"
                sums[key] = sums.get(key, torch.zeros_like(gradient)) + gradient
    return sums


def every_part(wholes: list[Whole]) -> dict[Part, list[Whole]]:
    """All parts took these."""
    return {part: wholes for part in ALL_PARTS}


def assert_sums(nodes: list[TrainingNode], parts: dict[Part, list[Whole]]) -> None:
    """Over all nodes together, bit for bit."""
    total: dict[str, torch.Tensor] = {}
    for node in nodes:
        for key, value in node.sums().items():
            total[key] = total.get(key, torch.zeros_like(value)) + value
    wanted = expected(parts)
    for key, value in total.items():
        assert torch.equal(value, wanted.get(key, torch.zeros_like(value))), key


def thirds() -> list[TrainingNode]:
    return [TrainingNode(span) for span in THIRDS]


def route_of(nodes: list[TrainingNode]) -> tuple[Any, ...]:
    return tuple(node.hop() for node in nodes)


async def failed(pool: ChannelPool, sent: Pass) -> PassError:
    with pytest.raises(PassError) as caught:
        await train(pool, sent)
    return caught.value


@pytest.mark.parametrize("spans", [(Span(0, 6),), THIRDS], ids=["one hop", "three hops"])
async def test_a_route_gives_the_loss_and_the_gradients_of_one_process(spans: tuple[Span, ...]) -> None:
    nodes = [TrainingNode(span) for span in spans]
    wholes = []
    async with running(*nodes) as pool:
        for index in range(4):
            own = batch(index, is_packed=index % 2 == 1)
            result = await train(pool, pass_of(route_of(nodes), index, own))
            wholes.append(of_one_process(own))
            assert result.loss_sum == wholes[-1].loss_sum and result.gradient is None
            assert [receipt.peer for receipt in result.receipts] == [node.identity.peer_id for node in nodes]
            added = [part for receipt in result.receipts for part in receipt.added]
            assert set(added) == ALL_PARTS and len(added) == len(ALL_PARTS)
            assert not any(receipt.held for receipt in result.receipts)
            assert all(receipt.forward_ms > 0 and receipt.backward_ms > 0 for receipt in result.receipts)
            assert [receipt.wait_ms > 0 for receipt in result.receipts] == [True] * (len(nodes) - 1) + [False]
    assert_sums(nodes, every_part(wholes))
    assert {node.stage.thread.name for node in nodes if node.stage.thread} == {"device"}


async def test_an_index_that_is_held_gives_the_input_s_gradient_and_adds_nothing() -> None:
    """The second hop has died and a new one redoes the index: the others hold it."""
    nodes, late = thirds(), TrainingNode(THIRDS[1])
    async with running(*nodes, late) as pool:
        await train(pool, pass_of(route_of(nodes), 3))
        before = nodes[0].sums()
        again = [nodes[0], late, nodes[2]]
        for _ in range(2):
            result = await train(pool, pass_of(route_of(again), 3))
        assert [bool(receipt.added) for receipt in result.receipts] == [False] * 3
        assert {part for receipt in result.receipts for part in receipt.held} == ALL_PARTS
    own = [of_one_process(batch(3))]
    assert_sums(again, every_part(own))
    assert nodes[0].stage.asked[1:] == [frozenset()] * 2, "gradients of weights were computed for nothing"
    assert all(torch.equal(before[key], value) for key, value in nodes[0].sums().items())


async def test_a_paused_stage_takes_no_pass_keeps_its_sums_and_counts_what_it_gave() -> None:
    nodes = thirds()
    async with running(*nodes) as pool:
        await train(pool, pass_of(route_of(nodes), 3))
        nodes[1].trained.is_paused = True
        error = await failed(pool, pass_of(route_of(nodes), 4))
        assert error.hop == 1 and isinstance(error.cause, DrainingError) and "paused" in str(error)
        status = nodes[1].trained.status()
        assert status.is_paused and not status.is_catching_up
        nodes[1].trained.is_paused = False
        await train(pool, pass_of(route_of(nodes), 4))
    assert_sums(nodes, every_part([of_one_process(batch(3)), of_one_process(batch(4))]))
    given = [(node.trained.contribution.num_micro_batches, node.trained.contribution.num_tokens) for node in nodes]
    assert given == [(2, 2 * batch(3).ids.numel())] * 3


async def test_parts_that_another_replica_holds_are_skipped() -> None:
    nodes, skipped = thirds(), (Part.block(2), HEAD)
    async with running(*nodes) as pool:
        result = await train(pool, pass_of(route_of(nodes), 3, skip=skipped))
    assert {part for receipt in result.receipts for part in receipt.added} == ALL_PARTS - set(skipped)
    own = [of_one_process(batch(3))]
    assert_sums(nodes, {part: own for part in ALL_PARTS - set(skipped)})
    assert not nodes[1].holds(Part.block(2), 3) and nodes[1].holds(Part.block(3), 3)


async def test_many_passes_at_once_are_each_added_once() -> None:
    nodes = thirds()
    async with running(*nodes) as pool:
        sent = [pass_of(route_of(nodes), index) for index in range(NUM_MICRO_BATCHES)] * 2
        await asyncio.gather(*(train(pool, each) for each in sent))
    assert_sums(nodes, every_part([of_one_process(batch(index)) for index in range(NUM_MICRO_BATCHES)]))


async def test_an_evaluation_gives_the_loss_and_leaves_nothing() -> None:
    """Also of weights whose ledgers are closed; of another version it is refused."""
    nodes, own = thirds(), batch(3, is_packed=True)
    async with running(*nodes) as pool:
        await train(pool, pass_of(route_of(nodes), 0))
        before = [node.sums() for node in nodes]
        for state in nodes[1].trained.states.values():
            state.close()
        result = await train(pool, pass_of(route_of(nodes), None, own))
        error = await failed(pool, pass_of(route_of(nodes), None, own, version=1))
    assert result.loss_sum == of_one_process(own).loss_sum and result.gradient is None
    assert not any(receipt.added or receipt.held or receipt.backward_ms for receipt in result.receipts)
    assert len(nodes[2].stage.asked) == 1, "only the training pass has a backward"
    assert all(
        torch.equal(old[key], value) for node, old in zip(nodes, before, strict=True) for key, value in node.sums().items()
    )
    assert (error.hop, error.cause.code) == (0, "version_mismatch")
    assert not any(node.servicer.num_passes for node in nodes)


# --- what ends in the middle


class Gate:
    """Holds the device's thread of a node at one moment."""

    def __init__(self, moment: str) -> None:
        self._moment, self.has_come, self.opens = moment, threading.Event(), threading.Event()

    def __call__(self, moment: str) -> None:
        if moment == self._moment and not self.opens.is_set():
            self.has_come.set()
            assert self.opens.wait(120)

    async def come(self) -> None:
        assert await asyncio.to_thread(self.has_come.wait, 120)


MOMENTS: dict[str, tuple[int, str]] = {
    "its forward": (1, "forward"), "between": (2, "forward"), "the backward below": (2, "backward"), "its backward": (1, "backward"),
}  # fmt: skip
"""When the second of three hops is hit: the node to hold, and where."""


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_trainer_that_goes_away_takes_its_flights_and_the_calls_below_with_it(moment: str) -> None:
    nodes, (held, where) = thirds(), MOMENTS[moment]
    nodes[held].at = gate = Gate(where)
    flights: list[weakref.ref[Any]] = []
    for node in nodes:
        node.stage.forward = _noting(node.stage.forward, flights)  # type: ignore[method-assign]
    async with running(*nodes) as pool:
        task = asyncio.create_task(train(pool, pass_of(route_of(nodes), 3)))
        await gate.come()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not any(node.servicer.num_passes for node in nodes))
        gate.opens.set()
        await until(lambda: not any(flight() is not None for flight in flights))
        added = [part for part in ALL_PARTS if any(part.unit in node.trained.states and node.holds(part, 3) for node in nodes)]
        assert set(added) <= ({Part.block(4), Part.block(5), HEAD} | ({Part.block(2), Part.block(3)} if held == 1 else set()))
        result = await train(pool, pass_of(route_of(nodes), 3))
        assert {part for receipt in result.receipts for part in (*receipt.added, *receipt.held)} == ALL_PARTS
    assert_sums(nodes, every_part([of_one_process(batch(3))]))


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_hop_that_dies_is_named_and_its_replacement_makes_every_sum_whole(moment: str) -> None:
    nodes, late, (held, where) = thirds(), TrainingNode(THIRDS[1]), MOMENTS[moment]
    nodes[held].at = gate = Gate(where)
    async with running(*nodes, late) as pool:
        task = asyncio.create_task(train(pool, pass_of(route_of(nodes), 3)))
        await gate.come()
        await nodes[1].stop()
        with pytest.raises(PassError) as caught:
            await task
        gate.opens.set()
        assert (caught.value.hop, caught.value.peer) == (1, nodes[1].identity.peer_id)
        assert caught.value.cause.try_another_peer
        await until(lambda: nodes[0].servicer.num_passes == nodes[2].servicer.num_passes == 0)
        again = [nodes[0], late, nodes[2]]
        await train(pool, pass_of(route_of(again), 3))
    assert_sums(again, every_part([of_one_process(batch(3))]))


async def test_a_version_that_changes_between_forward_and_backward_adds_nothing_there() -> None:
    nodes = thirds()
    nodes[2].at = gate = Gate("forward")
    async with running(*nodes) as pool:
        task = asyncio.create_task(train(pool, pass_of(route_of(nodes), 3)))
        await gate.come()
        nodes[1].trained.states[Blocks(3, 4)].restore(1, bytes(32))
        gate.opens.set()
        with pytest.raises(PassError, match="version 1 here") as caught:
            await task
    assert (caught.value.hop, caught.value.cause.code) == (1, "version_mismatch")
    own = [of_one_process(batch(3))]
    assert_sums(nodes, {part: own for part in (Part.block(4), Part.block(5), HEAD)})


async def test_a_hop_that_does_not_answer_is_named_by_the_hop_above_it_before_all_give_up() -> None:
    nodes = thirds()
    nodes[2].at = gate = Gate("forward")
    async with running(*nodes) as pool:
        error = await failed(pool, pass_of(route_of(nodes), 3, budget_ms=6_000))  # the first two take milliseconds
        gate.opens.set()
    assert (error.hop, error.cause.code) == (2, "deadline")


def _noting(forward: Callable[..., Any], flights: list[weakref.ref[Any]]) -> Callable[..., Any]:
    def noting(*values: Any, **options: Any) -> Any:
        flight = forward(*values, **options)
        flights.append(weakref.ref(flight))
        return flight

    return noting


# --- hostile passes


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


async def test_a_closed_ledger_and_a_stage_that_catches_up_take_nothing() -> None:
    nodes = thirds()
    async with running(*nodes) as pool:
        nodes[1].trained.states[Blocks(2, 3)].close()
        error = await failed(pool, pass_of(route_of(nodes), 3))
        assert (error.hop, error.cause.code) == (1, "ledger_closed")
        nodes[1].trained.states[Blocks(2, 3)].reopen()
        nodes[0].trained.is_catching_up = True
        error = await failed(pool, pass_of(route_of(nodes), 3))
        assert (error.hop, error.cause.code) == (0, "version_mismatch")
    assert_sums(nodes, {})


async def test_a_micro_batch_that_a_closed_sum_holds_passes_through_for_the_others() -> None:
    """A group has agreed, and another one has lost a member: what that one held runs again through the weights of all."""
    nodes, refill = thirds(), TrainingNode(THIRDS[2])
    async with running(*nodes, refill) as pool:
        await train(pool, pass_of(route_of(nodes), 3))
        before = nodes[0].sums()
        for state in nodes[0].trained.states.values():
            state.close()
        redone = await train(pool, pass_of(route_of([*nodes[:2], refill]), 3))
        assert [len(receipt.added) for receipt in redone.receipts] == [0, 0, 3] and len(redone.receipts[0].held) == 3
        nodes[1].trained.states[Blocks(2, 3)].restore(1, bytes(32))
        parts = tuple(Part.block(number) for number in (2, 3))
        error = await failed(pool, pass_of(route_of(nodes), 3, None, skip=parts))
        assert (error.hop, error.cause.code) == (1, "version_mismatch"), "other weights were used for what others add"
    assert all(torch.equal(before[name], value) for name, value in nodes[0].sums().items())


async def test_too_many_passes_at_once_are_refused_typed_and_those_in_hand_go_on() -> None:
    node = TrainingNode(Span(0, 6), limits=PassLimits(per_caller=2))
    node.at = gate = Gate("forward")
    async with running(node) as pool:
        first = [asyncio.create_task(train(pool, pass_of((node.hop(),), index))) for index in range(2)]
        await until(lambda: node.servicer.num_passes == 2)
        assert (await failed(pool, pass_of((node.hop(),), 2))).cause.code == "overloaded"
        assert node.trained.status().queue == 2
        gate.opens.set()
        await asyncio.gather(*first)
        await train(pool, pass_of((node.hop(),), 2))
    assert_sums([node], every_part([of_one_process(batch(index)) for index in range(3)]))


async def test_only_chosen_peers_begin_a_pass_if_the_run_says_so() -> None:
    node = TrainingNode(Span(0, 6), options={"may_train": lambda peer: False})
    async with running(node) as pool:
        assert (await failed(pool, pass_of((node.hop(),), 2))).cause.code == "not_allowed"


# --- a client's autograd


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


async def test_the_status_says_versions_ledgers_and_measured_pace() -> None:
    nodes = thirds()
    async with running(*nodes) as pool:
        for index in (0, 9):
            await train(pool, pass_of(route_of(nodes), index))
        nodes[0].trained.states[Blocks(1, 2)].restore(3, bytes(range(32)))
        nodes[0].trained.served = (0, 2)
        channel = await pool.channel(nodes[0].identity.peer_id, (nodes[0].address,), nodes[0].certificate.der)
        status = RunStatus.parse(await channel.unary(RUN_STATUS, StatusRequest(run=RUN).encode()))
        with pytest.raises(SwarmError, match="not trained here"):
            await channel.unary(RUN_STATUS, StatusRequest(run=ModelId("toy", "cd" * 32)).encode())
    by_unit = {one.unit: one for one in status.units}
    assert set(by_unit) == {Blocks(0, 1), Blocks(1, 2), Ends()} and status.num_micro_batches == NUM_MICRO_BATCHES
    assert by_unit[Blocks(0, 1)].ledger == {Part.block(0): 0b10_0000_0001} and by_unit[Blocks(0, 1)].version == 0
    assert by_unit[Ends()].ledger == {EMBED: 0b10_0000_0001, HEAD: 0}
    assert (by_unit[Blocks(1, 2)].version, by_unit[Blocks(1, 2)].chain) == (3, bytes(range(32)))
    assert status.served == (0, 2) and status.forward_ms > 0 and status.backward_ms > 0 and status.queue == 0
