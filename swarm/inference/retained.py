"""What one boundary of a route has sent.

Enough to bring a hop that holds nothing to where the dead one was.

Two parts, because row operations make old frames impossible to rebuild from sequences alone:
- the **history**: each sequence's inputs of the steps before `base`, as pieces; it follows `rows`, `repeat` and `crop`;
- the **window**: the last steps as they were sent. The client has at most WINDOW_STEPS steps and WINDOW_BYTES (or a single step) in
  flight, so that every living hop wants a step at or after `base`: it gets frames, and only a hop that holds nothing gets the history.

Sequences are lists of pieces (`pieces.py`), which are cut into History frames one by one (`histories.py`). Nothing here computes, so
values stay bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protocols.defaults import WINDOW_BYTES, WINDOW_STEPS
from protocols.ids import SessionId
from protocols.inference import History, Step
from protocols.tensors import WireTensor
from swarm.inference import histories
from swarm.inference import rows as row_operations
from swarm.inference.pieces import Piece, PieceRow, PieceStore

MAX_UNFOLDED = 256
"""Pieces whose folding into sequences is put off, one for each sequence and step: 20 ms if folded together, for any number of sequences."""

MAX_JOINED = 4096
"""Pieces that become few when a session is kept: 10 ms."""


class Retained:
    """History and window of one boundary. `add` in order of steps; nothing here waits or sends."""

    def __init__(self) -> None:
        self.base = 0
        """The first step that the window still holds as a frame."""
        self.num_bytes = 0
        """Bytes of activations that this boundary keeps alive: an upper bound, since forked sequences share pieces."""
        self.has_history = True
        """False once `drop_history` was called: then only the window can be sent again."""
        self._rows: list[PieceRow] = []
        self._empty = Piece(WireTensor("float32", (0, 0), "none", b""))
        """No tokens, but of the kind and width that were sent last: what a history of empty sequences carries."""
        self._window: deque[Step] = deque()
        self._window_bytes = 0
        self._unfolded: deque[Step] = deque()
        """Steps that have left the window and are not in the sequences yet: most sessions never need their history."""
        self._store = PieceStore()

    @property
    def next_step(self) -> int:
        """The step that `add` takes next."""
        return self.base + len(self._window)

    @property
    def num_tokens(self) -> int:
        """Tokens that a hop which holds nothing would have to compute; not what operations of the last steps do to them."""
        return sum([row.length for row in self._rows]) + sum([sum(step.counts) for step in (*self._unfolded, *self._window)])

    def add(self, step: Step) -> None:
        """Keep a step that is about to be sent. Steps come in order."""
        assert step.step == self.next_step, f"step {step.step} retained at {self.next_step}"
        self._window.append(step)
        self._window_bytes += step.payload.num_bytes
        self.num_bytes += step.payload.num_bytes
        while len(self._window) > WINDOW_STEPS or (len(self._window) > 1 and self._window_bytes > WINDOW_BYTES):
            self._leave_window(self._window.popleft())

    def _leave_window(self, step: Step) -> None:
        self.base = step.step + 1
        self._window_bytes -= step.payload.num_bytes
        if not self.has_history:
            self.num_bytes -= step.payload.num_bytes
            return
        self._unfolded.append(step)
        if (
            len(self._unfolded) * max(1, len(step.counts)) >= MAX_UNFOLDED or step.ops
        ):  # with operations, what sequences forget is to be freed at once
            self._fold_all()

    def _fold_all(self) -> None:
        while self._unfolded:
            self._fold(self._unfolded.popleft())

    def _fold(self, step: Step) -> None:
        whole = Piece(step.payload, step.positions, step.spec.kind)
        self._empty = whole.part(0, 0)
        rows = row_operations.apply(self._store, self._rows, step.ops)
        self._rows = row_operations.enter(self._store, rows, len(step.counts))
        at = 0
        for row, count in zip(self._rows, step.counts, strict=True):
            if count:
                row.append(whole.part(at, at + count))
            at += count

    def fork(self, tokens: int = 0, base: int | None = None) -> Retained:
        """The same sequences, or the first `tokens` tokens of the only one, for a session that begins with step `base`: all of them are
        history, since its hops hold nothing. base: None = `next_step`. BadRequestError if it is shorter; nothing has changed then."""
        self._fold_all()
        twin = Retained()
        twin.base = self.next_step if base is None else base
        if not self.has_history:
            twin.drop_history()
            return twin
        twin._rows, twin._empty = [self._store.fork(row) for row in self._rows], self._empty
        for step in self._window:
            twin._fold(step)
        if left_out := row_operations.left_out(twin._rows, tokens):
            self._store.crop(twin._rows[0], left_out)
        twin.num_bytes = min(self.num_bytes, sum([row.num_bytes for row in twin._rows]))
        return twin

    def settle(self) -> None:
        """The session has ended, and others may begin with it: all its steps are history now, in few pieces."""
        if not self.has_history:
            return
        next_step = self.next_step
        self._fold_all()
        for step in self._window:
            self._fold(step)
        left = MAX_JOINED
        for row in self._rows:
            left -= row.join(left)
        self.load(next_step, self._rows)

    def drop_history(self) -> None:
        """Give the history's memory back; a hop below that holds nothing can then be served only after a replay from above."""
        self.has_history, self._rows = False, []
        self._unfolded.clear()
        self.num_bytes = self._window_bytes

    def steps_from(self, step: int) -> Iterator[Step]:
        """The retained frames with this number and later, oldest first."""
        return (kept for kept in tuple(self._window) if kept.step >= step)

    def load(self, base: int, rows: Sequence[PieceRow], empty: WireTensor | None = None) -> None:
        """Start anew from a history: the sequences as they were before step `base`; `empty` [0, width] tells dtype and width."""
        self.base, self._rows, self.has_history = base, list(rows), True
        self._window.clear()
        self._unfolded.clear()
        self._window_bytes = 0
        self._empty = self._empty if empty is None else Piece(empty)
        self.num_bytes = sum([row.num_bytes for row in self._rows])

    def histories(self, session: SessionId, epoch: int) -> Iterator[History]:
        """The frames that bring a hop which holds nothing to step `base`; empty sequences have a count of 0.

        They are cut out one by one as they are asked for, but show the sequences as they are now, whatever is added meanwhile.
        """
        self._fold_all()
        rows = [self._store.fork(row) for row in self._rows]
        return histories.cut(rows, self._empty, session, epoch, self.base)


@dataclass(slots=True)
class Loading:
    """A history that is coming in, part by part."""

    base: int
    parts: int
    rows: list[PieceRow]
    taken: int = 0
    num_bytes: int = 0

    def is_next(self, history: History) -> bool:
        same = (history.base, history.parts, len(history.counts)) == (self.base, self.parts, len(self.rows))
        return same and history.part == self.taken

    def take(self, history: History, output: WireTensor | None) -> None:
        """Append a part: `output` [T, …] is what it became here; None: no hop below will ever want it."""
        self.taken += 1
        if output is None:
            return
        whole, at = Piece(output, history.positions), 0
        for row, count in zip(self.rows, history.counts, strict=True):
            if count:
                row.append(whole.part(at, at + count))
            at += count
        self.num_bytes += output.num_bytes

    @property
    def is_complete(self) -> bool:
        return self.taken == self.parts
