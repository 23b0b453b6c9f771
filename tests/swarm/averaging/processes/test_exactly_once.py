"""Four replicas, one killed at each moment: each micro-batch counts exactly once.

Gradients are integers, so sums are exact, and the survivors' state must equal that of a single process bit for bit. The trainer here is the
least that can be: it gives each index to a living replica, closes, computes again what is missing, and applies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from protocols.averaging import Closed
from protocols.errors import OverloadedError, PeerUnreachableError, SwarmError
from protocols.groups import Group, GroupId, Member
from protocols.identity import from_seed
from protocols.masks import indices_of
from swarm.averaging.asking import ask_to_apply, ask_to_close
from swarm.rpc import ChannelPool
from tests.forked import PIPE, Child, ForkServer
from tests.swarm.averaging.peers import TRAINER
from tests.swarm.averaging.processes.replica_process import ADD, STATE
from tests.swarm.averaging.toy import RUN, UNITS, alone, bits

NUM_INDICES, NUM_VERSIONS, FAULTY_VERSION = 12, 3, 1
CODE = "from tests.swarm.averaging.processes.replica_process import main; main()"
SEEDS = (1, 2, 3, 4)


@dataclass
class Process:
    """One replica."""

    child: Child
    member: Member

    @property
    def was_killed(self) -> bool:
        try:
            return self.child.wait(30.0) == -9
        except subprocess.TimeoutExpired:
            return False


@dataclass
class Trainer:
    """Gives out micro-batches and closes versions, at the replicas that live."""

    processes: list[Process]
    pool: ChannelPool
    living: list[Process] = field(init=False)
    redone: int = 0
    outcomes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Why, for a test that fails."""

    def __post_init__(self) -> None:
        self.living = list(self.processes)

    async def ask(self, process: Process, method: Any, *values: object) -> Any:
        member = process.member
        channel = await self.pool.channel(member.peer, member.addresses, member.certificate)
        return json.loads(await channel.unary(method, json.dumps(values).encode(), 30.0))

    async def add(self, version: int, index: int, process: Process) -> None:
        assert await self.ask(process, ADD, version, index) is True

    async def train(self, version: int) -> None:
        """One version: all indices, until all living replicas have stepped."""
        await asyncio.gather(*(self.add(version, i, self.living[i % len(self.living)]) for i in range(NUM_INDICES)))
        while not await self.close(version):
            pass

    async def close(self, version: int) -> bool:
        """True if the version is done; else what is missing was given out again, or the dead were struck off."""
        group = Group(id=GroupId(secrets.token_bytes(16)), run=RUN, version=version, units=UNITS,
                      members=tuple(process.member for process in self.living), num_micro_batches=NUM_INDICES,
                      deadline_s=30.0)  # fmt: skip
        try:
            closed = await ask_to_close(self.pool, group)
        except OverloadedError:  # members are still finding out how the last group ended
            await asyncio.sleep(0.1)
            return False
        except PeerUnreachableError:  # another one is asked, and finds an agreement if there is one
            self.outcomes.append("no leader")
            assert self.living.pop(0).was_killed
            return False
        self.outcomes.append(closed.outcome)
        self.texts.append(closed.text)
        self.living = [process for process in self.living if process.member.peer not in closed.lost]
        if closed.outcome == "missing":
            await self.redo(version, closed)
        if closed.outcome == "failed" and not closed.lost:
            await asyncio.sleep(0.1)  # as above
        return closed.outcome == "agreed" and await self.apply(version, closed.group_id)

    async def redo(self, version: int, closed: Closed) -> None:
        wanted = {index for mask in closed.missing for index in indices_of(mask)}
        self.redone += len(wanted)
        await asyncio.gather(*(self.add(version, i, self.living[n % len(self.living)]) for n, i in enumerate(sorted(wanted))))

    async def apply(self, version: int, group_id: GroupId) -> bool:
        calls = [ask_to_apply(self.pool, process.member, RUN, version, group_id) for process in self.living]
        done = await asyncio.gather(*calls, return_exceptions=True)
        for process, one in zip(tuple(self.living), done, strict=True):
            if isinstance(one, BaseException):
                assert isinstance(one, SwarmError) and process.was_killed, one
                self.living.remove(process)
            else:
                assert one.version == version + 1
        return True


@contextlib.asynccontextmanager
async def trainer(fork_server: ForkServer, folder: Path) -> AsyncIterator[Trainer]:
    """Replica n dies at the points that are armed in `folder`/n."""
    pool, processes = ChannelPool(TRAINER), []
    try:
        for place, seed in enumerate(SEEDS):
            (folder / str(place)).mkdir()
            environment = {**os.environ, "SWARM_FAULTS": str(folder / str(place))}
            with (folder / f"{place}.log").open("w") as errors:
                child = fork_server.popen([CODE, seed], kind="code", stdin=PIPE, stderr=errors, environment=environment)
            processes.append((child, from_seed(bytes([seed]) * 32).peer_id))
        started = []
        for child, peer in processes:
            assert child.stdout is not None
            port, der = (await asyncio.to_thread(child.stdout.readline)).split()
            started.append(Process(child, Member(peer=peer, addresses=(f"127.0.0.1:{port}",), certificate=bytes.fromhex(der))))
        yield Trainer(started, pool)
    finally:
        await pool.close()
        for child, _ in processes:
            child.kill()


