"""Only the caller's own address is dialled back."""

from __future__ import annotations

import pytest

from swarm.meeting.dial_back import MAX_ADDRESSES, is_here, is_hidden, own

OURS = {"192.168.1.5", "127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("caller", "address", "is_dialled"),
    [
        ("203.0.113.9", "203.0.113.9:4002", True),  # a forwarded port, or a public machine
        ("203.0.113.9", "203.0.113.10:4002", False),
        ("203.0.113.9", "192.168.1.5:4002", False),  # our own network is not the caller's
        ("203.0.113.9", "127.0.0.1:4002", False),
        ("203.0.113.9", "169.254.169.254:80", False),
        ("203.0.113.9", "[::ffff:203.0.113.9]:4002", True),
        ("203.0.113.9", "peer.example:4002", False),  # a name may mean another machine each time
        ("192.168.1.7", "192.168.1.7:4002", True),  # a neighbour
        ("192.168.1.7", "192.168.1.8:4002", False),
        ("2606:4700:1:2::5", "[2606:4700:1:2:aa:bb:cc:dd]:4002", True),  # calls from a temporary address of the same /64
        ("2606:4700:1:2::5", "[2606:4700:1:3::5]:4002", False),
        ("fd00::5", "[fd00::6]:4002", False),
        ("127.0.0.1", "127.0.0.1:4002", True),
        ("127.0.0.1", "192.168.1.5:4002", True),  # the same machine, which announces what others reach
        ("127.0.0.1", "192.168.1.6:4002", False),
        ("::1", "[::1]:4002", True),
        ("", "127.0.0.1:4002", False),
    ],
)
def test_only_the_address_that_a_call_comes_from_is_dialled(caller: str, address: str, is_dialled: bool) -> None:
    assert own((address,), caller, OURS.__contains__) == ((address,) if is_dialled else ())


def test_few_addresses_are_dialled_for_one_call() -> None:
    asked = tuple(f"203.0.113.9:{port}" for port in (1, 1, 2, 3, 4))
    assert own(asked, "203.0.113.9", OURS.__contains__) == asked[1 : 1 + MAX_ADDRESSES]


def test_a_public_caller_with_private_addresses_is_hidden_without_a_dial() -> None:
    assert is_hidden(("192.168.1.5:4002", "[fd00::5]:4002"), "8.8.8.8")
    for addresses, caller in [
        (("192.168.1.5:4002", "1.1.1.1:4002"), "8.8.8.8"),  # two ways out: this peer cannot tell
        (("peer.example:4002",), "8.8.8.8"),
        (("192.168.1.5:4002",), "192.168.9.1"),
        ((), "8.8.8.8"),
        (("192.168.1.5:4002",), ""),
    ]:
        assert not is_hidden(addresses, caller)


def test_an_address_of_this_machine_is_known_as_such() -> None:
    assert is_here("127.0.0.1") and not is_here("203.0.113.9")
