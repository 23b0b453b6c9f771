"""The router over a directory in memory.

Tested: which routes it finds, what it waits for, and what it says if there is none.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from protocols.defaults import AVOID_S
from protocols.errors import (
    CacheFullError,
    DeadlineError,
    DrainingError,
    ModelMismatchError,
    NoRouteError,
    OverloadedError,
    PeerUnreachableError,
    SwarmError,
)
from protocols.hosted import Hosted
from protocols.ids import ModelId, PeerId, Span
from protocols.inference import Hop
from protocols.records import PeerRecord
from protocols.units import ENDS, Blocks
from protocols.weights_id import Weights
from swarm.asking import AT_ONCE, HELLO_S
from swarm.routing.experience import WARY_S
from swarm.routing.offers import Offer, Wish, candidates
from swarm.routing.regard import Regard
from swarm.routing.router import GRACE_S, LOOK_AGAIN_S, Router
from swarm.routing.shown import FRESH_S
from swarm.suggestion import NodeCommand
from tests.hosting import hosted
from tests.swarm.inference.toy import new_identity, until
from tests.virtual_time import loop_clock, virtual_time

MODEL = ModelId("toy", "ab" * 32)


@dataclass
class LocalSwarm:
    """Peers, who of them is dead, and how often the directory was asked."""

    peers: tuple[PeerRecord, ...] = ()
    dead: set[PeerId] = field(default_factory=set)
    snapshots: int = 0
    pinged: list[PeerId] = field(default_factory=list)
    round_trip_s: float = 0.0

    async def snapshot(self, model_name: str) -> LocalSwarm:
        self.snapshots += 1
        return self

    async def ping(self, record: PeerRecord) -> float:
        self.pinged.append(record.peer)
        if record.peer in self.dead:
            raise PeerUnreachableError("no answer")
        await asyncio.sleep(self.round_trip_s)
        return self.round_trip_s * 1e3

    def add(
        self, start: int, stop: int, *, dtype: str = "float32", model: ModelId = MODEL, ends: bool = False, **about: object
    ) -> PeerRecord:
        load = {"free_tokens": 10**6, "step_ms": 1.0} | {key: about.pop(key) for key in ("step_ms", "queue") if key in about}
        served = hosted(model, Span(start, stop), dtype=dtype, ends=ends, **load)
        record = PeerRecord(peer=new_identity().peer_id, addresses=("127.0.0.1:1",), certificate=b"", hosted=served)
        record = replace(record, **about)  # type: ignore[arg-type]
        self.peers += (record,)
        return record

    def router(self) -> Router:
        return Router(self, self.ping, Weights(MODEL), 4, clock=loop_clock())


def peers_of(found: tuple[object, ...]) -> list[PeerId]:
    return [hop.peer for hop in found[0]]  # type: ignore[attr-defined]


async def test_a_route_covers_the_model_with_the_faster_peers() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2, step_ms=50.0)
    first, last = swarm.add(0, 2), swarm.add(2, 4)
    swarm.add(2, 4, queue=100)
    assert peers_of(await swarm.router().find(0)) == [first.peer, last.peer]


@pytest.mark.parametrize("state", ["joining", "draining"])
async def test_only_those_that_serve_are_used(state: str) -> None:
    swarm = LocalSwarm()
    swarm.add(0, 4, state=state)
    with pytest.raises(NoRouteError, match="blocks 0:4"):
        await swarm.router().find(0)


async def test_what_is_missing_is_hosted_by_a_line_that_works() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2)
    router = Router(swarm, swarm.ping, Weights(MODEL), 4, NodeCommand(swarm="attic", peer="/ip4/203.0.113.5/tcp/1/p2p/12D3"))
    line = "swarm node toy --blocks 2:4 --swarm attic --peer /ip4/203.0.113.5/tcp/1/p2p/12D3"
    with pytest.raises(NoRouteError, match=f"host them: {line}$"):
        await router.find(0)
    swarm.add(2, 4)
    with pytest.raises(
        NoRouteError, match=r"start one with --ends: swarm node toy --ends --blocks 0:2 --swarm attic --peer /ip4"
    ):
        await router.find(0, needs=ENDS)


async def test_a_route_has_one_precision_float32_first() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2, dtype="bfloat16", step_ms=0.1)
    swarm.add(2, 4, dtype="bfloat16", step_ms=0.1)
    half = swarm.add(0, 2)
    with pytest.raises(NoRouteError, match="blocks 2:4"):
        await swarm.router().find(0, "float32")
    assert (await swarm.router().find(0))[1] == "bfloat16"
    other = swarm.add(2, 4)
    route, dtype = await swarm.router().find(0)
    assert ([hop.peer for hop in route], dtype) == ([half.peer, other.peer], "float32")


@virtual_time
async def test_dead_peers_are_passed_by_and_blamed() -> None:
    swarm = LocalSwarm()
    dead, alive = swarm.add(0, 4, step_ms=0.1), swarm.add(0, 4)
    swarm.dead = {dead.peer}
    router = swarm.router()
    assert peers_of(await router.find(0)) == [alive.peer]
    now_s = router.clock.now_s()
    assert router.experience.blame.is_avoided(dead.peer, now_s) and not router.experience.blame.is_avoided(alive.peer, now_s)


async def test_hops_that_hold_the_session_are_kept() -> None:
    swarm = LocalSwarm()
    holder, last = swarm.add(0, 2, step_ms=30.0), swarm.add(2, 4)
    swarm.add(0, 2)
    assert peers_of(await swarm.router().find(0, None, {(holder.peer, Span(0, 2))})) == [holder.peer, last.peer]


@virtual_time
async def test_a_failed_peer_is_avoided_while_there_is_another_and_asked_again_where_there_is_none() -> None:
    swarm = LocalSwarm()
    fast, slow = swarm.add(0, 4, step_ms=0.1), swarm.add(0, 4, step_ms=9.0)
    router = swarm.router()
    router.experience.failed(fast.peer, PeerUnreachableError("gone"))
    assert peers_of(await router.find(0)) == [slow.peer]
    router.experience.failed(slow.peer, CacheFullError("no memory"))
    assert peers_of(await router.find(5)) == [fast.peer]  # it answers again, so it is forgiven


async def test_who_was_seen_a_moment_ago_stands_in_even_if_the_directory_misses_it() -> None:
    """Right after deaths, those who kept a living peer's record may be among the dead."""
    swarm = LocalSwarm()
    first, doomed, spare = swarm.add(0, 2), swarm.add(2, 4, step_ms=0.1), swarm.add(2, 4)
    router = swarm.router()
    assert peers_of(await router.find(0)) == [first.peer, doomed.peer]
    swarm.peers = (first, doomed)
    router.experience.failed(doomed.peer, PeerUnreachableError("gone"))
    assert peers_of(await router.find(0)) == [first.peer, spare.peer]
    assert peers_of(await router.find(0, None, {(first.peer, Span(0, 2))})) == [first.peer, spare.peer]
    assert swarm.snapshots == 2  # in the middle of an answer, what was seen a moment ago is enough


