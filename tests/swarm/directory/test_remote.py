"""Signed entries arrive by gRPC from any peer; liars can only omit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgpack
import pytest

from protocols import frame
from protocols.directory import DirectoryReply, DirectoryRequest
from protocols.entries import SignedEntry, key_id, packed_subkey
from protocols.errors import BadRequestError, OverloadedError, PeerUnreachableError
from protocols.identity import Identity, from_seed
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord, signed_bytes
from protocols.services import Method
from swarm.directory import answering
from swarm.directory.answering import Answers
from swarm.directory.remote import MAX_CHECKED, RemoteDirectory, log
from swarm.directory.sources import FANOUT, MAX_LOST, MAX_UNTRIED, Source, Sources
from swarm.rpc.call import Call
from tests.hosting import hosted
from tests.logged import logged

ALICE, BOB, CAROL, DAVE = (from_seed(bytes([number]) * 32) for number in (21, 22, 23, 24))
NOW_S = 1_000.0


def said(author: Identity, payload: bytes, model: str = "tiny", expires_s: float = 1_060.0) -> tuple[PeerId, SignedEntry]:
    key = DirectoryRequest(swarm="test", model=model).key(author.peer_id)
    packed = msgpack.packb(payload)
    signature = author.sign(signed_bytes(key_id(key), packed_subkey(author.peer_id), packed, expires_s))
    return author.peer_id, SignedEntry(packed + signature, expires_s)


def record(author: Identity, **changes: object) -> tuple[PeerId, SignedEntry]:
    span = hosted(ModelId("tiny", "a" * 64), Span(0, 4), 4)
    state, expires_s = str(changes.get("state", "serving")), float(str(changes.get("expires_s", 1_060.0)))
    made = PeerRecord(peer=author.peer_id, addresses=(f"{author.peer_id[-4:]}:1",), hosted=span, state=state)
    return said(author, made.encode(), expires_s=expires_s)


@dataclass
class Peers:
    """Peers that answer what they are told to; one without an answer is dead."""

    answers: dict[PeerId, list[tuple[PeerId, SignedEntry]] | Exception]
    asked: list[PeerId] = field(default_factory=list)

    async def channel(self, peer: PeerId, addresses: Sequence[str] = (), certificate: bytes = b"") -> Line:
        self.asked.append(peer)
        if peer not in self.answers:
            raise PeerUnreachableError(f"no answer at {addresses}")
        return Line(self.answers[peer])


@dataclass
class Line:
    answer: list[tuple[PeerId, SignedEntry]] | Exception
    address: str = "192.168.1.7:4002"

    async def unary(self, method: Method, request: bytes, timeout_s: float | None = None) -> bytes:
        assert method.name == "directory"
        if isinstance(self.answer, Exception):
            raise self.answer
        return DirectoryReply(tuple(self.answer)).encode()


def directory(peers: Peers, *given: Identity, clock: list[float] | None = None) -> RemoteDirectory:
    now = clock or [NOW_S]
    sources = [Source(peer=one.peer_id, addresses=("given:1",), is_given=True) for one in given]
    return RemoteDirectory("test", peers, sources, lambda: now[0])


async def seen(remote: RemoteDirectory) -> set[PeerId]:
    return {peer.peer for peer in (await remote.snapshot("tiny")).peers}


async def test_one_who_leaves_something_out_hides_nothing() -> None:
    peers = Peers({ALICE.peer_id: [record(CAROL)], BOB.peer_id: [record(CAROL), record(DAVE)]})
    assert await seen(directory(peers, ALICE, BOB)) == {CAROL.peer_id, DAVE.peer_id}


async def test_a_forged_entry_is_dropped_and_the_rest_of_the_answer_counts() -> None:
    author, real = record(CAROL)
    forged = (DAVE.peer_id, real)
    changed = (author, SignedEntry(real.value.replace(b"serving", b"joining"), real.expires_s))
    peers = Peers({ALICE.peer_id: [forged, changed, record(BOB)]})
    assert await seen(directory(peers, ALICE)) == {BOB.peer_id}


async def test_the_newest_of_each_author_counts_and_a_replay_does_not_bring_the_old_back() -> None:
    old, new = record(CAROL, state="joining", expires_s=1_050.0), record(CAROL, expires_s=1_060.0)
    peers = Peers({ALICE.peer_id: [new], BOB.peer_id: [old]})
    remote = directory(peers, ALICE, BOB)
    assert [peer.state for peer in (await remote.snapshot("tiny")).peers] == ["serving"]
    peers.answers[ALICE.peer_id] = [old]
    assert [peer.state for peer in (await remote.snapshot("tiny")).peers] == ["serving"]
    peers.answers[BOB.peer_id] = [said(CAROL, b"", expires_s=1_061.0)]  # it left
    assert await seen(remote) == set()


async def test_what_has_expired_is_forgotten() -> None:
    clock = [NOW_S]
    peers = Peers({ALICE.peer_id: [record(CAROL, expires_s=1_010.0), record(DAVE)]})
    remote = directory(peers, ALICE, clock=clock)
    assert await seen(remote) == {CAROL.peer_id, DAVE.peer_id}
    clock[0] = 1_020.0
    assert await seen(remote) == {DAVE.peer_id}


async def test_peers_that_are_heard_of_are_asked_too_and_dropped_when_they_are_dead() -> None:
    peers = Peers({ALICE.peer_id: [record(BOB), record(CAROL)], BOB.peer_id: [record(DAVE)]})
    remote = directory(peers, ALICE)
    assert await seen(remote) == {BOB.peer_id, CAROL.peer_id}
    assert set(remote.sources) == {ALICE.peer_id, BOB.peer_id, CAROL.peer_id}
    assert await seen(remote) == {BOB.peer_id, CAROL.peer_id, DAVE.peer_id}  # carol is dead, bob knows dave
    assert CAROL.peer_id in peers.asked and CAROL.peer_id not in remote.sources


async def test_the_next_peers_are_asked_where_the_first_are_dead() -> None:
    dead = [from_seed(bytes([number]) * 32) for number in range(40, 40 + FANOUT)]
    peers = Peers({ALICE.peer_id: [record(BOB)]})
    remote = directory(peers, *dead, ALICE)
    assert await seen(remote) == {BOB.peer_id}
    assert ALICE.peer_id in remote.sources and set(remote.sources) >= {one.peer_id for one in dead}  # given ones stay


async def test_a_client_comes_back_by_those_who_answered_once_if_the_given_ones_are_gone() -> None:
    """Its network was down for a while, and the node that its user named has left for good."""
    peers = Peers({ALICE.peer_id: [record(BOB)], BOB.peer_id: [record(CAROL)]})
    clock = [NOW_S]
    remote = directory(peers, ALICE, clock=clock)
    await seen(remote)
    assert await seen(remote) == {BOB.peer_id, CAROL.peer_id}
    answers, peers.answers = peers.answers, {}
    clock[0] += 100.0
    with pytest.raises(PeerUnreachableError):
        await seen(remote)
    peers.answers = {BOB.peer_id: [record(DAVE, expires_s=clock[0] + 30)]}
    assert ALICE.peer_id in answers and await seen(remote) == {DAVE.peer_id}
    assert remote.sources[-1] != BOB.peer_id, "it has answered again, so it is asked as others are"


def test_few_of_the_lost_are_remembered_and_nobody_who_never_answered() -> None:
    rng = random.Random(1)
    peers = [from_seed(number.to_bytes(32)).peer_id for number in range(2_000, 2_000 + 2 * MAX_LOST)]
    sources = Sources([], rng)
    for peer in peers:
        source = Source(peer=peer, addresses=("x:1",))
        sources.answered(source)
        sources.failed(source)
    sources.failed(Source(peer=DAVE.peer_id, addresses=("x:1",)))
    assert [source.peer for source in sources] == peers[: MAX_LOST - 1 : -1]


def test_a_host_with_many_names_pushes_out_none_that_was_lost_before() -> None:
    sources = Sources([], random.Random(1))
    peers = [from_seed(number.to_bytes(32)).peer_id for number in range(4 * MAX_LOST)]
    for number, peer in enumerate(peers):
        source = Source(peer=peer, addresses=("made.up:1",))
        sources.answered(source, "8.8.8.8:1" if number >= 4 else f"9.9.{number}.9:1")
        sources.failed(source)
    kept = [source.peer for source in sources]
    assert len(kept) == MAX_LOST and set(peers[:4]) < set(kept)


def test_a_peer_that_was_started_again_elsewhere_is_asked_there() -> None:
    """A given one at its new address and at the one that was given; one that failed at its old address without a pause."""
    given = Source(peer=ALICE.peer_id, addresses=("old:1",), is_given=True)
    sources = Sources([given], random.Random(1))

    def asked() -> dict[PeerId, tuple[str, ...]]:
        return {source.peer: source.addresses for source in sources}

    for addresses in (("new:1",), ("newer:1",)):
        sources.learn([at(ALICE, *addresses)])
        assert asked() == {ALICE.peer_id: (*addresses, "old:1")}
    (source,) = sources
    sources.failed(source)
    assert asked() == {ALICE.peer_id: ("newer:1", "old:1")}

    sources.learn([at(BOB, "old:1")])
    sources.failed(Source(peer=BOB.peer_id, addresses=("old:1",)))
    sources.learn([at(BOB, "old:1")])
    assert BOB.peer_id not in asked()
    sources.learn([at(BOB, "new:1")])
    assert asked()[BOB.peer_id] == ("new:1",)


def at(peer: Identity, *addresses: str) -> PeerRecord:
    return PeerRecord(peer=peer.peer_id, addresses=addresses, hosted=hosted(ModelId("tiny", "a" * 64), Span(0, 4), 4))


def crowd(count: int) -> list[tuple[PeerId, SignedEntry]]:
    return [record(from_seed(number.to_bytes(32))) for number in range(1_000, 1_000 + count)]


async def test_made_up_peers_delay_no_look_and_push_out_no_source() -> None:
    """64 silent names stood before all that had answered, three at a time, 3 s each."""
    peers = Peers({ALICE.peer_id: [record(BOB), *crowd(300)], BOB.peer_id: [record(CAROL), *crowd(300)]})
    remote = directory(peers, ALICE, BOB)
    assert await seen(remote) > {BOB.peer_id, CAROL.peer_id}
    assert len(remote.sources) <= 2 + MAX_UNTRIED
    for _ in range(5):
        peers.asked.clear()
        await seen(remote)
        assert {ALICE.peer_id, BOB.peer_id} <= set(peers.asked) and len(peers.asked) == FANOUT  # one of them is a newcomer
    assert {ALICE.peer_id, BOB.peer_id} <= set(remote.sources[:3])


async def test_a_flooded_answer_costs_a_bounded_number_of_checks_and_its_first_entries_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forged = [(peer, SignedEntry(entry.value[:-1] + b"?", entry.expires_s)) for peer, entry in crowd(1_000)]
    peers = Peers({ALICE.peer_id: [record(BOB), *crowd(1_500)], CAROL.peer_id: [*forged, record(DAVE)]})
    found = await seen(directory(peers, ALICE, CAROL))
    assert BOB.peer_id in found and len(found) == MAX_CHECKED
    assert [line.count("entries that their authors have not signed") for line in logged(caplog, log)] == [1]


async def test_a_client_that_was_told_too_much_still_learns_of_new_peers_and_keeps_whom_it_has_met() -> None:
    peers = Peers({ALICE.peer_id: [record(BOB), *crowd(200)]})
    remote = RemoteDirectory(
        "test",
        peers,
        [Source(peer=ALICE.peer_id, addresses=("given:1",), is_given=True)],
        lambda: NOW_S,
        has_met=lambda peer: peer == BOB.peer_id,
        max_entries=50,
    )
    assert BOB.peer_id in await seen(remote)
    peers.answers[ALICE.peer_id] = [record(CAROL)]
    found = await seen(remote)
    assert {BOB.peer_id, CAROL.peer_id} <= found and len(found) == 50


async def test_nobody_answers_is_said_but_what_was_told_before_still_holds() -> None:
    peers = Peers({ALICE.peer_id: [record(BOB)]})
    remote = directory(peers, ALICE)
    await remote.snapshot("tiny")
    peers.answers.clear()
    assert await seen(remote) == {BOB.peer_id}
    with pytest.raises(PeerUnreachableError, match="check --peer"):
        await remote.snapshot("other")


async def test_what_is_wrong_with_the_question_is_said_as_it_was_heard() -> None:
    peers = Peers({ALICE.peer_id: BadRequestError("this peer is in swarm 'a', not 'test'")})
    with pytest.raises(BadRequestError, match="swarm 'a'"):
        await directory(peers, ALICE).snapshot("tiny")


async def test_one_peer_s_refusal_of_the_question_does_not_end_the_look() -> None:
    """A liar among the first that are asked, and others there that are silent: the honest one comes in a later round."""
    silent = [from_seed(bytes([number]) * 32) for number in range(31, 30 + FANOUT)]
    peers = Peers({ALICE.peer_id: BadRequestError("no"), DAVE.peer_id: [record(BOB)]})
    remote = directory(peers, ALICE, *silent, DAVE)
    assert await seen(remote) == {BOB.peer_id}


async def test_names_of_models_are_counted() -> None:
    def names(*models: str) -> bytes:
        return frame.encode({"t": "models", "models": list(models)})

    told = [said(ALICE, names("tiny", "big"), ""), said(BOB, names("big"), ""), said(CAROL, b"nonsense", "")]
    assert await directory(Peers({ALICE.peer_id: told}), ALICE).models() == {"big": 2, "tiny": 1}


# --- the side that answers


class Looks:
    """A directory that counts how often it is looked into; `gate` holds the looks."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def signed(self, model: str) -> DirectoryReply:
        self.models.append(model)
        await self.gate.wait()
        return DirectoryReply((record(ALICE),))


