"""Peers agree on the newest common version, or say who must upgrade."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import frame, hello
from protocols.errors import BadRequestError, ProtocolVersionError, SwarmError


def speaks(oldest: int, newest: int, swarm: str = "public") -> hello.Hello:
    return hello.Hello(oldest=oldest, newest=newest, software=f"m {newest}", swarm=swarm)


@given(st.lists(st.integers(0, 12), min_size=4, max_size=4))
def test_the_newest_common_version_holds_and_both_sides_find_it(numbers: list[int]) -> None:
    mine, theirs = (speaks(min(pair), max(pair)) for pair in (numbers[:2], numbers[2:]))
    common = set(range(mine.oldest, mine.newest + 1)) & set(range(theirs.oldest, theirs.newest + 1))
    for a, b in ((mine, theirs), (theirs, mine)):
        if common:
            assert hello.agree(a, b) == max(common)
        else:
            with pytest.raises(ProtocolVersionError):
                hello.agree(a, b)


def test_the_older_side_is_told_to_upgrade() -> None:
    with pytest.raises(ProtocolVersionError, match=r"we \(m 2\) speak 1 to 2, they \(m 4\) speak 3 to 4; we must upgrade"):
        hello.agree(speaks(1, 2), speaks(3, 4))
    with pytest.raises(ProtocolVersionError, match="they must upgrade"):
        hello.agree(speaks(3, 4), speaks(1, 2))
    assert ProtocolVersionError.try_another_peer


def test_a_peer_of_version_0_1_and_we_have_no_version_in_common() -> None:
    ours, theirs = hello.Hello(software="m 2", swarm="public"), speaks(1, 1)
    with pytest.raises(ProtocolVersionError, match=r"speak 1 to 1; they must upgrade") as refused:
        hello.agree(ours, hello.Hello.parse(theirs.encode()))
    assert refused.value.exit_code == 3
    with pytest.raises(ProtocolVersionError, match="we must upgrade"):
        hello.agree(theirs, hello.Hello.parse(ours.encode()))


def test_another_swarm_is_refused_by_name() -> None:
    hello.check_swarm(speaks(1, 1), speaks(1, 1))
    with pytest.raises(BadRequestError, match="different swarms, 'ours' and 'public'"):
        hello.check_swarm(speaks(1, 1), speaks(1, 1, swarm="ours"))


WRONG: dict[str, dict[str, object]] = {
    "newest below oldest": {"oldest": 2, "newest": 1},
    "version of 2^60": {"newest": 2**60},
    "version below 0": {"oldest": -1},
    "version true": {"newest": True},
    "swarm too long": {"swarm": "x" * 65},
    "software with a line end": {"software": "a\nb"},
    "no name": {"name": None},
    "time below 0": {"time": -1.0},
    "time of 1e300": {"time": 1e300},
    "time that is no number": {"time": float("nan")},
    "time as text": {"time": "noon"},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_malformed_hello_is_refused(what: str) -> None:
    header = {"t": "hello", "oldest": 1, "newest": 1, "software": "m", "swarm": "public", "name": ""}
    assert hello.Hello.parse(frame.encode(header))
    with pytest.raises(BadRequestError):
        hello.Hello.parse(frame.encode({**header, **WRONG[what]}))


def test_a_dial_back_is_bounded() -> None:
    for addresses in (["unix:1"], ["a:1"] * 9, "a:1", [7], ["a"]):
        with pytest.raises(SwarmError):
            hello.DialBack.parse(frame.encode({"t": "dial_back", "addresses": addresses, "certificate": b""}))
    with pytest.raises(BadRequestError):
        hello.DialBack.parse(frame.encode({"t": "dial_back", "addresses": [], "certificate": bytes(4_097)}))
    assert len(hello.DialBackReply.parse(hello.DialBackReply(reachable=(), reason="x" * 999).encode()).reason) == hello.MAX_REASON


def test_a_hello_without_a_time_is_the_bytes_of_older_peers_and_one_with_it_says_it() -> None:
    silent, told = speaks(1, 1), hello.Hello(software="m", swarm="public", time_s=1_790_000_000.5)
    assert b"time" not in silent.encode() and hello.Hello.parse(silent.encode()).time_s == 0
    assert hello.Hello.parse(told.encode()) == told