@virtual_time
async def test_a_new_session_goes_by_what_was_seen_a_moment_ago_until_something_fails() -> None:
    swarm = LocalSwarm()
    here, elsewhere = swarm.add(0, 4, step_ms=0.1), swarm.add(0, 4, step_ms=9.0)
    router = swarm.router()
    for _ in range(3):
        assert peers_of(await router.find(0)) == [here.peer]
    assert swarm.snapshots == 1
    router.experience.failed(here.peer, PeerUnreachableError("gone"))
    assert peers_of(await router.find(0)) == [elsewhere.peer]
    assert swarm.snapshots == 2


@pytest.mark.parametrize("has_moved", [True, False])
@virtual_time
async def test_the_only_peer_is_asked_at_once_where_it_was_started_again(has_moved: bool) -> None:
    """It had failed often, and a client waited for 8 s, though the directory showed that it has another port now."""
    swarm = LocalSwarm()
    only = swarm.add(0, 4)
    router = swarm.router()
    for _ in range(7):
        router.experience.failed(only.peer, PeerUnreachableError("gone"))
        await asyncio.sleep(AVOID_S)
        assert peers_of(await router.find(60)) == [only.peer]
    router.experience.failed(only.peer, PeerUnreachableError("gone"))
    failed_s = router.clock.now_s()
    if has_moved:
        swarm.peers = (replace(only, addresses=("127.0.0.1:2",)),)
    (hop,), _ = await router.find(60)
    assert (router.clock.now_s() - failed_s < LOOK_AGAIN_S) == has_moved and hop.addresses == swarm.peers[0].addresses


