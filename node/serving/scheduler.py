"""Who goes into the next forward: a queue of steps that wait. The rules are in `turns.py`, `fairness.py` and `costs.py`, all pure.

Continuous batching: decodes that are ready go together, in the order of their clients' turns, and beside them a piece of a prompt. A
prompt that does not fit is run in pieces over several forwards, and waits in between like any other step.
Of each session only the oldest job is eligible: a step whose caller was cancelled may still wait when the session's rows are given
back, and a batch must never hold both.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from node.serving import fairness, turns
from node.serving.costs import Costs
from protocols.errors import OverloadedError, SwarmError
from protocols.ids import PeerId, SessionId
from protocols.inference import PASS_ON, Crop, Op, StepSpec
from swarm.inference.compute import Output

if TYPE_CHECKING:
    from node.serving.engine import Engine, Row

MAX_WAITING = 1_024
"""Steps that wait at most; the next one is refused."""

IDLE_S = 0.001
"""Accounts wait for so long a pause: whoever was just told of a token is on the way to send it, and Python runs one thread at a time."""

RHYTHM = 0.3
"""Weight of the newest of a session's absences."""


@dataclass(slots=True, eq=False)
class HeldRows:
    """The rows of one session; only whoever runs a batch touches them."""

    id: SessionId
    client: PeerId
    rows: list[Row] = field(default_factory=list)
    num_hops: int = 1
    """Of its route."""
    engine: Engine | None = None
    """Of the blocks that it runs; None = of all that are hosted."""
    num_tokens: int = 0
    """Of all rows, after the last forward."""
    decoded_s: float | None = None
    """When its last step was done, if that was a decode."""
    away_s: float = 0.0
    """How long it was away between two decodes, lately."""
    worked_in: int = 0
    """The period of `Work` in which it was counted last."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One step of one session, waiting for its turn on the device. `done` is called once, by whoever ran it."""

    session: HeldRows
    ops: Sequence[Op] = ()
    counts: Sequence[int] = ()
    values: Tensor | None = None
    """[T, …] as `spec` says; None: give all rows of the session back, or fork those of `source`."""
    source: HeldRows | None = None
    positions: Tensor | None = None
    spec: StepSpec = PASS_ON
    expires_s: float = math.inf
    """On the monotonic clock: too late to begin."""
    done: Callable[[Output | SwarmError], None] = field(repr=False)

    is_whole: bool = False
    """It must not be cut: here a row that goes on costs more than one that begins."""
    came_s: float = 0.0
    at: int = 0
    """Tokens that were run in earlier forwards."""
    size: int = 0
    """Tokens that run in this one."""
    is_entered: bool = False
    """Its operations were done, and its rows are there."""
    is_cancelled: bool = False
    """Nobody waits for it any more."""
    outputs: list[Output] = field(default_factory=list, repr=False)

    num_tokens: int = field(init=False)
    is_decode: bool = field(init=False)
    copies: bool = field(init=False)
    """May its operations copy rows?"""

    def __post_init__(self) -> None:
        self.num_tokens = sum(self.counts)
        self.is_decode = max(self.counts, default=0) <= turns.DECODE_TOKENS and self.num_tokens <= turns.LARGE_TOKENS
        self.copies = any(not isinstance(op, Crop) for op in self.ops)

    @property
    def num_left(self) -> int:
        return self.num_tokens - self.at

    @property
    def weight(self) -> float:
        return fairness.weight_of(min(0, self.spec.priority))

    def piece_counts(self) -> list[int]:
        """Tokens of each row that run in this forward: [at, at + size) of the flat axis."""
        counts, begin = [], 0
        for count in self.counts:
            counts.append(max(0, min(begin + count, self.at + self.size) - max(begin, self.at)))
            begin += count
        return counts