def asked(model: str, swarm: str = "test") -> bytes:
    return DirectoryRequest(swarm=swarm, model=model).encode()


CALL = Call(BOB.peer_id, lambda: None)


async def test_a_second_question_within_a_moment_costs_no_look() -> None:
    looks, clock = Looks(), [0.0]
    answers = Answers("test", lambda: looks, lambda: clock[0])
    looks.gate.clear()
    both = [asyncio.create_task(answers.answer(asked("tiny"), CALL)) for _ in range(2)]
    await asyncio.sleep(0)
    looks.gate.set()
    first, second = await asyncio.gather(*both)
    assert first == second and DirectoryReply.parse(first).entries[0][0] == ALICE.peer_id
    await answers.answer(asked("tiny"), CALL)
    assert looks.models == ["tiny"]
    clock[0] = answering.FRESH_S + 0.1
    await answers.answer(asked("tiny"), CALL)
    assert looks.models == ["tiny", "tiny"]


async def test_strangers_cannot_make_us_hammer_the_dht() -> None:
    looks, clock = Looks(), [0.0]
    answers = Answers("test", lambda: looks, lambda: clock[0])
    for number in range(answering.MAX_LOOKS_PER_CALLER):
        await answers.answer(asked(f"model {number}"), CALL)
    with pytest.raises(OverloadedError, match="you have caused"):
        await answers.answer(asked("one more"), CALL)
    await answers.answer(asked("model 0"), CALL)  # known already: free
    await answers.answer(asked("one more"), Call(CAROL.peer_id, lambda: None))
    clock[0] = answering.WINDOW_S
    await answers.answer(asked("another"), CALL)

    looks.gate.clear()
    callers = [from_seed(bytes([number]) * 32) for number in range(50, 50 + answering.MAX_LOOKS)]
    running = [
        asyncio.create_task(answers.answer(asked(f"m{n}"), Call(one.peer_id, lambda: None))) for n, one in enumerate(callers)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="looks into the directory are running"):
        await answers.answer(asked("too many"), Call(DAVE.peer_id, lambda: None))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await answers.close()