@virtual_time
async def test_a_full_peer_is_not_forgiven_for_answering() -> None:
    swarm = LocalSwarm()
    full = swarm.add(0, 4)
    router = swarm.router()
    router.experience.failed(full.peer, CacheFullError("no memory for 9 tokens"))
    with pytest.raises(NoRouteError, match="last failure: no memory for 9 tokens"):
        await router.find(0.6)
    assert peers_of(await router.find(60)) == [full.peer]
    assert AVOID_S <= router.clock.now_s() < AVOID_S + 2 * LOOK_AGAIN_S, "it is used again once its time is over"


@virtual_time
async def test_the_directory_is_read_again_after_some_seconds_and_a_peer_is_asked_again_after_a_minute() -> None:
    swarm = LocalSwarm()
    here = swarm.add(0, 4)
    router = swarm.router()
    for at_s, num_looks, num_hellos in ((0, 1, 1), (FRESH_S - 0.01, 1, 1), (FRESH_S, 2, 1), (59.99, 3, 1), (60.0, 3, 2)):
        await asyncio.sleep(at_s - router.clock.now_s())
        await router.find(0)
        assert (swarm.snapshots, len(swarm.pinged)) == (num_looks, num_hellos), at_s
    swarm.dead = {here.peer}
    await asyncio.sleep(60)
    with pytest.raises(NoRouteError, match="no answer"):
        await router.find(0)


@virtual_time
async def test_a_route_that_appears_in_time_is_found() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2)
    search = asyncio.create_task(swarm.router().find(20))
    await until(lambda: swarm.snapshots >= 2)  # the directory has been asked, in vain
    last = swarm.add(2, 4)
    assert peers_of(await search)[1] == last.peer
    assert loop_clock().now_s() == pytest.approx(2 * LOOK_AGAIN_S)


@virtual_time
async def test_other_weights_by_this_name_are_named_at_once() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 4, model=ModelId("toy", "cd" * 32))
    with pytest.raises(ModelMismatchError, match=r"digest cdcdcdcdcdcd.*yours \(abababababab\)"):
        await swarm.router().find(60)
    swarm.add(0, 4)
    await swarm.router().find(0)  # … but they disturb no route while ours are there as well


async def test_no_route_says_which_blocks_and_what_would_help() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 1)
    with pytest.raises(NoRouteError, match=r"blocks 1:4 of toy.*swarm node toy --blocks 1:4"):
        await swarm.router().find(0)


async def test_a_thin_route_has_the_ends_at_both_ends() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2, step_ms=0.1)
    swarm.add(2, 4, step_ms=0.1)
    with pytest.raises(
        NoRouteError,
        match=r"no node hosts embedding and head of toy with block 0 and block 3 .*swarm node toy --ends --blocks 0:2",
    ):
        await swarm.router().find(0, needs=ENDS)
    first = swarm.add(0, 2, ends=True)
    with pytest.raises(NoRouteError, match=r"with block 3 after 0 s; .*--ends --blocks 2:4"):
        await swarm.router().find(0, needs=ENDS)
    last = swarm.add(2, 4, ends=True)
    router = swarm.router()
    assert peers_of(await router.find(0, needs=ENDS)) == [first.peer, last.peer]
    assert peers_of(await router.find(0)) != [
        first.peer,
        last.peer,
    ]  # a client with embedding and head of its own takes the faster ones


async def test_where_blocks_are_missing_a_thin_client_hears_of_those_first() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2)
    with pytest.raises(NoRouteError, match=r"blocks 2:4 of toy"):
        await swarm.router().find(0, needs=ENDS)


