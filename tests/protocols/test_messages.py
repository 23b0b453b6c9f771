"""Messages survive the wire; all other bytes get typed refusals."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import averaging, fields, frame, identity, inference, tensors
from protocols.errors import BadRequestError, SwarmError, TensorFormatError
from protocols.units import Blocks
from tests.protocols.samples import GRANT, HIDDEN, IDS, SAMPLES, STRATEGIES, parser

FRAMES = {kind: message.encode() for kind, message in SAMPLES.items() if kind != "record"}


def _header_of(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    decoded = frame.decode(data)
    return decoded.header, [bytes(buffer) for buffer in decoded.buffers]


def changed(kind: str, /, **changes: object) -> bytes:
    """The sample's frame with other values under some keys; `None` leaves a key out."""
    header, buffers = _header_of(FRAMES[kind])
    header = {key: value for key, value in {**header, **changes}.items() if value is not None}
    return frame.encode(header, buffers)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_any_message_of_ours_comes_back_as_it_was(kind: str) -> None:
    @settings(max_examples=60)
    @given(STRATEGIES[kind])
    def round_trip(message: Any) -> None:
        parse = parser(kind)
        again = parse(message.encode())
        assert again == message
        assert again.encode() == message.encode()

    round_trip()


@pytest.mark.parametrize("kind", FRAMES)
def test_a_message_cut_anywhere_is_refused(kind: str) -> None:
    for length in range(len(FRAMES[kind])):
        with pytest.raises(SwarmError):
            parser(kind)(FRAMES[kind][:length])


@pytest.mark.parametrize("kind", FRAMES)
def test_fields_of_a_newer_peer_are_ignored(kind: str) -> None:
    assert parser(kind)(changed(kind, zzz={"new": [1, {"a": b""}]})) == SAMPLES[kind]


@pytest.mark.parametrize("kind", FRAMES)
def test_no_field_may_be_absent_or_of_another_type(kind: str) -> None:
    """Whatever stands in a field, the answer is a message or a typed refusal; `t` always decides."""
    header, buffers = _header_of(FRAMES[kind])
    values: list[object] = [
        None,
        True,
        -1,
        2**63,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x" * 70_000,
        b"",
        b"\xff" * 99,
        [],
        [[]],
        {},
        {"a": 1},
    ]
    for key in header:
        for value in values:
            other = {**header, key: value}
            try:
                parser(kind)(frame.encode(other, buffers))
            except SwarmError as error:
                assert len(str(error)) < 500, f"{kind}.{key} = {value!r}: {str(error)[:99]}"
    with pytest.raises(SwarmError):
        parser(kind)(frame.encode({key: value for key, value in header.items() if key != "t"}, buffers))


def test_an_unknown_kind_is_refused_by_name() -> None:
    for name in ("steal", "", 7, None, ["step"], {"t": "step"}, b"step"):
        with pytest.raises(BadRequestError, match="is unknown; known: open, step"):
            inference.parse(frame.encode({"t": name}))


@pytest.mark.parametrize("kind", ["prepared", "closed"])
def test_why_a_group_failed_travels_whatever_the_error_said(kind: str) -> None:
    """Its text may come from another peer; else the reply would be refused, and the member taken for lost."""
    said = "no vote:\nTraceback \x1b[2J" + "x" * averaging.MAX_REASON
    received = parser(kind)(replace(SAMPLES[kind], text=said).encode())
    assert received.text == r"no vote: Traceback \x1b[2J".ljust(averaging.MAX_REASON, "x")


REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "session of 15 bytes": ("step", {"session": bytes(15)}),
    "session as text": ("expect", {"session": "0" * 16}),
    "epoch below 0": ("step", {"epoch": -1}),
    "epoch too large": ("expect", {"epoch": (1 << 20) + 1}),
    "epoch true": ("expect", {"epoch": True}),
    "step of 2^60": ("step", {"step": 2**60}),
    "step a fraction": ("step", {"step": 5.0}),
    "counts that disagree with the payload": ("step", {"counts": [2, 2], "positions": [1, 2, 3, 4]}),
    "counts below 0": ("step", {"counts": [4, -1]}),
    "counts of 2^60": ("step", {"counts": [2**60]}),
    "counts beyond the limit together": ("step", {"counts": [4_096, 4_096]}),
    "too many sequences": ("step", {"counts": [0] * 1_025}),
    "fewer positions than tokens": ("step", {"positions": [4, 5]}),
    "more positions than tokens": ("history", {"positions": [4, 5, 6]}),
    "position below 0": ("step", {"positions": [4, 5, -9]}),
    "too many operations": ("step", {"ops": [["crop", 1]] * 65}),
    "too many sequences in all operations": ("step", {"ops": [["rows", [0] * 1_024]] * 4 + [["rows", [0]]]}),
    "an unknown operation": ("step", {"ops": [["drop", 1]]}),
    "an operation that is no pair": ("step", {"ops": [["crop"]]}),
    "an operation that is a text": ("step", {"ops": ["crop"]}),
    "crop below 1": ("step", {"ops": [["crop", 0]]}),
    "crop of 2^60": ("step", {"ops": [["crop", 2**60]]}),
    "repeat of 0": ("step", {"ops": [["repeat", 0]]}),
    "repeat beyond the sequences": ("step", {"ops": [["repeat", 1_025]]}),
    "index of a sequence below 0": ("step", {"ops": [["rows", [-1]]]}),
    "index beyond the sequences": ("step", {"ops": [["rows", [1_024]]]}),
    "indices not a list": ("step", {"ops": [["rows", 1]]}),
    "want below -1": ("step", {"want": -2}),
    "budget below 0": ("step", {"budget": -1}),
    "priority of 101": ("step", {"priority": 101}),
    "part of a later part": ("history", {"part": 2}),
    "no parts": ("history", {"parts": 0}),
    "index beyond the route": ("open", {"index": 2}),
    "fork a map": ("open", {"fork": {"session": bytes(16), "step": 1}}),
    "fork of nothing": ("open", {"fork": []}),
    "fork of a short session": ("open", {"fork": [bytes(15), 1]}),
    "fork before the first step": ("open", {"fork": [bytes(16), 0]}),
    "fork at a text": ("open", {"fork": [bytes(16), "1"]}),
    "fork too far": ("open", {"fork": [bytes(16), 2**41]}),
    "index below 0": ("reroute", {"index": -1}),
    "no grant": ("attach", {"grant": None}),
    "grant a list": ("open", {"grant": []}),
    "hop beyond the limit": ("lost", {"index": 128}),
    "message too long": ("lost", {"message": "x" * 2_001}),
    "code with a line end": ("lost", {"code": "a\nb"}),
    "an unknown kind of tokens": ("step", {"kind": "words"}),
    "a kind that is no text": ("history", {"kind": 1}),
    "an unknown result": ("step", {"result": "probabilities"}),
    "top of a result that is all": ("step", {"result": "logits"}),
    "top of nothing": ("step", {"top": 0}),
    "top beyond the limit": ("step", {"top": 1_025}),
    "scores of logits that do not come": ("step", {"own": 1}),
    "scores beyond the limit": ("step of scores", {"own": 1_025}),
    "scores as a text": ("step of scores", {"own": "1"}),
    "ids of another shape": ("reply", {"ids": {**IDS.header(), "s": [1, 3]}}),
    "ids that are the values": ("reply", {"ids": HIDDEN.header()}),
    "compute NaN": ("reply", {"compute": float("nan")}),
    "compute infinite": ("reply", {"compute": float("inf")}),
    "compute below 0": ("reply", {"compute": -1.0}),
    "compute true": ("reply", {"compute": True}),
    "times as a list": ("step", {"times": [1, 2]}),
    "times of half an entry": ("step", {"times": bytes(20)}),
    "times of more hops than a route has": ("reply", {"times": bytes(13 * 129)}),
    "a trace of 24 bytes": ("step", {"trace": bytes(24)}),
    "a trace as a text": ("step", {"trace": "0" * 25}),
    "dtype not text": ("open", {"dtype": 32}),
    "payload absent": ("reply", {"payload": None}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_field_out_of_bounds_is_refused(what: str) -> None:
    kind, changes = REFUSED[what]
    with pytest.raises(BadRequestError):
        parser(kind)(changed(kind, **changes))


PAYLOADS: dict[str, dict[str, object]] = {
    "unknown dtype": {"d": "float64"},
    "dtype of the same size": {"d": "int32", "c": "float16"},
    "dtype of another size": {"d": "bfloat16"},
    "unknown codec": {"c": "int8"},
    "codec of another size": {"c": "float16"},
    "shape that disagrees": {"s": [3, 2]},
    "shape of 2^60": {"s": [3, 2**60]},
    "shape of 2^72 values": {"s": [1 << 24, 1 << 24, 1 << 24]},
    "shape below 0": {"s": [-3, -1]},
    "shape of five": {"s": [3, 1, 1, 1, 1]},
    "shape with true": {"s": [3, True]},
    "shape a number": {"s": 3},
    "checksum wrong": {"k": 1},
    "checksum below 0": {"k": -1},
    "checksum absent": {"k": None},
}


@pytest.mark.parametrize("what", PAYLOADS)
def test_a_payload_that_disagrees_with_its_header_is_refused(what: str) -> None:
    payload = {**HIDDEN.header(), **PAYLOADS[what]}
    with pytest.raises(BadRequestError) as caught:
        inference.parse(changed("reply", payload={key: value for key, value in payload.items() if value is not None}))
    assert isinstance(caught.value, TensorFormatError) or "must be" in str(caught.value)


def test_a_payload_without_its_buffer_is_refused() -> None:
    header, _ = _header_of(FRAMES["reply"])
    with pytest.raises(TensorFormatError, match="the frame has 0 buffers"):
        inference.parse(frame.encode(header))


def test_tokens_without_width_are_still_counted() -> None:
    """A payload of no bytes agrees with any number of tokens; the limit holds nevertheless."""
    empty = tensors.WireTensor("float32", (4_097, 0), "none", b"")
    step = inference.Reply(session=GRANT.session, epoch=0, step=0, counts=(4_096, 1), payload=empty)
    with pytest.raises(BadRequestError, match="limit 4096 tokens"):
        inference.parse(step.encode())


def test_one_flipped_bit_in_a_payload_is_noticed() -> None:
    data = bytearray(FRAMES["reply"])
    for byte in range(len(HIDDEN.data)):
        at = bytes(data).index(bytes(HIDDEN.data)) + byte
        data[at] ^= 0x10
        with pytest.raises(TensorFormatError, match="checksum"):
            inference.parse(bytes(data))
        data[at] ^= 0x10


HOP = GRANT.route[0].pack()
GRANTS: dict[str, dict[str, object]] = {
    "client not a PeerID": {"client": "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN"},
    "client a PeerID's look-alike": {"client": "12D3KooW" + "z" * 44},
    "no weights": {"weights": None},
    "weights without digest": {"weights": "tiny"},
    "no hops": {"route": []},
    "too many hops": {"route": [{**HOP, "u": f"decoder/{n}:{n + 1}"} for n in range(129)]},
    "a gap in the route": {"route": [{**HOP, "u": "decoder/0:2"}, {**HOP, "u": "decoder/3:4"}]},
    "an overlap in the route": {"route": [{**HOP, "u": "decoder/0:2"}, {**HOP, "u": "decoder/1:4"}]},
    "an empty span": {"route": [{**HOP, "u": "decoder/2:2"}]},
    "a span of 2^60": {"route": [{**HOP, "u": f"decoder/0:{2**60}"}]},
    "a hop without a certificate": {"route": [{key: HOP[key] for key in "pau"}]},
    "a hop as a list": {"route": [list(HOP.values())]},
    "a hop of embedding and head": {"route": [{**HOP, "u": "decoder/ends"}]},
    "a hop of an expert": {"route": [{**HOP, "u": "decoder/0/expert/1"}]},
    "two stacks": {"route": [HOP, {**HOP, "u": "encoder/2:4"}]},
    "an address that is a socket file": {"route": [{**HOP, "a": ["unix:1"]}]},
    "an address without port": {"route": [{**HOP, "a": ["10.0.0.1"]}]},
    "nine addresses": {"route": [{**HOP, "a": ["10.0.0.1:1"] * 9}]},
    "a certificate of 4,097 bytes": {"route": [{**HOP, "c": bytes(4_097)}]},
    "expiry NaN": {"expires": float("nan")},
    "expiry infinite": {"expires": float("inf")},
    "expiry below 0": {"expires": -1.0},
    "a signature of 65 bytes": {"signature": bytes(65)},
}


@pytest.mark.parametrize("what", GRANTS)
def test_a_malformed_grant_is_refused(what: str) -> None:
    grant = {key: value for key, value in {**GRANT.pack(), **GRANTS[what]}.items() if value is not None}
    with pytest.raises(BadRequestError):
        inference.parse(changed("attach", grant=grant))


def test_a_grant_says_what_its_client_signed() -> None:
    """Anything in it that a hop acts on is under the signature."""
    others: list[dict[str, object]] = [
        {"session": bytes(16)},
        {"epoch": 2},
        {"weights": "tiny@" + "0" * 64},
        {"weights": str(GRANT.weights) + "/adapter/" + "0" * 64},
        {"expires": 1_900_000_001.0},
        {"route": [GRANT.route[0].pack()]},
        {"route": [{**HOP, "u": "decoder/0:3"}, {**HOP, "u": "decoder/3:4"}]},
    ]
    for change in others:
        assert inference.Grant.parse({**GRANT.pack(), **change}).signed_bytes() != GRANT.signed_bytes(), change
    assert inference.Grant.parse(GRANT.pack()).signed_bytes() == GRANT.signed_bytes()


def test_what_a_newer_peer_adds_to_a_hop_is_ignored_and_not_signed() -> None:
    newer = {**GRANT.pack(), "route": [{**hop.pack(), "zz": [1, 2]} for hop in GRANT.route]}
    assert inference.Grant.parse(newer) == GRANT
    identity.verify(GRANT.client, GRANT.signature, inference.Grant.parse(newer).signed_bytes())


def test_the_longest_route_fits_a_frame() -> None:
    hops = tuple(inference.Hop(GRANT.client, ("255.255.255.255:65535",) * 8, bytes(1_024), Blocks(n, n + 1)) for n in range(128))
    grant = inference.Grant(client=GRANT.client, session=GRANT.session, epoch=1, weights=GRANT.weights, route=hops, expires_s=1.0)
    assert inference.parse(inference.Attach(grant=grant, step=0).encode()) == inference.Attach(grant=grant, step=0)


# --- fuzz: nothing but SwarmError leaves a parser


def only_typed_refusals(parse: Callable[[bytes], Any], data: bytes) -> None:
    try:
        parse(data)
    except SwarmError as error:
        assert str(error)


PARSE_ALL = [parser(kind) for kind in ("hello", "dial_back", "dialled_back", "manifest", "manifest?", "record", "step")]


@settings(max_examples=400)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_raise_only_swarm_errors(noise: bytes, framed: bool) -> None:
    data = b"MU\x01\x00" + len(noise).to_bytes(4, "big") + noise + bytes(-(8 + len(noise)) % 16) if framed else noise
    for parse in PARSE_ALL:
        only_typed_refusals(parse, data)


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=6) | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400)
@given(st.sampled_from(sorted(FRAMES)), st.data())
def test_random_values_in_any_field_raise_only_swarm_errors(kind: str, data: st.DataObject) -> None:
    header, buffers = _header_of(FRAMES[kind])
    key = data.draw(st.sampled_from(sorted(header)))
    only_typed_refusals(parser(kind), frame.encode({**header, key: data.draw(_values)}, buffers))


