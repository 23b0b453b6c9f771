"""An order that does not fit its action is refused."""

from __future__ import annotations

from typing import Any

import pytest

from protocols import frame, orders
from protocols.errors import BadRequestError
from protocols.orders import Ban, Order, OrderReply
from tests.protocols.samples import BOB

WRONG: dict[str, dict[str, Any]] = {
    "an action of no peer": {"action": "burn"},
    "a ban of no peer": {"action": "ban", "seconds": 60},
    "a ban without length": {"action": "ban", "peer": BOB.peer_id},
    "a ban for ever": {"action": "ban", "peer": BOB.peer_id, "seconds": orders.MAX_BAN_S + 1},
    "a ban of less than nothing": {"action": "ban", "peer": BOB.peer_id, "seconds": -1},
    "a ban of half a second": {"action": "ban", "peer": BOB.peer_id, "seconds": 0.5},
    "a ban of a name": {"action": "ban", "peer": "bob", "seconds": 60},
    "a ban of two": {"action": "ban", "peer": [BOB.peer_id], "seconds": 60},
    "a drain of another": {"action": "drain", "peer": BOB.peer_id},
    "a pause with a length": {"action": "pause", "seconds": 60},
    "an unban with a length": {"action": "unban", "peer": BOB.peer_id, "seconds": 60},
    "two actions": {"action": ["drain", "kill"]},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_order_is_refused(what: str) -> None:
    with pytest.raises(BadRequestError):
        Order.parse(frame.encode({"t": "order", "peer": "", "seconds": 0, **WRONG[what]}))


def test_our_own_code_cannot_build_a_wrong_one() -> None:
    with pytest.raises(BadRequestError, match="an order is one of ask, drain"):
        Order(action="burn")
    with pytest.raises(BadRequestError, match="ban and unban name one, others none"):
        Order(action="kill", peer=BOB.peer_id)


@pytest.mark.parametrize("bans", [[BOB.peer_id], [[BOB.peer_id]], [[BOB.peer_id, -1]], [["bob", 1]], [[BOB.peer_id, 1]] * 257])
def test_bans_of_an_answer_are_bounded(bans: list[object]) -> None:
    with pytest.raises(BadRequestError):
        OrderReply.parse(frame.encode({"t": "ordered", "done": "", "may": [], "state": "serving", "bans": bans}))


def test_what_a_newer_node_obeys_beside_is_left_out() -> None:
    said = {"t": "ordered", "done": "", "may": ["pause", "dance"], "state": "paused", "bans": [[BOB.peer_id, 7]]}
    assert OrderReply.parse(frame.encode(said)) == OrderReply(
        may=("pause",), state="paused", bans=(Ban(peer=BOB.peer_id, seconds=7),)
    )
