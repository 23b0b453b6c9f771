"""Retained history and window rebuild exactly what was sent.

They do so at any moment.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from protocols import compression, tensors
from protocols.defaults import WINDOW_BYTES, WINDOW_STEPS
from protocols.ids import SessionId
from protocols.inference import Crop, History, Op, Repeat, Rows, Step, StepSpec
from swarm.inference.pieces import PieceRow
from swarm.inference.retained import Loading, Retained

SESSION = SessionId(bytes(16))
WIDTH = 3
Token = tuple[float, int]
"""First value of the hidden state, and position."""


def step_of(
    number: int, ops: tuple[Op, ...], counts: list[int], values: Tensor, positions: tuple[int, ...] | None = None
) -> Step:
    return Step(session=SESSION, epoch=0, step=number, counts=tuple(counts), payload=compression.pack(values), ops=ops,
                positions=positions)  # fmt: skip


def applied(rows: list[list[Token]], step: Step) -> list[list[Token]]:
    """What a hop that holds `rows` holds after `step`: plain lists, written anew and without `rows.py`."""
    for op in step.ops:
        match op:
            case Rows(indices):
                rows = [list(rows[index]) for index in indices]
            case Repeat(times):
                rows = [list(row) for row in rows for _ in range(times)]
            case Crop(tokens):
                rows = [row[: len(row) - tokens] for row in rows]
    rows = [list(row) for row in rows] or [[] for _ in step.counts]
    values, at = compression.unpack(step.payload), 0
    for row, count in zip(rows, step.counts, strict=True):
        for _ in range(count):
            row.append((float(values[at, 0]), len(row) if step.positions is None else step.positions[at]))
            at += 1
    return rows


def loaded(histories: list[History]) -> list[list[Token]]:
    """The sequences that a hop takes from histories, by the same class that a hop uses."""
    loading = Loading(histories[0].base, histories[0].parts, [PieceRow() for _ in histories[0].counts])
    for history in histories:
        assert loading.is_next(history)
        loading.take(history, history.payload)
    assert loading.is_complete
    rows: list[list[Token]] = []
    for row in loading.rows:
        tokens: list[Token] = []
        for piece in row.pieces:
            places = piece.positions or range(len(tokens), len(tokens) + piece.length)
            tokens += [(float(value[0]), place) for value, place in zip(compression.unpack(piece.values), places, strict=True)]
        assert row.length == len(tokens)
        rows.append(tokens)
    return rows


class RetainedMachine(RuleBasedStateMachine):
    """Steps with row operations and positions of all kinds; now and then the history is dropped, or everything loaded anew."""

    def __init__(self) -> None:
        super().__init__()
        self.retained = Retained()
        self.rows: list[list[Token]] = []
        self.next = 0
        self.values = 0

    def _fresh(self, count: int) -> Tensor:
        self.values += count
        return torch.arange(self.values - count, self.values, dtype=torch.float32)[:, None].repeat(1, WIDTH)

    @rule(data=st.data(), count=st.integers(1, 5), is_long=st.booleans())
    def add(self, data: st.DataObject, count: int, is_long: bool) -> None:
        ops: tuple[Op, ...] = ()
        num_rows = len(self.rows)
        if num_rows:
            indices = st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=4).map(lambda found: Rows(tuple(found)))
            choices = [st.just(()), indices.map(lambda op: (op,))]
            if num_rows <= 2:
                choices.append(st.just((Repeat(2),)))
            if shortest := min(map(len, self.rows)):
                choices.append(st.integers(1, shortest).map(lambda tokens: (Crop(tokens),)))
            ops = data.draw(st.one_of(choices))
            num_rows = _num_rows(num_rows, ops)
        counts = data.draw(st.lists(st.sampled_from([0, 1, 2, 300] if is_long else [0, 1, 2]),
                                    min_size=num_rows or count, max_size=num_rows or count))  # fmt: skip
        positions = data.draw(st.none() | st.lists(st.integers(0, 99), min_size=sum(counts), max_size=sum(counts)).map(tuple))
        step = step_of(self.next, ops, counts, self._fresh(sum(counts)), positions)
        self.retained.add(step)
        self.rows = applied(self.rows, step)
        self.next += 1

    @rule()
    @precondition(lambda self: self.next > 0)
    def drop_history(self) -> None:
        self.retained.drop_history()
        assert self.retained.num_bytes == sum(step.payload.num_bytes for step in self.retained.steps_from(0))

    @rule()
    @precondition(lambda self: self.retained.has_history and self.retained.base)
    def load_what_it_would_send(self) -> None:
        """A replacement takes the hop's history and window, and continues at its step."""
        histories, window = list(self.retained.histories(SESSION, 1)), list(self.retained.steps_from(0))
        loading = Loading(self.retained.base, histories[0].parts, [PieceRow() for _ in histories[0].counts])
        for history in histories:
            loading.take(history, history.payload)
        anew = Retained()
        anew.load(self.retained.base, loading.rows, tensors.cut(histories[0].payload, 0, 0))
        for step in window:
            anew.add(step)
        self.retained = anew

    @rule()
    def settle(self) -> None:
        """A session that was kept goes on as its fork does; here the same object does."""
        self.retained.settle()

    @invariant()
    def counts_agree(self) -> None:
        window = list(self.retained.steps_from(0))
        assert self.retained.next_step == self.next
        assert [step.step for step in window] == list(range(self.retained.base, self.next)) and len(window) <= WINDOW_STEPS

    @invariant()
    def history_and_window_rebuild_the_rows(self) -> None:
        if not self.retained.has_history:
            return
        rows: list[list[Token]] = []
        if self.retained.base:
            rows = loaded(list(self.retained.histories(SESSION, 1)))
        for step in self.retained.steps_from(0):
            rows = applied(rows, step)
        assert rows == self.rows
        assert self.retained.num_bytes >= sum(step.payload.num_bytes for step in self.retained.steps_from(0))