class Scheduler:
    """A queue between the event loop, which submits, and the runner's thread, which takes batches."""

    def __init__(self, budget_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.costs = Costs()
        self._budget, self._clock = budget_tokens, clock
        self._waiting: deque[Job] = deque()
        self._ready = threading.Condition()
        self._is_closed = False
        self._ledger = fairness.Ledger()
        self._credit_ms = turns.LEAST_CREDIT_MS
        self._decoding: dict[HeldRows, None] = {}
        self._free_s = clock()
        """When the last forward ended; before the first one, when this began."""
        self._rests: dict[PeerId, float] = {}
        """By client: no copying step of it runs before this time, because its last copies were long."""
        self._unpaid: list[tuple[Sequence[Job], Sequence[int], float]] = []
        """Forwards whose accounts wait, with the tokens of each job and the milliseconds."""

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a step; OverloadedError when too many wait or the node is leaving. Rows may always be given back until `close`."""
        with self._ready:
            is_full = len(self._waiting) >= MAX_WAITING and job.values is not None
            if self._is_closed or is_full:
                reason = "this node is leaving" if self._is_closed else f"{MAX_WAITING} steps wait here, the limit"
                raise OverloadedError(f"{reason}: try a replica")
            self._note_arrival(job, self._clock())
            self._waiting.append(job)
            self._ready.notify()

    def take_alone(self, job: Job, limit_ms: float) -> bool:
        """Take a decode past the queue: nothing waits, no other session decodes, and it should take at most `limit_ms`.

        False: `submit` it. What runs elsewhere meanwhile is the caller's to know.
        """
        with self._ready:
            if self._waiting or self._is_closed or job.values is None or not job.is_decode:
                return False
            now_s = self._clock()
            self._settle_accounts()
            others = len(self._decoding) - (job.session in self._decoding)
            if not 0.0 < self.costs.decode_ms(job.num_left) <= limit_ms or (others and len(self._active(now_s, [job], [])) > 1):
                return False
            self._note_arrival(job, now_s)
            job.size = job.num_left
            return True

    @staticmethod
    def _note_arrival(job: Job, now_s: float) -> None:
        job.came_s, session = now_s, job.session
        if session.decoded_s is not None and job.is_decode and job.values is not None:
            session.away_s += RHYTHM * (job.came_s - session.decoded_s - session.away_s) if session.away_s else 0.0
            session.away_s = session.away_s or job.came_s - session.decoded_s

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more: it, or what is left of it, is not run. Its session's rows must be given back then."""
        with self._ready:
            job.is_cancelled = True
            if any(other is job for other in self._waiting):
                self._waiting.remove(job)
                self._ready.notify()

    def take(self, idle_s: float | None = None) -> list[Job] | None:
        """Wait for work and take the next batch: jobs with their `size` set. None once closed and empty.

        idle_s: an empty batch where the last forward is over for so long, and nothing waits.
        """
        with self._ready:
            while True:
                while not self._waiting and not self._is_closed:
                    left_s = None if idle_s is None else self._free_s + idle_s - self._clock()
                    if left_s is not None and left_s <= 0:
                        return []
                    if not self._ready.wait(IDLE_S if self._unpaid else left_s):
                        self._settle_accounts()
                if not self._waiting:
                    return None
                batch, pause_s = self._poll()
                if batch:
                    return batch
                self._ready.wait(pause_s)

    def poll(self) -> list[Job]:
        """As `take`, without waiting: nothing where nothing waits, or where it pays to wait for more."""
        with self._ready:
            return self._poll()[0]

    def _poll(self) -> tuple[list[Job], float]:
        self._settle_accounts()
        now_s = self._clock()
        batch, until_s = self._choose(now_s)
        if batch:
            chosen = set(map(id, batch))
            self._waiting = deque(job for job in self._waiting if id(job) not in chosen)
        return batch, max(0.0, until_s - now_s)

    def finished(self, batch: Sequence[Job], ms: float) -> None:
        """A forward of these jobs took `ms`: queue again what is not run to its end. Its accounts are settled when there is time.

        Who waits for a token cannot wait for them; at the latest the next choice makes them.
        """
        with self._ready:
            self._unpaid.append((batch, [job.size for job in batch], ms))
            self._free_s = now_s = self._clock()
            self._rest_after(batch, ms, now_s)
            for job in batch:
                job.at += job.size
                job.size = 0
                job.session.decoded_s = now_s if job.is_decode else None
                if job.is_decode:
                    self._decoding[job.session] = None
                else:
                    self._decoding.pop(job.session, None)
                if job.num_left and not job.is_cancelled:
                    self._waiting.appendleft(job)

    def charge(self, job: Job, ms: float) -> None:
        """A job's row operations took so long in front of its forward: its client pays for them, and no batch does."""
        with self._ready:
            self._ledger.charge(job.session.client, job.session, ms / job.weight)
            self._rest(job.session.client, ms, self._clock())

    def _rest_after(self, batch: Sequence[Job], ms: float, now_s: float) -> None:
        """Engines that share rows copy them in the forward that writes: what it took beyond its tokens was that."""
        copying = [job for job in batch if job.copies]
        if copying:
            num_decodes = sum(job.size for job in batch if job.is_decode)
            num_others = sum(job.size for job in batch) - num_decodes
            expected_ms = (self.costs.decode_ms(num_decodes) if num_decodes else 0.0) + num_others * (self.costs.token_ms or 0.0)
            for client, number in Counter(job.session.client for job in copying).items():
                self._rest(client, (ms - expected_ms) * number / len(copying), now_s)

    def _rest(self, client: PeerId, ms: float, now_s: float) -> None:
        """A client's copies took `ms`: its next ones wait, if those were long and others decode."""
        self._rests = {other: until_s for other, until_s in self._rests.items() if until_s > now_s}
        if (rest_ms := turns.rest_ms(self.costs, ms, self._num_others(client, now_s))) > 0:
            self._rests[client] = self._rests.get(client, now_s) + rest_ms / 1e3

    def pay(self) -> None:
        """Settle accounts now: nothing else is to be done."""
        with self._ready:
            self._settle_accounts()

    def forget(self, session: HeldRows) -> None:
        """The session has given its rows back: it is not expected any more."""
        with self._ready:
            self._decoding.pop(session, None)
            session.decoded_s, session.away_s = None, 0.0

    def close(self) -> None:
        """Take nothing new; what waits is still run."""
        with self._ready:
            self._is_closed = True
            self._ready.notify_all()

    def _choose(self, now_s: float) -> tuple[list[Job], float]:
        """The next batch; or none, and until when to wait for more. Sets the `size` of those that it takes."""
        jobs, until_s = self._without_rests(_oldest_of_each_session(self._waiting), now_s)
        clearing = [job for job in jobs if job.values is None]
        decodes = [job for job in jobs if job.values is not None and job.is_decode]
        prompts = [job for job in jobs if job.values is not None and not job.is_decode]
        if decodes or prompts:
            decoding = self._active(now_s, decodes, prompts)
            decodes, until_s = self._choose_decodes(decodes, decoding, now_s)
            if prompts and not decodes:
                until_s = max(until_s, self._until_decodes(decoding, now_s))
            prompts = self._choose_pieces(prompts, decodes, decoding) if until_s <= now_s else []
        for job in decodes:
            job.size = job.num_left
        return [*clearing, *decodes, *prompts], until_s

    def _without_rests(self, jobs: list[Job], now_s: float) -> tuple[list[Job], float]:
        """The jobs that need not rest now, while other clients decode; and until when to wait if there is none."""
        if not self._rests or self._is_closed:
            return jobs, now_s
        resting = {
            id(job): min(self._rests[job.session.client], now_s + turns.ACTIVE_S)  # so long do others count as decoding at most
            for job in jobs
            if job.copies
            and not job.is_entered
            and self._rests.get(job.session.client, 0.0) > now_s
            and self._num_others(job.session.client, now_s)
        }
        return [job for job in jobs if id(job) not in resting], min(resting.values(), default=now_s)

    def _num_others(self, client: PeerId, now_s: float) -> int:
        """Other clients that decode now."""
        oldest_s = now_s - turns.ACTIVE_S
        return len({one.client for one in self._decoding if one.client != client and (one.decoded_s or 0.0) >= oldest_s})

    def _active(self, now_s: float, decodes: Sequence[Job], prompts: Sequence[Job]) -> list[HeldRows]:
        """Sessions that decode now: those that wait, and those whose last decode was a moment ago."""
        oldest_s = now_s - turns.ACTIVE_S
        away = [session for session in self._decoding if (session.decoded_s or 0.0) < oldest_s]
        waiting = {job.session for job in decodes}
        for session in away:
            if session not in waiting:
                del self._decoding[session]
        others = {job.session for job in prompts}
        return [session for session in {**self._decoding, **dict.fromkeys(waiting)} if session not in others]

    def _choose_decodes(self, decodes: list[Job], decoding: list[HeldRows], now_s: float) -> tuple[list[Job], float]:
        """The decodes of the next forward; none where it pays to wait for others that are due."""
        if not decodes or (len(decoding) == 1 and decodes[0].num_left <= self._budget):
            return decodes, now_s
        waiting = {job.session for job in decodes}
        away_ms = [session.away_s * 1e3 for session in decoding if session.away_s]
        num_hops = max(session.num_hops for session in decoding)
        size = turns.wave_size(self.costs, len(decoding), num_hops, sum(away_ms) / len(away_ms) if away_ms else 0.0)
        if len(decodes) < size and not self._is_closed:
            due_s = [
                session.decoded_s + session.away_s
                for session in decoding
                if session not in waiting and session.decoded_s is not None and session.away_s
            ]
            patience_s = turns.patience_s(self.costs, size)
            since_s = max(self._free_s, min(job.came_s for job in decodes))
            until_s = turns.gather_until(now_s, since_s, due_s, patience_s)
            if until_s > now_s:
                return [], until_s
        return self._within_limits(decodes, size), now_s

    def _until_decodes(self, decoding: Sequence[HeldRows], now_s: float) -> float:
        """Until when a piece waits for decodes that are all away but due: beside them it costs less, and before them it would delay all.

        Over several hops it does not wait: while they are at the next one, the time here is nobody's.
        """
        if any(session.num_hops > 1 for session in decoding):
            return now_s
        due_s = [session.decoded_s + session.away_s for session in decoding if session.decoded_s is not None and session.away_s]
        return turns.gather_until(now_s, self._free_s, due_s, turns.patience_s(self.costs, len(decoding)))

    def _within_limits(self, decodes: list[Job], size: int) -> list[Job]:
        num_clients = len({job.session.client for job in decodes})
        chosen: list[Job] = []
        num_rows = 0
        for job in self._in_turn(decodes, self.costs.decode_ms(1)):
            more = num_rows + job.num_left
            fits = len(chosen) < size and more <= self._budget and turns.fits_a_turn(self.costs, more, num_clients)
            if fits or not chosen:
                chosen.append(job)
                num_rows = more
        return chosen

    def _choose_pieces(self, prompts: list[Job], decodes: Sequence[Job], decoding: Sequence[HeldRows]) -> list[Job]:
        """Prompts of the next forward, each with the `size` of its piece."""
        if not prompts:
            return []
        ms = turns.piece_ms(self.costs, len(decoding), len(decodes), self._credit_ms)
        left = turns.piece_tokens(self.costs, ms, is_alone=not decoding) if ms else 0
        left = min(left, self._budget - sum(job.num_left for job in decodes))
        chosen: list[Job] = []
        for job in self._in_turn(prompts, self.costs.token_ms or 1.0):
            size = job.num_left if job.is_whole else min(job.num_left, left)
            if left > 0 and (size <= left or not chosen):
                job.size = size
                left -= size
                chosen.append(job)
        return chosen

    def _in_turn(self, jobs: list[Job], token_ms: float) -> list[Job]:
        if len(jobs) == 1:
            return jobs
        claims = [
            fairness.Claim(client=job.session.client, session=job.session, cost_ms=token_ms * job.num_left / job.weight)
            for job in jobs
        ]
        return [jobs[index] for index in self._ledger.order(claims)]

    def _settle_accounts(self) -> None:
        """Learn from the forwards that ran since, and charge for them."""
        unpaid, self._unpaid = self._unpaid, []
        for batch, sizes, ms in unpaid:
            self._pay(batch, sizes, ms)

    def _pay(self, batch: Sequence[Job], sizes: Sequence[int], ms: float) -> None:
        """Costs, credit and accounts after a forward in which so many tokens of each job ran."""
        num_rows = sum(size for job, size in zip(batch, sizes, strict=True) if job.is_decode)
        num_tokens = sum(sizes) - num_rows
        row_ms, token_ms = self.costs.decode_ms(1) or 1.0, self.costs.token_ms or 1.0
        shares = [size * (row_ms if job.is_decode else token_ms) for job, size in zip(batch, sizes, strict=True)]
        unit = ms / (sum(shares) or 1.0)
        for job, share in zip(batch, shares, strict=True):
            self._ledger.charge(job.session.client, job.session, unit * share / job.weight)
        self.costs = self.costs.learn(num_rows, num_tokens, ms)
        decodes_ms = min(ms, self.costs.decode_ms(num_rows)) if num_rows else 0.0
        spent_ms = ms - decodes_ms if num_tokens else 0.0
        limit_ms = max(turns.LEAST_CREDIT_MS, self.costs.decode_ms(len(self._decoding) + 1))
        self._credit_ms = min(limit_ms, max(0.0, self._credit_ms - spent_ms / turns.PIECE_SHARE) + decodes_ms)


def _oldest_of_each_session(waiting: Iterable[Job]) -> list[Job]:
    first: dict[int, Job] = {}
    for job in waiting:
        first.setdefault(id(job.session), job)
    return list(first.values())
