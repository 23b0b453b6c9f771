"""Who goes next: budgets hold, long prompts yield, crowds share, nothing waits forever, and a session's jobs keep their order."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.serving import scheduler as module
from node.serving import turns
from node.serving.scheduler import HeldRows, Job, Scheduler
from node.serving.turns import DECODE_TOKENS
from protocols.errors import OverloadedError
from protocols.ids import PeerId, SessionId
from protocols.inference import Repeat, Rows
from tests.node.serving.simulated import Chat, Swarm, p99


def session(client: str = "client") -> HeldRows:
    return HeldRows(SessionId(bytes(16)), PeerId(client))


def job(held: HeldRows | None = None, tokens: int = 1, *, clears: bool = False) -> Job:
    hidden = None if clears else torch.zeros(tokens, 1)
    return Job(session=held or session(), counts=() if clears else (tokens,), values=hidden, done=lambda outcome: None)


def drain(scheduler: Scheduler) -> list[list[tuple[Job, int]]]:
    """Run everything that waits, at 1 ms a forward: what each had."""
    forwards = []
    while len(scheduler):
        batch = scheduler.take()
        assert batch is not None
        forwards.append([(job, job.size) for job in batch])
        scheduler.finished([job for job in batch if job.values is not None], 1.0)
    return forwards


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=12), st.integers(DECODE_TOKENS, 60))
@settings(deadline=None)
def test_every_token_is_run_once_within_the_budget_and_in_its_session_s_order(steps: list[tuple[int, int]], budget: int) -> None:
    scheduler, sessions = Scheduler(budget), [session(f"client {number % 2}") for number in range(4)]
    jobs = [job(sessions[number], tokens) for number, tokens in steps]
    for each in jobs:
        scheduler.submit(each)
    forwards = drain(scheduler)
    assert all(0 < sum(size for _, size in forward) <= budget for forward in forwards)
    assert all(len({id(each.session) for each, _ in forward}) == len(forward) for forward in forwards)
    flat = [(each, size) for forward in forwards for each, size in forward]
    assert [sum(size for each, size in flat if each is wanted) for wanted in jobs] == [tokens for _, tokens in steps]
    for held in sessions:
        order = [id(each) for each, _ in flat if each.session is held]
        assert list(dict.fromkeys(order)) == [id(each) for each in jobs if each.session is held]


def test_a_piece_names_the_tokens_of_each_row() -> None:
    step = Job(session=session(), counts=(3, 0, 20, 1), values=torch.zeros(24, 1), done=lambda outcome: None)
    seen = []
    for step.size in (2, 10, 12):
        seen.append(step.piece_counts())
        step.at += step.size
    assert seen == [[2, 0, 0, 0], [1, 0, 9, 0], [0, 0, 11, 1]]


def test_a_step_that_must_not_be_cut_runs_whole() -> None:
    scheduler = Scheduler(10)
    scheduler.submit(Job(session=session(), counts=(50,), values=torch.zeros(50, 1), is_whole=True, done=lambda outcome: None))
    assert [[size for _, size in forward] for forward in drain(scheduler)] == [[50]]


# --- crowds, in virtual time


def cost_ms(rows: int, tokens: int) -> float:
    """A step of one takes 5 ms, of eight 12; a prompt half a millisecond a token."""
    return 4.0 + rows + 0.5 * tokens


@pytest.mark.parametrize("num_hops", [1, 2])
@pytest.mark.parametrize("think_s", [0.0005, 0.02])
def test_a_long_prompt_does_not_stall_chats(num_hops: int, think_s: float) -> None:
    def chats() -> list[Chat]:
        return [Chat(client=f"client {number}", think_s=think_s) for number in range(8)]

    alone, disturbed = chats(), chats()
    Swarm(num_hops, cost_ms).run(alone, until_s=3.0)
    prompt = Chat(client="reader", prompt=2_000, max_tokens=0, begin_s=0.5)
    swarm = Swarm(num_hops, cost_ms)
    swarm.run([*disturbed, prompt], until_s=8.0)
    during = [b - a for c in disturbed for a, b in zip(c.done_s, c.done_s[1:], strict=False) if 0.5 < b < prompt.done_s[0]]
    assert len(during) > 200  # it was not over at once
    assert p99(during) <= 2 * p99([gap for chat in alone for gap in chat.gaps_s()])
    assert prompt.done_s[0] < 0.5 + 5 * 2_000 * 0.0005 * num_hops  # about half of the device was its own
    assert sum(tokens > 0 for _, tokens in swarm.forwards[0]) > 30  # it was run in many pieces


def test_where_every_forward_is_dear_pieces_go_beside_decodes_and_stay_large() -> None:
    """As a 110M model on a CPU: reading the weights is most of a forward. Booked on a piece's tokens, it cut them to one each."""

    def dear_ms(rows: int, tokens: int) -> float:
        return 40.0 + 4.0 * rows + 2.5 * tokens

    chats = [Chat(client="client") for _ in range(8)]
    prompt = Chat(client="client", prompt=500, max_tokens=0, begin_s=3.0)
    swarm = Swarm(1, dear_ms)
    swarm.run([*chats, prompt], until_s=20.0)
    pieces = [(rows, tokens) for rows, tokens in swarm.forwards[0] if tokens >= 1][9:]  # after the chats' own first tokens
    assert prompt.done_s and prompt.done_s[0] < 12.0
    assert sum(rows > 0 for rows, _ in pieces) > 0.8 * len(pieces)
    assert sorted(tokens for _, tokens in pieces)[len(pieces) // 2] >= 8


def test_a_prompt_alone_goes_in_large_pieces_and_a_newcomer_does_not_wait_for_all_of_it() -> None:
    reader, newcomer = Chat(client="reader", prompt=2_000, max_tokens=0), Chat(client="newcomer", prompt=16, begin_s=0.3)
    swarm = Swarm(1, cost_ms)
    swarm.run([reader, newcomer], until_s=3.0)
    assert max(tokens for _, tokens in swarm.forwards[0]) >= 400
    assert newcomer.done_s[0] < 0.3 + 2 * 0.26


def test_a_client_with_a_hundred_sessions_leaves_another_with_one_its_turns() -> None:
    crowd = [Chat(client="crowd") for _ in range(100)]
    single = Chat(client="single")
    Swarm(1, cost_ms).run([*crowd, single], until_s=5.0)
    alone = Chat(client="single")
    Swarm(1, cost_ms).run([alone], until_s=5.0)
    others = sorted(len(chat.done_s) for chat in crowd)
    assert len(single.done_s) >= len(alone.done_s) / 10 and len(single.done_s) >= 3 * others[-1]
    assert others[0] >= 0.8 * others[-1] > 0  # and within the crowd all get the same


def test_prompts_of_two_clients_share_the_device_by_priority() -> None:
    """Nobody is shut out: ten less is half the share."""
    high = Chat(client="high", prompt=4_000, max_tokens=0)
    low = Chat(client="low", prompt=4_000, max_tokens=0, priority=-10)
    Swarm(1, cost_ms).run([high, low], until_s=60.0)
    assert high.done_s[0] / low.done_s[0] == pytest.approx(0.75, abs=0.06)  # 4,000 and 2,000 tokens then, of 8,000


def test_sessions_over_two_hops_keep_both_busy() -> None:
    def tokens_per_s(num_hops: int, num_chats: int) -> tuple[float, Swarm]:
        chats = [Chat(client=f"client {number}", think_s=0.0005) for number in range(num_chats)]
        swarm = Swarm(num_hops, lambda rows, tokens: cost_ms(rows, tokens) / num_hops)
        swarm.run(chats, until_s=4.0)
        return sum(len(chat.done_s) for chat in chats) / 4.0, swarm

    one, _ = tokens_per_s(1, 1)
    eight, whole = tokens_per_s(1, 8)
    over_two, swarm = tokens_per_s(2, 8)
    assert eight >= 2.9 * one and whole.forwards[0][-20:].count((8, 0)) >= 15  # one hop: all in one batch
    assert over_two >= 3.9 * one and min(swarm.busy_s) > 0.85 * 4.0  # two: half of them here, half there
    assert sum(rows == 4 for rows, _ in swarm.forwards[0][-20:]) >= 15


# --- order, limits and the end


def test_a_batch_never_holds_two_jobs_of_one_session() -> None:
    """Else rows could be given back under a step of a caller that was cancelled."""
    scheduler, held = Scheduler(100), session()
    step, clearing, other = job(held, 5), job(held, clears=True), job()
    for each in (step, clearing, other):
        scheduler.submit(each)
    assert {id(each) for each in scheduler.take() or ()} == {id(step), id(other)}
    assert scheduler.take() == [clearing]


def test_a_clearing_never_overtakes_a_step_that_runs_in_pieces() -> None:
    scheduler, held = Scheduler(10), session()
    large, clearing = job(held, 30), job(held, clears=True)
    for each in (large, clearing):
        scheduler.submit(each)
    assert [[each for each, _ in forward] for forward in drain(scheduler)] == [[large], [large], [large], [clearing]]


def test_what_is_left_of_a_cancelled_prompt_is_not_run() -> None:
    scheduler, held = Scheduler(10), session()
    large, clearing = job(held, 1_000), job(held, clears=True)
    scheduler.submit(large)
    batch = scheduler.take()
    scheduler.cancel(large)  # while its first piece runs
    scheduler.submit(clearing)
    scheduler.finished(batch or [], 1.0)
    assert scheduler.take() == [clearing] and not len(scheduler)


def test_a_cancelled_step_that_waits_is_gone_at_once() -> None:
    scheduler, waiting = Scheduler(10), job(tokens=100)
    scheduler.submit(waiting)
    scheduler.cancel(waiting)
    assert not len(scheduler) and scheduler.poll() == []


def test_a_full_queue_refuses_steps_but_takes_rows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    scheduler = Scheduler(10)
    for _ in range(2):
        scheduler.submit(job())
    with pytest.raises(OverloadedError, match="2 steps wait here, the limit: try a replica"):
        scheduler.submit(job())
    scheduler.submit(job(clears=True))
    assert len(scheduler) == 3


def test_what_waits_at_the_close_is_still_run() -> None:
    scheduler, waiting = Scheduler(10), job()
    scheduler.submit(waiting)
    scheduler.close()
    with pytest.raises(OverloadedError, match="leaving"):
        scheduler.submit(job())
    assert scheduler.take() == [waiting] and scheduler.take() is None


def test_close_wakes_whoever_waits_for_work() -> None:
    scheduler, taken = Scheduler(10), []
    thread = threading.Thread(target=lambda: taken.append(scheduler.take()))
    thread.start()
    scheduler.close()
    thread.join(5)
    assert taken == [None]


def test_whoever_wants_to_know_is_told_that_nothing_is_to_be_done() -> None:
    now_s = [5.0]
    scheduler = Scheduler(10, clock=lambda: now_s[0])
    now_s[0] = 6.0
    assert scheduler.take(idle_s=1.0) == []
    waiting = job()
    scheduler.submit(waiting)
    assert scheduler.take(idle_s=1.0) == [waiting]
    scheduler.finished([waiting], 1.0)
    now_s[0] = 6.5
    threading.Timer(0.05, scheduler.close).start()
    assert scheduler.take(idle_s=1.0) is None  # not idle for long enough: it waits, until the end


def test_jobs_of_many_threads_are_each_run_to_their_end_and_in_their_session_s_order() -> None:
    scheduler = Scheduler(16)
    finished: list[Job] = []
    sessions = [[job(held, 1 + 11 * (number % 3)) for number in range(200)] for held in (session(), session("b"), session("b"))]

    def submit(jobs: list[Job]) -> None:
        for each in jobs:
            scheduler.submit(each)

    def run() -> None:
        while (batch := scheduler.take()) is not None:
            scheduler.finished(batch, 0.01)
            finished.extend(each for each in batch if not each.num_left)

    threads = [threading.Thread(target=submit, args=(jobs,)) for jobs in sessions]
    runner = threading.Thread(target=run)
    for thread in (runner, *threads):
        thread.start()
    for thread in threads:
        thread.join(10)
    scheduler.close()
    runner.join(10)
    assert not runner.is_alive() and len(finished) == 600
    order = {id(each): number for number, each in enumerate(finished)}
    for jobs in sessions:
        assert [order[id(each)] for each in jobs] == sorted(order[id(each)] for each in jobs)


def decode(scheduler: Scheduler, held: HeldRows, ms: float = 1.0) -> None:
    """One decode of a session, taken and done."""
    scheduler.submit(job(held))
    while batch := scheduler.poll():
        scheduler.finished(batch, ms)


def test_a_step_of_very_many_rows_is_run_in_pieces_beside_decodes() -> None:
    now = [0.0]
    scheduler, chat = Scheduler(4_096, lambda: now[0]), session("chat")
    for _ in range(8):
        decode(scheduler, chat)
    wide = Job(session=session("wide"), counts=(1,) * 1_000, values=torch.zeros(1_000, 1), done=lambda outcome: None)
    assert not wide.is_decode
    scheduler.submit(wide)
    num_pieces = 0
    while wide.num_left:
        scheduler.submit(job(chat))
        batch = scheduler.poll()
        assert any(each.session is chat for each in batch), "the chat waits for the wide step"
        num_pieces += wide in batch
        scheduler.finished(batch, 1.0 + 0.05 * wide.size)
    assert num_pieces > 5


def test_long_copies_keep_to_their_share_of_the_time_while_others_decode() -> None:
    now = [0.0]
    scheduler, chat, greedy = Scheduler(4_096, lambda: now[0]), session("chat"), session("greedy")
    for _ in range(8):
        decode(scheduler, chat)

    def copying(held: HeldRows) -> Job:
        return Job(session=held, ops=(Repeat(2),), counts=(1, 1), values=torch.zeros(2, 1), done=lambda outcome: None)

    first, second, third = copying(greedy), copying(session("greedy")), copying(session("third"))
    scheduler.charge(first, 100.0)
    scheduler.submit(second)
    assert scheduler.poll() == []
    now[0] = 0.89
    decode(scheduler, chat)  # a chat goes on, and its client is still active at the end of the rest
    scheduler.submit(third)
    assert scheduler.poll() == [third], "another client has made no copies"
    scheduler.finished([third], 1.0)
    assert scheduler.poll() == []
    now[0] = 0.91
    assert scheduler.poll() == [second]


def test_copies_that_keep_nobody_waiting_cost_no_rest() -> None:
    now = [0.0]
    scheduler, held = Scheduler(4_096, lambda: now[0]), session("alone")
    for _ in range(8):
        decode(scheduler, held)
    step = Job(session=held, ops=(Repeat(2),), counts=(1, 1), values=torch.zeros(2, 1), done=lambda outcome: None)
    scheduler.charge(step, 100.0)
    scheduler.submit(step)
    assert scheduler.poll() == [step]


def test_a_rest_lasts_no_longer_than_others_count_as_decoding() -> None:
    """The runner slept to the end of a rest of 9 s, though the chat that it was for had ended."""
    now = [0.0]
    scheduler, chat, greedy = Scheduler(4_096, lambda: now[0]), session("chat"), session("greedy")
    for _ in range(8):
        decode(scheduler, chat)
    copying = Job(session=greedy, ops=(Repeat(2),), counts=(1, 1), values=torch.zeros(2, 1), done=lambda outcome: None)
    scheduler.charge(copying, 1_000.0)
    scheduler.submit(copying)
    batch, pause_s = scheduler._poll()
    assert not batch and 0 < pause_s <= turns.ACTIVE_S
    now[0] = pause_s + 0.001
    assert scheduler.poll() == [copying]


def test_copies_that_a_forward_makes_cost_a_rest_too_and_only_their_client() -> None:
    """Engines that share rows copy them when one is written to: a batch that takes longer than its tokens has copied."""
    now = [0.0]
    scheduler, chat, greedy = Scheduler(4_096, lambda: now[0]), session("chat"), session("greedy")
    for _ in range(8):
        decode(scheduler, chat)

    def copying() -> Job:
        return Job(session=greedy, ops=(Rows((0,)),), counts=(1,), values=torch.zeros(1, 1), done=lambda outcome: None)

    for ms in (3.0, 100.0):
        beside = [job(chat), copying()]
        for each in beside:
            scheduler.submit(each)
        batch = scheduler.poll()
        assert len(batch) == 2
        scheduler.finished(batch, ms)
        assert scheduler._rests.keys() == ({greedy.client} if ms > 50 else set())
    scheduler.submit(copying())
    scheduler.submit(again := job(chat))
    assert scheduler.poll() == [again]