@virtual_time
async def test_others_weights_do_not_end_a_session_whose_own_nodes_are_gone_for_a_moment() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 4, model=ModelId("toy", "cd" * 32))
    router = swarm.router()
    search = asyncio.create_task(router.find(20, "float32", ()))
    await until(lambda: swarm.snapshots > 0)
    back = swarm.add(0, 4)
    assert peers_of(await search) == [back.peer]
    with pytest.raises(NoRouteError, match="blocks 0:4"):
        swarm.peers = swarm.peers[:1]
        await swarm.router().find(0, "float32", ())
    assert loop_clock().now_s() == pytest.approx(LOOK_AGAIN_S)


@virtual_time
async def test_a_directory_that_starts_again_is_waited_for() -> None:
    swarm = LocalSwarm()
    record = swarm.add(0, 4)
    router, snapshot = swarm.router(), swarm.snapshot

    async def starting(model_name: str) -> LocalSwarm:
        swarm.snapshot = snapshot  # type: ignore[method-assign]
        raise PeerUnreachableError("the DHT is not running here")

    swarm.snapshot = starting  # type: ignore[method-assign]
    assert peers_of(await router.find(20)) == [record.peer]
    assert loop_clock().now_s() == pytest.approx(LOOK_AGAIN_S)


@virtual_time
async def test_suspects_are_passed_by_if_there_is_a_way_without_them_and_used_if_there_is_none() -> None:
    swarm = LocalSwarm()
    accuser, accused, spare = swarm.add(0, 2), swarm.add(2, 4, step_ms=0.1), swarm.add(2, 4)
    router = swarm.router()
    router.experience.dispute(accuser.peer, accused.peer)
    assert peers_of(await router.find(0)) == [accuser.peer, spare.peer]
    other = swarm.add(0, 2, step_ms=500.0)
    router.experience.failed(spare.peer, CacheFullError("full"))
    assert peers_of(await router.find(0)) == [other.peer, accused.peer]
    router.experience.answered((await router.find(0))[0])
    assert peers_of(await router.find(0)) == [other.peer, accused.peer]  # the accuser is still suspected, the accused is not
    now_s = router.clock.now_s()
    assert not router.experience.suspects.strikes(accused.peer, now_s) and router.experience.suspects.strikes(accuser.peer, now_s)


async def test_a_suspect_loses_even_the_session_that_it_holds() -> None:
    swarm = LocalSwarm()
    accuser, accused, other = swarm.add(0, 2), swarm.add(2, 4), swarm.add(0, 2, step_ms=300.0)
    router = swarm.router()
    await router.find(0)
    router.experience.dispute(accuser.peer, accused.peer)
    found = await router.find(0, None, {(accuser.peer, Span(0, 2)), (accused.peer, Span(2, 4))})
    assert peers_of(found) == [other.peer, accused.peer]


async def test_on_a_second_try_nobody_s_announced_speed_counts_who_has_not_answered() -> None:
    swarm = LocalSwarm()
    liars, honest = [swarm.add(0, 4, step_ms=0.01) for _ in range(3)], swarm.add(0, 4, step_ms=30.0)
    router = swarm.router()
    route, _ = await router.find(0)
    assert route[0].peer in {liar.peer for liar in liars}
    chosen = {peers_of(await router.find(0, avoiding={route[0].peer}))[0] for _ in range(60)}
    assert honest.peer in chosen and route[0].peer not in chosen and len(chosen) == 3
    router.experience.answered((replace(route[0], peer=honest.peer),))
    assert {peers_of(await router.find(0, avoiding={route[0].peer}))[0] for _ in range(20)} == {honest.peer}


@pytest.mark.parametrize("more", [(), hosted(MODEL, Span(1, 4), step_ms=0.01)])
async def test_those_that_host_just_what_an_avoided_peer_hosts_are_tried_last(more: tuple[Hosted, ...]) -> None:
    """Six made-up peers with one span were tried one after the other, and cost an answer 15 s. Another unit does not help them."""
    swarm, units = LocalSwarm(), hosted(MODEL, Span(0, 4), step_ms=0.01)
    liars = [swarm.add(0, 4, hosted=units), *(swarm.add(0, 4, hosted=(*units, *more)) for _ in range(5))]
    honest = [swarm.add(0, 2, step_ms=30.0), swarm.add(2, 4, step_ms=30.0)]
    router = swarm.router()
    chosen = [peers_of(await router.find(0, avoiding={liars[0].peer})) for _ in range(20)]
    assert chosen == [[record.peer for record in honest]] * 20
    avoiding = {record.peer for record in (liars[0], *honest)}
    assert peers_of(await router.find(0, avoiding=avoiding))[0] in {liar.peer for liar in liars[1:]}


