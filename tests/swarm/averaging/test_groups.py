"""Groups of replicas: all end with the same bits, or nothing changes."""

from __future__ import annotations

import asyncio
import gc
import secrets
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from protocols import services
from protocols.averaging import Closed, Decide, Decision, Prepare, Prepared, Values
from protocols.cards import Card
from protocols.errors import BadRequestError, NotAgreedError, OverloadedError, SwarmError
from protocols.groups import Group, GroupId, OfGroup
from protocols.identity import from_seed
from protocols.masks import mask_of
from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.runs import AVERAGING_CODECS
from protocols.units import Ends
from swarm.averaging import scratch
from swarm.rpc import Call, ChannelPool, Stream
from tests.swarm.averaging.peers import Peer, Peers, running
from tests.swarm.averaging.toy import PARTS, RUN, UNITS, ToyReplica, alone, bits, gradient

STRANGER = from_seed(b"S" * 32)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that toys have several of each slice."""
    monkeypatch.setattr(scratch, "PIECE", 600)


def states(peers: Peers) -> set[tuple[int, str, int]]:
    return {(peer.replica.version, bits(peer.replica.parameters), peer.replica.num_steps) for peer in peers.all}


def expected(num_versions: int) -> tuple[int, str, int]:
    return num_versions, bits(alone(num_versions, 12)), num_versions


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_replicas_step_like_a_single_process(number: int) -> None:
    async with running(number) as peers:
        for version in range(3):
            peers.fill()
            group = peers.group()
            closed = await peers.close(group)
            assert (closed.outcome, closed.group_id, closed.version, closed.lost) == ("agreed", group.id, version, ())
            assert {peer.replica.version for peer in peers.all} == {version}, "an agreement alone changes nothing"
            for applied in await peers.apply(group):
                assert applied.version == version + 1 and tuple(applied.chains.values()) == closed.chains
        assert states(peers) == {expected(3)}
        assert all(peer.averager.agreement(RUN, UNITS[0]) is None for peer in peers.all)


@pytest.mark.parametrize("codec", AVERAGING_CODECS[1:])
async def test_by_a_lossy_codec_all_have_the_same_bits_and_nearly_the_sum(codec: str) -> None:
    async with running(3) as peers:
        peers.fill()
        group = peers.group(codec=codec)
        assert (await peers.close(group)).outcome == "agreed"
        await peers.apply(group)
        assert len(states(peers)) == 1
        reduced = peers[0].replica.reduced
        assert reduced is not None
        total = torch.cat([sum_of(unit) for unit in UNITS])
        assert 0 < float((reduced.values - total).abs().max()) < float(total.abs().max()) / 40 or codec == "float16"
        for unit, values in zip(UNITS, reduced.values.split([1_500, 3_001, 700]), strict=True):
            assert reduced.norms[unit] == pytest.approx(float((values.double() ** 2).sum()))


def sum_of(unit: Any) -> torch.Tensor:
    parts = [part for part in PARTS if part.unit == unit]
    return torch.stack([gradient(0, index, part) for part in parts for index in range(12)]).sum(0)


async def test_apply_is_done_once_however_often_it_is_asked() -> None:
    async with running(2, step_s=0.05) as peers:
        peers.fill()
        group = peers.group()
        await peers.close(group)
        answers = await asyncio.gather(*(peers.apply(group) for _ in range(3)))
        assert all(answer == answers[0] for answer in answers) and states(peers) == {expected(1)}
        assert await peers.apply(group) == answers[0], "and after it is done"


async def test_an_applied_or_aborted_group_keeps_no_gradient() -> None:
    """Ended groups are remembered: each would keep two copies of its units' gradient."""
    kept: list[weakref.ref[torch.Tensor]] = []
    async with running(2) as peers:
        for replica in (peer.replica for peer in peers.all):
            watch_sums(replica, kept)
        for stop in (12, 11):  # the second group lacks an index
            peers.fill(skip=range(stop, 12))
            group = peers.group()
            if (await peers.close(group)).outcome == "agreed":
                kept += [weakref.ref(peer.averager._member.attempts.of(group.id).result[0].values) for peer in peers.all]  # type: ignore[index]
                await peers.apply(group)
                for peer in peers.all:
                    peer.replica.reduced = None
        for peer in peers.all:  # one memory, for the next group, however many have ended
            assert peer.averager._member._spare is not None
            peer.averager._member._spare = None
        gc.collect()
        assert len(kept) >= 4 and [ref() for ref in kept] == [None] * len(kept)


