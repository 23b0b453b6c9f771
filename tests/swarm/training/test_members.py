"""A trainer knows its stages by records and what they say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from protocols import services
from protocols.errors import DeadlineError
from protocols.identity import from_seed
from protocols.ids import ModelId
from protocols.parts_of_units import parts_of
from protocols.records import PeerRecord
from protocols.roles import Role
from protocols.run_status import RunStatus, UnitStatus
from protocols.units import Blocks, Unit
from swarm.awake import STOPPED_S
from swarm.clock import Clock
from swarm.rpc import Call, ChannelPool, RpcServer, tls
from swarm.training.members import RECORDS_S, STATUS_S, Members

RUN = ModelId("toy", "ab" * 32)


@dataclass
class OneStage:
    """A directory with one stage, which says what it is told to, and a clock."""

    units: tuple[Unit, ...] = (Blocks(0, 1),)
    num_read: int = 0
    late_s: list[float] = field(default_factory=list)
    """By the trainer's clock: the first questions are answered so late, after their deadline."""
    now_s: float = 0.0
    peers: tuple[PeerRecord, ...] = field(default=())

    async def snapshot(self, model: str) -> SimpleNamespace:
        self.num_read += 1
        return SimpleNamespace(peers=self.peers)

    async def status(self, request: bytes, call: Call) -> bytes:
        if self.late_s:
            self.now_s += self.late_s.pop(0)
            raise DeadlineError("too late")
        units = tuple(
            UnitStatus(unit=unit, version=3, chain=bytes(32), ledger=dict.fromkeys(parts_of(unit), 0)) for unit in self.units
        )
        return RunStatus(num_micro_batches=8, units=units).encode()


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


async def test_a_trainer_that_was_stopped_itself_asks_again(stage: tuple[OneStage, Members]) -> None:
    """After SIGSTOP and SIGCONT, or with no processor for a while, every deadline has passed; the stages are not to blame."""
    one, members = stage
    one.late_s = [STATUS_S + STOPPED_S]
    assert len(await members.look()) == 1
    one.late_s = [2 * STATUS_S, 2 * STATUS_S, 0.0]
    assert not await members.look(), "once only"
    assert len(one.late_s) == 1
