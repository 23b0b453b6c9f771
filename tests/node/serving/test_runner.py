"""The runner: one failing step harms no other, and memory is returned."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
import torch
from torch import Tensor

from node.device.thread import Device, DeviceConfig
from node.serving import forwards
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import BadRequestError, CacheFullError, InternalError, OverloadedError
from protocols.ids import PeerId, SessionId, Span
from protocols.inference import Crop, Op, Repeat, Rows
from tests.swarm.inference.toy import WIDTH, ToyEngine, ToyRow, reference

POISON = 666.0


class Engine(ToyEngine):
    """A toy engine that can be held before a forward, and that fails at POISON after it has changed the sequences before it."""

    def __init__(self, limit_tokens: int = 100_000) -> None:
        super().__init__(Span(0, 1), limit_tokens)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def step(self, items: Sequence[tuple[ToyRow, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        self.entered.set()
        self.gate.wait(60)
        if (hidden == POISON).any():
            pieces = hidden[0].split([count for _, count in items])
            for (row, count), piece in zip(items, pieces, strict=True):
                if (piece == POISON).any():
                    raise RuntimeError("poison")
                row.tokens += list(piece)  # as an engine that runs one sequence at a time would leave it
                self.used_bytes += count
        return super().step(items, hidden, positions)

    def fork(self, row: ToyRow) -> ToyRow:
        if row.length == 13:
            raise RuntimeError("out of device memory, says torch")
        return super().fork(row)


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    runner = Runner(Engine())  # type: ignore[arg-type]
    runner.start()
    yield runner
    runner.engine.gate.set()  # type: ignore[attr-defined]
    await runner.stop()
    assert not runner.is_running


def rows_of(runner: Runner) -> SessionSequences:
    return SessionSequences(runner, SessionId(bytes(16)), PeerId("client"))


async def step(rows: SessionSequences, tokens: Tensor, ops: Sequence[Op] = (), counts: Sequence[int] | None = None) -> Tensor:
    return (await rows.step(ops, counts or [len(tokens)], tokens, None)).values


async def at_places(rows: SessionSequences, tokens: Tensor, places: list[int]) -> Tensor:
    return (await rows.step((), [len(tokens)], tokens, torch.tensor(places))).values


async def together(runner: Runner, *steps: asyncio.Task[Tensor] | object) -> list[Tensor | BaseException]:
    """Run steps in one batch: they queue up while the device is held by another session."""
    engine: Engine = runner.engine  # type: ignore[assignment]
    engine.gate.clear()
    engine.entered.clear()
    first = asyncio.create_task(step(rows_of(runner), torch.zeros(1, WIDTH)))
    await asyncio.to_thread(engine.entered.wait, 60)
    tasks = [asyncio.ensure_future(each) for each in steps]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    engine.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def expected(tokens: Tensor) -> Tensor:
    return torch.stack(reference(list(tokens), [(0, 1)]))


async def test_a_failing_step_takes_no_other_with_it_and_leaves_no_token_twice(runner: Runner) -> None:
    before, bad, after = rows_of(runner), rows_of(runner), rows_of(runner)
    tokens = torch.rand(4, WIDTH)
    outcomes = await together(
        runner, step(before, tokens[:2]), step(bad, torch.full((1, WIDTH), POISON)), step(after, tokens[:2])
    )
    assert isinstance(outcomes[1], InternalError) and "RuntimeError" in str(outcomes[1])
    for rows, outcome in ((before, outcomes[0]), (after, outcomes[2])):
        assert isinstance(outcome, Tensor)
        assert torch.allclose(torch.cat([outcome, await step(rows, tokens[2:])]), expected(tokens))
    assert [row.length for row in bad.held.sequences] == [] and runner.engine.used_bytes == 4 + 4 + 1


class Recurrent(Engine):
    """Its blocks keep a running state: a sequence can only be dropped as a whole."""

    can_crop = False

    def step(self, items: Sequence[tuple[ToyRow, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        output = super().step(items, hidden * (hidden != POISON), positions)
        if (hidden == POISON).any():
            raise RuntimeError("poison")
        return output

    def crop(self, row: ToyRow, tokens: int) -> None:
        if tokens < row.length:
            raise BadRequestError("a running state cannot be rewound")
        super().crop(row, tokens)


async def test_a_step_that_cannot_be_run_again_is_refused_so_that_a_replica_takes_it(caplog: pytest.LogCaptureFixture) -> None:
    """The forward failed after it had changed the state of the first: an error of ours, not of its client; the cause is logged."""
    caplog.set_level(logging.INFO)
    runner = Runner(Recurrent())  # type: ignore[arg-type]
    runner.start()
    changed, bad = rows_of(runner), rows_of(runner)
    tokens = torch.rand(3, WIDTH)
    for rows in (changed, bad):
        await step(rows, tokens[:1])
    outcomes = await together(runner, step(changed, tokens[1:]), step(bad, torch.full((2, WIDTH), POISON)))
    for outcome in outcomes:
        assert isinstance(outcome, InternalError) and outcome.try_another_peer
    causes = [record.exc_info[1] for record in caplog.records if record.name == forwards.log.name and record.exc_info]
    assert [str(cause) for cause in causes] == ["poison"]
    await runner.stop()


async def test_a_forward_of_one_step_that_fails_keeps_its_error_whatever_it_has_changed() -> None:
    class Late(Recurrent):
        def step(self, items: Sequence[tuple[ToyRow, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
            output = super().step(items, hidden, positions)
            if items[0][0].length > 1:
                raise RuntimeError("the head has no memory")
            return output

    runner = Runner(Late())  # type: ignore[arg-type]
    runner.start()
    rows = rows_of(runner)
    await step(rows, torch.rand(1, WIDTH))
    with pytest.raises(InternalError, match="RuntimeError"):
        await step(rows, torch.rand(1, WIDTH))
    await runner.stop()


async def test_a_batch_that_does_not_fit_serves_those_that_do(runner: Runner) -> None:
    runner.device.memory.limit_bytes = 6
    small, large = rows_of(runner), rows_of(runner)
    outcomes = await together(runner, step(large, torch.rand(9, WIDTH)), step(small, tokens := torch.rand(3, WIDTH)))
    assert isinstance(outcomes[0], CacheFullError)
    assert isinstance(outcomes[1], Tensor) and torch.allclose(outcomes[1], expected(tokens))
    assert runner.engine.used_bytes == 1 + 3


@pytest.mark.parametrize("ops", [(Rows((5,)),), (Repeat(2), Rows((9,))), (Crop(4),), (Repeat(3), Crop(4))])
async def test_a_refused_operation_closes_all_sequences_and_the_thread_lives(runner: Runner, ops: tuple[Op, ...]) -> None:
    rows = rows_of(runner)
    await step(rows, torch.rand(3, WIDTH))
    with pytest.raises(BadRequestError):
        await step(rows, torch.rand(1, WIDTH), ops)
    assert runner.engine.used_bytes == 0 and rows.held.sequences == []
    assert torch.allclose(await step(rows, tokens := torch.rand(2, WIDTH)), expected(tokens))


async def test_an_engine_that_fails_in_an_operation_does_not_end_the_thread(runner: Runner) -> None:
    rows = rows_of(runner)
    await step(rows, torch.rand(13, WIDTH))
    with pytest.raises(InternalError, match="RuntimeError"):
        await step(rows, torch.rand(2, WIDTH), (Repeat(2),), [1, 1])
    assert runner.is_running and runner.engine.used_bytes == 0


async def test_clear_gives_everything_back_and_may_be_repeated(runner: Runner) -> None:
    rows = rows_of(runner)
    await step(rows, torch.rand(5, WIDTH), counts=[2, 3])
    assert runner.engine.used_bytes == 5
    await rows.clear()
    await rows.clear()
    assert runner.engine.used_bytes == 0 and rows.held.sequences == []


async def test_a_cancelled_step_leaves_nothing_once_its_session_is_cleared(runner: Runner) -> None:
    engine: Engine = runner.engine  # type: ignore[assignment]
    engine.gate.clear()
    holder, rows = rows_of(runner), rows_of(runner)
    holding = asyncio.create_task(step(holder, torch.rand(1, WIDTH)))
    await asyncio.to_thread(engine.entered.wait, 60)
    cancelled = asyncio.create_task(step(rows, torch.rand(3, WIDTH)))
    await asyncio.sleep(0)
    cancelled.cancel()
    clearing = asyncio.create_task(rows.clear())
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(holding, clearing)
    assert cancelled.cancelled() and rows.held.sequences == [] and engine.used_bytes == 1


async def test_outputs_do_not_keep_each_other_alive(runner: Runner) -> None:
    """A hop retains its output for the whole session: a view of one token would keep the outputs of the whole batch in memory."""
    small, large = await together(
        runner, step(rows_of(runner), torch.rand(1, WIDTH)), step(rows_of(runner), torch.rand(50, WIDTH))
    )
    assert isinstance(small, Tensor) and isinstance(large, Tensor) and runner.largest_batch == 2
    assert small.untyped_storage().nbytes() == small.nbytes and large.untyped_storage().nbytes() == large.nbytes


async def test_a_step_without_tokens_opens_its_sequences_and_needs_no_forward(runner: Runner) -> None:
    rows = rows_of(runner)
    assert (await step(rows, torch.zeros(0, WIDTH), counts=[0, 0])).shape == (0, WIDTH)
    assert len(rows.held.sequences) == 2 and runner.num_forwards == 0


async def test_stop_finishes_what_waits_and_then_refuses(runner: Runner) -> None:
    engine: Engine = runner.engine  # type: ignore[assignment]
    engine.gate.clear()
    waiting = [asyncio.create_task(step(rows_of(runner), torch.rand(2, WIDTH))) for _ in range(5)]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(runner.stop())
    await asyncio.sleep(0)
    engine.gate.set()
    assert all(output.shape == (2, WIDTH) for output in await asyncio.gather(*waiting))
    await stopping
    with pytest.raises(OverloadedError, match="leaving"):
        await step(rows_of(runner), torch.rand(1, WIDTH))
    await rows_of(runner).clear()  # harmless


async def test_positions_are_given_to_the_steps_that_have_some_and_counted_for_the_others(runner: Runner) -> None:
    own, plain = rows_of(runner), rows_of(runner)
    tokens, places = torch.rand(2, WIDTH), [7, 9]
    outcomes = await together(runner, at_places(own, tokens, places), step(plain, tokens))
    assert isinstance(outcomes[0], Tensor) and isinstance(outcomes[1], Tensor) and runner.largest_batch == 2
    assert torch.allclose(outcomes[0], torch.stack(reference(list(tokens), [(0, 1)], places)))
    assert torch.allclose(outcomes[1], expected(tokens))


async def test_a_step_beyond_the_model_s_places_is_refused_and_its_neighbour_runs(runner: Runner) -> None:
    """A table that is extended for one sequence is extended for every sequence of the batch."""
    runner._executor._max_positions = 10
    good, long, far, tokens = rows_of(runner), rows_of(runner), rows_of(runner), torch.rand(10, WIDTH)
    await step(long, tokens)
    outcomes = await together(runner, step(good, tokens), step(long, tokens[:1]), at_places(far, tokens[:2], [3, 10]))
    assert isinstance(outcomes[0], Tensor) and torch.allclose(outcomes[0], expected(tokens))
    for outcome in outcomes[1:]:
        assert isinstance(outcome, BadRequestError) and "10 tokens" in str(outcome) and "needs 11" in str(outcome)
    await asyncio.gather(good.clear(), long.clear(), far.clear())
    assert runner.engine.used_bytes == 1  # the session that held the device for the others


async def test_a_step_of_endless_tokens_is_refused_before_it_is_run(runner: Runner) -> None:
    before = runner.num_forwards
    with pytest.raises(BadRequestError, match="at most 4096 tokens"):
        await step(rows_of(runner), torch.zeros(4_097, WIDTH))
    assert runner.num_forwards == before and runner.engine.used_bytes == 0


def test_a_loop_that_is_gone_does_not_end_the_thread() -> None:
    runner = Runner(engine := Engine())  # type: ignore[arg-type]
    runner.start()
    engine.gate.clear()

    async def abandon() -> None:
        task = asyncio.create_task(step(rows_of(runner), torch.rand(1, WIDTH)))
        await asyncio.to_thread(engine.entered.wait, 60)
        task.cancel()

    asyncio.run(abandon())
    engine.gate.set()
    assert asyncio.run(step(rows_of(runner), torch.rand(1, WIDTH))).shape == (1, WIDTH)
    asyncio.run(runner.stop())


class Capturing(Engine):
    """Captures three graphs; each capture may be held."""

    def __init__(self) -> None:
        super().__init__()
        self.num_captured = 0
        self.has_captured = threading.Event()

    def warm_up(self) -> bool:
        self.entered.set()
        self.gate.wait(60)
        self.num_captured += 1
        if self.num_captured == 3:
            self.has_captured.set()
        return self.num_captured < 3


@pytest.mark.parametrize(("longest_s", "num_captured"), [(60.0, 3), (0.0, 1)])
async def test_an_engine_warms_up_while_no_step_waits(longest_s: float, num_captured: int) -> None:
    config = DeviceConfig(warm_up_after_s=0.01, warm_up_beside_s=0.01, longest_warm_up_s=longest_s)
    engine = Capturing()
    engine.gate.clear()
    runner = Runner(engine, device=Device(config=config))  # type: ignore[arg-type]
    runner.start()
    assert await asyncio.to_thread(engine.entered.wait, 60)
    waiting = asyncio.create_task(step(rows_of(runner), torch.rand(3, WIDTH)))  # behind a capture
    await asyncio.sleep(0)
    engine.gate.set()
    assert (await waiting).shape == (3, WIDTH)
    if num_captured == 3:
        assert await asyncio.to_thread(engine.has_captured.wait, 60)
    assert (await step(rows_of(runner), torch.rand(1, WIDTH))).shape == (1, WIDTH)
    await runner.stop()
    assert engine.num_captured == num_captured


async def test_beside_a_session_with_sequences_it_waits_for_longer() -> None:
    engine = Capturing()
    device = Device(config=DeviceConfig(warm_up_after_s=3.0, warm_up_beside_s=7.0))
    runner = Runner(engine, device=device)  # type: ignore[arg-type]
    runner.start()
    assert device._idle_s() == 3.0
    rows = rows_of(runner)
    await step(rows, torch.rand(3, WIDTH))
    assert device._idle_s() == 7.0
    await rows.clear()
    assert device._idle_s() == 3.0
    device.scheduler.stop_warming_up(runner.queue)
    assert device._idle_s() is None
    await runner.stop()
    assert not engine.num_captured


async def test_a_warm_up_that_fails_harms_no_session() -> None:
    engine = Capturing()

    def fail() -> bool:
        engine.has_captured.set()
        raise RuntimeError("out of device memory, says torch")

    engine.warm_up = fail  # type: ignore[method-assign]
    runner = Runner(engine, device=Device(config=DeviceConfig(warm_up_after_s=0.0)))  # type: ignore[arg-type]
    runner.start()
    assert await asyncio.to_thread(engine.has_captured.wait, 60)
    assert (await step(rows_of(runner), torch.rand(1, WIDTH))).shape == (1, WIDTH)
    await runner.stop()


class ThreadNames(Engine):
    """Notes which thread ran each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def step(self, items: Sequence[tuple[ToyRow, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        self.threads.append(threading.current_thread().name)
        return super().step(items, hidden, positions)


async def test_every_forward_is_the_device_s_thread_s(runner: Runner) -> None:
    """A lone short decode as well: the event loop computes nothing."""
    watched = Runner(engine := ThreadNames(), device=runner.device)  # type: ignore[arg-type]
    watched.start()
    rows, tokens = rows_of(watched), torch.rand(9, WIDTH)
    outputs = [await step(rows, piece) for piece in tokens.split([5, 1, 1, 1, 1])]
    assert torch.allclose(torch.cat(outputs), expected(tokens))
    assert engine.threads == ["device"] * 5
    await watched.stop()
    assert runner.is_running and not watched.is_running
