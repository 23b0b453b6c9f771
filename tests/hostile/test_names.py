"""A model's name cannot be taken over by nodes of other weights.

Attackers are records that claim more, and an answering node, against real nodes.

Real servers and hellos; the directory is a list, as untrusted peers may fill it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from protocols.errors import ModelMismatchError
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from swarm.weights.lookup import find_in_swarm
from swarm.weights.naming import Naming
from swarm.weights.remembered import NameMemory, file_of
from tests.hosting import hosted
from tests.swarm.inference.toy import MODEL, Records, ToySwarm, new_identity

OTHER = ModelId(MODEL.name, "0" * 64)


@dataclass
class LocalSwarm:
    """Honest nodes, and what else is in the directory."""

    toys: ToySwarm
    folder: Path
    lies: tuple[PeerRecord, ...] = ()

    async def snapshot(self, model: str) -> Records:
        honest = (await self.toys.snapshot(model)).peers
        return Records((*self.lies, *honest))

    async def models(self) -> Mapping[str, int]:
        return {MODEL.name: 1}

    async def digest(self, text: str = MODEL.name, *, accepts_new: bool = False, is_kept: bool = True) -> str:
        """What a user gets who says `text`."""
        memory = NameMemory(file_of(self.folder, "test"))
        naming = Naming(greet=self.toys._ping, memory=memory, accepts_new=accepts_new)
        found = await find_in_swarm(self, text, naming)
        assert found is not None
        if is_kept:
            naming.keep(found.model)
        return found.model.digest


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[LocalSwarm]:
    swarm = LocalSwarm(ToySwarm(), tmp_path)
    await swarm.toys.serve(0, 2)
    await swarm.toys.serve(2, 4)
    yield swarm
    await swarm.toys.stop()


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def lie(address: str, span: Span, num_blocks: int, model: ModelId = OTHER) -> PeerRecord:
    served = hosted(model, span, num_blocks)
    return PeerRecord(peer=new_identity().peer_id, addresses=(address,), hosted=served)


async def test_one_record_of_ten_thousand_blocks_does_not_take_a_name_over(swarm: LocalSwarm, silent: str) -> None:
    swarm.lies = (lie(silent, Span(0, 10_000), 10_000),)
    assert await swarm.digest() == MODEL.digest


async def test_a_hundred_records_at_silent_addresses_do_not_either(swarm: LocalSwarm, silent: str) -> None:
    swarm.lies = tuple(lie(silent, Span(0, 4), 4) for _ in range(100))
    assert await swarm.digest(is_kept=False) == MODEL.digest
    twin = ModelId(MODEL.name, MODEL.digest[:12] + "0" * 52)
    swarm.lies = tuple(lie(silent, Span(0, 4), 4, twin) for _ in range(8))
    assert await swarm.digest(f"{MODEL.name}@{MODEL.digest[:12]}") == MODEL.digest, "a made-up twin makes no digest ambiguous"


async def test_an_answering_node_of_other_weights_counts_as_one_and_not_at_all_against_what_was_meant_before(
    swarm: LocalSwarm,
) -> None:
    usurper = await swarm.toys.serve(0, 4)
    swarm.toys.nodes.remove(usurper)
    served = hosted(OTHER, Span(0, 10_000), 10_000)
    swarm.lies = (replace(usurper.record(), hosted=served),)
    assert await swarm.digest() == MODEL.digest
    for node in swarm.toys.nodes:
        await node.kill()
    assert await swarm.digest() == MODEL.digest, "its nodes are announced still: the client waits for them"
    swarm.toys.nodes.clear()
    with pytest.raises(ModelMismatchError, match=r"meant weights .* here before.*--accept-new-weights"):
        await swarm.digest()
    assert await swarm.digest(accepts_new=True, is_kept=False) == OTHER.digest
    with pytest.raises(ModelMismatchError):
        await swarm.digest()
    assert await swarm.digest(f"{MODEL.name}@{OTHER.digest[:12]}") == OTHER.digest
    assert await swarm.digest() == OTHER.digest, "the user has said so"
    await usurper.kill()