@dataclass(frozen=True, kw_only=True)
class Death:
    """One replica dies in version FAULTY_VERSION, and what that costs."""

    place: int
    point: str
    outcomes: tuple[str, ...]
    """Of the closes of that version."""
    redone: int = 0
    held: tuple[int, ...] = ()
    """Places of replicas that do not hear the leader's word."""


LOST_IN_GROUP = ("failed", "missing", "agreed")
DEATHS = {
    "before it gives its card": Death(place=2, point="averaging_card", outcomes=LOST_IN_GROUP, redone=3),
    "in the middle of its slice": Death(place=2, point="averaging_slice:step=0", outcomes=LOST_IN_GROUP, redone=3),
    "after the reduction, before its vote": Death(place=1, point="averaging_reduced", outcomes=LOST_IN_GROUP, redone=3),
    "after its vote, which its leader does not hear": Death(place=3, point="averaging_voted", outcomes=LOST_IN_GROUP, redone=3),
    "when it is told": Death(place=1, point="averaging_decided", outcomes=("agreed",)),
    "the leader, before it tells": Death(place=0, point="averaging_telling", outcomes=("no leader", "agreed")),
    "the leader, when it has told one": Death(
        place=0, point="averaging_told:step=1", outcomes=("no leader", "agreed"), held=(2, 3)
    ),
    "before its step": Death(place=1, point="averaging_applying", outcomes=("agreed",)),
}


async def check(training: Trainer) -> None:
    """All that live have the state of a single process, bit for bit, in as many steps."""
    states = [await training.ask(process, STATE) for process in training.living]
    expected = bits(alone(NUM_VERSIONS, NUM_INDICES))
    assert [state[:3] for state in states] == [[NUM_VERSIONS, expected, NUM_VERSIONS]] * len(states)
    assert all(state[3] == states[0][3] for state in states), "chains differ"


@pytest.mark.parametrize("moment", DEATHS)
async def test_a_killed_replica_loses_nothing_that_is_not_redone(moment: str, fork_server: ForkServer, tmp_path: Path) -> None:
    death = DEATHS[moment]
    async with trainer(fork_server, tmp_path) as training:
        await training.train(0)
        fault = tmp_path / str(death.place) / death.point
        for armed in (fault, *(tmp_path / str(place) / "hold" for place in death.held)):
            armed.touch()
        await training.train(FAULTY_VERSION)
        assert not fault.exists() and training.processes[death.place].was_killed, "it did not die where it should"
        assert (training.outcomes[1:], training.redone) == (list(death.outcomes), death.redone), training.texts
        for place in death.held:
            (tmp_path / str(place) / "hold").unlink()
        await training.train(2)
        assert len(training.living) == 3
        await check(training)


async def test_a_leader_killed_before_its_vote_costs_its_own_sum_at_most(fork_server: ForkServer, tmp_path: Path) -> None:
    """The others may all have reduced, and then agree without it; or one of them has not, and they do not."""
    async with trainer(fork_server, tmp_path) as training:
        await training.train(0)
        (tmp_path / "0" / "averaging_reduced").touch()
        await training.train(FAULTY_VERSION)
        assert training.processes[0].was_killed and training.redone in (0, 3)
        await training.train(2)
        assert len(training.living) == 3
        await check(training)


async def test_a_replica_killed_with_indices_in_its_sum_has_them_redone(fork_server: ForkServer, tmp_path: Path) -> None:
    async with trainer(fork_server, tmp_path) as training:
        await training.train(0)
        for index in range(NUM_INDICES):
            await training.add(1, index, training.living[index % 4])
        training.processes[1].child.kill()
        assert training.processes[1].was_killed
        while not await training.close(1):
            pass
        assert training.outcomes[1:] == list(LOST_IN_GROUP) and training.redone == 3
        await training.train(2)
        await check(training)


async def test_an_index_at_two_replicas_counts_once(fork_server: ForkServer, tmp_path: Path) -> None:
    """An acknowledgement was lost, and the trainer has asked another replica. The smaller sum stays out, its other indices are redone."""
    async with trainer(fork_server, tmp_path) as training:
        await training.train(0)
        await training.add(1, 3, training.living[0])
        await training.train(1)
        assert training.outcomes[1:] == ["missing", "agreed"] and training.redone == 2  # of 3, 7, 11
        await training.train(2)
        assert len(training.living) == 4
        await check(training)