async def test_one_caller_cannot_take_all_looks_and_an_older_answer_is_better_than_none() -> None:
    looks, clock = Looks(), [0.0]
    answers = Answers("test", lambda: looks, lambda: clock[0])
    await answers.answer(asked("tiny"), CALL)
    clock[0] = answering.FRESH_S + 1.0
    looks.gate.clear()
    running = [asyncio.create_task(answers.answer(asked(f"m{n}"), CALL)) for n in range(answering.MAX_AT_ONCE)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="of them yours"):
        await answers.answer(asked("another"), CALL)
    assert DirectoryReply.parse(await answers.answer(asked("tiny"), CALL)).entries  # told a second ago
    others = [asyncio.create_task(answers.answer(asked("another"), Call(CAROL.peer_id, lambda: None)))]
    await asyncio.sleep(0)
    looks.gate.set()
    await asyncio.gather(*running, *others)


async def test_the_callers_of_one_network_have_a_bound_together() -> None:
    looks, clock = Looks(), [0.0]
    answers = Answers("test", lambda: looks, lambda: clock[0])

    def call(number: int, address: str) -> Call:
        return Call(from_seed(number.to_bytes(32)).peer_id, lambda: None, address)

    for number in range(answering.MAX_LOOKS_PER_PREFIX):
        await answers.answer(asked(f"model {number}"), call(100 + number, f"8.8.8.{number}"))
    with pytest.raises(OverloadedError, match="of your network"):
        await answers.answer(asked("one more"), call(999, "8.8.8.250"))
    await answers.answer(asked("one more"), call(999, "9.9.9.9"))
    for number in range(2 * answering.MAX_LOOKS_PER_PREFIX):
        await answers.answer(asked(f"at home {number}"), call(2_000 + number, "192.168.1.7"))


async def test_what_a_greedy_caller_is_refused_costs_its_network_nothing() -> None:
    looks, clock = Looks(), [0.0]
    answers = Answers("test", lambda: looks, lambda: clock[0])
    greedy, other = Call(BOB.peer_id, lambda: None, "8.8.8.1"), Call(CAROL.peer_id, lambda: None, "8.8.8.2")
    refused = 0
    for number in range(2 * answering.MAX_LOOKS_PER_PREFIX):
        try:
            await answers.answer(asked(f"model {number}"), greedy)
        except OverloadedError:
            refused += 1
    assert refused == 2 * answering.MAX_LOOKS_PER_PREFIX - answering.MAX_LOOKS_PER_CALLER
    assert await answers.answer(asked("tiny"), other)


async def test_another_swarms_question_is_refused() -> None:
    with pytest.raises(BadRequestError, match="'test', not 'other'"):
        await Answers("test", Looks).answer(asked("tiny", "other"), CALL)
