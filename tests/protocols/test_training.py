"""Messages of training: fields that do not fit each other are refused."""

from __future__ import annotations

import pytest

from protocols import frame, training
from protocols.errors import BadRequestError
from protocols.route import parse_route
from protocols.tensors import WireTensor
from tests.protocols.samples import HIDDEN, IDS, MODEL, RECEIPT, SAMPLES, STATES_BTH, parser

LONG = WireTensor("int32", (257, 256), "none", bytes(4 * 257 * 256))
NARROW = WireTensor("float32", (1 << 9, 1 << 8, 0), "none", b"")
RECEIPTS = [RECEIPT.pack()]

REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "hop beyond the route": ("pass", {"hop": 2}),
    "index beyond a batch": ("pass", {"index": 4_096}),
    "index a fraction": ("pass", {"index": 1.5}),
    "version below 0": ("pass", {"version": -1}),
    "more targets than tokens": ("pass", {"targets": 4}),
    "training that wants hidden states": ("pass", {"want": "hidden"}),
    "training that names weights": ("pass", {"weights": str(MODEL)}),
    "a wish that is unknown": ("pass", {"want": "logits"}),
    "a codec that is unknown": ("pass", {"codec": "gzip"}),
    "a part that is none": ("pass", {"skip": ["decoder/0:2"]}),
    "too many parts": ("pass", {"skip": ["decoder/0:1"] * 514}),
    "a budget below 0": ("pass", {"budget": -1}),
    "labels of another shape": ("pass", {"labels": {**IDS.header(), "s": [1, 3]}}),
    "labels that are floats": ("pass", {"labels": {**IDS.header(), "d": "float32"}}),
    "payload of one dimension": ("pass", {"payload": {**IDS.header(), "s": [3]}}),
    "a route with a gap": (
        "pass",
        {"route": [SAMPLES["pass"].route[0].pack(), {**SAMPLES["pass"].route[1].pack(), "u": "decoder/3:4"}]},
    ),
    "embeddings in training": ("pass", {"embeds": True}),
    "embeddings at the second hop": ("pass of a client", {"embeds": True}),
    "autograd without weights": ("pass of a client", {"weights": ""}),
    "autograd of other weights": ("pass of a client", {"weights": "other@" + "ab" * 32}),
    "autograd that skips parts": ("pass of a client", {"skip": ["decoder/0:1"]}),
    "autograd that wants a loss without labels": ("pass of a client", {"want": "loss"}),
    "output of two dimensions": ("output", {"hidden": HIDDEN.header()}),
    "a gradient of integers": ("gradient", {"gradient": {**STATES_BTH.header(), "d": "int32"}}),
    "loss NaN": ("result", {"loss": float("nan")}),
    "loss infinite": ("result", {"loss": float("inf")}),
    "receipts of too many parts": ("result", {"receipts": [{**RECEIPTS[0], "a": ["decoder/0:1"] * 513}]}),
    "a receipt with three times": ("result", {"receipts": [{**RECEIPTS[0], "ms": [1, 2, 3]}]}),
    "a receipt with a time below 0": ("result", {"receipts": [{**RECEIPTS[0], "ms": [1, 2, 3, -4]}]}),
    "a receipt of no peer": ("result", {"receipts": [{**RECEIPTS[0], "p": "me"}]}),
    "a hop that no route has": ("pass_failed", {"hop": 128}),
    "a failure without words": ("pass_failed", {"message": b"x"}),
    "a run without digest": ("run_status?", {"run": "tiny"}),
    "a batch of nothing": ("run_status", {"batch": 0}),
    "a batch whose masks are longer": ("run_status", {"batch": 17}),
    "a bit beyond the batch": ("run_status", {"batch": 11}),
    "a unit twice": ("run_status", {"units": [["decoder/3:4", 0, b"", b""]] * 3}),
    "a unit of two blocks": ("run_status", {"units": [["decoder/3:5", 0, b"", b""], ["decoder/ends", 0, b"", b""]]}),
    "a chain at version 0": ("run_status", {"units": [["decoder/3:4", 0, bytes(32), b""], ["decoder/ends", 0, b"", b""]]}),
    "no chain at version 1": ("run_status", {"units": [["decoder/3:4", 1, b"", b""], ["decoder/ends", 0, b"", b""]]}),
    "half the id of a group": ("run_status", {"units": [["decoder/3:4", 0, b"", bytes(8)], ["decoder/ends", 0, b"", b""]]}),
    "a chain of 31 bytes": ("publish", {"chains": [["decoder/0:1", bytes(31)]]}),
    "chains of a unit twice": ("publish", {"chains": [["decoder/0:1", bytes(32)]] * 2}),
    "a chain without unit": ("publish", {"chains": [bytes(32)]}),
    "a checkpoint of version 0": ("restore", {"kept": [0, []]}),
    "no checkpoint": ("restore", {"kept": None}),
    "a checkpoint without chains": ("run_status", {"kept": [7]}),
    "three held versions": ("run_status", {"held": [[7, bytes(32), True, []]] * 3}),
    "a held version without its chain": ("run_status", {"held": [[7, b"", True, []]]}),
    "a held version without units": ("run_status", {"held": [[7, bytes(32), True]]}),
    "a held version 0": ("run_status", {"held": [[0, bytes(32), True, []]]}),
    "a version to hold without chains": ("hold", {"kept": [7]}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_fields_that_do_not_fit_are_refused(what: str) -> None:
    kind, changes = REFUSED[what]
    received = frame.decode(SAMPLES[kind].encode())
    changed = frame.encode({**received.header, **changes}, [bytes(buffer) for buffer in received.buffers])
    with pytest.raises(BadRequestError):
        parser(kind)(changed)


@pytest.mark.parametrize("payload", [LONG, NARROW], ids=["ids", "hidden states without width"])
def test_a_pass_has_at_most_65_536_tokens(payload: WireTensor) -> None:
    received = frame.decode(SAMPLES["pass"].encode())
    header = {key: value for key, value in received.header.items() if key not in ("labels", "positions")}
    with pytest.raises(BadRequestError, match="65536 tokens"):
        training.parse(frame.encode({**header, "payload": payload.header()}, [payload.data]))


def test_the_next_hop_learns_its_place_and_no_address_above_it() -> None:
    sent = SAMPLES["pass"]
    below = training.parse(sent.below(WireTensor("float32", (3, 1, 2), "none", bytes(24)), 900).encode())
    assert isinstance(below, training.Pass)
    assert (below.hop, below.budget_ms, below.labels, below.skip) == (1, 900, sent.labels, sent.skip)
    assert below.here == sent.route[1] and below.is_last and below.is_training
    assert [hop.place for hop in below.route] == [hop.place for hop in sent.route]
    assert not below.route[0].addresses and not below.route[0].certificate
    assert parse_route([hop.pack() for hop in below.route]) == below.route