def watch_sums(replica: ToyReplica, kept: list[weakref.ref[torch.Tensor]]) -> None:
    """Note every copy of its sums that it hands out."""
    hand_out = replica.sums

    async def sums(group: Group) -> torch.Tensor:
        values = await hand_out(group)
        kept.append(weakref.ref(values))
        return values

    replica.sums = sums  # type: ignore[method-assign]


async def test_missing_indices_are_named_and_ledgers_are_open_again() -> None:
    async with running(2) as peers:
        peers.fill(skip=(3, 7))
        closed = await peers.close(peers.group())
        assert closed.outcome == "missing" and closed.missing == (mask_of((3, 7)),) * len(PARTS)
        assert "decoder/0:1: 2" in closed.text
        assert peers[0].replica.add(3) and peers[1].replica.add(7)
        group = peers.group()
        assert (await peers.close(group)).outcome == "agreed"
        await peers.apply(group)
        assert states(peers) == {expected(1)}


async def test_an_index_at_two_replicas_makes_the_smaller_sum_start_again() -> None:
    async with running(2) as peers:
        peers.fill()
        peers[1].replica.add(2)
        closed = await peers.close(peers.group())
        assert closed.outcome == "missing" and closed.missing[0] == mask_of(range(0, 12, 2)) & ~mask_of((2,))
        assert [peer.replica.reopened for peer in peers.all] == [["reset"], ["as before"]]
        for index in (0, 4, 6, 8, 10):
            peers[0].replica.add(index)
        group = peers.group()
        await peers.close(group)
        await peers.apply(group)
        assert states(peers) == {expected(1)}


async def test_replicas_without_a_sum_of_their_own_step_too() -> None:
    """A newcomer with an empty ledger, and one whose sum is a double: the other has all indices."""
    async with running(3) as peers:
        for index in range(12):
            peers[1].replica.add(index)
        peers[2].replica.add(5)
        group = peers.group()
        assert (await peers.close(group)).outcome == "agreed"
        await peers.apply(group)
        assert states(peers) == {expected(1)}


async def test_embedding_and_head_of_an_index_may_be_at_two_replicas() -> None:
    async with running(2) as peers:
        for index in range(12):
            peers[0].replica.add(index, [part for part in PARTS if part != HEAD])
            peers[1].replica.add(index, [HEAD])
        group = peers.group()
        assert (await peers.close(group)).outcome == "agreed"
        await peers.apply(group)
        assert states(peers) == {expected(1)} and EMBED.unit == HEAD.unit == Ends()


async def test_a_replica_that_is_behind_is_told_and_the_others_go_on() -> None:
    async with running(3) as peers:
        peers.fill(skip=())
        first = peers.group([0, 1])
        for index in range(2, 12, 3):  # what the third holds is done again
            peers[0].replica.add(index)
        await peers.close(first)
        await peers.apply(first, [0, 1])
        for index in range(12):
            peers[index % 2].replica.add(index)
        group = peers.group()
        closed = await peers.close(group)
        assert closed.outcome == "agreed" and closed.behind == (peers[2].member.peer,)
        assert peers[2].replica.reopened == ["behind"] and peers[2].replica.version == 0
        await peers.apply(group, [0, 1])
        assert {(p.replica.version, bits(p.replica.parameters)) for p in peers.all[:2]} == {expected(2)[:2]}
        with pytest.raises(NotAgreedError):
            await peers.apply(group, [2])


async def test_a_leader_that_is_behind_says_so() -> None:
    async with running(2) as peers:
        for index in range(12):
            peers[1].replica.add(index)
        first = peers.group([1])
        await peers.close(first)
        await peers.apply(first, [1])
        closed = await peers.close(peers.group())
        assert (closed.outcome, closed.version, closed.behind) == ("behind", 1, (peers[0].member.peer,))


async def test_a_second_close_finds_the_agreement_of_the_first() -> None:
    """The trainer died between the two: the next one asks any member."""
    async with running(3) as peers:
        peers.fill()
        group = peers.group()
        closed = await peers.close(group)
        for order in ([1, 0, 2], [2]):
            again = await peers.close(peers.group(order))
            assert (again.outcome, again.group_id, again.digest) == ("agreed", group.id, closed.digest)
        agreement = peers[2].averager.agreement(RUN, UNITS[1])
        assert agreement is not None and (agreement.group_id, agreement.digest) == (group.id, closed.digest)
        assert not peers[0].replica.add(0), "the ledger stays closed until the step"
        await peers.apply(group)
        assert states(peers) == {expected(1)}


