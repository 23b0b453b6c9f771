"""What a device runs next, as a pure function.

The queues of its hosts and the clock come in, a decision comes out.

Continuous batching: decodes of one host that are ready go together, in the order of `fairness.py`, and beside them a prefill chunk.
A prompt that does not fit runs in prefill chunks over several forwards, and waits in between like any other step. Only the oldest request
of each session is eligible: a step whose caller was cancelled may still wait when the session's `Clear` comes, and both must never run
together.

Several hosts: each forward is one host's. The host that has had least time goes first. While it waits for decodes that are due, the next
host runs, unless the first is too far behind. The sizes are in `forward_size.py`, the order of clients in `fairness.py`. Training runs
beside all hosts, as `training_time.py` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from node.device import fairness, forward_size
from node.device.host_queue import NEVER, HostQueue
from node.device.pending import Chunk, Pending
from node.device.training_time import TrainingTime
from node.device.work import HeldSequences, Task
from protocols.ids import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What runs now; or nothing, and until when to wait."""

    changes: Sequence[tuple[HostQueue, Pending]] = ()
    """Clears and forks of any host: they take little time, and clears free memory."""
    queue: HostQueue | None = None
    chunks: Sequence[Chunk] = ()
    """One forward, of this host."""
    task: Task | None = None
    """Of training; then no forward runs."""
    is_owed: bool = False
    """The task begins because training has had less than its share."""
    until_s: float = math.inf

    @property
    def is_empty(self) -> bool:
        return not self.changes and not self.chunks and self.task is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Load of the device's other hosts."""

    decode_ms: float = 0.0
    """One forward of the decodes of each of them."""
    num_waiting: int = 0
    """Hosts that have steps waiting."""


def choose(now_s: float, queues: Sequence[HostQueue], accounts: fairness.Accounts) -> Decision:
    """The next forward. accounts: of hosts, by queue."""
    oldest = {queue: _oldest_of_each_session(queue.waiting) for queue in queues if queue.waiting}
    changes = [(queue, pending) for queue, ready in oldest.items() for pending in ready if not pending.is_step]
    until_s = math.inf
    for queue in sorted(queues, key=accounts.of):
        steps = [pending for pending in oldest.get(queue, ()) if pending.is_step]
        if not steps:
            continue
        chunks, queue_until_s = _Forward(now_s, queue, queues).choose(steps)
        if not chunks:
            until_s = min(until_s, queue_until_s)
            continue
        wait_s = _until_one_behind(now_s, queue, queues, accounts)
        if wait_s > now_s:
            return Decision(changes=changes, until_s=wait_s)
        return Decision(changes=changes, queue=queue, chunks=chunks)
    return Decision(changes=changes, until_s=until_s)


def with_training(decision: Decision, now_s: float, queues: Sequence[HostQueue], training: TrainingTime, task: Task) -> Decision:
    """The decision, given that `task` is the next of training: with it, or without it and how long to wait at most.

    decision: what `choose` would run of the hosts. training: brought to `now_s`.
    """
    kind = task.priority
    is_ready = any(pending.is_step for queue in queues for pending in queue.waiting)
    due_s = [due for queue in queues for due in queue.due_s(now_s)]
    if training.may_begin(kind, now_s, is_step_ready=is_ready, due_s=due_s):
        return Decision(changes=decision.changes, task=task, is_owed=training.is_owed(kind))
    if decision.chunks:
        return decision
    forgotten_s = [queue.last[session].done_s or now_s for queue in queues for session in queue.active(now_s)]
    until_s = min(decision.until_s, now_s + training.wait_s(kind), min(forgotten_s, default=math.inf) + forward_size.ACTIVE_S)
    return replace(decision, until_s=until_s)


