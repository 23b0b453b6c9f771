"""Hosted units: their map, refusals, and fields of newer peers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError
from protocols.hosted import Hosted, Load
from protocols.ids import MAX_BLOCKS
from protocols.units import Blocks, Ends, Expert, Partition
from protocols.weights_id import Weights
from tests.protocols.samples import MODEL, all_hosted, all_weights

STATIC, ADAPTED = Weights(MODEL), Weights(MODEL, adapter="ad" * 32)
BLOCKS = Hosted(unit=Blocks(0, 2), weights=STATIC, num_blocks=4, dtype="float32")
VECTORS = {
    "83a175ab6465636f6465722f303a32a16e04a164a7666c6f61743332": BLOCKS,
    "84a175ab6465636f6465722f303a32a16e04a164a7666c6f61743332a16803": replace(BLOCKS, capacity_blocks=3),
    "84a175ac6465636f6465722f656e6473a16e04a164a7666c6f61743332a17701": replace(BLOCKS, unit=Ends(), weights=ADAPTED),
    "89a175b26465636f6465722f332f6578706572742f37a16e04a164a862666c6f61743136a171a4696e7438a174a76a6f696e696e67a166cd"
    "1000a16c02a173cd04d2a162cd0100": replace(
        BLOCKS, unit=Expert(3, 7), dtype="bfloat16", quantization="int8", state="joining",
        load=Load(free_tokens=4096, queue=2, step_ms=12.34, block_ms=2.56),
    ),
}  # fmt: skip

TABLE: dict[str, Any] = {"u": "decoder/0:2", "w": 0, "n": 4, "d": "float32"}
WRONG: dict[str, dict[str, Any]] = {
    "no unit": {"u": None},
    "a unit as bytes": {"u": b"decoder/0:2"},
    "a unit too long": {"u": "x" * 161},
    "a unit with an escape": {"u": "\x1b[31m"},
    "no blocks in it": {"u": "decoder/2:2"},
    "blocks beyond the model": {"u": "decoder/3:5"},
    "an expert beyond the model": {"u": "decoder/4/expert/0"},
    "a partition beyond the model": {"u": "decoder/4/q/rows/0:4"},
    "weights that are not listed": {"w": 2},
    "weights below nothing": {"w": -1},
    "weights by name": {"w": str(STATIC)},
    "no blocks": {"n": 0},
    "blocks of 2^60": {"n": 2**60},
    "a dtype too long": {"d": "x" * 17},
    "a quantization that is a number": {"q": 8},
    "an unknown state": {"t": "sleeping"},
    "free tokens below 0": {"f": -1},
    "free tokens true": {"f": True},
    "a queue of 2^60": {"l": 2**60},
    "a step of NaN": {"s": float("nan")},
    "a speed below nothing": {"b": -1},
    "capacity below 0": {"h": -1},
    "capacity as text": {"h": "3"},
    "more capacity than any model has blocks": {"h": MAX_BLOCKS + 1},
}


@pytest.mark.parametrize("written", VECTORS)
def test_a_hosted_unit_has_the_bytes_that_other_peers_know(written: str) -> None:
    one = VECTORS[written]
    assert msgpack.packb(one.pack([STATIC, ADAPTED])).hex() == written
    assert Hosted.parse(msgpack.unpackb(bytes.fromhex(written)), [STATIC, ADAPTED]) == one


@given(all_hosted, st.lists(all_weights, max_size=3))
def test_every_hosted_unit_is_read_back(one: Hosted, others: list[Weights]) -> None:
    listed = [*others, one.weights]
    assert Hosted.parse(msgpack.unpackb(msgpack.packb(one.pack(listed))), listed) == one


@pytest.mark.parametrize("what", WRONG)
def test_a_claim_out_of_bounds_is_refused(what: str) -> None:
    assert Hosted.parse(TABLE, [STATIC]) == BLOCKS, "or every refusal would be one of the table's own"
    with pytest.raises(BadRequestError):
        Hosted.parse({**TABLE, **WRONG[what]}, [STATIC])


@pytest.mark.parametrize("value", [None, 7, [], "decoder/0:2", {1: 2}])
def test_what_is_no_map_is_refused(value: object) -> None:
    with pytest.raises(BadRequestError):
        Hosted.parse(value, [STATIC])


def test_what_a_newer_peer_adds_is_left_out() -> None:
    assert Hosted.parse({**TABLE, "zz": 7}, [STATIC]) == BLOCKS
    assert Hosted.parse({**TABLE, "u": "decoder/3/router"}, [STATIC]) is None, "a kind of unit that is unknown here"
    with pytest.raises(BadRequestError):
        Hosted.parse({**TABLE, "u": "decoder/3/router", "n": -1}, [STATIC])


def test_only_blocks_of_the_decoder_are_what_a_route_leads_over() -> None:
    others = [Ends(), Expert(0, 1), Partition(0, "q", "rows", 0, 4), Blocks(0, 2, "encoder")]
    assert BLOCKS.is_blocks and not any(replace(BLOCKS, unit=unit).is_blocks for unit in others)
