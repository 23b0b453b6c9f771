"""p2pd is started again for its pauses only if that helps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from protocols.errors import PeerUnreachableError
from protocols.ids import peer_id_of
from swarm.clock import Clock
from swarm.dht.address import PeerAddress
from swarm.dht.dial_failures import DialPausedError, failure
from swarm.meeting.dial_pauses import LONGEST_REST_S, REST_S, Unpaused

WHERE = PeerAddress("ip4", "192.168.1.7", 4001, peer_id_of(bytes(32)))


@dataclass
class Pausing:
    """A DHT that does not dial."""

    failure: PeerUnreachableError | None = field(default_factory=lambda: DialPausedError("p2pd pauses"))
    num_neighbours: int = 0
    num_clients: int = 0
    is_there: bool = True
    runs: bool = True
    num_ended: int = 0
    num_checks: int = 0
    now_s: float = 0.0

    async def join(self, address: PeerAddress) -> None:
        if self.failure is not None:
            raise self.failure
        self.num_neighbours = 1

    async def is_alone(self) -> bool:
        return not (self.num_neighbours or self.num_clients)

    async def look_around(self) -> None:
        pass

    async def check(self, address: PeerAddress) -> None:
        self.num_checks += 1
        if not self.is_there:
            raise PeerUnreachableError("not there")

    def end_daemon(self) -> None:
        if not self.runs:
            raise PeerUnreachableError("the DHT is not running here")
        self.num_ended += 1


async def ended(dht: Pausing, unpaused: Unpaused) -> int:
    """How often p2pd has been ended, once it does not join again."""
    with pytest.raises(PeerUnreachableError):
        await unpaused.join(WHERE)
    return dht.num_ended


def unpaused_of(dht: Pausing) -> Unpaused:
    return Unpaused(dht, dht.check, Clock(now_s=lambda: dht.now_s))


@pytest.mark.parametrize(
    ("dht", "num_checks"),
    [
        (Pausing(is_there=False), 1),
        (Pausing(num_neighbours=1), 1),
        (Pausing(num_clients=1), 1),
        (Pausing(failure=PeerUnreachableError("connection refused")), 0),
    ],
    ids=["it is not there", "we know others", "a client is connected", "it was dialled"],
)
async def test_it_goes_on_if_another_start_would_not_help(dht: Pausing, num_checks: int) -> None:
    assert await ended(dht, unpaused_of(dht)) == 0
    assert dht.num_checks == num_checks


async def test_a_peer_that_answers_by_grpc_alone_does_not_start_it_all_the_time() -> None:
    dht = Pausing()
    unpaused = unpaused_of(dht)
    assert [await ended(dht, unpaused) for _ in range(3)] == [1, 1, 1]
    assert dht.num_checks == 1, "nor is it asked meanwhile"
    dht.now_s = REST_S
    assert await ended(dht, unpaused) == 2


async def test_the_rest_grows_while_no_start_brings_a_neighbour() -> None:
    dht = Pausing()
    unpaused = unpaused_of(dht)
    rests_s: list[float] = []
    for num in range(1, 8):
        assert await ended(dht, unpaused) == num
        rest_s = min(REST_S * 2 ** (num - 1), LONGEST_REST_S)
        dht.now_s += rest_s - 1.0
        assert await ended(dht, unpaused) == num, "it rests"
        dht.now_s += 1.0
        rests_s.append(rest_s)
    assert rests_s[0] == REST_S and rests_s[-1] == LONGEST_REST_S
    await ended(dht, unpaused)
    paused, dht.failure = dht.failure, None
    await unpaused.join(WHERE)
    dht.failure, dht.num_neighbours = paused, 0
    dht.now_s += REST_S
    assert await ended(dht, unpaused) == 9, "a neighbour was met, so it begins with the short rest"


async def test_a_start_that_fails_does_not_count() -> None:
    dht = Pausing(runs=False)
    unpaused = unpaused_of(dht)
    with pytest.raises(PeerUnreachableError, match="not running"):
        await unpaused.join(WHERE)
    dht.runs = True
    assert await ended(dht, unpaused) == 1


@pytest.mark.parametrize(
    ("said", "expected", "is_paused"),
    [
        (
            "failed to dial 12D3: all dials failed\n  * [/ip4/192.168.1.7/tcp/4001] dial backoff",
            "p2pd pauses after failed dials",
            True,
        ),
        (
            "failed to dial 12D3: all dials failed\n  * [/ip4/192.168.1.7/tcp/4001] dial tcp4: connection refused",
            "tcp4: connection refused",
            False,
        ),
        ("x" * 999, "x" * 200, False),
        ("", "no answer in time", False),
    ],
)
def test_what_p2pd_says_of_a_dial_is_a_few_words(said: str, expected: str, is_paused: bool) -> None:
    found = failure(WHERE, ValueError(said))
    assert str(found) == f"no peer answers at {WHERE}: {expected}" and isinstance(found, DialPausedError) is is_paused
