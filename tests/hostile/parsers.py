"""Every parser of untrusted bytes, with valid samples for the fuzzer.

A parser returns something or raises a SwarmError. Text parsers get the bytes as text, letters that are none replaced.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack

from protocols import bounds, dictionary, entries, errors, frame, ids, inference, parts, pieces, records
from protocols.hosted import Hosted
from protocols.ids import Span
from protocols.progress import Progress, ProgressRequest
from protocols.runs import RunSpec
from protocols.units import Blocks, parse_unit
from protocols.weights import TensorEntry
from protocols.weights_id import Weights
from swarm import access_lists
from swarm.dht.address import PeerAddress
from swarm.inference.hop import grants
from swarm.meeting import known_peers
from swarm.meeting.invitation import Invitation
from swarm.rpc import auth
from swarm.thin.defaults import read_settings
from tests.protocols.samples import ALICE, BOB, CAROL, MANIFEST, MODEL, RECORD, ROLES, RUN, SAMPLES, parser
from tests.protocols.test_bounds import LARGEST

NOW_S = 1_899_999_900.0
_SERVED = grants.Served(
    peer=CAROL.peer_id, weights=Weights(MODEL), blocks=Blocks(2, 4), num_blocks=4, hidden_size=8, dtype="float32"
)
_FINGERPRINT = bytes(range(32))
_AUTHENTICATOR = auth.Authenticator(_FINGERPRINT)
_FOLDER = Path(tempfile.mkdtemp(prefix="murmuration-fuzz-"))


@dataclass(frozen=True, slots=True)
class Parser:
    """How to read it, and what is right."""

    read: Callable[[bytes], object]
    samples: tuple[bytes, ...]


def _text(read: Callable[[str], object], *samples: str) -> Parser:
    return Parser(lambda data: read(data.decode("utf-8", "replace")), tuple(sample.encode() for sample in samples))


def _signed(key: str) -> entries.SignedEntry:
    packed = b"\xc5" + len(RECORD.encode()).to_bytes(2, "big") + RECORD.encode()
    expires_s = NOW_S + 60
    signed = records.signed_bytes(entries.key_id(key), entries.packed_subkey(ALICE.peer_id), packed, expires_s)
    return entries.SignedEntry(packed + ALICE.sign(signed), expires_s)


def _check_entry(data: bytes) -> None:
    entry = entries.SignedEntry(data, NOW_S + 60)
    entry.check("key", ALICE.peer_id, NOW_S)
    records.PeerRecord.parse(entry.payload)


def _check_grant(data: bytes) -> None:
    opening = inference.parse(data)
    if not isinstance(opening, inference.Open | inference.Reroute):
        raise errors.BadRequestError("not a route")
    grants.verify(opening.grant, _SERVED, NOW_S)
    grants.verify_place(opening.grant, opening.index, _SERVED)


def _join(data: bytes) -> None:
    """Messages of a stream, cut at every 1,000 bytes."""
    joined = parts.Joined()
    for start in range(0, len(data), 1_000):
        joined.take(data[start : start + 1_000])


def _read_settings(data: bytes) -> None:
    (_FOLDER / "generation_config.json").write_bytes(data)
    read_settings(_FOLDER)


def _of_a_grant() -> tuple[bytes, ...]:
    return tuple(SAMPLES[kind].encode() for kind in ("open", "open of a fork"))


def all_parsers() -> dict[str, Parser]:
    """By name; samples are small, so that a mutation often hits what matters."""
    found = {kind: Parser(parser(kind), (message.encode(),)) for kind, message in SAMPLES.items()}
    for kind in ("weights?", "hashes?", "pieces?", "file?", "holdings", "hashes", "piece", "file"):
        read = pieces.parse_request if kind.endswith("?") else pieces.parse_answer
        found[kind] = Parser(read, (_small(kind),))
    found |= {
        "frame": Parser(frame.decode, tuple(message.encode() for message in SAMPLES.values() if message is not RECORD)),
        "manifest, canonical": Parser(type(MANIFEST).from_canonical, (MANIFEST.canonical(),)),
        "grant": Parser(_check_grant, _of_a_grant()),
        "run": Parser(RunSpec.parse, (RUN.canonical(),)),
        "record with roles": Parser(records.PeerRecord.parse, (replace(RECORD, roles=ROLES).encode(),)),
        "entry": Parser(_check_entry, (_signed("key").value,)),
        "entries": Parser(dictionary.parse, (dictionary.pack([(ALICE.peer_id, _signed("key"))]),)),
        "parts": Parser(_join, (b"MUP\0end",)),
        "progress?": Parser(ProgressRequest.parse, (_PROGRESS_ASKED,)),
        "progress": Parser(Progress.parse, (_PROGRESS,)),
        "credential": Parser(
            lambda data: _AUTHENTICATOR.caller(data, NOW_S), (auth.credential(ALICE, _FINGERPRINT, NOW_S + 60),)
        ),
        "error": _text(lambda text: errors.from_wire(text[:20], text), "bad_request", "no\x1b[31m memory"),
        "generation config": Parser(_read_settings, (json.dumps({"eos_token_id": [2, 7], "temperature": 0.7}).encode(),)),
        "address": _text(ids.parse_address, "192.0.2.7:4001", "[2001:db8::2]:4001", "a.example:1"),
        "peer address": _text(PeerAddress.parse, f"/ip4/192.0.2.7/tcp/4001/p2p/{ALICE.peer_id}"),
        "peer id": _text(ids.parse_peer_id, ALICE.peer_id),
        "model": _text(ids.ModelId.parse, str(MODEL)),
        "span": _text(Span.parse, "0:6"),
        "unit": _text(parse_unit, "decoder/3:6", "encoder/ends", "decoder/4/expert/7", "decoder/4/self_attn.q_proj/rows/0:128"),
        "partial holdings": Parser(lambda data: pieces.parse_partial(data, _ENTRIES), (_PARTIAL,)),
        "hosted": Parser(lambda data: Hosted.parse(frame.unpack_map(data, bounds.RECORD), [Weights(MODEL)]), (_HOSTED,)),
        "weights": _text(Weights.parse, str(MODEL), f"{MODEL}/7/{'c0' * 32}/adapter/{'ad' * 32}"),
        "known peers": Parser(
            lambda data: known_peers.parse(data, NOW_S),
            (f"{NOW_S - 5} /ip4/192.0.2.7/tcp/4001/p2p/{ALICE.peer_id} {NOW_S - 50}\n".encode() * 3,),
        ),
        "list of peers": _text(
            lambda text: access_lists.parse(text, "peers.txt", "allow"), f"# us\n{ALICE.peer_id}\n{BOB.peer_id} # Bob\n"
        ),
        "invitation": _text(Invitation.parse, _invitation()),
    }
    return found


def _invitation() -> str:
    peers = (f"/ip4/192.0.2.7/tcp/4001/p2p/{ALICE.peer_id}",)
    return Invitation(swarm="home", peers=peers, expires_s=NOW_S + 60).text()


def _small(kind: str) -> bytes:
    small: dict[str, Any] = {
        "holdings": pieces.Holdings(bits=b"\x05", partial=_PARTIAL),
        "hashes": pieces.Hashes(tensor=1, hashes=bytes(64)),
        "piece": pieces.Piece(tensor=1, piece=2, data=b"values"),
        "file": pieces.FilePart(file=1, size=9, offset=3, data=b"values"),
        "hashes?": pieces.HashesRequest(tensors=(1, 2)),
        "pieces?": pieces.PiecesRequest(runs=(pieces.Run(1, 2, 3), pieces.Run(4, 0, 1))),
    }
    data: bytes = (small.get(kind) or LARGEST[kind]()).encode()
    return data


_ENTRIES = tuple(TensorEntry(f"t{number}", "U8", (size << 20,), bytes(32)) for number, size in enumerate((3, 1, 20, 9)))
_PARTIAL = pieces.pack_partial({0: b"\x05", 2: b"\x01\x00\x08"})
_PROGRESS_ASKED: bytes = LARGEST["progress?"]().encode()
_PROGRESS: bytes = LARGEST["progress"]().encode()
_HOSTED: bytes = msgpack.packb(RECORD.hosted[0].pack([Weights(MODEL)]))