async def test_a_newcomer_that_leads_finds_the_agreement_of_the_others() -> None:
    async with running(3) as peers:
        for index in range(12):
            peers[index % 2].replica.add(index)
        group = peers.group([0, 1])
        await peers.close(group)
        again = await peers.close(peers.group([2, 0, 1]))
        assert (again.outcome, again.group_id) == ("agreed", group.id)
        await peers.apply(group, [0, 1])
        with pytest.raises(BadRequestError, match="unknown here"):
            await peers.apply(group, [2])


async def test_two_groups_at_once_never_both_take_a_unit() -> None:
    """Two trainers, each with another leader."""
    async with running(2) as peers:
        peers.fill()
        groups = [peers.group([0, 1]), peers.group([1, 0])]
        ends = await asyncio.gather(*map(peers.close, groups), return_exceptions=True)
        agreed = {end.group_id for end in ends if isinstance(end, Closed) and end.outcome == "agreed"}
        assert len(agreed) <= 1 and all(isinstance(end, Closed | OverloadedError) for end in ends)
        while not agreed:
            last = await peers.close(peers.group())
            agreed = {last.group_id} if last.outcome == "agreed" else set()
        await peers.apply(replace(groups[0], id=agreed.pop()))
        assert states(peers) == {expected(1)}


# --- members that fail


class Broken(ToyReplica):
    """Its sum is not finite."""

    async def sums(self, group: Group) -> torch.Tensor:
        found = await super().sums(group)
        found[7] = float("nan")
        return found


async def test_a_sum_that_is_not_finite_names_its_member() -> None:
    async with running(3) as peers:
        peers.fill()
        peers[2].replica.__class__ = Broken
        attempts: list[Closed] = []
        while not any(one.lost for one in attempts) and len(attempts) < 10:  # another member's word may come first
            attempts.append(await peers.close(peers.group()))
        assert {one.outcome for one in attempts} == {"failed"} and attempts[-1].lost == (peers[2].member.peer,)
        assert [peer.replica.reopened for peer in peers.all] == [["as before"] * len(attempts)] * 3
        assert (await peers.close(peers.group([0, 1]))).missing[0] == mask_of((2, 5, 8, 11))


async def test_a_silent_member_is_named_within_the_deadline() -> None:
    """It has given its card, and its slices never come: a hang is an error."""

    def silent(place: int, handlers: dict[str, Any]) -> dict[str, Any]:
        async def never(request: bytes, call: Call) -> bytes:
            await asyncio.Event().wait()
            return b""

        return handlers | ({"prepare": never, "decide": never} if place == 1 else {})

    async with running(3, silent) as peers:
        peers.fill()
        closed = await peers.close(peers.group(deadline_s=4.0))
        assert closed.outcome == "failed" and closed.lost == (peers[1].member.peer,)
        assert "sent no" in closed.text
        assert peers[0].replica.reopened == peers[2].replica.reopened == ["as before"]


@pytest.mark.parametrize("leader", ["gone", "restarted", "silent"])
async def test_a_member_whose_leader_sends_no_cards_opens_its_ledger_again(leader: str) -> None:
    """At once if the leader cannot be asked, or does not know the group; within the deadline if it does not answer."""

    def silent(place: int, handlers: dict[str, Any]) -> dict[str, Any]:
        async def never(request: bytes, call: Call) -> bytes:
            await asyncio.Event().wait()
            return b""

        return handlers | ({"decision": never} if (place, leader) == (0, "silent") else {})

    async with running(2, silent) as peers:
        group = peers.group(deadline_s=3.0 if leader == "silent" else 60.0)
        Card.parse(await call_as(peers[1], peers[0].identity, services.CARD, group.encode()))
        assert not peers[1].replica.add(0)
        if leader == "gone":
            await peers[0].server.stop(0)
        async with asyncio.timeout(60):
            await peers[1].replica.has_reopened.wait()
        assert peers[1].replica.add(0)
        reply = await call_as(peers[1], peers[0].identity, services.DECISION, OfGroup(id=group.id).encode())
        assert Decision.parse(reply).said == "aborted"