@virtual_time
async def test_parts_of_what_an_avoided_peer_hosts_are_tried_last_too() -> None:
    swarm = LocalSwarm()
    liars = [swarm.add(0, 4, step_ms=0.01) for _ in range(6)]
    honest = [swarm.add(0, 2, step_ms=30.0), swarm.add(2, 4, step_ms=30.0)]
    router = swarm.router()
    chosen = [peers_of(await router.find(0, blocks=Span(1, 3), avoiding={liars[0].peer})) for _ in range(20)]
    assert chosen == [[record.peer for record in honest]] * 20


@pytest.mark.parametrize(
    "cause", [CacheFullError("full"), OverloadedError("busy"), DrainingError("leaving"), DeadlineError("silent")]
)
async def test_only_a_new_peer_that_fails_without_a_good_reason_speaks_against_others(cause: SwarmError) -> None:
    swarm = LocalSwarm()
    proven, new = swarm.add(0, 4), swarm.add(0, 4)
    router = swarm.router()
    await router.find(0)
    router.experience.answered((Hop(proven.peer, (), b"", Blocks(0, 4)),))
    for _report in range(2):  # of two sessions: by the second one, it counts as proven no more
        router.experience.failed(proven.peer, PeerUnreachableError("gone"))
    assert router.experience._new_failed_until_s == -math.inf
    router.experience.failed(new.peer, cause)
    assert (router.experience._new_failed_until_s > 0) is isinstance(cause, DeadlineError)


@virtual_time
async def test_after_one_that_never_computed_has_failed_others_like_it_come_after_those_that_did_for_a_minute() -> None:
    """Of six swallowers with a shorter way, each cost a client its 3 s, one after the other."""
    swarm = LocalSwarm(round_trip_s=0.06)  # a hop less is a way that is shorter
    honest = [swarm.add(0, 2, step_ms=30.0), swarm.add(2, 4, step_ms=30.0)]
    router = swarm.router()
    route, _ = await router.find(0)
    router.experience.answered(route)
    liars = [swarm.add(0, 4, step_ms=0.01) for _ in range(2)]
    for record in liars:
        assert await router.experience.latency.probe(record) is None
    await asyncio.sleep(WARY_S)
    first = peers_of(await router.find(0))
    assert first[0] in {liar.peer for liar in liars}
    router.experience.failed(first[0], DeadlineError("swallowed"))
    assert peers_of(await router.find(0)) == [record.peer for record in honest]
    await asyncio.sleep(WARY_S - 1)
    assert peers_of(await router.find(0)) == [record.peer for record in honest]
    await asyncio.sleep(1)
    assert peers_of(await router.find(0))[0] in {liar.peer for liar in liars}
    router.experience.failed(honest[0].peer, PeerUnreachableError("gone"))
    assert len(peers_of(await router.find(0))) == 1  # there is no way without the other


