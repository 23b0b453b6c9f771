"""The largest honest message of each kind passes, larger ones do not.

What is larger or foreign is refused before it is unpacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from protocols import (
    about,
    averaging,
    bounds,
    cards,
    directory,
    entries,
    frame,
    groups,
    held,
    hello,
    inference,
    journal,
    kept,
    leases,
    msgpack_bounds,
    orders,
    pieces,
    progress,
    run_status,
    state,
    tensors,
    training,
    weights,
)  # fmt: skip
from protocols.defaults import (
    MAX_GROUP_UNITS,
    MAX_HEADER_BYTES,
    MAX_MEMBERS,
    MAX_OPS,
    MAX_ROW_INDICES,
    MAX_ROWS,
    MAX_RUN_UNITS,
    MAX_STEP_TOKENS,
)  # fmt: skip
from protocols.errors import FrameError
from protocols.identity import from_seed
from protocols.ids import ModelId
from protocols.logit_changes import MAX_CHANGES_BYTES
from protocols.parts_of_units import EMBED, HEAD, Part, parts_of
from protocols.receipts import Receipt
from protocols.runs import MAX_BATCH_TOKENS, MAX_MICRO_BATCHES
from protocols.step_spec import MAX_MASK_BYTES
from protocols.timings import MAX_TIMES_BYTES
from protocols.units import MAX_MATRIX_NAME, Blocks, Ends, Partition, Unit
from protocols.weights_id import MAX_VERSION, Weights
from tests.protocols.samples import ALICE, MANIFEST, SAMPLES, SESSION, parser
from tests.protocols.test_frame import framed, peak_bytes

WIDE = "\U0001f300"
"""A printable letter of four bytes."""
ADDRESS = "a" * 253 + ":65535"
WORD = "a" * MAX_MATRIX_NAME
MODEL = ModelId(WIDE * 200, "f" * 64)
WEIGHTS = Weights(MODEL, MAX_VERSION, bytes(32), "f" * 64)


def empty(num_tokens: int) -> tensors.WireTensor:
    return tensors.WireTensor("bfloat16", (num_tokens, 0, 1 << 24, 1 << 24), "none", b"")


def longest_grant() -> inference.Grant:
    """128 hops, each as large as a record lets it be."""
    hops = tuple(inference.Hop(ALICE.peer_id, (ADDRESS,) * 2, bytes(1_000), Blocks(9_000 + n, 9_001 + n)) for n in range(128))
    return inference.Grant(
        client=ALICE.peer_id, session=SESSION, epoch=1 << 20, weights=WEIGHTS, route=hops, expires_s=1e12
    ).signed(ALICE.sign)


def many_operations() -> tuple[inference.Op, ...]:
    rows = (inference.Rows((MAX_ROWS - 1,) * MAX_ROWS),) * (MAX_ROW_INDICES // MAX_ROWS)
    return rows + (inference.Crop(inference.MAX_LENGTH),) * (MAX_OPS - len(rows))


HEADER: dict[str, Any] = {"session": SESSION, "epoch": 1 << 20}
COUNTS = (4,) * MAX_ROWS
TOKENS: dict[str, Any] = {"counts": COUNTS, "positions": (1 << 24,) * MAX_STEP_TOKENS, "payload": empty(MAX_STEP_TOKENS)}
AUTHORS = [from_seed(number.to_bytes(32, "big")).peer_id for number in range(2_000)]
ENTRY = entries.SignedEntry(b"\xc4\x02hi" + bytes(64), 1e12)

BLOCKS = [Blocks(number, number + 1) for number in range(9_999 - MAX_RUN_UNITS, 9_998)]
PARTS = (*map(Part, BLOCKS), EMBED, HEAD)
UNITS: tuple[Unit, ...] = (*BLOCKS, Ends())
STATES = tensors.WireTensor("bfloat16", (1 << 8, 1 << 8, 0), "none", b"")
TOKEN_IDS = tensors.WireTensor("int32", (1 << 8, 1 << 8), "none", bytes(4 << 16))


def receipts() -> tuple[Receipt, ...]:
    """Of 128 hops that have four parts each, one more than a run has."""
    cut = [PARTS[number * 4 : number * 4 + 4] for number in range(127)] + [PARTS[508:]]
    return tuple(
        Receipt(peer=ALICE.peer_id, added=own, queue_ms=1e9, forward_ms=1e9, backward_ms=1e9, wait_ms=1e9, num_bytes=1 << 48)
        for own in cut
    )


def statuses() -> tuple[run_status.UnitStatus, ...]:
    whole = (1 << MAX_MICRO_BATCHES) - 1
    return tuple(
        run_status.UnitStatus(
            unit=unit, version=MAX_VERSION, chain=bytes(32), ledger=dict.fromkeys(parts_of(unit), whole), agreed=bytes(16)
        )
        for unit in UNITS
    )


KEPT = kept.Kept(version=MAX_VERSION, chains=dict.fromkeys(UNITS, bytes(32)))
HELD = held.Held(version=MAX_VERSION, whole=bytes(32), chains=KEPT.chains)
GROUP_ID = groups.GroupId(bytes(16))


def largest_group() -> groups.Group:
    """32 members, each as large as a record lets it be, and 128 units."""
    members = [groups.Member(peer=author, addresses=(ADDRESS,) * 2, certificate=bytes(900)) for author in AUTHORS[:MAX_MEMBERS]]
    units = tuple(Blocks(9_000 + number, 9_001 + number) for number in range(MAX_GROUP_UNITS - 1))
    return groups.Group(id=GROUP_ID, run=MODEL, version=MAX_VERSION - 1, units=(*units, Ends()), members=tuple(members),
                        num_micro_batches=MAX_MICRO_BATCHES, chains=(bytes(32),) * MAX_GROUP_UNITS, codec="float32",
                        deadline_s=600.0)  # fmt: skip


def largest_card() -> cards.Card:
    group = largest_group()
    sums = [
        cards.UnitSum(num_values=cards.MAX_VALUES, chain=bytes(32), held=(group.whole,) * len(parts_of(unit)))
        for unit in group.units
    ]
    ledger = cards.Ledger(
        version=MAX_VERSION, units=tuple(sums), num_targets=dict.fromkeys(range(MAX_MICRO_BATCHES), (1 << 32) - 1)
    )
    agreed = cards.Agreement(group_id=GROUP_ID, digest=bytes(32))
    return cards.Card(group=group.digest(), peer=ALICE.peer_id, ledger=ledger, agreed=agreed).signed(ALICE.sign)


def noted(letters: int) -> journal.NotedEvaluation:
    """With all its samples."""
    return journal.NotedEvaluation(
        version=MAX_VERSION, loss=1e30, bits_per_byte=1e6, num_tokens=journal.MAX_TOKENS, time_s=1e10,
        samples=((WIDE * letters, WIDE * letters),) * journal.MAX_SAMPLES,
    )  # fmt: skip


def happened(letters: int) -> journal.NotedEvent:
    return journal.NotedEvent(event=WIDE * min(letters, journal.MAX_EVENT), version=MAX_VERSION, time_s=1e10, text=WIDE * letters)


LARGEST: dict[str, Callable[[], Any]] = {
    "group": largest_group,
    "card": largest_card,
    "prepare": lambda: averaging.Prepare(id=GROUP_ID, cards=(largest_card(),) * MAX_MEMBERS),
    "prepared": lambda: averaging.Prepared(digest=bytes(32), lost=ALICE.peer_id, text=WIDE * averaging.MAX_REASON),
    "of_group": lambda: groups.OfGroup(id=GROUP_ID),
    "values": lambda: averaging.Values(bytes(1 << 20)),
    "decide": lambda: averaging.Decide(id=GROUP_ID, is_agreed=False, cards=(largest_card(),) * MAX_MEMBERS),
    "decision": lambda: averaging.Decision(said="aborted", vote=bytes(32)),
    "closed": lambda: averaging.Closed(
        outcome="missing",
        group_id=GROUP_ID,
        version=MAX_VERSION,
        digest=bytes(32),
        chains=(bytes(32),) * MAX_GROUP_UNITS,
        missing=((1 << MAX_MICRO_BATCHES) - 1,) * (MAX_GROUP_UNITS + 1),
        lost=tuple(AUTHORS[:MAX_MEMBERS]),
        behind=tuple(AUTHORS[:MAX_MEMBERS]),
        text=WIDE * averaging.MAX_REASON,
    ),
    "apply": lambda: averaging.Apply(run=MODEL, version=MAX_VERSION - 1, id=GROUP_ID),
    "applied": lambda: averaging.Applied(
        version=MAX_VERSION, chains={unit: bytes(32) for unit in largest_group().units},
        squares={unit: averaging.MAX_SQUARES for unit in largest_group().units}, num_targets=MAX_BATCH_TOKENS,
    ),
    "hello": lambda: hello.Hello(
        oldest=1 << 16, newest=1 << 16, software=WIDE * 64, swarm=WIDE * 64, name=WIDE * 64, time_s=1e12
    ),
    "about?": about.AboutRequest,
    "about": lambda: about.About(
        machine=about.Machine(
            device=WIDE * 80, name=WIDE * 80, system=WIDE * 80, cores=about.MAX_CORES, memory_bytes=about.MAX_AMOUNT,
            device_bytes=about.MAX_AMOUNT,
        ),
        uptime_s=1e10, free_bytes=about.MAX_AMOUNT, num_sessions=about.MAX_AMOUNT, num_steps=about.MAX_AMOUNT,
        num_tokens=about.MAX_AMOUNT,
        trained=(about.Trained(
            run=MODEL, role="trainer", num_micro_batches=about.MAX_AMOUNT, num_tokens=about.MAX_AMOUNT,
            num_versions=about.MAX_AMOUNT, seconds=1e10,
        ),) * about.MAX_TRAINED,
    ),
    "journal?": lambda: journal.JournalRequest(run=MODEL, journal=bytes(8), after=journal.MAX_NUMBER),
    "journal": lambda: journal.JournalPart(
        journal=bytes(8), last=journal.MAX_NUMBER, newest=journal.MAX_NUMBER, coordinator=ALICE.peer_id,
        notes=tuple(journal.fitting([*[noted(300)] * 2, *[happened(300)] * 2, *[noted(0)] * 30, *[happened(0)] * 30])),
    ),
    "dial_back": lambda: hello.DialBack(addresses=(ADDRESS,) * 8, certificate=bytes(4_096)),
    "dialled_back": lambda: hello.DialBackReply(reachable=(ADDRESS,) * 8, reason=WIDE * 300),
    "directory?": lambda: directory.DirectoryRequest(swarm=WIDE * 64, model=WIDE * 200),
    "directory": lambda: directory.DirectoryReply(tuple((author, ENTRY) for author in AUTHORS)),
    "manifest?": lambda: weights.ManifestRequest(model=MODEL),
    "manifest": lambda: MANIFEST,
    "weights?": lambda: pieces.WeightsRequest(model=MODEL),
    "hashes?": lambda: pieces.HashesRequest(tensors=(199_999,) * 64),
    "pieces?": lambda: pieces.PiecesRequest(runs=(pieces.Run(199_999, pieces.MAX_PIECES - 1, 1),) * 64),
    "file?": lambda: pieces.FileRequest(file=63),
    "holdings": lambda: pieces.Holdings(bits=bytes(25_001), partial=bytes(1 << 20)),
    "hashes": lambda: pieces.Hashes(tensor=199_999, hashes=bytes(32 * 1_000)),
    "piece": lambda: pieces.Piece(tensor=199_999, piece=pieces.MAX_PIECES - 1, data=bytes(1 << 20)),
    "file": lambda: pieces.FilePart(file=63, size=256 << 20, offset=256 << 20, data=bytes(1 << 20)),
    "state?": lambda: state.StateRequest(
        run=MODEL,
        units=tuple(Partition(9_999, WORD, "columns", n, 10_000_000) for n in range(1_000_000, 1_000_064)),
        version=MAX_VERSION,
    ),
    "state": lambda: state.StateHeader(
        unit=Partition(9_999, WORD, "columns", 1 << 20, 1 << 21),
        version=MAX_VERSION,
        chain=bytes(32),
        form=state.Form.of(state.TensorForm(f"parameter/{n}", "F32", (1 << 10,)) for n in range(state.MAX_TENSORS)),
        digest=bytes(32),
    ),
    "state_part": lambda: state.StatePart(offset=state.MAX_STATE_BYTES, data=bytes(state.PART_BYTES)),
    "open": lambda: inference.Open(
        grant=longest_grant(), index=127, dtype="float32", fork=inference.Fork(session=SESSION, step=1 << 40, tokens=1 << 24)
    ),
    "reroute": lambda: inference.Reroute(grant=longest_grant(), index=127),
    "attach": lambda: inference.Attach(grant=longest_grant(), step=1 << 40),
    "step": lambda: inference.Step(
        **HEADER,
        **TOKENS,
        step=1 << 40,
        ops=many_operations(),
        budget_ms=86_400_000,
        times=bytes(MAX_TIMES_BYTES),
        trace=bytes(inference.TRACE_BYTES),
        spec=inference.StepSpec(
            want=4_096, result="scored", top=1_024, own=1_024, mask=bytes(MAX_MASK_BYTES), changes=bytes(MAX_CHANGES_BYTES)
        ),
    ),
    "history": lambda: inference.History(**HEADER, **TOKENS, base=1 << 40, part=(1 << 20) - 1, parts=1 << 20),
    "close": lambda: inference.Close(session=SESSION, keep_s=3_600),
    "expect": lambda: inference.Expect(**HEADER, step=1 << 40),
    "lost": lambda: inference.HopLost(**HEADER, index=127, code=WIDE * 64, message=WIDE * 2_000),
    "progress?": lambda: progress.ProgressRequest(session=SESSION, unit=Blocks(9_998, 10_000)),
    "progress": lambda: progress.Progress(
        epoch=1 << 20, received=1 << 40, computed=1 << 40, sent=1 << 40, is_busy=True, has_given_up=True, lost=127
    ),
    "reply": lambda: inference.Reply(
        **HEADER,
        step=1 << 40,
        counts=COUNTS,
        payload=empty(MAX_STEP_TOKENS),
        ids=tensors.WireTensor("int32", (MAX_STEP_TOKENS, 0, 1 << 24, 1 << 24), "none", b""),
        totals=tensors.WireTensor("float32", (MAX_STEP_TOKENS, 2), "none", bytes(8 * MAX_STEP_TOKENS)),
        compute_ms=1e9,
        times=bytes(MAX_TIMES_BYTES),
    ),
    "pass": lambda: training.Pass(
        run=MODEL, version=MAX_VERSION, index=4_095, route=longest_grant().route, hop=127, skip=PARTS, payload=STATES,
        labels=TOKEN_IDS, positions=TOKEN_IDS, num_targets=1 << 16, codec="bfloat16", budget_ms=training.MAX_BUDGET_MS,
    ),
    "output": lambda: training.Output(hidden=STATES),
    "gradient": lambda: training.Gradient(gradient=STATES),
    "result": lambda: training.Result(gradient=STATES, loss_sum=1e30, receipts=receipts()),
    "pass_failed": lambda: training.PassFailed(hop=127, code=WIDE * 64, message=WIDE * 2_000),
    "run_status?": lambda: run_status.StatusRequest(run=MODEL),
    "run_status": lambda: run_status.RunStatus(
        num_micro_batches=4_096, units=statuses(), queue=1 << 20, forward_ms=1e9, backward_ms=1e9, served=(MAX_VERSION,) * 8,
        kept=KEPT, held=(HELD,) * held.MAX_HELD, has_memory=True,
    ),
    "restore": lambda: kept.Restore(run=MODEL, kept=KEPT),
    "restored": lambda: kept.Restored(version=MAX_VERSION),
    "hold": lambda: held.Hold(run=MODEL, kept=KEPT),
    "holding": lambda: held.Holding(version=MAX_VERSION),
    "publish": lambda: run_status.Publish(run=MODEL, version=MAX_VERSION, chains=dict.fromkeys(UNITS, bytes(32))),
    "published": lambda: run_status.Published(version=MAX_VERSION),
    "order": lambda: orders.Order(action="ban", peer=ALICE.peer_id, seconds=orders.MAX_BAN_S),
    "ordered": lambda: orders.OrderReply(
        done=WIDE * orders.MAX_DONE, may=orders.ACTIONS, state="leaving",
        bans=(orders.Ban(peer=ALICE.peer_id, seconds=orders.MAX_BAN_S),) * orders.MAX_BANS,
    ),
    "lease?": lambda: leases.LeaseRequest(
        run=MODEL, version=MAX_VERSION, running=tuple(range(4_032, 4_096)), wanted=64, shown=MAX_VERSION,
        done=(leases.Done(index=4_095, loss_sum=1e30, num_targets=1 << 16, num_bytes=1 << 48),) * leases.MAX_DONE,
    ),
    "lease": lambda: leases.LeaseAnswer(
        coordinator=ALICE.peer_id, version=MAX_VERSION, indices=tuple(range(4_032, 4_096)), deadline_s=1e9, is_again=True,
        finished=(leases.Finished(version=MAX_VERSION, loss_sum=1e33, num_targets=1 << 28, seconds=1e9, closing_s=1e9,
                                  num_stages=1 << 16, num_bytes=1 << 60, num_redone=1 << 24, grad_norm=1e30),) * leases.MAX_FINISHED,
    ),
}  # fmt: skip


def parse(kind: str) -> Callable[[bytes], Any]:
    if kind in ("weights?", "hashes?", "pieces?", "file?"):
        return pieces.parse_request
    return pieces.parse_answer if kind in ("holdings", "hashes", "piece", "file") else parser(kind)


def header_of(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[4:8], "big")]


def test_every_kind_has_a_row() -> None:
    said = {frame.decode(message.encode()).header["t"] for name, message in SAMPLES.items() if name != "record"}
    assert said <= set(LARGEST)
    assert set(bounds.BY_KIND) - {"models"} == set(LARGEST)  # `models` is a list of names in an entry of the DHT
    assert max(row.header_bytes for row in bounds.BY_KIND.values()) <= MAX_HEADER_BYTES


@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_honest_message_of_a_kind_passes(kind: str) -> None:
    message = LARGEST[kind]()
    assert parse(kind)(message.encode()) == message


@pytest.mark.parametrize("kind", LARGEST)
def test_the_bounds_of_a_kind_are_not_much_wider_than_its_largest_message(kind: str) -> None:
    header, row = header_of(LARGEST[kind]().encode()), bounds.BY_KIND[kind]
    spare = row.header_bytes // 10 + 3 * bounds.SPARE.header_bytes
    assert row.header_bytes - spare <= len(header) <= row.header_bytes


@pytest.mark.parametrize("kind", LARGEST)
def test_a_newer_peer_may_add_a_small_field_and_no_large_one(kind: str) -> None:
    message = LARGEST[kind]()
    received = frame.decode(message.encode())
    buffers = [bytes(buffer) for buffer in received.buffers]
    for value in (7, 1.5, "text", [bytes(16), 1 << 40], {"a": [1]}):
        assert parse(kind)(frame.encode({**received.header, "zzz": value}, buffers)) == message
    row = bounds.BY_KIND[kind]
    for value in ([[]] * row.lists, bytes(row.header_bytes), [1] * row.items):
        with pytest.raises(FrameError):
            parse(kind)(frame.encode({**received.header, "zzz": value}, buffers))
    with pytest.raises(FrameError, match="buffer"):
        parse(kind)(frame.encode(received.header, [*buffers, b"more"]))


@pytest.mark.parametrize("empty_list", [b"\x90", b"\x80"], ids=["lists", "maps"])
def test_a_close_of_empty_lists_is_refused_before_it_is_unpacked(empty_list: bytes) -> None:
    """131 KB of them took 96 ms of the event loop; the walk must not take long either."""
    data = framed(b"\x82\xa1t\xa5close\xa1x\xdd" + (131_000).to_bytes(4, "big") + empty_list * 131_000)
    started = time.thread_time()
    assert peak_bytes(lambda: inference.parse(data)) < 20_000
    assert time.thread_time() - started < 0.02


def test_the_walk_ends_at_the_first_item_too_many() -> None:
    honest = msgpack.packb([1] * 100)
    msgpack_bounds.check(honest, 101, 1)
    for items, lists in ((100, 1), (101, 0)):
        with pytest.raises(FrameError, match="limits of this kind"):
            msgpack_bounds.check(honest, items, lists)
    with pytest.raises(FrameError, match="limits"):  # what follows is not even looked at
        msgpack_bounds.check(msgpack.packb([[]] * 9) + b"\xc1", 1_000, 5)


@pytest.mark.parametrize("num_lists", [bounds.BY_KIND["close"].lists, 200])
def test_bounds_hold_for_headers_of_any_length(num_lists: int) -> None:
    with pytest.raises(FrameError, match="limits of this kind"):
        inference.parse(frame.encode({"t": "close", "session": SESSION, "below": True, "zzz": [[]] * num_lists}))
