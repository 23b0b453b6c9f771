"""Identities have libp2p's bytes; forged signatures and damaged files fail."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocols import ids
from protocols.errors import BadRequestError, ConfigError, UnauthenticatedError
from protocols.identity import Identity, from_seed, parse_private, public_key, verify
from protocols.ids import PeerId, parse_address, parse_peer_id, peer_id_of, public_bytes
from tests.protocols.samples import ALICE, BOB

SPEC_PRIVATE = bytes.fromhex(
    "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
    "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
)
"""The Ed25519 key of libp2p's specification (peer-ids.md, test vectors)."""


def test_the_specifications_key_is_read_and_written() -> None:
    identity = parse_private(SPEC_PRIVATE)
    assert identity.private_bytes == SPEC_PRIVATE
    assert identity.public_bytes.hex() == "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"


def test_a_peer_id_is_libp2ps() -> None:
    """An example of libp2p's specification of peer ids."""
    peer = parse_peer_id("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
    assert peer_id_of(public_bytes(peer)) == peer


def test_a_peer_id_equals_hiveminds() -> None:
    from hivemind.p2p import PeerID  # 2 s, so only here

    for identity in (ALICE, BOB):
        assert PeerID.from_base58(identity.peer_id).to_bytes() == bytes.fromhex("002408011220") + identity.public_bytes


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_contains_its_public_key(public: bytes) -> None:
    peer = parse_peer_id(peer_id_of(public))
    assert len(peer) == 52 and public_bytes(peer) == public


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_a_signature_proves_the_peer(seed: bytes, data: bytes) -> None:
    identity = from_seed(seed)
    signature = identity.sign(data)
    verify(identity.peer_id, signature, data)
    assert parse_private(identity.private_bytes).peer_id == identity.peer_id
    for peer, mark, text in (
        (BOB.peer_id, signature, data),
        (identity.peer_id, signature, data + b"x"),
        (identity.peer_id, signature[:-1], data),
        (identity.peer_id, b"", data),
        (identity.peer_id, bytes(64), data),
        (identity.peer_id, signature[:-1] + bytes([signature[-1] ^ 1]), data),
        (PeerId("nobody"), signature, data),
    ):
        with pytest.raises(UnauthenticatedError, match="forged or damaged"):
            verify(peer, mark, text)


def test_a_damaged_key_file_is_refused_with_what_to_do() -> None:
    whole = ALICE.private_bytes
    wrong = [
        b"",
        whole[:-1],
        whole + b"\0",
        b"\x08\x00" + whole[2:],
        bytes(68),
        base64.b64encode(whole),
        whole[:36] + BOB.public_bytes,
    ]
    for data in wrong:
        with pytest.raises(ConfigError, match="remove"):
            parse_private(data)


def test_a_private_key_is_never_shown() -> None:
    assert ALICE.private_bytes[4:36].hex() not in repr(ALICE)
    assert repr(ALICE) == f"Identity(peer_id={ALICE.peer_id!r})"
    assert Identity(Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)).peer_id == ALICE.peer_id


NO_PEERS = [
    "", "12D3KooW", ALICE.peer_id[:-1], ALICE.peer_id + "1", ALICE.peer_id.lower(), " " + ALICE.peer_id[1:], ALICE.peer_id[:-1] + "0",
    ALICE.peer_id[:-1] + "l", ALICE.peer_id + "\n", "Qm" + "a" * 44, "12D3KooW" + "1" * 44, "12D3KooW" + "z" * 44, 7, None,
    ALICE.peer_id.encode(), [ALICE.peer_id],
]  # fmt: skip


@pytest.mark.parametrize("text", NO_PEERS, ids=repr)
def test_what_is_no_peer_id_is_refused(text: object) -> None:
    with pytest.raises(BadRequestError, match="not an Ed25519 PeerID"):
        parse_peer_id(text)
    with pytest.raises(BadRequestError):
        public_key(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["10.0.0.1:1", "node-7.example.org:65535", "localhost:80", "[::1]:4001", "[2001:db8::7]:4001", "A_b:5"]
)
def test_an_address_is_host_and_port(text: str) -> None:
    assert parse_address(text) == text


NO_ADDRESSES = [
    "", ":1", "a:", "a", "a:0", "a:65536", "a:999999", "a:-1", "a:1 ", "a b:1", "a:1/../b", "a:1,b:2", "a:1:2", "-a:1", "a:١", "a:1\n",
    "unix:1", "UNIX:1", "unix:/tmp/x", "unix-abstract:1", "dns:///a:1", "xds:1", "ipv4:1", "vsock:1", "http://a:1",
    "::1:1", "[::1]", "[::1", "x" * 281 + ":1", 7, None, b"a:1",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_ADDRESSES, ids=repr)
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(BadRequestError, match="not an address"):
        parse_address(text)


def test_models_and_spans_are_read_as_they_are_written() -> None:
    model = ids.ModelId.parse("org/model@" + "0f" * 32)
    assert (model.name, ids.ModelId.parse(str(model))) == ("org/model", model)
    assert ids.Span.parse("0:6") == ids.Span(0, 6) and str(ids.Span(0, 6)) == "0:6" and len(ids.Span(2, 6)) == 4
    assert 2 in ids.Span(2, 6) and 6 not in ids.Span(2, 6)


ZEROS = "0" * 64
NO_MODELS = ["", "m", "@" + ZEROS, "m@" + ZEROS[1:], "m@" + "G" * 64, "m@" + "A" * 64, "a@b@" + ZEROS, "a\n@" + ZEROS]


@pytest.mark.parametrize("text", NO_MODELS)
def test_what_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError):
        ids.ModelId.parse(text)


NO_SPANS = ["", "1", "1:", ":1", "2:2", "3:2", "-1:2", "0:10001", "0:6 ", "0: 6", "٠:٦", "0:6:8", "0:999999999999999999"]


@pytest.mark.parametrize("text", NO_SPANS)
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError, match="span"):
        ids.Span.parse(text)


def test_a_session_id_is_16_bytes_and_short_in_logs() -> None:
    assert ids.short(ids.parse_session_id(bytes(range(16)))) == "00010203"
    assert ids.short_peer(ALICE.peer_id) == "…" + ALICE.peer_id[-6:]
    for wrong in (b"", bytes(15), bytes(17), "0" * 16, None, [0] * 16):
        with pytest.raises(BadRequestError):
            ids.parse_session_id(wrong)
