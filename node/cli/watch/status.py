"""`swarm status`: hosted and missing blocks, and load.

Which node hosts which blocks, which blocks are missing, how busy the nodes are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.flags.asking import find_config
from node.cli.terminal import as_json
from node.cli.terminal.console import remark
from node.cli.terminal.waiting import shown
from node.cli.watch import status_view
from node.watching import abouts
from node.watching.model_rows import ModelRows, summarize
from node.watching.run_rows import RunRow, run_rows
from protocols.about import About
from protocols.errors import SwarmError
from protocols.ids import ModelId, PeerId
from protocols.records import PeerRecord
from swarm import places, waiting
from swarm.asking import HELLO_S, answers, is_there
from swarm.meeting import keyring
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import Entered
from swarm.places import is_place, name_in_swarm
from swarm.suggestion import NodeCommand
from swarm.waiting import OnWait
from swarm.weights import remembered
from swarm.weights.names import nearest_first, not_served
from swarm.weights.remembered import NameMemory

if TYPE_CHECKING:
    from swarm.peer.thin_peer import ThinPeer


SILENT = "silent"
"""The state of a peer that announced itself and does not answer now."""

UNASKED = "unasked"
"""The state of a peer that announced itself, if there was no time to ask it."""

MAX_MODELS = 64
"""Models that are shown if none is named, those of most peers: any peer can make up names."""

ASK_S = 10.0
"""Seconds for all hellos together."""


def run(
    model: str | None, into: Entered, *, with_machines: bool = False, is_json: bool, data_dir: Path | None, lan: bool = True
) -> None:
    """Print what the swarm says now. PeerUnreachableError if none of the peers answers in time.

    with_machines: each node is asked for its machine and its work, too.
    """
    swarm, peers = into.swarm, into.peers
    find = find_config(swarm, lan, data_dir, into.entry.key)
    find.check(peers)
    name = None if model is None else name_in_swarm(model)
    directory = model if model is not None and is_place(model) else ""
    hosting = NodeCommand(swarm=swarm, peer=next(iter(peers), ""), data_dir=data_dir, directory=directory)
    memory = NameMemory(remembered.file_of(data_dir or places.data_dir(), keyring.known_as(swarm, into.entry.key)))
    with shown() as on_wait:
        models, names = asyncio.run(_ask(name, into, find, memory, on_wait, with_machines=with_machines))
    if is_json:
        as_json.show({"swarm": swarm, "models": [asdict(rows) for rows in models]})
    elif models:
        status_view.show(models, hosting)
    elif name is not None and nearest_first(name, names):
        remark(str(not_served(name, names)))
    else:
        what = "any model" if name is None else name
        command = hosting.text(name or "MODEL")
        remark(f"no node of swarm {swarm!r} serves {what}; be the first: {command}")


async def _ask(
    name: str | None,
    into: Entered,
    find: FindConfig,
    memory: NameMemory,
    on_wait: OnWait,
    max_models: int = MAX_MODELS,
    *,
    with_machines: bool = False,
) -> tuple[list[ModelRows], Collection[str]]:
    """Table rows of the model, or of all; and the names that the swarm serves, if it serves nothing by that one."""
    on_wait(waiting.JOINING)
    from swarm.peer.thin_peer import ThinPeer

    async with ThinPeer(into.peers, into.swarm, find, into.entry) as peer:
        names = [name] if name is not None else list(await peer.directory.models())[:max_models]
        snapshots = await asyncio.gather(*(peer.directory.snapshot(one) for one in names))
        records = {record.peer: record for snapshot in snapshots for record in snapshot.peers}
        on_wait(waiting.asking(len(records)))
        silent = await _silent(peer, records)
        models = [
            replace(rows, run=await _run(peer, rows, snapshot.peers))
            for one, snapshot in zip(names, snapshots, strict=True)
            for rows in summarize(snapshot.peers, one, silent, memory.digest_of(one))
        ]
        if with_machines:
            models = await _with_machines(peer, models, [record for record in records.values() if record.peer not in silent])
        return models, names if models else await peer.directory.models()


async def _with_machines(peer: ThinPeer, models: Sequence[ModelRows], records: Sequence[PeerRecord]) -> list[ModelRows]:
    """The same with what each of these peers says of itself, if it does in time."""

    async def ask(record: PeerRecord) -> About | None:
        try:
            return await abouts.ask(peer.pool, record)
        except SwarmError:
            return None

    said: dict[str, About | None] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ASK_S), aclosing(answers(records, ask)) as replies:
            async for record, about in replies:
                said[record.peer] = about
    return [replace(rows, peers=tuple(replace(row, about=said.get(row.peer)) for row in rows.peers)) for rows in models]


async def _run(peer: ThinPeer, rows: ModelRows, records: Sequence[PeerRecord]) -> tuple[RunRow, ...]:
    """Who trains this model; () if it is no run's."""
    if not any(record.roles_of(rows.digest) for record in records):
        return ()
    from swarm.training.members import Members

    stages = await Members(ModelId(rows.name, rows.digest), peer.directory, peer.pool).look()
    return run_rows(records, rows.digest, {stage.peer: stage.status for stage in stages})


async def _silent(
    peer: ThinPeer, records: Mapping[PeerId, PeerRecord], ask_s: float = ASK_S, hello_s: float = HELLO_S
) -> dict[PeerId, str]:
    """The state of those who do not answer a hello, asked in random order: a node that was killed is announced for up to a minute."""

    def ask(record: PeerRecord) -> Awaitable[bool]:
        return is_there(peer.ping, record, hello_s)

    states = dict.fromkeys(records, UNASKED)
    with contextlib.suppress(TimeoutError):
        asked = random.sample(list(records.values()), len(records))
        async with asyncio.timeout(ask_s), aclosing(answers(asked, ask)) as replies:
            async for record, answers_us in replies:
                states[record.peer] = SILENT
                if answers_us:
                    del states[record.peer]
    return states
