"""Addresses in a private swarm: a peer's own claim wins.

Nonsense is left out.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.identity import from_seed
from swarm.dht import whereabouts
from swarm.dht.whereabouts import Whereabouts

ME, YOU, THIRD = (from_seed(bytes([number]) * 32).peer_id for number in (1, 2, 3))
HERE, THERE, LIE = "/ip4/203.0.113.5/tcp/4000", "/ip6/2001:db8::1/tcp/4001", "/ip4/203.0.113.9/tcp/9"


def test_what_is_told_is_known_and_handed_on() -> None:
    mine, yours = Whereabouts(), Whereabouts()
    yours.learn(ME, mine.tell(ME, [HERE]))
    assert yours[ME] == (HERE,) and yours[THIRD] == ()
    third = Whereabouts()
    third.learn(YOU, yours.tell(YOU, [THERE], [ME, THIRD]))
    assert third[YOU] == (THERE,) and third[ME] == (HERE,)


def test_the_word_of_others_never_replaces_a_peers_own() -> None:
    known = Whereabouts()
    known.learn(ME, json.dumps({str(ME): [HERE]}).encode())
    known.learn(YOU, json.dumps({str(ME): [LIE]}).encode())
    assert known[ME] == (HERE,)
    known.learn(ME, json.dumps({str(ME): [THERE]}).encode())
    assert known[ME] == (THERE,)


@pytest.mark.parametrize(
    "told", [{"nobody": [HERE]}, {str(ME): ["/unix/x"]}, {str(ME): 7}, {str(ME): [[]]}, [], 3, {str(ME): {}}]
)
def test_nonsense_is_left_out(told: object) -> None:
    known = Whereabouts()
    known.learn(YOU, json.dumps(told).encode())
    assert known[ME] == ()


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    Whereabouts().learn(YOU, data)


def test_what_does_not_fit_a_message_is_left_out_and_the_rest_is_told() -> None:
    teller, peers = Whereabouts(), [from_seed(bytes([number]) * 32).peer_id for number in range(10, 80)]
    long = [f"/dns/{'x' * 240}{number}/tcp/4001" for number in range(whereabouts.MAX_ADDRESSES)]
    for peer in peers:
        teller.learn(peer, json.dumps({str(peer): long}).encode())
    told = teller.tell(ME, [HERE], peers)
    assert whereabouts._MAX_BYTES - 2 * len(long[0]) * len(long) < len(told) <= whereabouts._MAX_BYTES
    reader = Whereabouts()
    reader.learn(YOU, told)
    assert reader[ME] == (HERE,) and reader[peers[0]] == tuple(long) and sum(bool(reader[peer]) for peer in peers) > 20
    assert json.loads(teller.tell(ME, [], [THIRD])) == {}


def test_memory_is_bounded() -> None:
    known, peers = Whereabouts(max_peers=3), [from_seed(bytes([number]) * 32).peer_id for number in range(10, 15)]
    for peer in peers:
        known.learn(peer, json.dumps({str(peer): [HERE]}).encode())
    assert [bool(known[peer]) for peer in peers] == [False, False, True, True, True]
