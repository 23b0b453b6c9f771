"""A session runs only at peers and blocks that its client signed.

The grant must hold now, for these weights and this place.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.defaults import GRANT_LIFE_S
from protocols.errors import BadRequestError, ModelMismatchError, SpanNotServedError, SwarmError, UnauthenticatedError
from protocols.identity import Identity
from protocols.ids import ModelId, SessionId
from protocols.inference import Grant, Hop
from protocols.units import Blocks
from protocols.weights_id import Weights
from swarm.inference.hop import grants
from swarm.inference.hop.grants import CLOCK_ALLOWANCE_S, Served
from tests.swarm.inference.toy import new_identity

MODEL = ModelId("toy", "ab" * 32)
NOW_S = 1_000.0


@pytest.fixture
def client() -> Identity:
    return new_identity()


def route_of(*spans: tuple[int, int]) -> tuple[Hop, ...]:
    return tuple(Hop(new_identity().peer_id, ("127.0.0.1:1",), b"", Blocks(*span)) for span in spans)


def grant_of(client: Identity, route: tuple[Hop, ...]) -> Grant:
    grant = Grant(
        client=client.peer_id, session=SessionId(bytes(16)), epoch=3, weights=Weights(MODEL), route=route, expires_s=NOW_S + 60
    )
    return grant.signed(client.sign)


def served_by(hop: Hop) -> Served:
    return Served(peer=hop.peer, weights=Weights(MODEL), blocks=Blocks.of(hop.span), num_blocks=4, hidden_size=4, dtype="float32")


def test_what_the_client_signed_is_taken(client: Identity) -> None:
    route = route_of((0, 2), (2, 4))
    grant = grant_of(client, route)
    for index, hop in enumerate(route):
        grants.verify(grant, served_by(hop), NOW_S)
        grants.verify_place(grant, index, served_by(hop))


@pytest.mark.parametrize("field", ["session", "epoch", "route", "expires_s", "client", "signature"])
def test_one_changed_field_voids_the_signature(client: Identity, field: str) -> None:
    route = route_of((0, 4))
    changes = {
        "session": SessionId(b"x" * 16), "epoch": 4, "route": route_of((0, 4)), "expires_s": NOW_S + 61,
        "client": new_identity().peer_id, "signature": bytes(64),
    }  # fmt: skip
    forged = replace(grant_of(client, route), **{field: changes[field]})
    with pytest.raises(UnauthenticatedError):
        grants.verify(forged, served_by(route[0]), NOW_S)


@pytest.mark.parametrize(("late_s", "is_taken"), [(-0.001, True), (0.0, False), (100.0, False)])
def test_a_grant_ends_when_it_says(client: Identity, late_s: float, is_taken: bool) -> None:
    route = route_of((0, 4))
    grant = grant_of(client, route)
    if is_taken:
        grants.verify(grant, served_by(route[0]), grant.expires_s + late_s)
    else:
        with pytest.raises(UnauthenticatedError, match="expired"):
            grants.verify(grant, served_by(route[0]), grant.expires_s + late_s)


@pytest.mark.parametrize(("ahead_s", "is_taken"), [(0.0, True), (CLOCK_ALLOWANCE_S, True), (CLOCK_ALLOWANCE_S + 1, False)])
def test_a_grant_ends_within_an_hour_by_the_clock_of_its_client(client: Identity, ahead_s: float, is_taken: bool) -> None:
    route = route_of((0, 4))
    grant = replace(grant_of(client, route), expires_s=NOW_S + ahead_s + GRANT_LIFE_S).signed(client.sign)
    if is_taken:
        grants.verify(grant, served_by(route[0]), NOW_S)
    else:
        with pytest.raises(UnauthenticatedError, match="check the clocks"):
            grants.verify(grant, served_by(route[0]), NOW_S)


def test_other_weights_are_named(client: Identity) -> None:
    route = route_of((0, 4))
    served = replace(served_by(route[0]), weights=Weights(ModelId("toy", "cd" * 32)))
    with pytest.raises(ModelMismatchError, match=r"toy@cdcdcdcdcdcd.*toy@abababababab"):
        grants.verify(grant_of(client, route), served, NOW_S)


@pytest.mark.parametrize(
    ("served", "session", "what"),
    [
        (Weights(MODEL, 7, bytes(32)), Weights(MODEL), "the version"),
        (Weights(MODEL, 7, bytes(32)), Weights(MODEL, 8, bytes(32)), "the version"),
        (Weights(MODEL, 7, bytes(32)), Weights(MODEL, 7, bytes(31) + b"x"), "the chain of the version"),
        (Weights(MODEL, adapter="ad" * 32), Weights(MODEL), "the adapter"),
        (Weights(MODEL), Weights(MODEL, adapter="ad" * 32), "the adapter"),
    ],
)
def test_a_hop_computes_with_no_other_version_or_adapter(client: Identity, served: Weights, session: Weights, what: str) -> None:
    route = route_of((0, 4))
    grant = replace(grant_of(client, route), weights=session).signed(client.sign)
    with pytest.raises(ModelMismatchError, match=rf"different weights \({what}\)"):
        grants.verify(grant, replace(served_by(route[0]), weights=served), NOW_S)
    grants.verify(grant, replace(served_by(route[0]), weights=session), NOW_S)


def test_the_same_numbers_may_go_by_another_name(client: Identity) -> None:
    route = route_of((0, 4))
    grants.verify(grant_of(client, route), replace(served_by(route[0]), weights=Weights(replace(MODEL, name="mine"))), NOW_S)


def test_blocks_of_an_encoder_are_not_those_of_the_decoder(client: Identity) -> None:
    (hop,) = route_of((0, 4))
    route = (replace(hop, unit=Blocks(0, 4, "encoder")),)
    with pytest.raises(SpanNotServedError, match="serves decoder/0:4, the route wants encoder/0:4"):
        grants.verify_place(grant_of(client, route), 0, served_by(hop))


@pytest.mark.parametrize(
    ("spans", "index", "served_span", "error"),
    [
        ([(0, 2), (2, 4)], 1, (0, 3), SpanNotServedError),
        ([(0, 2), (2, 4)], 1, (3, 4), SpanNotServedError),
        ([(1, 4)], 0, (2, 4), SpanNotServedError),
        ([(1, 4)], 0, (1, 3), SpanNotServedError),
        ([(0, 6)], 0, (0, 6), BadRequestError),  # beyond the model
    ],
)
def test_a_place_that_is_not_ours_is_refused(
    client: Identity, spans: list[tuple[int, int]], index: int, served_span: tuple[int, int], error: type[SwarmError]
) -> None:
    route = route_of(*spans)
    with pytest.raises(error):
        grants.verify_place(grant_of(client, route), index, replace(served_by(route[index]), blocks=Blocks(*served_span)))


def test_another_peers_place_is_refused(client: Identity) -> None:
    route = route_of((0, 2), (2, 4))
    with pytest.raises(BadRequestError, match="hop 0 of the route is"):
        grants.verify_place(grant_of(client, route), 0, served_by(route[1]))


def test_each_hop_is_called_by_the_one_above(client: Identity) -> None:
    route = route_of((0, 1), (1, 2), (2, 4))
    grant = grant_of(client, route)
    assert [grants.caller_of(grant, index) for index in range(3)] == [client.peer_id, route[0].peer, route[1].peer]