def _until_one_behind(now_s: float, queue: HostQueue, queues: Sequence[HostQueue], accounts: fairness.Accounts) -> float:
    """Until when this host's forward waits for a host that has had less time; `now_s` if it does not wait.

    The other host must be behind by more than this forward takes, and must expect decodes soon. Otherwise a host whose sessions all wait
    for their clients, each time the device is free, would get one forward for each forward of the others, even if its own are shorter.
    """
    tolerance_ms = queue.costs.decode_ms(max(1, queue.num_decoding(now_s)))
    behind = [one for one in queues if one is not queue and accounts.of(queue) - accounts.of(one) > tolerance_ms]
    free_s = max(one.free_s for one in queues)
    return max(
        (
            forward_size.gather_until(
                now_s, free_s, one.due_s(now_s), forward_size.max_batching_delay_s(one.costs, one.num_decoding(now_s))
            )
            for one in behind
        ),
        default=now_s,
    )


def num_others(client: PeerId, queues: Iterable[HostQueue], now_s: float) -> int:
    """Other clients that decode now, at any host of the device."""
    return len({session.client for queue in queues for session in queue.active(now_s)} - {client})


class _Forward:
    """Chooses one host's next forward; changes nothing."""

    def __init__(self, now_s: float, queue: HostQueue, queues: Sequence[HostQueue]) -> None:
        self._now_s, self._queue, self._queues, self._costs = now_s, queue, queues, queue.costs
        self._beside = _beside(now_s, queue, queues) if len(queues) > 1 else Beside()

    def choose(self, steps: list[Pending]) -> tuple[list[Chunk], float]:
        """What runs next; nothing, and until when to wait, if waiting for more decodes pays."""
        now_s = self._now_s
        steps, until_s = self._without_rests(steps)
        decodes = [pending for pending in steps if pending.is_decode]
        prompts = [pending for pending in steps if not pending.is_decode]
        if not steps:
            return [], until_s
        decoding = self._decoding_with(decodes, prompts)
        chosen, until_s = self._choose_decodes(decodes, decoding)
        if prompts and not chosen:
            until_s = max(until_s, self._until_decodes(decoding))
        chunks = [Chunk(pending, pending.at, pending.num_left) for pending in chosen]
        return [*chunks, *(self._choose_chunks(prompts, chosen, decoding) if until_s <= now_s else ())], until_s

    def _without_rests(self, steps: list[Pending]) -> tuple[list[Pending], float]:
        """The steps that do not have to rest now, and until when to wait if there is none. A step rests only while other clients decode."""
        queue, now_s = self._queue, self._now_s
        if not queue.rests or queue.is_closed:
            return steps, now_s
        resting = {
            id(pending): min(
                queue.rests[client], now_s + forward_size.ACTIVE_S
            )  # other clients count as decoding for ACTIVE_S at most
            for pending in steps
            if pending.copies
            and not pending.is_entered
            and queue.rests.get(client := pending.step.session.client, 0.0) > now_s
            and num_others(client, self._queues, now_s)
        }
        return [pending for pending in steps if id(pending) not in resting], min(resting.values(), default=now_s)

    def _decoding_with(self, decodes: Sequence[Pending], prompts: Sequence[Pending]) -> list[HeldSequences]:
        """Sessions that decode now: those whose decode waits, and those that have decoded within ACTIVE_S."""
        others = {pending.step.session for pending in prompts}
        waiting = [pending.step.session for pending in decodes]
        return [session for session in dict.fromkeys([*self._queue.active(self._now_s), *waiting]) if session not in others]

    def _choose_decodes(self, decodes: list[Pending], decoding: Sequence[HeldSequences]) -> tuple[list[Pending], float]:
        """The decodes of the next forward; none if it pays to wait for others that are due, and until when."""
        now_s, queue = self._now_s, self._queue
        if not decodes or (len(decoding) == 1 and decodes[0].num_left <= queue.budget_tokens):
            return decodes, now_s
        waiting = {pending.step.session for pending in decodes}
        last = [(session, queue.last.get(session, NEVER)) for session in decoding]
        known_ms = [one.inter_arrival_s * 1e3 for _, one in last if one.inter_arrival_s]
        inter_arrival_ms = sum(known_ms) / len(known_ms) if known_ms else 0.0
        num_hops = max(session.num_hops for session in decoding)
        size = forward_size.pipelined_batch_size(self._costs, len(decoding), num_hops, inter_arrival_ms)
        if len(decodes) < size and not queue.is_closed:
            due_s = [one.due_s for session, one in last if session not in waiting and one.due_s is not None]
            since_s = max(queue.free_s, min(pending.came_s for pending in decodes))
            until_s = forward_size.gather_until(now_s, since_s, due_s, forward_size.max_batching_delay_s(self._costs, size))
            if until_s > now_s:
                return [], until_s
        return self._within_limits(decodes, size), now_s

    def _until_decodes(self, decoding: Sequence[HeldSequences]) -> float:
        """Until when a prefill chunk waits for decodes that are due, if none waits: beside decodes it costs less, and alone it delays them.

        Over several hops it does not wait: while the sessions are at the next hop, the device would be idle.
        """
        queue = self._queue
        if any(session.num_hops > 1 for session in decoding):
            return self._now_s
        due_s = [due for session in decoding if (due := queue.last.get(session, NEVER).due_s) is not None]
        return forward_size.gather_until(
            self._now_s, queue.free_s, due_s, forward_size.max_batching_delay_s(self._costs, len(decoding))
        )

    def _within_limits(self, decodes: list[Pending], size: int) -> list[Pending]:
        num_clients = len({pending.step.session.client for pending in decodes}) + self._beside.num_waiting
        chosen: list[Pending] = []
        num_decodes = 0
        for pending in self._in_order(decodes, self._costs.decode_ms(1)):
            more = num_decodes + pending.num_left
            fits = (
                len(chosen) < size
                and more <= self._queue.budget_tokens
                and forward_size.fits_one_forward(self._costs, more, num_clients)
            )
            if fits or not chosen:
                chosen.append(pending)
                num_decodes = more
        return chosen

    def _choose_chunks(
        self, prompts: list[Pending], decodes: Sequence[Pending], decoding: Collection[HeldSequences]
    ) -> list[Chunk]:
        """Prefill chunks of the next forward."""
        if not prompts:
            return []
        ms = forward_size.chunk_ms(self._costs, len(decoding), len(decodes), self._queue.credit_ms, self._beside.decode_ms)
        is_alone = not decoding and not self._beside.decode_ms
        left = forward_size.chunk_tokens(self._costs, ms, is_alone=is_alone) if ms else 0
        left = min(left, self._queue.budget_tokens - sum(pending.num_left for pending in decodes))
        chunks: list[Chunk] = []
        for pending in self._in_order(prompts, self._costs.token_ms or 1.0):
            size = pending.num_left if pending.step.is_whole else min(pending.num_left, left)
            if left > 0 and (size <= left or not chunks):
                left -= size
                chunks.append(Chunk(pending, pending.at, size))
        return chunks

    def _in_order(self, steps: list[Pending], token_ms: float) -> list[Pending]:
        if len(steps) == 1:
            return steps
        claims = [
            fairness.Claim(
                client=pending.step.session.client,
                session=pending.step.session,
                cost_ms=token_ms * pending.num_left / pending.weight,
            )
            for pending in steps
        ]
        return [steps[index] for index in self._queue.ledger.order(claims)]


def _beside(now_s: float, queue: HostQueue, queues: Sequence[HostQueue]) -> Beside:
    others = [other for other in queues if other is not queue]
    decoding = [(other, num) for other in others if (num := other.num_decoding(now_s))]
    return Beside(
        decode_ms=sum(other.costs.decode_ms(num) for other, num in decoding),
        num_waiting=sum(bool(other.waiting) for other in others),
    )


def _oldest_of_each_session(waiting: Iterable[Pending]) -> list[Pending]:
    first: dict[HeldSequences, Pending] = {}
    for pending in waiting:
        first.setdefault(pending.request.session, pending)
    return list(first.values())
