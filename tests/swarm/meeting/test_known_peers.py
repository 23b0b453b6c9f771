"""Known peers are bounded, and the longest known ones stay.

Their file may say anything.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.identity import from_seed
from swarm.dht.address import PeerAddress, beside
from swarm.meeting import known_peers, running_nodes
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.known_peers import Seen

DAY_S = 86_400.0
NOW_S = 1_800_000_000.0


def address(number: int, network: str = "10.0.0", peer: int | None = None) -> PeerAddress:
    identity = from_seed((number if peer is None else peer).to_bytes(32))
    return PeerAddress.parse(f"/ip4/{network}.{number % 250 + 1}/tcp/4000/p2p/{identity.peer_id}")


def test_what_was_written_is_read_the_longest_known_first(tmp_path: Path) -> None:
    file = known_peers.file_of(tmp_path, "any / name \0")
    known_peers.update(file, [address(1)], [], NOW_S - 20)
    known_peers.update(file, [address(2)], [], NOW_S - 10)
    known_peers.update(file, [address(2)], [], NOW_S)
    assert known_peers.load(file, NOW_S) == {address(2): Seen(NOW_S - 10, NOW_S), address(1): Seen(NOW_S - 20, NOW_S - 20)}
    assert list(known_peers.load(file, NOW_S)) == [address(2), address(1)]
    assert file != known_peers.file_of(tmp_path, "other") and os.stat(file).st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no partial file stays


def test_a_file_of_an_older_version_is_read() -> None:
    text = f"{NOW_S - 60:.0f} {address(1)}\n{NOW_S:.0f} {address(2)}\n"
    assert known_peers.parse(text.encode(), NOW_S) == {
        address(1): Seen(NOW_S - 60, NOW_S - 60),
        address(2): Seen(NOW_S, NOW_S),
    }


def test_new_identities_push_out_nobody_who_has_answered_for_longer() -> None:
    """17 identities that answer once cost nothing; the old ones answer today, too, or did not answer for a few days."""
    old = {address(number, f"8.8.{number}"): Seen(NOW_S - 9 * DAY_S, NOW_S - DAY_S * (number % 3)) for number in range(14)}
    flood = [address(1_000 + number, f"9.9.{number}") for number in range(200)]
    after = known_peers.merged(old, flood, [], NOW_S)
    assert set(old) <= set(after) and len(after) == known_peers.MAX_PEERS
    assert list(after)[: len(old)] == sorted(old, key=lambda one: old[one].last_s, reverse=True)


def test_one_network_fills_only_what_nobody_else_needs() -> None:
    """An hour of answering from one /24 does not keep out a peer of another network that has just been met."""
    flood = {address(number, "8.8.8"): Seen(NOW_S - 3_600, NOW_S) for number in range(100)}
    alone = known_peers.kept(flood)
    assert len(alone) == known_peers.MAX_PEERS
    others = [address(1_000 + number, f"9.9.{number}") for number in range(10)]
    after = known_peers.merged(alone, others, [], NOW_S)
    assert set(others) <= set(after) and len(after) == known_peers.MAX_PEERS


def test_one_peer_has_at_most_two_places_the_last_ones() -> None:
    moved = {address(number, f"8.8.{number}", peer=7): Seen(NOW_S - 100 + number, NOW_S - 100 + number) for number in range(20)}
    assert set(known_peers.kept(moved)) == set(list(moved)[-2:])


def test_who_has_been_away_is_dropped_but_not_because_our_own_network_is_down() -> None:
    before = {
        address(number): Seen(NOW_S - 20 * DAY_S, NOW_S - silent_s)
        for number, silent_s in ((1, 0), (2, 2 * DAY_S), (3, 15 * DAY_S))
    }
    assert set(known_peers.merged(before, [], [address(1), address(2)], NOW_S)) == {
        address(1),
        address(2),
    }  # no peer answers: our own network is down
    assert set(known_peers.merged(before, [address(4)], [address(1), address(2)], NOW_S)) == {address(1), address(4)}


def test_other_lines_are_left_out() -> None:
    good = f"{NOW_S:.0f} {address(1)} {NOW_S - 5:.0f}"
    text = f"hello\n{good}\nnan {address(2)}\n1e999 {address(3)}\n{NOW_S - 15 * DAY_S:.0f} {address(4)}\n{NOW_S} /ip4/x/tcp/1\n"
    text += f"{NOW_S} {address(5)} later\n{NOW_S} {address(6)} nan\n\xff\n"
    found = known_peers.parse(text.encode("latin-1"), NOW_S)
    assert found.pop(address(1)) == Seen(NOW_S - 5, NOW_S)
    assert set(found) == {address(3), address(6)}
    assert all(seen == Seen(NOW_S, NOW_S) for seen in found.values())  # a clock ahead is not believed


@given(st.binary(max_size=2_000))
def test_any_bytes_give_some_peers_or_none(data: bytes) -> None:
    assert len(known_peers.parse(data, NOW_S)) <= known_peers.MAX_PEERS


def test_a_file_that_cannot_be_read_or_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("a file where a folder should be")
    file = known_peers.file_of(tmp_path, "public")
    known_peers.update(file, [address(1)], [], NOW_S)
    assert known_peers.load(file, NOW_S) == {}


def test_p2pd_is_one_port_below_grpc() -> None:
    peer = from_seed(b"1" * 32).peer_id
    assert str(beside("10.0.0.1:4001", peer)) == f"/ip4/10.0.0.1/tcp/4000/p2p/{peer}"
    assert str(beside("[::1]:4001", peer)) == f"/ip6/::1/tcp/4000/p2p/{peer}"
    assert beside("10.0.0.1:1", peer) is None and beside("nowhere", peer) is None


def test_a_client_without_a_named_peer_asks_the_nodes_of_this_machine_first(tmp_path: Path) -> None:
    file = known_peers.file_of(tmp_path, "public")
    known_peers.update(file, [address(1)], [], NOW_S)
    find = FindConfig(known_peers=file, here=(tmp_path, "public"))
    here = address(2)
    with running_nodes.told(tmp_path, "public", here.peer, [str(here)]):
        assert find.known(NOW_S) == [here, address(1)]
        FindConfig(here=(tmp_path, "public")).check(())
    assert find.known(NOW_S) == [address(1)]
    with pytest.raises(ConfigError, match="no peer to ask"):
        FindConfig(here=(tmp_path, "public")).check(())
