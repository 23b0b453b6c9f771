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
from protocols.units import Blocks, Ends
from protocols.weights_id import Weights
from tests.protocols.samples import ALICE, BOB, RECORD

FULL = replace(
    RECORD,
    name="a volunteer's machine in the attic",
    addresses=("203.0.113.77:40002", "192.168.178.120:40002", "[2001:db8:85a3::8a2e:370:7334]:40002"),
    certificate=bytes(range(250)) * 2,
    p2p_addresses=tuple(f"/ip4/203.0.113.{n}/tcp/40001/p2p/{ALICE.peer_id}" for n in (77, 78, 79)),
    spans=(
        records.ServedSpan(
            model=ModelId("meta-llama/Llama-3.3-70B-Instruct", "c3" * 32),
            span=Span(40, 60),
            num_blocks=80,
            dtype="bfloat16",
            version=123_456,
        ),
    ),
    free_tokens=1 << 40,
    queue=1 << 20,
    step_ms=9_999.99,
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


def test_what_cannot_be_fitted_is_refused() -> None:
    span = replace(FULL.spans[0], model=ModelId("é" * 200, "c3" * 32))
    with pytest.raises(BadRequestError):
        replace(FULL, spans=(span,) * 8).fitted().encode()


@pytest.mark.parametrize("state", hosted.STATES)
@pytest.mark.parametrize("reachable", [None, True, False])
def test_states_come_back(state: str, reachable: bool | None) -> None:
    record = replace(RECORD, state=state, reachable=reachable, spans=())
    assert records.PeerRecord.parse(record.encode()) == record


def test_a_p2p_address_may_end_in_another_peer() -> None:
    assert records.PeerRecord.parse(RECORD.encode()).p2p_addresses == RECORD.p2p_addresses
    assert RECORD.encode().count(ALICE.peer_id.encode()) == 0  # our own PeerID costs 32 bytes, once


def test_times_are_kept_to_hundredths_of_a_millisecond() -> None:
    assert records.PeerRecord.parse(replace(RECORD, step_ms=1.23456).encode()).step_ms == 1.23


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


def test_a_layout_of_the_future_says_who_must_upgrade() -> None:
    with pytest.raises(ProtocolVersionError, match="layout 2, expected 1: upgrade this peer"):
        records.PeerRecord.parse(changed(v=2))


def test_unknown_claims_are_ignored() -> None:
    (span,) = msgpack.unpackb(RECORD.encode())["b"]
    assert records.PeerRecord.parse(changed(zz=[{"new": 1}], b=[[*span, "", "new"]])) == RECORD


def test_a_span_may_have_a_state_of_its_own_until_its_peer_leaves() -> None:
    old = RECORD.spans[0]
    moving = replace(RECORD, spans=(old, replace(old, span=Span(2, 4), state="joining")))
    parsed = records.PeerRecord.parse(moving.encode())
    assert [parsed.state_of(span) for span in parsed.spans] == ["serving", "joining"]
    leaving = replace(moving, state="draining")
    assert [leaving.state_of(span) for span in leaving.spans] == ["draining", "draining"]


def test_a_unit_stands_beside_those_of_the_same_weights_precision_and_state() -> None:
    blocks, ends = RECORD.hosted
    assert (blocks.unit, ends.unit) == (Blocks(0, 2), Ends()) and blocks.weights == Weights(RECORD.spans[0].model)
    assert blocks.load == hosted.Load(free_tokens=4096, queue=2, step_ms=12.34)
    assert RECORD.beside(blocks) == {Ends()} and RECORD.beside(ends) == {Blocks(0, 2)}
    assert not RECORD.beside(replace(blocks, dtype="bfloat16")) and not RECORD.beside(replace(blocks, state="joining"))
    assert RECORD.blocks() == RECORD.blocks("ab" * 32) == (blocks,) and not RECORD.blocks("ac" * 32)


SPAN: list[object] = ["tiny", b"\xab" * 32, 0, 2, 4, True, "float32", "none", 0]
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
    "unknown state of a span": {"b": [["tiny", b"\xab" * 32, 0, 2, 4, True, "float32", "none", 0, "sleeping"]]},
    "capacity below 0": {"h": -1},
    "capacity as text": {"h": "3"},
    "a speed below nothing": {"x": -1},
    "a socket file as address": {"a": ["unix:1"]},
    "nine addresses": {"a": ["a:1"] * 9},
    "address a number": {"a": [1]},
    "certificate too long": {"c": bytes(1_025)},
    "certificate as text": {"c": "DER"},
    "multiaddr too long": {"m": ["x" * 301]},
    "reachable a number": {"r": 1},
    "nine spans": {"b": [SPAN] * 9},
    "span of 8": {"b": [SPAN[:8]]},
    "span a map": {"b": [{}]},
    "span beyond the model": {"b": [[*SPAN[:3], 5, *SPAN[4:]]]},
    "empty span": {"b": [[*SPAN[:2], 2, 2, *SPAN[4:]]]},
    "no blocks": {"b": [[*SPAN[:4], 0, *SPAN[5:]]]},
    "blocks of 2^60": {"b": [[*SPAN[:4], 2**60, *SPAN[5:]]]},
    "digest of 31 bytes": {"b": [[SPAN[0], bytes(31), *SPAN[2:]]]},
    "model without name": {"b": [["", *SPAN[1:]]]},
    "ends a number": {"b": [[*SPAN[:5], 1, *SPAN[6:]]]},
    "version below 0": {"b": [[*SPAN[:8], -1]]},
    "free tokens below 0": {"f": -1},
    "free tokens true": {"f": True},
    "queue of 2^60": {"q": 2**60},
    "step NaN": {"w": float("nan")},
    "step below 0": {"w": -1},
    "upload a fraction": {"u": 1.5},
    "nine round trips": {"d": [[bytes(32), 1]] * 9},
    "round trip of one": {"d": [[bytes(32)]]},
    "round trip NaN": {"d": [[bytes(32), float("nan")]]},
    "round trip of 2^60": {"d": [[bytes(32), 2**60]]},
    "round trip to no peer": {"d": [[b"", 1]]},
    "no spans": {"b": "absent"},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_claim_out_of_bounds_is_refused(what: str) -> None:
    with pytest.raises(SwarmError):
        records.PeerRecord.parse(changed(**WRONG[what]))


def test_the_helper_of_these_tests_builds_valid_records() -> None:
    """Or every refusal above would be one of the helper's own."""
    assert records.PeerRecord.parse(changed()) == RECORD
    assert records.PeerRecord.parse(changed(b=[SPAN])).spans[0].model == ModelId("tiny", "ab" * 32)


def test_we_announce_nothing_that_others_would_refuse() -> None:
    for wrong in (
        replace(RECORD, name="x" * 65),
        replace(RECORD, state="gone"),
        replace(RECORD, addresses=("unix:1",)),
        replace(RECORD, queue=-1),
        replace(RECORD, step_ms=-1.0),
    ):
        with pytest.raises(BadRequestError):
            wrong.encode()


def test_peers_spread_over_all_keys_of_a_model() -> None:
    numbers = Counter(records.bucket(from_seed(bytes([n]) * 32).peer_id) for n in range(256))
    assert set(numbers) == set(range(records.BUCKETS))
    assert max(numbers.values()) < 64  # 32 each, if perfectly even
