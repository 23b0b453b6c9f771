"""The scheduler: budgets, fairness, prefill chunks, and the order of requests."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.device import forward_size
from node.device.forward_size import DECODE_TOKENS
from node.device.pending import Chunk, Pending
from node.device.work import Clear, HeldSequences, Request, Step
from protocols.errors import OverloadedError
from protocols.ids import PeerId, SessionId
from protocols.inference import Repeat, Rows
from tests.node.device.simulated import Chat, Queue, Swarm, asked, p99


def session(client: str = "client") -> HeldSequences:
    return HeldSequences(SessionId(bytes(16)), PeerId(client))


def step(held: HeldSequences | None = None, tokens: int = 1) -> Step:
    return Step(session=held or session(), counts=(tokens,), values=torch.zeros(tokens, 1))


def drain(queue: Queue) -> list[list[tuple[Request, int]]]:
    """Run everything that waits, at 1 ms a forward: what each had."""
    forwards = []
    while len(queue):
        decision = queue.take()
        forwards.append(
            [(one.request, 0) for _, one in decision.changes] + [(chunk.step, chunk.size) for chunk in decision.chunks]
        )
        queue.finished(decision, 1.0)
    return forwards


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=12), st.integers(DECODE_TOKENS, 60))
@settings(deadline=None)
def test_every_token_is_run_once_within_the_budget_and_in_its_session_s_order(steps: list[tuple[int, int]], budget: int) -> None:
    queue, sessions = Queue(budget), [session(f"client {number % 2}") for number in range(4)]
    asked = [step(sessions[number], tokens) for number, tokens in steps]
    for each in asked:
        queue.submit(each)
    forwards = drain(queue)
    assert all(0 < sum(size for _, size in forward) <= budget for forward in forwards)
    assert all(len({id(each.session) for each, _ in forward}) == len(forward) for forward in forwards)
    flat = [(each, size) for forward in forwards for each, size in forward]
    assert [sum(size for each, size in flat if each is wanted) for wanted in asked] == [tokens for _, tokens in steps]
    for held in sessions:
        order = [id(each) for each, _ in flat if each.session is held]
        assert list(dict.fromkeys(order)) == [id(each) for each in asked if each.session is held]


def test_a_prefill_chunk_names_the_tokens_of_each_sequence() -> None:
    pending = Queue(100).submit(Step(session=session(), counts=(3, 0, 20, 1), values=torch.zeros(24, 1)))
    chunks = [Chunk(pending, at, size) for at, size in ((0, 2), (2, 10), (12, 12), (0, 24))]
    assert [chunk.counts() for chunk in chunks] == [[2, 0, 0, 0], [1, 0, 9, 0], [0, 0, 11, 1], [3, 0, 20, 1]]
    assert [chunk.is_last for chunk in chunks] == [False, False, True, True]


def test_a_step_that_must_not_be_cut_runs_whole() -> None:
    queue = Queue(10)
    queue.submit(Step(session=session(), counts=(50,), values=torch.zeros(50, 1), is_whole=True))
    assert [[size for _, size in forward] for forward in drain(queue)] == [[50]]


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
    assert sum(tokens > 0 for _, tokens in swarm.forwards[0]) > 30  # it was run in many prefill chunks


def test_if_every_forward_is_slow_prefill_chunks_go_beside_decodes_and_stay_large() -> None:
    """As a 110M model on a CPU: most of a forward reads the weights. When that counted as the prefill chunk's time, each had one token."""

    def dear_ms(rows: int, tokens: int) -> float:
        return 40.0 + 4.0 * rows + 2.5 * tokens

    chats = [Chat(client="client") for _ in range(8)]
    prompt = Chat(client="client", prompt=500, max_tokens=0, begin_s=3.0)
    swarm = Swarm(1, dear_ms)
    swarm.run([*chats, prompt], until_s=20.0)
    chunks = [(rows, tokens) for rows, tokens in swarm.forwards[0] if tokens >= 1][9:]  # after the chats' own first tokens
    assert prompt.done_s and prompt.done_s[0] < 12.0
    assert sum(rows > 0 for rows, _ in chunks) > 0.8 * len(chunks)
    assert sorted(tokens for _, tokens in chunks)[len(chunks) // 2] >= 8


def test_a_prompt_alone_goes_in_large_prefill_chunks_and_a_new_session_does_not_wait_for_all_of_it() -> None:
    reader, newcomer = Chat(client="reader", prompt=2_000, max_tokens=0), Chat(client="newcomer", prompt=16, begin_s=0.3)
    swarm = Swarm(1, cost_ms)
    swarm.run([reader, newcomer], until_s=3.0)
    assert max(tokens for _, tokens in swarm.forwards[0]) >= 400
    assert newcomer.done_s[0] < 0.3 + 2 * 0.26


def test_a_client_with_a_hundred_sessions_leaves_another_with_one_its_share() -> None:
    crowd = [Chat(client="crowd") for _ in range(100)]
    single = Chat(client="single")
    Swarm(1, cost_ms).run([*crowd, single], until_s=5.0)
    alone = Chat(client="single")
    Swarm(1, cost_ms).run([alone], until_s=5.0)
    others = sorted(len(chat.done_s) for chat in crowd)
    assert len(single.done_s) >= len(alone.done_s) / 10 and len(single.done_s) >= 3 * others[-1]
    assert others[0] >= 0.8 * others[-1] > 0  # and the hundred sessions all get the same


def test_prompts_of_two_clients_share_the_device_by_priority() -> None:
    """A lower priority still gets time: a difference of ten is half the share."""
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


def test_a_forward_never_holds_two_requests_of_one_session() -> None:
    """Else a `Clear` could close the sequences of a step whose caller was cancelled."""
    queue, held = Queue(100), session()
    first, clearing, other = step(held, 5), Clear(session=held), step()
    for each in (first, clearing, other):
        queue.submit(each)
    assert set(map(id, asked(queue.take()))) == {id(first), id(other)}
    assert asked(queue.take()) == [clearing]


def test_a_clear_never_overtakes_a_step_that_runs_in_prefill_chunks() -> None:
    queue, held = Queue(10), session()
    large, clearing = step(held, 30), Clear(session=held)
    for each in (large, clearing):
        queue.submit(each)
    assert [[each for each, _ in forward] for forward in drain(queue)] == [[large], [large], [large], [clearing]]


def test_what_is_left_of_a_cancelled_prompt_is_not_run() -> None:
    queue, held = Queue(10), session()
    large, clearing = queue.submit(step(held, 1_000)), Clear(session=held)
    decision = queue.take()
    queue.scheduler.cancel(queue.host, large)  # while its first prefill chunk runs
    queue.submit(clearing)
    queue.finished(decision, 1.0)
    assert asked(queue.take()) == [clearing] and not len(queue)


def test_a_cancelled_step_that_waits_is_gone_at_once() -> None:
    queue = Queue(10)
    queue.scheduler.cancel(queue.host, queue.submit(step(tokens=100)))
    assert not len(queue) and queue.poll().is_empty


def test_a_full_queue_refuses_steps_and_accepts_clears() -> None:
    queue = Queue(10, max_waiting=2)
    for _ in range(2):
        queue.submit(step())
    with pytest.raises(OverloadedError, match="2 steps wait here, the limit: try a replica"):
        queue.submit(step())
    queue.submit(Clear(session=session()))
    assert len(queue) == 3


def test_what_waits_at_the_close_is_still_run() -> None:
    queue = Queue(10)
    waiting = queue.submit(step())
    queue.scheduler.close(queue.host)
    with pytest.raises(OverloadedError, match="leaving"):
        queue.submit(step())
    assert asked(queue.take()) == [waiting.request] and not queue.host.ended.is_set()
    assert queue.scheduler.take() is None and queue.host.ended.is_set()


def test_a_host_that_leaves_leaves_the_thread_to_the_others() -> None:
    queue = Queue(10)
    other = queue.add(10)
    queue.scheduler.close(queue.host)
    waiting = queue.submit(step(), other)
    assert asked(queue.take()) == [waiting.request] and queue.host.ended.is_set() and not other.ended.is_set()


def test_close_wakes_the_thread_that_waits_for_work() -> None:
    queue, taken = Queue(10), []
    thread = threading.Thread(target=lambda: taken.append(queue.scheduler.take()))
    thread.start()
    queue.scheduler.close(queue.host)
    thread.join(60)
    assert taken == [None]


def test_an_idle_thread_gets_an_empty_decision() -> None:
    now_s = [5.0]
    queue = Queue(10, clock=lambda: now_s[0])
    now_s[0] = 6.0
    idle = queue.scheduler.take(lambda: 1.0)
    assert idle is not None and idle.is_empty
    waiting = step()
    queue.submit(waiting)
    decision = queue.scheduler.take(lambda: 1.0)
    assert decision is not None and asked(decision) == [waiting]
    queue.finished(decision, 1.0)
    now_s[0] = 6.5
    threading.Timer(0.05, lambda: queue.scheduler.close(queue.host)).start()
    assert queue.scheduler.take(lambda: 1.0) is None  # not idle for long enough: it waits, until the end


def test_requests_of_many_threads_are_each_run_to_their_end_and_in_their_session_s_order() -> None:
    queue = Queue(16)
    finished: list[Request] = []
    sessions = [[step(held, 1 + 11 * (number % 3)) for number in range(200)] for held in (session(), session("b"), session("b"))]

    def submit(requests: list[Step]) -> None:
        for each in requests:
            queue.submit(each)

    def run() -> None:
        while (decision := queue.scheduler.take()) is not None:
            queue.finished(decision, 0.01)
            finished.extend(chunk.step for chunk in decision.chunks if chunk.is_last)

    threads = [threading.Thread(target=submit, args=(requests,)) for requests in sessions]
    runner = threading.Thread(target=run)
    for thread in (runner, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    queue.scheduler.close(queue.host)
    runner.join(60)
    assert not runner.is_alive() and len(finished) == 600
    order = {id(each): number for number, each in enumerate(finished)}
    for requests in sessions:
        assert [order[id(each)] for each in requests] == sorted(order[id(each)] for each in requests)


def decode(queue: Queue, held: HeldSequences, ms: float = 1.0) -> None:
    """One decode of a session, taken and done."""
    queue.submit(step(held))
    while (decision := queue.poll()).chunks:
        queue.finished(decision, ms)


def test_a_step_of_very_many_sequences_is_run_in_prefill_chunks_beside_decodes() -> None:
    now = [0.0]
    queue, chat = Queue(4_096, lambda: now[0]), session("chat")
    for _ in range(8):
        decode(queue, chat)
    wide = queue.submit(Step(session=session("wide"), counts=(1,) * 1_000, values=torch.zeros(1_000, 1)))
    assert not wide.is_decode
    num_chunks = 0
    while wide.num_left:
        queue.submit(step(chat))
        decision = queue.poll()
        assert any(chunk.step.session is chat for chunk in decision.chunks), "the chat waits for the wide step"
        sizes = [chunk.size for chunk in decision.chunks if chunk.pending is wide]
        num_chunks += len(sizes)
        queue.finished(decision, 1.0 + 0.05 * sum(sizes))
    assert num_chunks > 5


def test_long_copies_keep_to_their_share_of_the_time_while_others_decode() -> None:
    now = [0.0]
    queue, chat, greedy = Queue(4_096, lambda: now[0]), session("chat"), session("greedy")
    for _ in range(8):
        decode(queue, chat)

    queue.scheduler.charge(queue.host, Pending(copying(greedy)), 100.0)
    second, third = copying(session("greedy")), copying(session("third"))
    queue.submit(second)
    assert queue.poll().is_empty
    now[0] = 0.89
    decode(queue, chat)  # a chat goes on, and its client is still active at the end of the rest
    queue.submit(third)
    decision = queue.poll()
    assert asked(decision) == [third], "another client has made no copies"
    queue.finished(decision, 1.0)
    assert queue.poll().is_empty
    now[0] = 0.91
    assert asked(queue.poll()) == [second]


def copying(held: HeldSequences) -> Step:
    return Step(session=held, ops=(Repeat(2),), counts=(1, 1), values=torch.zeros(2, 1))


def test_copies_that_delay_no_client_cost_no_rest() -> None:
    now = [0.0]
    queue, held = Queue(4_096, lambda: now[0]), session("alone")
    for _ in range(8):
        decode(queue, held)
    queue.scheduler.charge(queue.host, Pending(copying(held)), 100.0)
    again = copying(held)
    queue.submit(again)
    assert asked(queue.poll()) == [again]


def test_a_rest_lasts_no_longer_than_others_count_as_decoding() -> None:
    """The device slept to the end of a rest of 9 s, although the chat that it protected had ended."""
    now = [0.0]
    queue, chat, greedy = Queue(4_096, lambda: now[0]), session("chat"), session("greedy")
    for _ in range(8):
        decode(queue, chat)
    again = copying(greedy)
    queue.scheduler.charge(queue.host, queue.submit(again), 1_000.0)
    decision = queue.poll()
    assert decision.is_empty and 0 < decision.until_s <= forward_size.ACTIVE_S
    now[0] = decision.until_s + 0.001
    assert asked(queue.poll()) == [again]


def test_copies_that_a_forward_makes_cost_a_rest_too_and_only_their_client() -> None:
    """Engines that share pages copy them at the first write: a batch that takes longer than its tokens has copied."""
    now = [0.0]
    queue, chat, greedy = Queue(4_096, lambda: now[0]), session("chat"), session("greedy")
    for _ in range(8):
        decode(queue, chat)

    def selecting() -> Step:
        return Step(session=greedy, ops=(Rows((0,)),), counts=(1,), values=torch.zeros(1, 1))

    for ms in (3.0, 100.0):
        for each in (step(chat), selecting()):
            queue.submit(each)
        decision = queue.poll()
        assert len(decision.chunks) == 2
        queue.finished(decision, ms)
        assert queue.host.rests.keys() == ({greedy.client} if ms > 50 else set())
    queue.submit(selecting())
    queue.submit(again := step(chat))
    assert asked(queue.poll()) == [again]
