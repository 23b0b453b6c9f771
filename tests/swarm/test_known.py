"""The memory of peers: bounded, newest first, and a file that may say anything."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from protocols.identity import from_seed
from swarm import known
from swarm.dht.address import PeerAddress, beside

DAY_S = 86_400.0
NOW_S = 1_800_000_000.0


def address(number: int) -> PeerAddress:
    return PeerAddress.parse(f"/ip4/10.0.0.{number}/tcp/4000/p2p/{from_seed(bytes([number]) * 32).peer_id}")


def test_what_was_written_is_read_newest_first(tmp_path: Path) -> None:
    file = known.file_of(tmp_path, "any / name \0")
    known.update(file, [address(1)], [], NOW_S - 10)
    known.update(file, [address(2)], [], NOW_S)
    assert list(known.load(file, NOW_S)) == [address(2), address(1)]
    assert file != known.file_of(tmp_path, "other") and os.stat(file).st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no partial file stays


def test_only_the_last_ones_are_kept() -> None:
    held: dict[PeerAddress, float] = {}
    for number in range(1, 2 * known.MAX_PEERS):
        held = known.merged(held, [address(number)], [], NOW_S + number)
    assert list(held) == [address(number) for number in range(2 * known.MAX_PEERS - 1, known.MAX_PEERS - 1, -1)]


def test_who_has_been_away_is_dropped_but_not_because_our_own_network_is_down() -> None:
    held = {address(1): NOW_S, address(2): NOW_S - 2 * DAY_S, address(3): NOW_S - 15 * DAY_S}
    assert list(known.merged(held, [], [address(1), address(2)], NOW_S)) == [address(1), address(2)]  # nobody answers: it is us
    assert list(known.merged(held, [address(4)], [address(1), address(2)], NOW_S)) == [address(1), address(4)]


def test_other_lines_are_left_out() -> None:
    good = f"{NOW_S:.0f} {address(1)}"
    text = f"hello\n{good}\nnan {address(2)}\n1e999 {address(3)}\n{NOW_S - 15 * DAY_S:.0f} {address(4)}\n{NOW_S} /ip4/x/tcp/1\n\xff\n"
    found = known.parse(text.encode("latin-1"), NOW_S)
    assert found.pop(address(1)) == NOW_S
    assert set(found) <= {address(3)} and all(seen_s <= NOW_S for seen_s in found.values())  # a clock ahead is not believed


@given(st.binary(max_size=2_000))
def test_any_bytes_give_some_peers_or_none(data: bytes) -> None:
    assert len(known.parse(data, NOW_S)) <= known.MAX_PEERS


def test_a_file_that_cannot_be_read_or_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("a file where a folder should be")
    file = known.file_of(tmp_path, "public")
    known.update(file, [address(1)], [], NOW_S)
    assert known.load(file, NOW_S) == {}


def test_p2pd_is_one_port_below_grpc() -> None:
    peer = from_seed(b"1" * 32).peer_id
    assert str(beside("10.0.0.1:4001", peer)) == f"/ip4/10.0.0.1/tcp/4000/p2p/{peer}"
    assert str(beside("[::1]:4001", peer)) == f"/ip6/::1/tcp/4000/p2p/{peer}"
    assert beside("10.0.0.1:1", peer) is None and beside("nowhere", peer) is None
