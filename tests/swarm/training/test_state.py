"""State moves bit for bit; a bad source costs one attempt."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from protocols import services, state
from protocols.errors import (
    BadRequestError,
    ModelNotFoundError,
    NoRouteError,
    OverloadedError,
    SpanNotServedError,
    VersionMismatchError,
)
from protocols.ids import ModelId
from protocols.state import StateHeader, StatePart, StateRequest
from protocols.units import Blocks, Ends
from swarm.rpc import Stream
from swarm.training import state_download
from swarm.training.snapshot import form_of
from swarm.training.state_download import trained_form
from swarm.training.state_server import MAX_UPLOADS, StateServer
from tests.swarm.training.givers import CHAIN, RUN, UNITS, Edit, LyingServer, Stage, givers, rest_of, snapshot_of, wanted

UNIT = UNITS[0]
Answers = Sequence[StateHeader | StatePart]


async def test_several_units_come_from_several_peers_at_once_bit_for_bit() -> None:
    own = [snapshot_of(unit, seed=seed) for seed, unit in enumerate(UNITS)]
    async with givers() as swarm:
        stages = [Stage(*own) for _ in range(3)]
        records = [await swarm.start(stage) for stage in stages]
        found = await swarm.get(*(wanted(snapshot, *records) for snapshot in own))
    assert found.keys() == set(UNITS)
    for snapshot in own:
        again = found[snapshot.unit]
        assert (again.version, again.chain, again.form, again.digest) == (7, CHAIN, snapshot.form, snapshot.digest)
        assert torch.equal(again.data, snapshot.data)
    assert [stage.num_taken for stage in stages] == [1, 1, 1], "each peer gave one unit"


async def test_the_newest_version_and_a_kept_one_are_given_and_no_other() -> None:
    kept, now = snapshot_of(UNIT, 10, seed=1), snapshot_of(UNIT, 13, seed=2)
    async with givers() as swarm:
        stage = Stage(now)
        stage.kept.keep(kept)
        record = await swarm.start(stage)
        newest = await swarm.get(wanted(now, record, version=None, chain=None))
        older = await swarm.get(wanted(now, record, version=10))
        assert (newest[UNIT].digest, older[UNIT].digest) == (now.digest, kept.digest)
        with pytest.raises(NoRouteError, match="version 12 is not here, but 13 and 10"):
            await swarm.get(wanted(now, record, version=12))
        with pytest.raises(NoRouteError, match="decoder/ends is not trained here"):
            await swarm.get(wanted(snapshot_of(Ends()), record))
        stage.kept.drop(UNIT)
        with pytest.raises(NoRouteError, match="version 10 is not here, but 13;"):
            await swarm.get(wanted(now, record, version=10))


def changed(answer: StateHeader | StatePart, **changes: object) -> Answers:
    return [replace(answer, **changes)] if isinstance(answer, StateHeader) else [answer]


def flipped(answer: StateHeader | StatePart) -> Answers:
    if isinstance(answer, StateHeader) or answer.offset == 0:
        return [answer]
    data = bytearray(answer.data)
    data[0] ^= 1
    return [replace(answer, data=bytes(data))]


def shifted(answer: StateHeader | StatePart) -> Answers:
    return [answer] if isinstance(answer, StateHeader) else [replace(answer, offset=answer.offset + 1)]


HUGE = form_of({"parameter/weight": torch.empty(1 << 38, device="meta")})
LIES: dict[str, tuple[Edit, str]] = {
    "a bit": (flipped, "the digest of what it sent is"),
    "the unit": (lambda answer: changed(answer, unit=Ends()), "it sent decoder/ends at version 7"),
    "the version": (lambda answer: changed(answer, version=8), "at version 8, not decoder/0:1 at 7"),
    "the chain": (lambda answer: changed(answer, chain=bytes(32)), "its chain of version 7 is another one"),
    "a terabyte": (lambda answer: changed(answer, form=HUGE), "is only here"),
    "a place": (shifted, "something else where byte 0 of"),
    "the order": (lambda answer: [answer, answer], "something else where byte 0 of"),
    "the header": (lambda answer: [] if isinstance(answer, StateHeader) else [answer], "without its header"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_source_that_lies_is_named_and_the_next_one_is_asked(lie: str) -> None:
    edit, why = LIES[lie]
    own = snapshot_of(UNIT)
    async with givers() as swarm:
        liar = await swarm.start(Stage(own), LyingServer(edit))
        with pytest.raises(NoRouteError, match=why):
            await swarm.get(wanted(own, liar))
        honest = await swarm.start(Stage(own))
        found = await swarm.get(wanted(own, liar, honest))
    assert found[UNIT].digest == own.digest


async def test_values_that_are_not_finite_are_refused() -> None:
    own = snapshot_of(UNIT)
    own.tensors["momentum/weight"][3] = float("nan")
    async with givers() as swarm:
        record = await swarm.start(Stage(own))
        with pytest.raises(NoRouteError, match=r"'momentum/weight' holds NaN"):
            await swarm.get(wanted(own, record))


async def test_a_source_that_stalls_or_dies_in_the_middle_costs_one_attempt() -> None:
    own = snapshot_of(UNIT)

    def first_part(answer: StateHeader | StatePart) -> Answers:
        return [answer] if isinstance(answer, StateHeader) or answer.offset == 0 else []

    async with givers() as swarm:
        silent = LyingServer(lambda answer: [answer], is_silent=True)
        stalling = await swarm.start(Stage(own), silent)
        with pytest.raises(NoRouteError, match=r"nothing of the state for 0\.3 s"):
            await swarm.get(wanted(own, stalling), stall_s=0.3)
        dying = LyingServer(first_part, is_silent=True)
        dead, honest = await swarm.start(Stage(own), dying), await swarm.start(Stage(own))
        getting = asyncio.create_task(swarm.get(wanted(own, dead, honest)))
        async with asyncio.timeout(60):
            await dying.has_sent.wait()
            await swarm.servers[1].stop()
            assert (await getting)[UNIT].digest == own.digest


async def test_a_source_that_ends_early_is_asked_no_more() -> None:
    own = snapshot_of(UNIT)
    async with givers() as swarm:
        short = await swarm.start(Stage(own), LyingServer(lambda answer: [answer] if isinstance(answer, StateHeader) else []))
        with pytest.raises(NoRouteError, match="ended the stream before all"):
            await swarm.get(wanted(own, short))


async def test_one_peer_has_two_uploads_and_a_busy_source_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_download, "PAUSE_S", 0.05)
    own, large = snapshot_of(UNIT), snapshot_of(Ends(), values=3_000_000)
    async with givers() as swarm:
        stage = Stage(own, large)
        record = await swarm.start(stage)
        held = [await swarm.ask(record, large.unit) for _ in range(2)]
        for stream in held:
            assert await stream.receive()  # its upload has begun, and waits for its reader
        third = await swarm.ask(record, UNIT)
        with pytest.raises(OverloadedError, match="2 uploads to you are running here"):
            await third.receive()
        getting = asyncio.create_task(swarm.get(wanted(own, record)))
        async with asyncio.timeout(60):
            assert all([await rest_of(stream) > 20_000_000 for stream in held])
            assert (await getting)[UNIT].digest == own.digest


async def test_uploads_are_bounded_in_number_and_a_place_that_is_not_used_is_given_away() -> None:
    now_s = 0.0
    large = snapshot_of(Ends(), values=3_000_000)
    async with givers() as swarm:
        record = await swarm.start(Stage(large), StateServer(clock=lambda: now_s, send_s=600.0))
        streams = [
            await swarm.ask(record, Ends(), by=by) for by in (swarm.caller(), swarm.caller()) for _ in range(MAX_UPLOADS // 2)
        ]
        for stream in streams:
            assert await stream.receive()
        late = swarm.caller()
        with pytest.raises(OverloadedError, match="4 uploads of state are running here, the limit"):
            await (await swarm.ask(record, Ends(), by=late)).receive()
        taken = 0
        async with asyncio.timeout(60):
            while not taken:  # what gRPC still holds may be taken after the clock has moved
                now_s += 30.0
                with contextlib.suppress(OverloadedError):
                    taken = await rest_of(await swarm.ask(record, Ends(), by=late))
        assert taken > large.form.num_bytes
        ended = await asyncio.gather(*(rest_of(stream) for stream in streams), return_exceptions=True)
        given_away = [outcome for outcome in ended if isinstance(outcome, OverloadedError)]
        assert len(given_away) == 1 and "gave its place to another peer" in str(given_away[0]), ended


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (StateRequest(run=ModelId("other", "cd" * 32), units=(UNIT,)), ModelNotFoundError),
        (StateRequest(run=RUN, units=(Blocks(5, 6),)), SpanNotServedError),
        (StateRequest(run=RUN, units=(UNIT,), version=3), VersionMismatchError),
    ],
)
async def test_what_is_not_here_is_a_typed_refusal(request_: StateRequest, error: type[Exception]) -> None:
    async with givers() as swarm:
        record = await swarm.start(Stage(snapshot_of(UNIT)))
        channel = await swarm.pool.channel(record.peer, record.addresses, record.certificate)
        stream: Stream = await channel.stream(services.STATE)
        await stream.send(request_.encode())
        with pytest.raises(error):
            await stream.receive()


async def test_a_keeper_takes_moments_of_its_parameters_and_nothing_else() -> None:
    check = trained_form(form_of({"parameter/w": torch.empty(3, 4), "parameter/n": torch.empty(4)}))
    honest = {"parameter/w": torch.empty(3, 4), "parameter/n": torch.empty(4)}
    check(form_of(honest))
    check(form_of({**honest, "momentum/w": torch.empty(3, 4), "square/n": torch.empty(4), "step/w": torch.empty(())}))
    for odd, why in (
        ({"momentum/w": torch.empty(30, 4)}, "no moment of a parameter"),
        ({"momentum/other": torch.empty(3, 4)}, "no moment of a parameter"),
        ({"parameter/other": torch.empty(3, 4)}, "is only there"),
        ({f"kind{number}/w": torch.empty(3, 4) for number in range(5)}, "5 kinds of optimizer state"),
    ):
        with pytest.raises(BadRequestError, match=why):
            check(form_of({**honest, **odd}))
    with pytest.raises(BadRequestError, match="is only here"):
        check(form_of({"parameter/w": torch.empty(3, 4)}))


async def test_messages_grow_to_their_most() -> None:
    own = snapshot_of(UNIT, values=3_000_000)
    async with givers() as swarm:
        stream = await swarm.ask(await swarm.start(Stage(own)), UNIT)
        sizes = []
        while (data := await stream.receive()) is not None:
            answer = state.parse_answer(data)
            sizes += [len(answer.data)] if isinstance(answer, StatePart) else []
    assert max(sizes) == state.PART_BYTES and sum(sizes) == own.form.num_bytes
