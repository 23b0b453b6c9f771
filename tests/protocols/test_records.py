"""Records fit the DHT, with bounded claims; unknown claims are ignored."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from protocols import hosted, records
from protocols.defaults import MAX_RECORD_BYTES
from protocols.errors import BadRequestError, FrameError, ProtocolVersionError, SwarmError
from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.roles import MAX_ROLES, Role
from protocols.units import Blocks, Ends
from protocols.weights_id import Weights
from tests.hosting import hosted as served
from tests.hosting import loaded
from tests.protocols.samples import ALICE, BOB, MODEL, RECORD, ROLES

FULL = replace(
    RECORD,
    name="a volunteer's machine in the attic",
    addresses=("203.0.113.77:40002", "192.168.178.120:40002", "[2001:db8:85a3::8a2e:370:7334]:40002"),
    certificate=bytes(range(250)) * 2,
    p2p_addresses=tuple(f"/ip4/203.0.113.{n}/tcp/40001/p2p/{ALICE.peer_id}" for n in (77, 78, 79)),
    hosted=served(
        ModelId("meta-llama/Llama-3.3-70B-Instruct", "c3" * 32),
        Span(40, 60),
        80,
        dtype="bfloat16",
        ends=True,
        free_tokens=1 << 40,
        queue=1 << 20,
        step_ms=9_999.99,
    ),
    upload_bytes_s=1 << 40,
    round_trips=tuple((from_seed(bytes([n]) * 32).peer_id, 1_234.56 + n) for n in range(8)),
)


def changed(**changes: object) -> bytes:
    header: dict[str, Any] = {**msgpack.unpackb(RECORD.encode()), **changes}
    return bytes(msgpack.packb({key: value for key, value in header.items() if value != "absent"}))


def test_a_full_record_fits() -> None:
    """Three addresses, a certificate of 500 bytes, eight round trips: DESIGN's 1.5 KiB, with space for newer fields."""
    assert len(FULL.encode()) < MAX_RECORD_BYTES - 200
    assert records.PeerRecord.parse(FULL.encode()) == FULL


def test_a_record_that_does_not_fit_is_refused_and_can_be_fitted() -> None:
    large = replace(
        FULL, p2p_addresses=tuple(f"/ip4/203.0.113.{n}/tcp/40001/p2p/{BOB.peer_id}" for n in range(8)), certificate=bytes(700)
    )
    with pytest.raises(BadRequestError, match="at most 1536 bytes, got"):
        large.encode()
    fitted = large.fitted()
    assert len(fitted.encode()) <= MAX_RECORD_BYTES
    assert fitted.p2p_addresses == large.p2p_addresses[: len(fitted.p2p_addresses)]
    assert replace(fitted, p2p_addresses=large.p2p_addresses, round_trips=large.round_trips) == large
    assert FULL.fitted() == FULL


def test_as_many_models_as_a_record_may_have_fit() -> None:
    """Names of 40 letters, embedding and head, loads, a certificate, and one move that is under way."""
    numbers: dict[str, Any] = {"free_tokens": 100_000_000, "queue": 1_000, "step_ms": 9_999.99, "block_ms": 600.0}
    models = [ModelId("m" * 39 + str(number), f"{number}" * 64) for number in range(records.MAX_MODELS)]
    units = [one for model in models for one in served(model, Span(0, 60), 80, dtype="bfloat16", ends=True, **numbers)]
    moving = served(models[0], Span(60, 80), 80, dtype="bfloat16", state="joining", capacity_blocks=60, block_ms=600.0)
    fitted = replace(FULL, hosted=(*units, *moving)).fitted()
    assert records.PeerRecord.parse(fitted.encode()) == fitted
    assert fitted.p2p_addresses and len(fitted.hosted) == 2 * records.MAX_MODELS + 1


def test_what_cannot_be_fitted_is_refused() -> None:
    units = [one for number in range(8) for one in served(ModelId("é" * 200, f"{number}" * 64), Span(0, 4))]
    with pytest.raises(BadRequestError):
        replace(FULL, hosted=tuple(units)).fitted().encode()


def test_sixteen_units_of_one_model_fit_and_name_it_once() -> None:
    units = tuple(one for start in range(0, 32, 2) for one in served(MODEL, Span(start, start + 2), 32, step_ms=1.0))
    data = replace(RECORD, hosted=units).encode()
    assert records.PeerRecord.parse(data).hosted == units and data.count(str(MODEL).encode()) == 1


@pytest.mark.parametrize("state", hosted.STATES)
@pytest.mark.parametrize("reachable", [None, True, False])
def test_states_come_back(state: str, reachable: bool | None) -> None:
    record = replace(RECORD, state=state, reachable=reachable, hosted=())
    assert records.PeerRecord.parse(record.encode()) == record


