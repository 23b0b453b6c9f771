"""No message of 64 KB blocks the event loop for 20 ms.

Every kind and every field is tried, with the worst content that fits.

CPU time of the thread is measured, and the best of three counts, so that a busy machine makes no test fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgpack
import pytest
import torch

from protocols import bounds, directory, entries, frame, inference, services
from protocols.defaults import MAX_ROWS
from protocols.errors import SwarmError
from protocols.identity import from_seed
from protocols.ids import SessionId, Span
from protocols.inference import Close, Expect, Grant, History, Open, Repeat, Reroute, Rows, Step
from swarm.directory.remote import RemoteDirectory, Source
from swarm.rpc.pool import ChannelPool
from tests.hostile.parsers import all_parsers
from tests.hostile.turns import watched
from tests.protocols.test_bounds import LARGEST, header_of, parse
from tests.protocols.test_frame import framed
from tests.swarm.inference.probe import FakeHop, Probe, absent_hop, grant_of, hop_of, step_of
from tests.swarm.inference.toy import WIDTH, ToyNode, ToySwarm, new_identity, until

LIMIT_S = 0.02
ATTEMPTS = 10
"""On a machine with other work, the same callback has taken 6, 13 and 25 ms of processor time."""

SIZE = 64 << 10
PARSERS = all_parsers()


@pytest.fixture(autouse=True, scope="module")
def _no_old_objects() -> Iterator[None]:
    """A test process holds a million objects: a collection of all of them takes 70 ms to 1.4 s, and is not the message's."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # as `tests/conftest.py` does at the start


def freeze() -> None:
    """Nor does what came before count, such as the test before or the attempt before."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_old_garbage(_no_old_objects: None) -> None:
    freeze()


def cpu_s(read: Callable[[bytes], object], data: bytes) -> float:
    """The best of ATTEMPTS; the first that is within the limit needs no other."""
    best = float("inf")
    for _ in range(ATTEMPTS):
        started = time.thread_time()
        with contextlib.suppress(SwarmError):
            read(data)
        best = min(best, time.thread_time() - started)
        if best < LIMIT_S:
            break
    return best


def _list(items: bytes, each: int = 1) -> bytes:
    return b"\xdd" + (len(items) // each).to_bytes(4, "big") + items


ROOM = SIZE - 4_000
FILLINGS: dict[str, bytes] = {
    "empty lists": _list(b"\x90" * ROOM),
    "empty maps": _list(b"\x80" * ROOM),
    "ones": _list(b"\x01" * ROOM),
    "numbers of 5 bytes": _list(b"\xce\xff\xff\xff\xff" * (ROOM // 5), 5),
    "empty texts": _list(b"\xa0" * ROOM),
    "pairs": _list(b"\x92\xa4rows\x90" * (ROOM // 7), 7),
    "operations of all sequences": _list(b"\x92\xa6repeat\xcd\x04\x00" * (ROOM // 11), 11),
    "lists of lists": _list(_list(b"\x90" * 250) * (ROOM // 255), 255),
    "15 deep": _list(b"\x91" * 13 + b"\x90" * (ROOM - 13)),
    "1,000 deep": b"\x91" * 1_000 + b"\x90",
    "a promise of 4 billion": b"\xdd\xff\xff\xff\xff" + b"\x90" * ROOM,
    "a map of one key": b"\xdf" + (ROOM // 3).to_bytes(4, "big") + b"\xa1k\x90" * (ROOM // 3),
    "long text": b"\xdb" + ROOM.to_bytes(4, "big") + b"x" * ROOM,
    "long text of wide letters": b"\xdb" + ROOM.to_bytes(4, "big") + "\U0001f300".encode() * (ROOM // 4),
    "long bytes": b"\xc6" + ROOM.to_bytes(4, "big") + bytes(ROOM),
    "many addresses": _list(b"\xb5255.255.255.255:65535" * (ROOM // 22), 22),
    "many peers": _list((b"\xd9\x34" + b"12D3KooW" + b"K" * 44) * (ROOM // 54), 54),
}
"""What a field may be filled with, as msgpack."""


def filled(kind: str) -> Iterator[tuple[str, bytes]]:
    """The kind's largest honest message, with each of its fields, and an unknown one, filled with each filling."""
    data = LARGEST[kind]().encode()
    header = msgpack.unpackb(header_of(data))
    small = {key: value for key, value in header.items() if len(msgpack.packb(value)) < 1_000}
    for key in [*header, "zzz"]:
        for what, filling in FILLINGS.items():
            others = b"".join(msgpack.packb(other) + msgpack.packb(value) for other, value in small.items() if other != key)
            count = len([other for other in small if other != key]) + 1
            packed = b"\xde" + count.to_bytes(2, "big") + others + msgpack.packb(key) + filling
            yield f"{kind}: {key} of {what}", framed(packed, bytes(1_024))[:SIZE]