@virtual_time
async def test_a_client_tries_one_new_peer_a_minute_if_those_that_it_knows_are_not_busy() -> None:
    """With six swallowers as new peers, a client that had honest ones tried a swallower at every chance, for 3 s each."""
    swarm = LocalSwarm(round_trip_s=0.06)
    honest = [swarm.add(0, 2, step_ms=30.0), swarm.add(2, 4, step_ms=30.0)]
    router = swarm.router()
    router.experience.answered((await router.find(0))[0])
    new = {swarm.add(0, 4, step_ms=30.0).peer for _ in range(2)}  # a hop less is a way that is shorter
    await asyncio.sleep(WARY_S - 2)
    for record in swarm.peers:
        assert await router.experience.latency.probe(record) is None
    await asyncio.sleep(1 - 0.06 * len(swarm.peers))
    assert peers_of(await router.find(0)) == [record.peer for record in honest]
    await asyncio.sleep(1)
    [tried] = peers_of(found := await router.find(0))
    assert tried in new, "a minute later"
    router.experience.answered(found[0])
    faster = swarm.add(0, 4, step_ms=20.0)
    assert await router.experience.latency.probe(faster) is None
    await asyncio.sleep(FRESH_S)
    assert peers_of(await router.find(0)) == [tried], "no other new one for a minute"
    busy = {tried, *(record.peer for record in honest)}
    swarm.peers = tuple(_busy(record) if record.peer in busy else record for record in swarm.peers)
    await asyncio.sleep(FRESH_S)
    assert peers_of(await router.find(0))[0] in {faster.peer, *new} - {tried}, "unless those that it knows are busy"


def _busy(record: PeerRecord) -> PeerRecord:
    return replace(record, hosted=tuple(replace(one, load=replace(one.load, queue=9)) for one in record.hosted))


async def test_what_a_step_should_take_goes_by_what_is_announced_and_by_the_way() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2, step_ms=50.0, queue=1)
    swarm.add(2, 4, step_ms=0.0)
    router = swarm.router()
    route, _ = await router.find(0)
    assert 104.0 <= router.expected_ms(route) < 200.0


@virtual_time
async def test_silent_peers_are_not_routed_over_whatever_they_claim_and_wherever_they_sort() -> None:
    swarm = LocalSwarm()
    silent = [swarm.add(0, 4, step_ms=0.01) for _ in range(150)]
    honest = [swarm.add(0, 2, step_ms=50.0), swarm.add(2, 4, step_ms=50.0)]
    swarm.dead = {record.peer for record in silent}
    assert peers_of(await swarm.router().find(0)) == [record.peer for record in honest]


async def test_peers_are_asked_at_random_but_those_that_computed_or_answered_before_come_first() -> None:
    swarm = LocalSwarm()
    for _ in range(AT_ONCE + 100):
        swarm.add(0, 2)
    first, met, trusted = swarm.add(0, 4), swarm.add(0, 4), swarm.add(0, 4)
    swarm.dead = {record.peer for record in swarm.peers} - {first.peer, met.peer, trusted.peer}
    regard = Regard(has_met=lambda peer: peer == met.peer, is_trusted=lambda peer: peer == trusted.peer)
    routers = [Router(swarm, swarm.ping, Weights(MODEL), 4, regard=regard) for _ in range(2)]
    half = 0
    for router in routers:
        half = len(swarm.pinged)  # where the second router's hellos begin
        router.experience.answered((Hop(first.peer, first.addresses, b"", Blocks(0, 4)),))
        await router.find(0)
    assert {first.peer, trusted.peer} == set(swarm.pinged[:2]) == set(swarm.pinged[half : half + 2])
    assert met.peer == swarm.pinged[2] == swarm.pinged[half + 2]
    assert swarm.pinged[3:60] != swarm.pinged[half + 3 : half + 60], "the rest comes in another order each time"


@virtual_time
async def test_a_route_is_chosen_as_soon_as_those_that_answer_make_one() -> None:
    """A route does not wait for a silent peer, nor for one that it would use in no case."""
    swarm = LocalSwarm()
    first, last, slow = swarm.add(0, 2, step_ms=1e3), swarm.add(2, 4, step_ms=1e3), swarm.add(0, 4, step_ms=0.1)
    release = asyncio.Event()

    async def ping(record: PeerRecord) -> float:
        if record is slow:
            await release.wait()
        return 0.0

    router = Router(swarm, ping, Weights(MODEL), 4, clock=loop_clock())
    assert peers_of(await router.find(60)) == [first.peer, last.peer]
    assert router.clock.now_s() == GRACE_S, "the whole wait for a silent peer"
    release.set()
    await until(lambda: router.experience.latency.has_answered(slow.peer))
    assert peers_of(await router.find(60)) == [slow.peer], "a late answer counts for the next session"


