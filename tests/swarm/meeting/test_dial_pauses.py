"""p2pd is started again for its pauses only if that helps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from protocols.errors import PeerUnreachableError
from protocols.ids import peer_id_of
from swarm.clock import Clock
from swarm.dht.address import PeerAddress
from swarm.meeting.dial_pauses import REST_S, Unpaused

WHERE = PeerAddress("ip4", "192.168.1.7", 4001, peer_id_of(bytes(32)))


@dataclass
class Pausing:
    """A DHT that does not dial."""

    why: str = "no peer answers: backoff"
    num_neighbours: int = 0
    is_there: bool = True
    num_ended: int = 0
    num_checks: int = 0
    now_s: float = 0.0

    async def join(self, address: PeerAddress) -> None:
        raise PeerUnreachableError(self.why)

    async def look_around(self) -> None:
        pass

    async def check(self, address: PeerAddress) -> None:
        self.num_checks += 1
        if not self.is_there:
            raise PeerUnreachableError("not there")

    def end_daemon(self) -> None:
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
    [(Pausing(is_there=False), 1), (Pausing(num_neighbours=1), 1), (Pausing(why="connection refused"), 0)],
    ids=["it is not there", "we know others", "it was dialled"],
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