@pytest.mark.parametrize("kind", sorted(bounds.BY_KIND.keys() - {"models"}))
def test_no_field_of_any_message_makes_its_parsing_dear(kind: str) -> None:
    dear = {what: spent for what, data in filled(kind) if (spent := cpu_s(parse(kind), data)) > LIMIT_S}
    assert not dear, {what: f"{spent * 1e3:.0f} ms" for what, spent in dear.items()}


@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_honest_message_is_parsed_in_time(kind: str) -> None:
    assert cpu_s(parse(kind), LARGEST[kind]().encode()[: 4 * SIZE]) < 2 * LIMIT_S


@pytest.mark.parametrize("name", PARSERS)
def test_what_is_no_message_is_read_in_time_as_well(name: str) -> None:
    """Records, entries, manifests, files, lists, texts: the sample over and over, and each byte 64 KB long."""
    parser = PARSERS[name]
    for sample in parser.samples:
        for data in (
            sample * (SIZE // max(1, len(sample))),
            *(sample[:1] + bytes([byte]) * (SIZE - 1) for byte in b"\0[{1\n\x90\xdc"),
        ):
            assert cpu_s(parser.read, data) < LIMIT_S, data[:60].hex()


def test_every_call_of_the_service_table_is_covered() -> None:
    covered = {"hello", "about", "manifest", "directory", "pieces", "dial_back", "session", "attach", "progress", "order"}
    covered |= {"train", "run_status", "publish", "lease", "journal", "restore", "hold", "state"}
    covered |= {"close", "card", "prepare", "slice", "decide", "decision", "apply"}
    assert {method.name for method in services.ALL} <= covered, "add the messages of the new call to LARGEST and to bounds.py"


# --- what a node's loop does with the messages of a session


class Attack:
    """One session whose first hop is the node, with a hop of the attacker's below it: so the node retains what it sends."""

    def __init__(self, node: ToyNode, client: Probe, fake: FakeHop) -> None:
        self.node, self.client, self.fake, self.number = node, client, fake, 0

    async def begin(self) -> None:
        self.session = SessionId(secrets.token_bytes(16))  # one that has ended is not opened again
        grant = grant_of(self.client.identity, [hop_of(self.node), hop_of(self.fake)], session=self.session)
        self.line = await self.client.open(self.node, grant)
        assert isinstance(await self.line.hear(), Expect)
        self.below = await self.fake.lines.get()
        (self.hop,) = [hop for hop in self.node.host.hops._hops.values() if hop.place.grant.session == self.session]
        self.number, self.reader = 0, asyncio.create_task(self._read())
        self.histories: asyncio.Queue[History] = asyncio.Queue()

    async def _read(self) -> None:
        with contextlib.suppress(SwarmError, TimeoutError):
            while (message := await self.below.hear()) is not None:
                if isinstance(message, History):
                    self.histories.put_nowait(message)

    async def steps(self, *steps: Step) -> tuple[float, str]:
        """Send them; the longest time that the loop is busy with them. Their retained copies are folded when they leave the window."""
        self.number += len(steps)
        with watched() as turns:
            await self.line.say(*steps)
            await until(lambda: self.hop.sequences.next_step >= self.number or self.hop.sequences.has_given_up)
        return turns.longest_s, turns.what

    async def ask_for_the_history(self) -> tuple[float, str]:
        """The hop below says twice that it holds nothing: once is what it may only say on a first route."""
        assert self.hop.down.retained.base > 0
        with watched() as turns:
            await self.below.say(*[Expect(session=self.session, epoch=0, step=0)] * 2)
            async with asyncio.timeout(60):
                history = await self.histories.get()
        assert len(history.counts) == MAX_ROWS
        return turns.longest_s, turns.what

    def step(self, counts: Sequence[int], ops: Sequence[Any] = (), positions: Sequence[int] | None = None, at: int = 0) -> Step:
        values = torch.rand(sum(counts), WIDTH)
        return step_of(self.number + at, values, counts=counts, ops=ops, session=self.session, positions=positions)


OPERATIONS = (Repeat(MAX_ROWS), Rows((0,))) * 31 + (Repeat(MAX_ROWS),)
NOTHING = 9
"""Steps that push those before them out of the window of 8."""


async def worst_steps(attack: Attack) -> dict[str, tuple[float, str]]:
    """One session after the other, each with steps that are as dear as 64 KB may be."""
    found = {}
    await attack.begin()
    await attack.steps(*(attack.step([1], at=at) for at in range(200)))
    again = (attack.step([0] * MAX_ROWS, [Rows((0,)), *OPERATIONS], at=at) for at in range(NOTHING))
    found["operations of 32,000 sequences"] = await attack.steps(*again)
    found["a history of 1,024 copies"] = await attack.ask_for_the_history()
    chosen = Rows(tuple(row // 2 for row in range(MAX_ROWS)))
    found["1,024 sequences, half of them copies, four times"] = await attack.steps(
        *(attack.step([0] * MAX_ROWS, [chosen] * 4, at=at) for at in range(2 * NOTHING))
    )
    await attack.begin()
    found["a token for each of 1,024 sequences"] = await attack.steps(
        *(attack.step([1] * MAX_ROWS, at=at) for at in range(2 * NOTHING))
    )
    await attack.begin()
    found["1,500 tokens with positions"] = await attack.steps(attack.step([1_500], positions=[1 << 20] * 1_500))
    await attack.begin()
    found["indices that name no sequence"] = await attack.steps(attack.step([1] * 8, [Rows((MAX_ROWS - 1,) * MAX_ROWS)] * 4))
    return found


async def test_no_step_stops_the_loop() -> None:
    """64 row operations stopped the loop for a second when they were folded, the history of what they made for four."""
    swarm, fake = ToySwarm(), await FakeHop(Span(2, 4)).start()
    node, client = await swarm.serve(0, 2, limit_tokens=10_000_000), Probe()
    best: dict[str, tuple[float, str]] = {}
    for _ in range(ATTEMPTS):
        freeze()
        for what, cost in (await worst_steps(Attack(node, client, fake))).items():
            best[what] = min(best.get(what, (9.0, "")), cost)
        for hop in list(node.host.hops._hops.values()):
            await hop.put(None, Close(session=hop.place.grant.session))
        await until(lambda: node.host.num_sessions == 0)
        if all(spent_s < LIMIT_S for spent_s, _ in best.values()):
            break
    await client.close()
    await fake.stop()
    await swarm.stop()
    assert all(spent_s < LIMIT_S for spent_s, _ in best.values()), best


async def test_no_route_history_or_repetition_stops_the_loop() -> None:
    swarm = ToySwarm()
    node, client = await swarm.serve(2, 3), Probe()
    above = [absent_hop(number, number + 1, client.identity) for number in range(2)]
    below = [absent_hop(number, number + 1) for number in range(3, 4)]
    route = [*above, hop_of(node), *below]
    best = 9.0
    for attempt in range(ATTEMPTS):
        freeze()
        session = SessionId(bytes([attempt + 1]) * 16)
        grant = grant_of(client.identity, route, session=session)
        line = await client.line(node)
        history = History(session=session, epoch=0, base=7, counts=(2,) * 500, payload=step_of(0, torch.rand(1_000, WIDTH)).payload,
                          positions=(1 << 20,) * 1_000)  # fmt: skip
        reroutes = [Reroute(grant=_of_epoch(grant, client, epoch), index=2) for epoch in range(1, 5)]
        with watched() as turns:
            await line.say(Open(grant=grant, index=2, dtype="float32"))
            assert isinstance(await line.hear(), Expect)
            await line.say(history, *reroutes, Close(session=session))
            await until(lambda: node.host.num_sessions == 0)
        best = min(best, turns.longest_s)
        if best < LIMIT_S:
            break
    await client.close()
    await swarm.stop()
    assert best < LIMIT_S, turns


def _of_epoch(grant: Grant, client: Probe, epoch: int) -> Grant:
    return grant_of(client.identity, grant.route, epoch=epoch, session=grant.session)


# --- what answers do to a client's loop


async def test_a_directory_s_answer_full_of_signatures_does_not_stop_the_client() -> None:
    """64 KB hold 500 entries, whose signatures take 0.15 ms each."""
    now_s, peers = time.time(), [from_seed(number.to_bytes(32, "big")) for number in range(500)]
    forged = entries.SignedEntry(b"\xc4\x02hi" + bytes(64), now_s + 60)
    reply = directory.DirectoryReply(tuple((peer.peer_id, forged) for peer in peers)).encode()
    assert SIZE * 0.8 < len(reply) < SIZE
    pool = ChannelPool(new_identity())
    source = Source(peer=peers[0].peer_id, addresses=("127.0.0.1:1",), certificate=b"")
    best = 9.0
    for _ in range(ATTEMPTS):
        told = RemoteDirectory("public", pool, [source])
        with watched() as turns:
            await told._merge(
                source, directory.DirectoryRequest(swarm="public", model="tiny"), directory.DirectoryReply.parse(reply)
            )
        best = min(best, turns.longest_s)
        await told.close()
        if best < LIMIT_S:
            break
    await pool.close()
    assert best < LIMIT_S, turns


def test_frames_of_other_kinds_cost_as_little() -> None:
    for filling in FILLINGS.values():
        packed = b"\x82\xa1t\xa6future\xa3zzz" + filling
        assert cpu_s(inference.parse, framed(packed)) < LIMIT_S
        assert cpu_s(frame.decode, framed(packed)) < LIMIT_S