@settings(max_examples=200)
@given(_values, st.sampled_from(sorted(GRANT.pack())))
def test_random_values_in_a_grant_raise_only_swarm_errors(value: Any, key: str) -> None:
    only_typed_refusals(inference.parse, changed("attach", grant={**GRANT.pack(), key: value}))


@settings(max_examples=300)
@given(_values)
def test_random_values_in_a_record_raise_only_swarm_errors(value: Any) -> None:
    header = fields.table(msgpack.unpackb(SAMPLES["record"].encode()), "record")
    for key in header:
        only_typed_refusals(parser("record"), msgpack.packb({**header, key: value}))


@pytest.mark.parametrize("kind", SAMPLES)
def test_mutated_messages_raise_only_swarm_errors(kind: str) -> None:
    """Bits flipped, pieces cut, doubled and swapped; 400 seeded mutations of every message."""
    whole = SAMPLES[kind].encode()
    for seed in range(400):
        only_typed_refusals(parser(kind), _mutated(whole, random.Random(f"{kind} {seed}")))


def _mutated(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data)), rng.randint(1, 9)
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + length] = rng.randbytes(length)
            case 2:
                data[at:at] = data[at : at + length]
            case _:
                data[-1:] = bytes(rng.randrange(20)) if at % 2 else data[-1:]
    return bytes(data)
