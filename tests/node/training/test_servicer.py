"""Passes over real hops: exact gradients, each index once, typed refusals."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from node.training.pass_limits import PassLimits
from protocols.errors import DrainingError, SwarmError
from protocols.ids import ModelId, Span
from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.run_status import RunStatus, StatusRequest
from protocols.services import RUN_STATUS
from protocols.units import Blocks, Ends
from swarm.training.chain import PassError, train
from tests.node.training.passes import ALL_PARTS, assert_sums, every_part, failed, of_one_process, route_of, thirds
from tests.node.training.toy_run import (
    NUM_MICRO_BATCHES,
    RUN,
    THIRDS,
    TrainingNode,
    batch,
    pass_of,
    running,
)
from tests.swarm.inference.toy import until


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
