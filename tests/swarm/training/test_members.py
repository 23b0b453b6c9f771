"""A trainer knows its stages by records and what they say."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from protocols import services
from protocols.defaults import RECORD_LIFE_S
from protocols.errors import DeadlineError, NoRouteError, PeerUnreachableError
from protocols.identity import from_seed
from protocols.ids import ModelId, PeerId
from protocols.parts_of_units import parts_of
from protocols.records import PeerRecord
from protocols.roles import Role
from protocols.run_status import RunStatus, UnitStatus
from protocols.units import Blocks, Unit
from swarm.awake import PIECE_S, STOPPED_S
from swarm.clock import Clock
from swarm.directory.snapshot import Snapshot
from swarm.rpc import Call, ChannelPool, RpcServer, tls
from swarm.training import known_records
from swarm.training import members as members_module
from swarm.training.known_records import KnownRecords
from swarm.training.members import RECORDS_S, STATUS_S, Members

RUN = ModelId("toy", "ab" * 32)


@dataclass
class OneStage:
    """A directory with one stage, which says what it is told to, and a clock."""

    units: tuple[Unit, ...] = (Blocks(0, 1),)
    num_read: int = 0
    late_s: list[float] = field(default_factory=list)
    """By the trainer's clock: the first questions are answered so late, after their deadline."""
    stops_s: list[float] = field(default_factory=list)
    """For so long the process stands still, with the trainer in it, before the first questions are answered."""
    now_s: float = 0.0
    peers: tuple[PeerRecord, ...] = field(default=())
    withdrawn: frozenset[PeerId] = frozenset()
    is_down: bool = False
    """p2pd is being started again."""

    async def snapshot(self, model: str) -> Snapshot:
        self.num_read += 1
        if self.is_down:
            raise PeerUnreachableError("the DHT is not running here")
        return Snapshot(model, self.peers, 0.0, self.withdrawn)

    async def status(self, request: bytes, call: Call) -> bytes:
        if self.stops_s:
            stand_still(self.stops_s.pop(0))
        if self.late_s:
            self.now_s += self.late_s.pop(0)
            raise DeadlineError("too late")
        units = tuple(
            UnitStatus(unit=unit, version=3, chain=bytes(32), ledger=dict.fromkeys(parts_of(unit), 0)) for unit in self.units
        )
        return RunStatus(num_micro_batches=8, units=units).encode()


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture
async def stage() -> AsyncIterator[tuple[OneStage, Members]]:
    found, identity = OneStage(), from_seed(b"stage".ljust(32))
    certificate, pool = tls.make(identity), ChannelPool(from_seed(b"trainer".ljust(32)))
    server = RpcServer(identity, certificate, {services.RUN_STATUS.name: found.status})
    address = f"127.0.0.1:{await server.start()}"
    found.peers = (
        PeerRecord(
            peer=identity.peer_id, addresses=(address,), certificate=certificate.der, roles=(Role("stage", RUN, Blocks(0, 1)),)
        ),
    )
    yield found, Members(RUN, found, pool, clock=Clock(now_s=lambda: found.now_s))
    await pool.close()
    await server.stop()


async def test_a_stage_that_trains_no_block_any_more_is_left_out(stage: tuple[OneStage, Members]) -> None:
    one, members = stage
    (known,) = await members.look()
    one.units = ()
    assert await members.ask_again(known.peer) is None
    assert not members.stages


async def test_the_directory_is_not_read_at_every_look(stage: tuple[OneStage, Members]) -> None:
    one, members = stage
    for _ in range(3):
        assert len(await members.look()) == 1
    assert one.num_read == 1
    await members.look(is_anew=True)
    assert one.num_read == 2
    one.now_s += RECORDS_S
    await members.look()
    assert one.num_read == 3, "a newcomer is found after a while"
    one.units = ()
    await members.look()
    await members.look()
    assert one.num_read == 4, "at once if a stage has gone: it may be back at another address"


async def test_a_peer_does_not_call_itself(stage: tuple[OneStage, Members]) -> None:
    one, others = stage
    (known,) = await others.look()
    members = Members(RUN, one, others.pool, me=known.peer)
    assert not await members.look() and not await members.look_at_all()


async def test_a_stage_that_does_not_answer_in_time_is_left_out(stage: tuple[OneStage, Members]) -> None:
    one, members = stage
    one.late_s = [STATUS_S]
    assert not await members.look() and not await members.look(), "nor asked again at once"
    one.now_s += STATUS_S
    assert len(await members.look()) == 1


async def test_a_trainer_that_was_stopped_itself_asks_again(
    stage: tuple[OneStage, Members], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGSTOP and SIGCONT, or with no processor for a while, every deadline has passed; the stages are not to blame."""
    one, members = stage
    await members.look()  # connected
    limit_s, stop_s = 0.5, PIECE_S + STOPPED_S + 0.1
    assert limit_s < stop_s < limit_s + STOPPED_S, "its own deadline is noticed late by less than STOPPED_S"
    monkeypatch.setattr(members_module, "STATUS_S", limit_s)
    one.stops_s = [stop_s]
    assert len(await members.look()) == 1 and not one.stops_s
    one.stops_s = [stop_s] * 3
    assert not await members.look(), "once only"
    assert len(one.stops_s) == 1


async def test_a_directory_that_shows_nobody_yet_makes_no_stage_unknown(stage: tuple[OneStage, Members]) -> None:
    """p2pd has been started again, and no member of the DHT is joined yet: its routing table is empty."""
    one, members = stage
    (record,) = one.peers
    assert [holder.record for holder in await members.look_at_all()] == [record]
    one.is_down = True
    assert [holder.record for holder in await members.look_at_all()] == [record]
    one.is_down, one.peers = False, ()
    one.now_s += RECORD_LIFE_S / 2
    assert [holder.record for holder in await members.look_at_all()] == [record]
    assert [found.record for found in await members.look(is_anew=True)] == [record]
    one.now_s += RECORD_LIFE_S / 2
    assert not await members.look_at_all(), "its record would have expired"


async def test_a_stage_that_has_withdrawn_is_not_asked(stage: tuple[OneStage, Members]) -> None:
    one, members = stage
    (known,) = await members.look_at_all()
    one.peers, one.withdrawn = (), frozenset((known.record.peer,))
    assert not await members.look_at_all()


async def test_nobody_is_known_to_be_there_before_the_directory_was_read(stage: tuple[OneStage, Members]) -> None:
    """A stage that begins would take it for a run without other stages."""
    one, members = stage
    one.is_down = True
    with pytest.raises(NoRouteError, match=r"the peers of toy are not known yet: the DHT"):
        await members.look_at_all()
    assert not await members.look()
    one.is_down = False
    assert len(await members.look_at_all()) == 1


async def test_records_that_are_shown_no_more_are_bounded(
    stage: tuple[OneStage, Members], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identities cost nothing: a peer may announce others at each look."""
    monkeypatch.setattr(known_records, "MAX_ENTRIES", 3)
    one, _ = stage
    (record,) = one.peers
    known = KnownRecords(RUN, one, None, Clock(now_s=lambda: one.now_s))
    made_up = [replace(record, peer=from_seed(bytes([number]) * 32).peer_id) for number in range(4)]
    for peers in ((made_up[0],), (made_up[1], record), tuple(made_up[2:])):
        one.peers = peers
        shown = await known.read(0.0)
    assert [one.peer for one in shown] == [one.peer for one in (record, *made_up[2:])]