@virtual_time
async def test_patience_bounds_looks_and_hellos() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 4)

    async def never(*_: object) -> Any:
        await asyncio.Event().wait()

    clock = loop_clock()
    for router in (
        Router(swarm, never, Weights(MODEL), 4, clock=clock),
        Router(Silent(never), swarm.ping, Weights(MODEL), 4, clock=clock),
    ):
        for route_timeout_s in (0.1, HELLO_S, 60.0):
            started_s = clock.now_s()
            with pytest.raises(NoRouteError):
                await router.find(route_timeout_s)
            assert max(route_timeout_s, HELLO_S) <= clock.now_s() - started_s < max(route_timeout_s, HELLO_S) + 0.001


@dataclass
class Silent:
    """A directory that does not answer."""

    snapshot: Any


async def test_a_claim_of_speed_does_not_beat_peers_that_have_computed_but_a_way_that_is_shorter_does() -> None:
    swarm = LocalSwarm()
    proven = swarm.add(0, 4, step_ms=40.0)
    router = swarm.router()
    route, _ = await router.find(0)
    router.experience.answered(route)
    boaster, silent_about_it = swarm.add(0, 4, step_ms=0.01), swarm.add(0, 4, step_ms=0.0)
    for record in (boaster, silent_about_it):
        assert await router.experience.latency.probe(record) is None
    assert peers_of(await router.find(0)) == [proven.peer]
    router.experience.failed(proven.peer, PeerUnreachableError("gone"))
    assert peers_of(await router.find(0)) != [proven.peer], "a claim is used if nothing better is there"


async def test_a_route_is_of_one_version_of_the_weights() -> None:
    """Peers in the middle of a training run serve the same model, with other numbers."""
    swarm, trained = LocalSwarm(), Weights(MODEL, 7, bytes(32))
    ahead = swarm.add(0, 4)
    swarm.peers = (replace(ahead, hosted=tuple(replace(one, weights=trained) for one in ahead.hosted)),)
    with pytest.raises(ModelMismatchError, match=rf"digest {MODEL.digest[:12]}/7\) than yours \({MODEL.digest[:12]}\)"):
        await swarm.router().find(0)
    static = swarm.add(0, 4, step_ms=900.0)
    assert peers_of(await swarm.router().find(0)) == [static.peer]
    assert peers_of(await Router(swarm, swarm.ping, trained, 4).find(0)) == [ahead.peer]


async def test_a_peer_claims_once_with_the_faster_of_its_units() -> None:
    swarm = LocalSwarm()
    slow, _other = swarm.add(0, 2, step_ms=40.0), swarm.add(2, 4, step_ms=8.0)
    both = replace(slow, hosted=(*slow.hosted, *hosted(MODEL, Span(2, 4), step_ms=4.0, queue=1)))
    whole = candidates([Offer(both, one) for one in both.hosted], Wish(None, frozenset(), ()), 4, ())
    assert [one.step_ms for one in whole] == [2 * 2.0, 2 * 2.0 * 2], "with the queue of each unit"


async def test_a_claim_counts_twice_the_median_at_most() -> None:
    swarm = LocalSwarm()
    swarm.add(0, 2, step_ms=20.0)
    swarm.add(2, 4, step_ms=20.0)
    boaster = swarm.add(0, 4, step_ms=0.01)
    whole = candidates([Offer(record, record.hosted[0]) for record in swarm.peers], Wish(None, frozenset(), ()), 4, ())
    assert {c.peer: c.step_ms for c in whole}[boaster.peer] == 4 * 10.0 / 2


@virtual_time
async def test_our_weights_that_were_there_a_moment_ago_are_waited_for_whatever_else_is_served_now() -> None:
    swarm = LocalSwarm()
    ours = swarm.add(0, 4)
    router = swarm.router()
    await router.find(0)
    swarm.peers = ()
    usurper = swarm.add(0, 4, model=ModelId("toy", "cd" * 32))
    router.experience.failed(ours.peer, PeerUnreachableError("gone"))
    router._shown._seen.clear()
    search = asyncio.create_task(router.find(20))
    await until(lambda: swarm.snapshots >= 3)
    swarm.peers = (usurper,)
    back = swarm.add(0, 4)
    assert peers_of(await search) == [back.peer]