async def test_a_member_that_asks_a_leader_which_still_collects_cards_waits_for_it() -> None:
    """Another member's card comes late: our question, a second after our card, is open until then."""
    asked = asyncio.Event()

    def late(place: int, handlers: dict[str, Any]) -> dict[str, Any]:
        inner, name = (handlers["card"], "card") if place == 2 else (handlers["decision"], "decision")

        async def card(request: bytes, call: Call) -> bytes:
            await asked.wait()
            return await inner(request, call)

        async def decision(request: bytes, call: Call) -> bytes:
            asked.set()
            return await inner(request, call)

        return handlers | ({name: card} if place == 2 else {name: decision} if place == 0 else {})

    async with running(3, late) as peers:
        peers.fill()
        assert (await peers.close(peers.group())).outcome == "agreed"
        assert asked.is_set() and not any(peer.replica.reopened for peer in peers.all)


async def test_a_member_that_is_asked_before_its_vote_never_votes() -> None:
    async with running(2) as peers:
        peers.fill()
        group = peers.group()
        channel = await peers[0].pool.channel(peers[1].member.peer, peers[1].member.addresses, peers[1].member.certificate)
        card = Card.parse(await channel.unary(services.CARD, group.encode()))
        asked = Decision.parse(await channel.unary(services.DECISION, OfGroup(id=group.id).encode()))
        assert asked.said == "aborted" and peers[1].replica.reopened == ["as before"]
        own = Card(group=group.digest(), peer=peers[0].member.peer, ledger=peers[0].replica.card(group)).signed(
            peers[0].identity.sign
        )
        request = Prepare(id=group.id, cards=(own, card)).encode()
        reply = Prepared.parse(await channel.unary(services.PREPARE, request))
        assert reply.digest == b"" and "ended here" in reply.text


# --- callers that may not


async def call_as(peer: Peer, identity: Any, method: Any, request: bytes) -> bytes:
    pool = ChannelPool(identity)
    try:
        channel = await pool.channel(peer.member.peer, peer.member.addresses, peer.member.certificate)
        return await channel.unary(method, request)
    finally:
        await pool.close()


async def test_only_the_leader_asks_for_cards_votes_and_ends() -> None:
    async with running(2) as peers:
        peers.fill()
        group = peers.group()
        requests = [(services.CARD, group.encode())]
        with pytest.raises(BadRequestError, match="only the leader"):
            await call_as(peers[1], STRANGER, *requests[0])
        await peers.close(group)
        for method, message in (
            (services.PREPARE, Prepare(id=group.id, cards=())),
            (services.DECIDE, Decide(id=group.id, is_agreed=False)),
            (services.DECISION, OfGroup(id=group.id)),
        ):
            with pytest.raises(BadRequestError):
                await call_as(peers[1], STRANGER, method, message.encode())
        assert peers[1].averager.agreement(RUN, UNITS[0]) is not None
        with pytest.raises(BadRequestError, match="first member"):
            await call_as(peers[1], STRANGER, services.CLOSE, peers.group().encode())


async def stream_to(peer: Peer, identity: Any, *frames: bytes) -> None:
    """Raises what the peer refuses it with."""
    pool = ChannelPool(identity)
    try:
        channel = await pool.channel(peer.member.peer, peer.member.addresses, peer.member.certificate)
        stream: Stream = await channel.stream(services.SLICE)
        for frame in frames:
            await stream.send(frame)
        await stream.end()
        while await stream.receive() is not None:
            pass
    finally:
        await pool.close()


async def test_a_slice_from_outside_the_group_is_not_read() -> None:
    async with running(2) as peers:
        peers.fill()
        group = peers.group()
        await peers.close(group)
        unknown = OfGroup(id=GroupId(secrets.token_bytes(16))).encode()
        for first in (unknown, OfGroup(id=group.id).encode(), Values(bytes(100)).encode()):
            with pytest.raises(SwarmError):
                await stream_to(peers[1], STRANGER, first, Values(bytes(1 << 20)).encode())
        with pytest.raises(SwarmError):
            await stream_to(peers[1], peers[0].identity, OfGroup(id=group.id).encode())
        await peers.apply(group)
        assert states(peers) == {expected(1)}


def test_parts_of_the_toy_are_those_of_its_units() -> None:
    assert (Part.block(0), Part.block(1), EMBED, HEAD) == PARTS