def _num_rows(num_rows: int, ops: tuple[Op, ...]) -> int:
    for op in ops:
        num_rows = len(op.indices) if isinstance(op, Rows) else num_rows * op.times if isinstance(op, Repeat) else num_rows
    return num_rows


TestRetained = RetainedMachine.TestCase
TestRetained.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_decoded_tokens_become_few_pieces_and_come_back_as_they_were_sent() -> None:
    """One piece for each token was 1 KB a token beside its values: 160 KB for a kept session of 120 tokens."""
    retained, rows = Retained(), list[list[Token]]()
    for number in range(700):
        ops = (Crop(number % 3),) if number % 50 == 49 else ()
        places = None if 200 <= number < 400 else (number, number + 1)
        step = step_of(number, ops, [1, 1], torch.tensor([[2.0 * number], [2.0 * number + 1]]).repeat(1, WIDTH), places)
        retained.add(step)
        rows = applied(rows, step)
    retained.settle()
    assert loaded(list(retained.histories(SESSION, 0))) == rows and retained.next_step == 700
    assert [sum(1 for _ in row.pieces) for row in retained._rows] == [3, 3]  # with positions, without, with


def test_the_memory_of_a_kept_session_is_that_of_its_values() -> None:
    """Each step's frame came in bytes of its own, which a piece keeps alive."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        retained = Retained()
        for number in range(1_000):
            step = step_of(number, (), [1], torch.zeros(1, 64))
            frame = bytes(step.payload.data) + bytes(500)
            retained.add(replace(step, payload=tensors.WireTensor("float32", (1, 64), "none", memoryview(frame)[:256])))
        retained.settle()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 256_000 <= taken < 300_000, taken


def test_a_history_shows_the_rows_of_the_moment_it_was_asked_for() -> None:
    retained = Retained()
    for number in range(WINDOW_STEPS + 2):
        retained.add(step_of(number, (), [1], torch.full((1, WIDTH), float(number))))
    histories = retained.histories(SESSION, 0)
    for number in range(WINDOW_STEPS + 2, WINDOW_STEPS + 6):
        retained.add(step_of(number, (Crop(1),), [1], torch.full((1, WIDTH), float(number))))
    (history,) = histories
    assert history.base == 2 and compression.unpack(history.payload)[:, 0].tolist() == [0, 1]


def test_large_steps_leave_the_window_early_since_no_client_has_more_bytes_in_flight() -> None:
    retained = Retained()
    size = WINDOW_BYTES // (3 * 4 * WIDTH)
    for number in range(5):
        retained.add(step_of(number, (), [size], torch.zeros(size, WIDTH)))
    assert len(list(retained.steps_from(0))) == 3
    retained.add(step_of(5, (), [4 * size], torch.zeros(4 * size, WIDTH)))
    assert [step.step for step in retained.steps_from(0)] == [5]


def test_a_history_of_empty_rows_keeps_width_and_dtype_over_two_deaths() -> None:
    retained = Retained()
    for number in range(WINDOW_STEPS + 1):
        retained.add(step_of(number, (), [0, 0], torch.zeros(0, WIDTH, dtype=torch.bfloat16)))
    (history,) = retained.histories(SESSION, 0)
    again = Retained()
    again.load(history.base, [PieceRow(), PieceRow()], history.payload)
    (copy,) = again.histories(SESSION, 0)
    assert copy.counts == history.counts == (0, 0)
    assert copy.payload.shape == history.payload.shape == (0, WIDTH) and copy.payload.dtype == "bfloat16"


@given(
    st.lists(
        st.tuples(st.sampled_from(["ids", "embeds"]), st.lists(st.sampled_from([0, 1, 2, 700]), min_size=2, max_size=2)),
        min_size=1,
        max_size=5,
    )
)
def test_embeddings_followed_by_ids_and_ids_by_embeddings_come_back_in_order(steps: list[tuple[str, list[int]]]) -> None:
    """What a thin client holds: each part of its history is of one kind, and each sequence comes back as it was sent."""
    retained, value = Retained(), 0
    rows: list[list[tuple[str, float]]] = [[], []]
    for number in range(len(steps) + WINDOW_STEPS):
        kind, counts = steps[number] if number < len(steps) else ("ids", [0, 0])
        numbers = torch.arange(value, value + sum(counts), dtype=torch.int32)
        value += sum(counts)
        values = numbers if kind == "ids" else numbers.float()[:, None].repeat(1, WIDTH)
        retained.add(replace(step_of(number, (), counts, values), spec=StepSpec(kind=kind)))
        for row, piece in zip(rows, numbers.split(counts), strict=True):
            row += [(kind, float(token)) for token in piece]
    back: list[list[tuple[str, float]]] = [[], []]
    histories = list(retained.histories(SESSION, 0))
    assert [history.part for history in histories] == list(range(histories[0].parts))
    for history in histories:
        values, at = compression.unpack(history.payload).reshape(sum(history.counts), WIDTH if history.kind == "embeds" else 1), 0
        assert history.payload.num_bytes <= WINDOW_BYTES and sum(history.counts) <= 512
        for row, count in zip(back, history.counts, strict=True):
            row += [(history.kind, float(token[0])) for token in values[at : at + count]]
            at += count
    assert back == rows
