"""The planner as a state machine: any sources, losses and orders.

What it promises about windows, speed and the end.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.pieces import Run
from protocols.weights import PIECE_BYTES
from swarm.weights.planner import Planner
from swarm.weights.source_state import MIN_WINDOW_BYTES, Held, PieceId

SIZES = {0: 10, 1: PIECE_BYTES, 2: 5 * PIECE_BYTES + 1, 3: 0, 4: 3 * PIECE_BYTES}


def whole(*tensors: int) -> Held:
    return dict.fromkeys(tensors)


def some(draw: random.Random, sizes: dict[int, int]) -> Held:
    """Each tensor whole, in part, or not at all."""
    held: dict[int, int | None] = {}
    for tensor in sizes:
        match draw.randrange(3):
            case 0:
                held[tensor] = None
            case 1:
                held[tensor] = draw.getrandbits(7)
    return held


def has(held: Held, piece: PieceId) -> bool:
    if piece.tensor not in held:
        return False
    pieces = held[piece.tensor]
    return pieces is None or bool(pieces >> piece.piece & 1)


def missing_of(sizes: dict[int, int]) -> dict[int, range]:
    return {tensor: range(-(-size // PIECE_BYTES)) for tensor, size in sizes.items()}


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.floats(0, 0.3),
    st.dictionaries(st.integers(0, 5), st.integers(0, 6 * PIECE_BYTES), max_size=5),
)
def test_every_piece_is_proven_once_whatever_sources_do(seed: int, num: int, trouble: float, sizes: dict[int, int]) -> None:
    """Sources come, die, lie and answer in any order; while one lives, all pieces arrive, and none is asked for twice without a reason."""
    draw, now_s = random.Random(seed), 0.0
    planner = Planner(sizes, missing_of(sizes))
    wanted = {PieceId(tensor, piece) for tensor, pieces in missing_of(sizes).items() for piece in pieces}
    owed: dict[str, list[PieceId]] = {}
    lists: dict[str, list[int]] = {}
    held: dict[str, Held] = {}
    got: set[PieceId] = set()
    born = 0
    for _step in range(10_000):
        if planner.is_done:
            break
        now_s += 0.1
        if len(owed) < num:
            name = f"s{born}"
            born += 1
            held[name] = whole(*sizes) if len(owed) == 0 else some(draw, sizes)
            planner.add(name, held[name])
            owed[name], lists[name] = [], []
        name = draw.choice(sorted(owed))
        ask = planner.take(name, now_s)
        lists[name] += ask.hashes
        flying = {piece for others in owed.values() for piece in others}
        for run in ask.runs:
            pieces = [PieceId(run.tensor, piece) for piece in range(run.first, run.first + run.num)]
            assert not got & set(pieces), "what is here is not asked again"
            assert all(has(held[name], piece) for piece in pieces), "a source is asked for what it has"
            if flying & set(pieces):
                assert len(ask.runs) == run.num == 1, "only the endgame asks twice, one piece at a time"
            owed[name] += pieces
        if draw.random() < trouble:
            planner.drop(name)
            del owed[name], lists[name]
        elif lists[name]:
            planner.listed(name, lists[name].pop(0), now_s)
        elif owed[name]:
            piece = owed[name].pop(0)
            if planner.arrived(name, piece, now_s):
                if draw.random() < trouble:
                    planner.failed(name, piece)
                    planner.drop(name)
                    del owed[name], lists[name]
                else:
                    assert planner.proven(name, piece)
                    assert piece not in got
                    got.add(piece)
    assert planner.is_done and got == wanted


def test_a_window_begins_at_one_piece_and_grows_with_what_proves_right() -> None:
    planner = Planner({0: 200 * PIECE_BYTES}, missing_of({0: 200 * PIECE_BYTES}), with_hashes=[0])
    planner.add("a", whole(0))
    assert sum(run.num for run in planner.take("a", 0.0).runs) == 1, "a liar costs one piece"
    assert not planner.take("a", 0.0)
    sizes = []
    for number in range(6):
        piece = PieceId(0, number)
        assert planner.arrived("a", piece, 0.01 * (number + 1)) and planner.proven("a", piece)
        planner.take("a", 0.01 * (number + 1))
        sizes.append(planner.window_bytes("a") // PIECE_BYTES)
    assert sizes == [2, 3, 4, 4, 4, 4], "at most a fiftieth of the download"


def test_a_slow_source_owes_no_more_than_it_brings_in_two_seconds() -> None:
    planner = Planner({0: 2_000 * PIECE_BYTES}, missing_of({0: 2_000 * PIECE_BYTES}), with_hashes=[0])
    planner.add("slow", whole(0))
    planner.add("fast", whole(0))
    for name, seconds in (("slow", 1.0), ("fast", 0.01)):
        now_s = 0.0
        for _ in range(20):
            [*pieces] = [PieceId(run.tensor, run.first + n) for run in planner.take(name, now_s).runs for n in range(run.num)]
            for piece in pieces:
                now_s += seconds
                assert planner.arrived(name, piece, now_s) and planner.proven(name, piece)
    assert planner.window_bytes("slow") == MIN_WINDOW_BYTES < planner.window_bytes("fast") == 16 * PIECE_BYTES


def test_what_few_have_goes_first() -> None:
    sizes = {0: 10, 1: 10, 2: 10}
    planner = Planner(sizes, missing_of(sizes))
    planner.add("all", whole(0, 1, 2))
    planner.add("some", whole(0, 1))
    assert planner.take("all", 0.0).runs[0].tensor == 2


def test_pieces_that_few_have_go_first() -> None:
    planner = Planner({0: 4 * PIECE_BYTES}, missing_of({0: 4 * PIECE_BYTES}), with_hashes=[0])
    planner.add("all", whole(0))
    planner.add("some", {0: 0b0011})
    [run] = planner.take("all", 0.0).runs
    assert (run.first, run.num) == (2, 1), "pieces 0 and 1 can come from another"
    [run] = planner.take("some", 0.0).runs
    assert (run.first, run.num) == (0, 1)


def test_what_is_covered_is_known_by_pieces() -> None:
    planner = Planner({0: 4 * PIECE_BYTES}, {0: [1, 2]}, with_hashes=[0])
    assert planner.uncovered() == {0}
    planner.add("other", {0: 0b1001})
    assert planner.uncovered() == {0} and not planner.can_help("other") and not planner.take("other", 0.0)
    planner.add("first", {0: 0b0011})
    assert planner.uncovered() == {0} and planner.can_help("first")
    assert planner.take("first", 0.0).runs == (Run(0, 1, 1),)
    planner.add("second", {0: 0b0100})
    assert not planner.uncovered(), "each piece is with one of them, one of them in flight"
    planner.drop("first")
    assert planner.uncovered() == {0}


def test_a_list_of_hashes_is_asked_only_of_a_source_with_a_missing_piece() -> None:
    planner = Planner({0: 4 * PIECE_BYTES}, {0: [1]})
    planner.add("other", {0: 0b0001})
    planner.add("owner", {0: 0b0010})
    assert not planner.take("other", 0.0)
    assert planner.take("owner", 0.0).hashes == (0,)


def test_a_silent_sources_piece_is_taken_over_by_one_that_has_it() -> None:
    planner = Planner({0: 2 * PIECE_BYTES}, {0: [1]}, with_hashes=[0])
    for name, pieces in (("silent", 0b10), ("other", 0b01), ("idle", 0b11)):
        planner.add(name, {0: pieces})
    assert planner.take("silent", 0.0).runs == (Run(0, 1, 1),)
    assert not planner.take("other", 10.0)
    assert planner.take("idle", 10.0).runs == (Run(0, 1, 1),)


def test_a_tensor_of_several_pieces_waits_for_its_hashes() -> None:
    planner = Planner(SIZES, missing_of(SIZES))
    planner.add("a", whole(*SIZES))
    ask = planner.take("a", 0.0)
    assert set(ask.hashes) == {2, 4} and {run.tensor for run in ask.runs} <= {0, 1}


def test_in_the_endgame_what_a_silent_source_owes_is_asked_from_another() -> None:
    sizes = {0: 2 * PIECE_BYTES}
    planner = Planner(sizes, missing_of(sizes), with_hashes=[0])
    planner.add("silent", whole(0))
    planner.add("idle", whole(0))
    assert planner.take("silent", 0.0).runs
    [run] = planner.take("idle", 0.0).runs
    assert planner.arrived("idle", PieceId(0, run.first), 0.1) and planner.proven("idle", PieceId(0, run.first))
    [stolen] = planner.take("idle", 10.0).runs
    assert (stolen.first, stolen.num) == (1 - run.first, 1)
    assert planner.arrived("idle", PieceId(0, stolen.first), 10.1) and planner.proven("idle", PieceId(0, stolen.first))
    assert planner.is_done and not planner.arrived("silent", PieceId(0, stolen.first), 11.0), "it came too late"


def test_what_comes_twice_stays_below_two_percent() -> None:
    sizes = {0: 100 * PIECE_BYTES}
    planner = Planner(sizes, missing_of(sizes), with_hashes=[0])
    for name in ("slow", "fast"):
        planner.add(name, whole(0))
    clock = {"slow": 1.0, "fast": 0.001}
    now_s, owed = 0.0, {"slow": [], "fast": []}  # type: ignore[var-annotated]
    due = {"slow": 0.0, "fast": 0.0}
    while not planner.is_done:
        for name in owed:
            if not owed[name]:
                asked = planner.take(name, now_s).runs
                owed[name] = [PieceId(0, run.first + n) for run in asked for n in range(run.num)]
                due[name] = now_s + clock[name]
        now_s += 0.001
        for name in owed:
            if owed[name] and now_s >= due[name]:
                piece = owed[name].pop(0)
                due[name] = now_s + clock[name]
                if planner.arrived(name, piece, now_s):
                    planner.proven(name, piece)
    assert planner.twice_bytes <= 0.02 * sizes[0] and now_s < 3.0
