"""`swarm status`: who hosts what, which blocks nobody hosts, how busy and how fast the nodes are.

`summarize` turns records into rows, and knows nothing of terminals; the rest shows them as tables or JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from node.cli import status_view
from node.cli.asking import find_config
from node.cli.console import remark
from node.cli.waiting import shown
from protocols.errors import SwarmError
from protocols.ids import PeerId
from protocols.records import PeerRecord, ServedSpan
from swarm import keyring, places, waiting
from swarm.asking import answers
from swarm.entering import Entered
from swarm.finding import FindConfig
from swarm.models.resolve import is_place, name_in_swarm
from swarm.placement.choose import count_replicas
from swarm.routing import path
from swarm.suggestion import NodeCommand
from swarm.waiting import OnWait
from swarm.weights import remembered
from swarm.weights.election import Tally, tallies
from swarm.weights.names import nearest_first, not_served
from swarm.weights.remembered import NameMemory

if TYPE_CHECKING:
    from swarm.peer import Peer


SILENT = "silent"
"""The state of a peer that announced itself and does not answer now."""

UNASKED = "unasked"
"""The state of a peer that announced itself, if there was no time to ask it."""

MAX_MODELS = 64
"""Models that are shown where none is named, those of most peers: anybody can make up names."""

HELLO_S = 3.0
ASK_S = 10.0
"""Seconds for all hellos together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRow:
    """One peer's span of one model."""

    peer: str
    name: str
    state: str
    start: int
    stop: int
    ends: bool
    """Hosts embedding, norm and head as well."""
    dtype: str
    quantization: str
    free_tokens: int
    queue: int
    step_ms: float
    reachable: bool | None
    addresses: tuple[str, ...]
    p2p_addresses: tuple[str, ...]
    software: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRows:
    """One set of weights: who hosts it, and what is missing."""

    name: str
    digest: str
    num_blocks: int
    is_complete: bool
    missing: tuple[str, ...]
    """Spans that no serving node hosts, as `3:6`."""
    least_replicas: int
    replicas: tuple[int, ...]
    """Serving nodes of each block."""
    is_thin_possible: bool
    """Can a client without files generate: is there a route with the ends at its first and last hop?"""
    is_meant: bool
    """Does the name mean these weights here? It means those of its last use; without one, those that most answering nodes serve."""
    peers: tuple[PeerRow, ...]


def summarize(
    records: Iterable[PeerRecord], name: str, silent: Mapping[PeerId, str] = MappingProxyType({}), before: str | None = None
) -> list[ModelRows]:
    """Rows of the model `name`, one group per digest and length, those that the name stands for first; peers in the order of their blocks.

    silent: who did not answer just now, and what to say of them. Their records live on for a minute, but they serve nothing.
    before: the digest that the name meant at its last use here.
    """
    records = list(records)
    found = tallies(records, name, answering={record.peer for record in records} - set(silent))
    meant = next((one for one in found if one.model.digest == before), found[0] if found and before is None else None)
    records = [_silenced(record, silent[record.peer]) if record.peer in silent else record for record in records]
    groups: dict[tuple[str, int], list[tuple[PeerRecord, ServedSpan]]] = {}
    for record in records:
        for served in record.spans:
            if served.model.name == name:
                groups.setdefault((served.model.digest, served.num_blocks), []).append((record, served))
    rows = [
        _model(name, digest, num_blocks, hosted, _is_meant(meant, digest, num_blocks))
        for (digest, num_blocks), hosted in sorted(groups.items())
    ]
    return sorted(rows, key=lambda one: not one.is_meant)


def _is_meant(meant: Tally | None, digest: str, num_blocks: int) -> bool:
    return meant is not None and digest == meant.model.digest and num_blocks == (meant.num_blocks or num_blocks)


def _silenced(record: PeerRecord, state: str) -> PeerRecord:
    return replace(record, state=state, spans=tuple(replace(served, state="") for served in record.spans))


def _model(name: str, digest: str, num_blocks: int, hosted: list[tuple[PeerRecord, ServedSpan]], is_meant: bool) -> ModelRows:
    replicas = count_replicas((served.span for record, served in hosted if record.state_of(served) == "serving"), num_blocks)
    missing = tuple(gaps(replicas))
    rows = sorted((_peer(*pair) for pair in hosted), key=lambda row: (row.start, row.stop, row.peer))
    return ModelRows(
        name=name,
        digest=digest,
        num_blocks=num_blocks,
        is_complete=not missing,
        missing=missing,
        least_replicas=min(replicas),
        replicas=tuple(replicas),
        is_thin_possible=_is_thin_possible([served for record, served in hosted if record.state_of(served) == "serving"]),
        is_meant=is_meant,
        peers=tuple(rows),
    )


