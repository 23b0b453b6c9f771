"""What trainers note is followed over real connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from node.runs.newest_loss import newest_loss
from node.runs.trainer.journal_server import JournalServer
from node.runs.trainer.notes import Notes, noted_of
from node.watching import journals
from node.watching.journals import Followed, Journals, merged, trainers_of
from protocols import services
from protocols.errors import BadRequestError
from protocols.identity import Identity, from_seed
from protocols.ids import ModelId, PeerId
from protocols.journal import JournalPart, NotedEvent, NotedVersion
from protocols.records import PeerRecord
from protocols.roles import Role
from swarm.rpc import ChannelPool, RpcServer, tls
from swarm.rpc.call import Call
from tests.node.runs.test_notes import RUN, evaluation, event, version
from tests.protocols.samples import ALICE, BOB, CAROL

Answer = Callable[[bytes, Call], Awaitable[bytes]]


@dataclass
class Listening:
    """Trainers that listen, and one peer that watches."""

    pool: ChannelPool
    stack: contextlib.AsyncExitStack
    records: list[PeerRecord] = field(default_factory=list)
    num_asked: int = 0

    async def trainer(self, identity: Identity, answer: Answer, run: ModelId = RUN) -> None:
        async def counted(request: bytes, call: Call) -> bytes:
            self.num_asked += 1
            return await answer(request, call)

        certificate = tls.make(identity)
        server = RpcServer(identity, certificate, {services.JOURNAL.name: counted})
        address = f"127.0.0.1:{await server.start()}"
        self.stack.push_async_callback(server.stop)
        self.records.append(
            PeerRecord(peer=identity.peer_id, addresses=(address,), certificate=certificate.der, roles=(Role("trainer", run),))
        )

    async def noting(self, identity: Identity, notes: Notes, coordinator: Identity = ALICE) -> None:
        server = JournalServer()
        server.open(RUN, notes, lambda: coordinator.peer_id)
        answer: Any = server.handlers()[services.JOURNAL.name]
        await self.trainer(identity, answer)


@pytest.fixture
async def here() -> AsyncIterator[Listening]:
    async with contextlib.AsyncExitStack() as stack:
        pool = ChannelPool(from_seed(b"w" * 32))
        stack.push_async_callback(pool.close)
        yield Listening(pool, stack)


async def test_a_run_is_followed_and_only_what_is_new_is_asked_for(here: Listening) -> None:
    notes = Notes()
    for number in range(1, 201):
        notes.add(version(number, 5.0 - number / 100))
    notes.add(evaluation(200, Once="upon a time"))
    notes.add(event(200, "attic"))
    await here.noting(ALICE, notes)
    followed = Journals()
    await followed.look(here.pool, here.records)
    history = followed.histories[RUN]
    assert [note["version"] for note in history.versions] == list(range(1, 201)) and history.column("loss")[-1] == 3.0
    assert history.evaluations[-1]["samples"] == {"Once": "upon a time"} and history.events[-1].text == "attic"
    before = here.num_asked
    notes.add(version(201))
    await followed.look(here.pool, here.records)
    assert here.num_asked == before + 1 and followed.histories[RUN].versions[-1]["version"] == 201
    for number in (150, 151):  # the run has gone back
        notes.add(version(number, 1.0))
    await followed.look(here.pool, here.records)
    assert [note["version"] for note in followed.histories[RUN].versions] == list(range(1, 152))
    assert not followed.histories[RUN].evaluations
    await followed.look(here.pool, [])
    assert RUN in followed.histories, "a trainer that is gone has said what it has said"


async def test_a_trainer_that_starts_anew_is_followed_from_its_beginning(here: Listening) -> None:
    followed = Followed()
    for notes in (Notes(), Notes()):
        notes.add(version(1, 1.0))
        found, last = notes.after(0)
        followed.take(JournalPart(journal=notes.id, last=last, newest=last, notes=tuple(found)))
        notes.add(event(1))
    assert followed.last == 1 and not followed.events


async def test_the_coordinating_trainer_s_word_comes_first_and_others_fill_its_gaps(here: Listening) -> None:
    first, second = Notes(), Notes()
    for number in range(3, 7):
        first.add(version(number, 1.0))
    for number in range(1, 6):
        second.add(version(number, 9.0))
    second.add(event(4, "cellar"))
    await here.noting(BOB, second)
    await here.noting(ALICE, first)
    followed = Journals()
    await followed.look(here.pool, here.records)
    losses = {note["version"]: note["loss"] for note in followed.histories[RUN].versions}
    assert losses == {1: 9.0, 2: 9.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0}
    assert [one.text for one in followed.histories[RUN].events] == ["cellar"]


async def test_a_trainer_without_end_costs_a_bounded_number_of_questions_and_memory(here: Listening) -> None:
    async def endless(request: bytes, call: Call) -> bytes:
        number = here.num_asked * 64
        noted = tuple(
            NotedVersion(version=number + at, loss=1e30, tokens=0, tokens_per_s=0.0, grad_norm=0.0, time_s=0.0, num_stages=0)
            for at in range(64)
        )
        return JournalPart(journal=b"8 bytes.", last=number, newest=1 << 40, notes=noted).encode()

    async def empty(request: bytes, call: Call) -> bytes:
        return _nothing()

    await here.trainer(ALICE, endless)
    followed = Journals()
    for _ in range(3):
        before = here.num_asked
        await followed.look(here.pool, here.records)
        assert here.num_asked - before <= journals.MAX_PARTS
    assert len(followed.histories[RUN].versions) <= journals.MAX_VERSIONS
    here.records.clear()
    await here.trainer(BOB, empty)
    before = here.num_asked
    await followed.look(here.pool, here.records)
    assert here.num_asked == before + 1, "no notes: nothing to wait for"


async def test_a_trainer_that_answers_slowly_holds_no_look_up(here: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part comes in time, and there is always one more."""

    async def slow(request: bytes, call: Call) -> bytes:
        if here.num_asked > 1:
            await asyncio.sleep(0.25)
        return _endless(here.num_asked) if here.num_asked > 1 else _nothing()

    await here.trainer(ALICE, slow)
    await Journals().look(here.pool, here.records)  # now there is a connection
    monkeypatch.setattr(journals, "ASK_S", 2.0)
    await Journals().look(here.pool, here.records)
    assert 1 < here.num_asked <= 1 + 8