def test_a_p2p_address_may_end_in_another_peer() -> None:
    assert records.PeerRecord.parse(RECORD.encode()).p2p_addresses == RECORD.p2p_addresses
    assert RECORD.encode().count(ALICE.peer_id.encode()) == 0  # our own PeerID costs 32 bytes, once


def test_times_are_kept_to_hundredths_of_a_millisecond() -> None:
    parsed = records.PeerRecord.parse(loaded(RECORD, step_ms=1.23456, block_ms=0.004).encode())
    assert parsed.hosted[0].load.step_ms == 1.23 and parsed.hosted[0].load.block_ms == 0.0


def test_a_record_cut_anywhere_is_refused() -> None:
    data = RECORD.encode()
    for length in range(len(data)):
        with pytest.raises(FrameError):
            records.PeerRecord.parse(data[:length])
    with pytest.raises(FrameError):
        records.PeerRecord.parse(data + b"\0")


def test_an_oversized_record_is_not_even_unpacked() -> None:
    with pytest.raises(FrameError, match="at most 1536 bytes"):
        records.PeerRecord.parse(b"\xc1" * (MAX_RECORD_BYTES + 1))


@pytest.mark.parametrize(("layout", "who"), [(1, "its peer"), (3, "this peer")])
def test_another_layout_says_who_must_upgrade(layout: int, who: str) -> None:
    with pytest.raises(ProtocolVersionError, match=f"layout {layout}, expected 2: {who} must upgrade"):
        records.PeerRecord.parse(changed(v=layout))


def test_unknown_claims_are_ignored() -> None:
    units = [{**one, "zz": "new"} for one in msgpack.unpackb(RECORD.encode())["b"]]
    assert records.PeerRecord.parse(changed(zz=[{"new": 1}], b=units)) == RECORD


def test_a_unit_of_a_kind_that_is_unknown_is_left_out_and_the_others_stay() -> None:
    units = msgpack.unpackb(RECORD.encode())["b"]
    newer = changed(b=[units[0], {**units[1], "u": "decoder/3/router"}, units[1]])
    assert records.PeerRecord.parse(newer) == RECORD


def test_roles_and_units_of_kinds_that_are_unknown_are_left_out_and_the_others_stay() -> None:
    newer = ["stage decoder/3/router", "judge", "judge decoder/0:2", *map(str, ROLES[:3])]
    group = {"n": MODEL.name, "d": bytes.fromhex(MODEL.digest), "r": newer}
    record = records.PeerRecord.parse(changed(g=[group]))
    assert record.roles == ROLES[:3] and replace(record, roles=()) == RECORD


def test_a_peer_stands_under_the_names_of_its_runs() -> None:
    record = replace(RECORD, roles=ROLES)
    assert record.names == {"tiny", "prose"} and RECORD.names == {"tiny"}
    assert record.roles_of(MODEL.digest) == ROLES[:3] and record.roles_of("cd" * 32) == ROLES[3:]


def test_a_full_record_of_a_stage_fits_and_its_roles_are_not_given_up() -> None:
    """A node that trains and serves one run, as trainer and keeper, too; and one that holds parts of four runs."""
    name = "a run with a name of forty letters, or so"
    units = (Blocks(0, 3), Blocks(7, 9), Ends())
    for models in ([ModelId(name, "d4" * 32)], [ModelId(name + str(n), f"{n}" * 64) for n in range(records.MAX_MODELS)]):
        kinds = [Role("stage", model, unit) for model in models for unit in units] + [Role("trainer", models[-1])]
        record = replace(FULL, roles=tuple(kinds[-MAX_ROLES:])).fitted()
        assert len(record.encode()) <= MAX_RECORD_BYTES and record.roles == tuple(kinds[-MAX_ROLES:])
        assert record.addresses and record.p2p_addresses and records.PeerRecord.parse(record.encode()) == record


def test_a_span_may_have_a_state_of_its_own_until_its_peer_leaves() -> None:
    old = RECORD.hosted[0]
    moving = replace(RECORD, hosted=(old, replace(old, unit=Blocks(2, 4), state="joining")))
    parsed = records.PeerRecord.parse(moving.encode())
    assert [parsed.state_of(one) for one in parsed.hosted] == ["serving", "joining"]
    leaving = replace(moving, state="draining")
    assert [leaving.state_of(one) for one in leaving.hosted] == ["draining", "draining"]


def test_a_unit_stands_beside_those_of_the_same_weights_precision_and_state() -> None:
    blocks, ends = RECORD.hosted
    assert RECORD.beside(blocks) == {Ends()} and RECORD.beside(ends) == {Blocks(0, 2)}
    adapted = Weights(MODEL, adapter="ad" * 32)
    for other in (replace(blocks, dtype="bfloat16"), replace(blocks, state="joining"), replace(blocks, weights=adapted)):
        assert not RECORD.beside(other)
    assert RECORD.blocks() == RECORD.blocks(Weights(MODEL)) == (blocks,) and not RECORD.blocks(adapted)
    assert RECORD.hosted_of(MODEL.digest) == (blocks, ends) and not RECORD.hosted_of("ac" * 32)