def _is_thin_possible(serving: Sequence[ServedSpan]) -> bool:
    """Is there a route, in one number format, whose first and last hop host the ends?"""
    formats: dict[tuple[str, str], list[ServedSpan]] = {}
    for served in serving:
        if path.can_take_part(served.span, served.ends, served.num_blocks, thin=True):
            formats.setdefault((served.dtype, served.quantization), []).append(served)
    return any(not path.missing({one.span for one in group}, group[0].num_blocks) for group in formats.values())


def _peer(record: PeerRecord, served: ServedSpan) -> PeerRow:
    return PeerRow(
        peer=record.peer,
        name=record.name,
        state=record.state_of(served),
        start=served.span.start,
        stop=served.span.stop,
        ends=served.ends,
        dtype=served.dtype,
        quantization=served.quantization,
        free_tokens=record.free_tokens,
        queue=record.queue,
        step_ms=record.step_ms,
        reachable=record.reachable,
        addresses=record.addresses,
        p2p_addresses=record.p2p_addresses,
        software=record.software,
    )


def gaps(replicas: Sequence[int]) -> list[str]:
    """`start:stop` of every run of blocks without a replica."""
    edges = [block for block in range(len(replicas) + 1) if _is_gap(replicas, block) != _is_gap(replicas, block - 1)]
    return [f"{start}:{stop}" for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _is_gap(replicas: Sequence[int], block: int) -> bool:
    return 0 <= block < len(replicas) and replicas[block] == 0


# --- asking and showing


def run(model: str | None, into: Entered, *, as_json: bool, data_dir: Path | None, lan: bool = True) -> None:
    """Print what the swarm says now. PeerUnreachableError where none of the peers answers in time."""
    swarm, peers = into.swarm, into.peers
    find = find_config(swarm, lan, data_dir, into.entry.key)
    find.check(peers)
    name = None if model is None else name_in_swarm(model)
    directory = model if model is not None and is_place(model) else ""
    hosting = NodeCommand(swarm=swarm, peer=next(iter(peers), ""), data_dir=data_dir, directory=directory)
    memory = NameMemory(remembered.file_of(data_dir or places.data_dir(), keyring.known_as(swarm, into.entry.key)))
    with shown() as on_wait:
        models, names = asyncio.run(_ask(name, into, find, memory, on_wait))
    if as_json:
        print(json.dumps({"swarm": swarm, "models": [asdict(rows) for rows in models]}, indent=2), flush=True)
    elif models:
        status_view.show(models, hosting)
    elif name is not None and nearest_first(name, names):
        remark(str(not_served(name, names)))
    else:
        what = "any model" if name is None else name
        command = hosting.text(name or "MODEL")
        remark(f"no node of swarm {swarm!r} serves {what}; be the first: {command}")


async def _ask(
    name: str | None, into: Entered, find: FindConfig, memory: NameMemory, on_wait: OnWait
) -> tuple[list[ModelRows], Collection[str]]:
    """Rows of the model, or of all; and the names that the swarm serves, if it serves nothing by that one."""
    on_wait(waiting.JOINING)
    from swarm.peer import Peer, PeerConfig

    config = PeerConfig(swarm=into.swarm, bootstrap=into.peers, find=find, listen=None, client_mode=True, entry=into.entry)
    async with Peer(config, {}) as peer:
        names = [name] if name is not None else list(await peer.directory.models())[:MAX_MODELS]
        snapshots = await asyncio.gather(*(peer.directory.snapshot(one) for one in names))
        records = {record.peer: record for snapshot in snapshots for record in snapshot.peers}
        on_wait(waiting.asking(len(records)))
        silent = await _silent(peer, records)
        models = [
            rows
            for one, snapshot in zip(names, snapshots, strict=True)
            for rows in summarize(snapshot.peers, one, silent, memory.digest_of(one))
        ]
        return models, names if models else await peer.directory.models()


async def _silent(peer: Peer, records: Mapping[PeerId, PeerRecord]) -> dict[PeerId, str]:
    """The state of those who do not answer a hello, asked in random order: a node that was killed is announced for up to a minute."""

    async def is_there(record: PeerRecord) -> bool:
        try:
            async with asyncio.timeout(HELLO_S):
                await peer.hello(record.peer, record.addresses, record.certificate)
        except (SwarmError, TimeoutError):
            return False
        return True

    states = dict.fromkeys(records, UNASKED)
    with contextlib.suppress(TimeoutError):
        asked = random.sample(list(records.values()), len(records))
        async with asyncio.timeout(ASK_S), aclosing(answers(asked, is_there)) as replies:
            async for record, answers_us in replies:
                states[record.peer] = SILENT
                if answers_us:
                    del states[record.peer]
    return states
