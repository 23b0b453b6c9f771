"""What a page shows of runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from node.dashboard.pages.what_if_page import _is_within
from node.watching import abouts, runs
from node.watching.look import seen
from protocols import services
from protocols.about import About, Machine, Trained
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.roles import Role
from swarm.rpc import ChannelPool, RpcServer, tls
from swarm.rpc.call import Call
from tests.node.dashboard.made_swarm import MadeSource
from tests.protocols.samples import ALICE, BOB, CAROL


@dataclass
class Connected(MadeSource):
    """A source whose peers can be called."""

    own: ChannelPool | None = None

    @property
    def pool(self) -> ChannelPool:
        assert self.own is not None
        return self.own


@pytest.fixture
async def pool() -> AsyncIterator[ChannelPool]:
    made = ChannelPool(CAROL)
    yield made
    await made.close()


async def test_runs_do_not_wait_for_each_other(pool: ChannelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each peer answers only when that of the other run is asked: one after the other, both would be too late."""
    monkeypatch.setattr(abouts, "ASK_S", 60.0)
    both = asyncio.Barrier(2)
    records = list[PeerRecord]()
    async with contextlib.AsyncExitStack() as stack:
        for number, identity in enumerate((ALICE, BOB)):
            run = ModelId(f"run{number}", f"{number:064x}")
            given = Trained(run=run, role="trainer", num_micro_batches=3, num_tokens=9, num_versions=1, seconds=1.0)
            about = About(machine=Machine(device="cpu"), uptime_s=1.0, trained=(given,)).encode()

            async def answer(request: bytes, call: Call, about: bytes = about) -> bytes:
                await both.wait()
                return about

            certificate = tls.make(identity)
            server = RpcServer(identity, certificate, {services.ABOUT.name: answer})
            address = f"127.0.0.1:{await server.start()}"
            stack.push_async_callback(server.stop)
            roles = (Role("trainer", run),)
            records.append(PeerRecord(peer=identity.peer_id, addresses=(address,), certificate=certificate.der, roles=roles))
        look = seen(7.0, {"tiny": tuple(records)}, set(), {record.peer: 1.0 for record in records})
        views = await runs.look_at_runs(Connected(records, own=pool), look)
    assert [[one.given and one.given.num_tokens for one in view.participants] for view in views] == [[9], [9]]


@pytest.mark.parametrize(
    ("given", "fits"), [(7, True), (0.5, True), (0, False), (float("nan"), False), (10**400, False), ("7", False)]
)
def test_a_forged_number_is_no_size(given: object, fits: bool) -> None:
    assert _is_within(given, 10_000) is fits