UNIT: dict[str, object] = {"u": "decoder/0:2", "w": 0, "n": 4, "d": "float32"}
GROUP: dict[str, object] = {"n": "prose", "d": bytes(32), "r": ["stage decoder/0:2", "stage decoder/ends", "keeper"]}
WRONG: dict[str, dict[str, object]] = {
    "no layout": {"v": "absent"},
    "key of 31 bytes": {"k": bytes(31)},
    "key as text": {"k": ALICE.peer_id},
    "name too long": {"n": "x" * 65},
    "name with a line end": {"n": "a\nb"},
    "name with an escape": {"n": "\x1b[31m"},
    "newest below oldest": {"p": [2, 1]},
    "one version": {"p": [1]},
    "versions as map": {"p": {}},
    "unknown state": {"t": "sleeping"},
    "a socket file as address": {"a": ["unix:1"]},
    "nine addresses": {"a": ["a:1"] * 9},
    "address a number": {"a": [1]},
    "certificate too long": {"c": bytes(1_025)},
    "certificate as text": {"c": "DER"},
    "multiaddr too long": {"m": ["x" * 301]},
    "reachable a number": {"r": 1},
    "upload a fraction": {"u": 1.5},
    "nine round trips": {"d": [[bytes(32), 1]] * 9},
    "round trip of one": {"d": [[bytes(32)]]},
    "round trip NaN": {"d": [[bytes(32), float("nan")]]},
    "round trip of 2^60": {"d": [[bytes(32), 2**60]]},
    "round trip to no peer": {"d": [[b"", 1]]},
    "no units": {"b": "absent"},
    "seventeen units": {"b": [UNIT] * 17},
    "a unit as a list": {"b": [["decoder/0:2", 0, 4, "float32"]]},
    "a unit out of bounds": {"b": [{**UNIT, "u": "decoder/3:5"}]},
    "nine roles": {"g": [{**GROUP, "r": ["trainer"] * 9}]},
    "nine roles of two runs": {"g": [{**GROUP, "r": ["trainer"] * 5}, {**GROUP, "r": ["keeper"] * 4}]},
    "nine runs": {"g": [{**GROUP, "r": []}] * 9},
    "roles as a map": {"g": GROUP},
    "roles of no run": {"g": [{**GROUP, "n": ""}]},
    "roles of half a digest": {"g": [{**GROUP, "d": bytes(16)}]},
    "a role as a list": {"g": [{**GROUP, "r": [["trainer"]]}]},
    "a stage without unit": {"g": [{**GROUP, "r": ["stage"]}]},
    "a trainer with a unit": {"g": [{**GROUP, "r": ["trainer decoder/0:2"]}]},
    "a stage of no blocks": {"g": [{**GROUP, "r": ["stage decoder/2:2"]}]},
    "a role with an escape": {"g": [{**GROUP, "r": ["stage \x1b[31m"]}]},
    "paused a number": {"z": 1},
    "no weights": {"w": "absent"},
    "no list of weights": {"w": []},
    "nine weights": {"w": [str(MODEL)] * 9},
    "a digest of 63 letters": {"w": [str(MODEL)[:-1]]},
    "a model without name": {"w": ["@" + "ab" * 32]},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_claim_out_of_bounds_is_refused(what: str) -> None:
    with pytest.raises(SwarmError):
        records.PeerRecord.parse(changed(**WRONG[what]))


def test_the_helper_of_these_tests_builds_valid_records() -> None:
    """Or every refusal above would be one of the helper's own."""
    assert records.PeerRecord.parse(changed()) == RECORD
    assert len(records.PeerRecord.parse(changed(g=[{**GROUP, "r": ["trainer"] * 4}] * 2)).roles) == MAX_ROLES
    assert records.PeerRecord.parse(changed(b=[UNIT] * 16, w=[str(MODEL)] * 8)).hosted[0].weights == Weights(MODEL)


def test_we_announce_nothing_that_others_would_refuse() -> None:
    for wrong in (
        replace(RECORD, name="x" * 65),
        replace(RECORD, state="gone"),
        replace(RECORD, addresses=("unix:1",)),
        loaded(RECORD, queue=-1),
        loaded(RECORD, step_ms=-1.0),
        replace(RECORD, hosted=RECORD.hosted * 9),
        replace(RECORD, roles=ROLES[:1] * (MAX_ROLES + 1)),
    ):
        with pytest.raises(BadRequestError):
            wrong.encode()


def test_peers_spread_over_all_keys_of_a_model() -> None:
    numbers = Counter(records.bucket(from_seed(bytes([n]) * 32).peer_id) for n in range(256))
    assert set(numbers) == set(range(records.BUCKETS))
    assert max(numbers.values()) < 64  # 32 each, if perfectly even