async def test_all_trainers_are_asked_for_as_many_parts(here: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()

    async def quick(request: bytes, call: Call) -> bytes:
        asked["quick"] += 1
        return _endless(asked["quick"])

    async def slow(request: bytes, call: Call) -> bytes:
        asked["slow"] += 1
        await asyncio.sleep(0.1)
        return _endless(asked["slow"])

    monkeypatch.setattr(journals, "MAX_PARTS_IN_ALL", 8)
    await here.trainer(ALICE, quick)
    await here.trainer(BOB, slow)
    await Journals().look(here.pool, here.records)
    assert asked == {"quick": 4, "slow": 4}


def _endless(number: int) -> bytes:
    noted = (NotedEvent(event="waits", version=number, time_s=0.0),)
    return JournalPart(journal=b"8 bytes.", last=number, newest=1 << 40, notes=noted).encode()


def _nothing() -> bytes:
    return JournalPart(journal=b"8 bytes.", last=0, newest=1 << 40).encode()


class Compared(NotedEvent):
    """Counts how often an event was compared."""

    count = 0

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return super().__eq__(other)

    __hash__ = NotedEvent.__hash__


def test_many_events_of_many_trainers_cost_no_comparison_of_each_with_each() -> None:
    """The trainers of 16 runs held a gateway's event loop for seconds at each look."""
    followed = {
        PeerId(f"trainer {peer}"): Followed(
            events=[Compared(event="waits", version=at, time_s=0.0, text=str(peer)) for at in range(journals.MAX_EVENTS)]
        )
        for peer in range(8)
    }
    found = merged("prose", {**followed, PeerId("again"): Followed(events=[*followed[PeerId("trainer 0")].events])})
    assert found is not None and len(found.events) == journals.MAX_EVENTS and Compared.count < 10_000


def test_a_run_that_goes_back_forgets_what_came_after() -> None:
    followed, row = Followed(), [noted_of(one) for one in (version(1), version(2), evaluation(2), version(3), version(2, 7.0))]
    followed.take(JournalPart(journal=b"8 bytes.", last=9, newest=9, notes=tuple(row)))
    assert {key: one.loss for key, one in followed.versions.items()} == {1: 2.5, 2: 7.0} and not followed.evaluations


@pytest.mark.parametrize(
    "said",
    {
        "nothing": b"",
        "another message": b"hello",
        "control characters": JournalPart(
            journal=b"8 bytes.", last=1, newest=1, notes=(NotedEvent(event="joined", version=1, time_s=0.0, text="AAAA"),)
        )
        .encode()
        .replace(b"AAAA", b"\x1b[1m"),
    }.values(),
    ids=["nothing", "another message", "control characters"],
)
async def test_garbage_is_not_taken_and_the_next_trainer_is_followed(here: Listening, said: bytes) -> None:
    async def garbage(request: bytes, call: Call) -> bytes:
        return said

    notes = Notes()
    notes.add(version(1))
    await here.trainer(ALICE, garbage)
    await here.noting(BOB, notes)
    followed = Journals()
    await followed.look(here.pool, here.records)
    assert len(followed.histories[RUN].versions) == 1 and not followed.histories[RUN].events


async def test_the_newest_loss_is_found_behind_a_long_journal_and_events(here: Listening) -> None:
    notes, silent = Notes(), Notes()
    for number in range(1, 301):
        notes.add(version(number, 5.0 - number / 100))
    notes.add(version(301, None))
    for number in range(5):
        notes.add(event(301, f"stage {number}"))
    await here.noting(ALICE, silent)
    await here.noting(BOB, notes)
    assert await newest_loss(here.pool, RUN, here.records) == 2.0
    assert await newest_loss(here.pool, RUN, here.records[:1]) is None
    assert here.num_asked <= 4


def test_numbers_that_do_not_grow_are_refused() -> None:
    followed = Followed()
    one = NotedEvent(event="joined", version=1, time_s=0.0)
    followed.take(JournalPart(journal=b"8 bytes.", last=5, newest=9, notes=(one,)))
    for last in (4, 5):
        with pytest.raises(BadRequestError, match="growing"):
            followed.take(JournalPart(journal=b"8 bytes.", last=last, newest=9, notes=(one,)))
    followed.take(JournalPart(journal=b"8 bytes.", last=5, newest=5))


def test_made_up_runs_and_trainers_are_bounded() -> None:
    """The runs of most peers are followed."""
    made = [
        PeerRecord(peer=PeerId(f"{run} {peer}"), roles=(Role("trainer", ModelId(f"run{run}", f"{run:064x}")),))
        for run in range(100)
        for peer in range(1 + run // 50)
    ]
    found = trainers_of([*made, PeerRecord(peer=CAROL.peer_id, roles=(Role("keeper", RUN),))])
    assert len(found) == journals.MAX_RUNS and all(len(one) == 2 for one in found.values()) and RUN not in found


def test_nothing_said_is_no_history() -> None:
    assert merged("prose", {ALICE.peer_id: Followed()}) is None
