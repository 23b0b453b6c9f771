"""`swarm bench`: this machine, a route, and a node more."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.flags import threads
from node.cli.flags.asking import check_range, find_config
from node.cli.terminal import as_json
from node.cli.terminal.console import Lines, remark
from node.cli.terminal.fetching import FetchProgress
from node.cli.terminal.waiting import shown
from node.config import NodeConfig
from node.events import Event
from protocols.errors import SwarmError
from protocols.ids import short_peer
from protocols.inference import Route
from protocols.words import counted, one_line
from swarm import garbage, places, waiting
from swarm.checkpoints import resolve
from swarm.meeting.bootstrap import FindConfig
from swarm.places import is_place
from swarm.waiting import OnWait, Wait, Waits

if TYPE_CHECKING:
    from node.benching.benching import Benched
    from node.benching.newcomer import Gain
    from node.benching.route_speed import RouteSpeed
    from node.cli.flags.command_options import BenchOptions
    from node.hosting.model_source import OnFetch
    from node.watching.what_if import Prediction
    from swarm.weights.terms import Progress


def run(model: str, flags: BenchOptions, *, is_json: bool) -> None:
    """Measure and print; raises what keeps a node or a client from starting."""
    check_range("--patience", flags.patience, "0 seconds or more", flags.patience >= 0)
    resolve.check(model)
    into, folder = flags.enter(), flags.data_dir or places.data_dir()
    find = find_config(into.swarm, flags.lan, flags.data_dir, into.entry.key)
    find.check(into.peers)
    lines = Lines()
    threads.wait_quietly()
    with shown() as on_wait, FetchProgress(lines) as progress, tempfile.TemporaryDirectory(prefix="murmuration-") as fresh:
        config = NodeConfig(
            model=model, peers=into.peers, lan=flags.lan, swarm=into.swarm, entry=into.entry, device=flags.device, dtype=flags.dtype,
            accept_new_weights=True, data_dir=folder if is_place(model) else Path(fresh),
        )  # fmt: skip

        def fetching(now: Progress) -> None:
            if is_json:  # stdout is for the object
                on_wait(waiting.fetching("block 0").at(now.done_bytes, now.total_bytes))
            else:
                progress.show(now)

        benched, route, fault = asyncio.run(_bench(config, find, flags.patience, folder, fetching, on_wait))
    if is_json:
        as_json.show(facts(benched, route, fault))
        return
    for kind, text in told(benched, route, fault):
        lines.say(kind, text)


async def _bench(
    config: NodeConfig, find: FindConfig, route_timeout_s: float, data_dir: Path, on_fetch: OnFetch, on_wait: OnWait
) -> tuple[Benched, RouteSpeed | None, str]:
    """What was measured; of the route, why it was not."""
    on_wait(waiting.loading("torch"))
    with garbage.importing():
        from node.benching import benching, route_speed
        from swarm.peer.config import PeerConfig
        from swarm.peer.peer import Peer
        from swarm.thin.model import open_model

    on_wait(waiting.JOINING)

    def told(event: Event) -> None:
        if event.kind == "warning":
            remark(event.text)

    waits = Waits(on_wait)
    client = PeerConfig(swarm=config.swarm, bootstrap=config.peers, find=find, listen=None, client_mode=True, entry=config.entry)
    async with Peer(client, {}) as peer:
        benched = await benching.bench(config, peer, told, on_fetch, waits)
    name = f"{benched.model.name}@{benched.model.digest}"
    try:
        async with open_model(
            name, peers=config.peers, root=data_dir / "weights", swarm=config.swarm, route_timeout_s=route_timeout_s, find=find,
            waits=waits, entry=config.entry, accept_new_weights=True,
        ) as model:  # fmt: skip
            with waits.on(Wait(kind="measuring", text="measuring a route")):
                return benched, await route_speed.measure(model), ""
    except SwarmError as error:
        return benched, None, str(error)


def told(benched: Benched, route: RouteSpeed | None, fault: str) -> list[tuple[str, str]]:
    """The lines, as (kind, text)."""
    speed, capacity, look = benched.speed, benched.capacity, benched.look
    fits = capacity.blocks_anywhere()
    trips = sorted(look.trips_ms.values())
    silent = f", {len(look.silent)} silent" if look.silent else ""
    near = f"{trips[0]:.1f} to {trips[-1]:.1f} ms" if len(trips) > 1 else f"{trips[0]:.1f} ms" if trips else ""
    came = (
        f"; block 0 ({benched.fetched_bytes / 1e6:.1f} MB) came at {benched.fetched_bytes / 1e6 / benched.fetched_s:.1f} MB/s"
        if benched.fetched_s
        else ""
    )
    return [
        ("model", f"{benched.model.name}@{benched.model.digest[:12]} ({benched.num_blocks} blocks)"),
        (
            "machine",
            f"{speed.device}, {speed.dtype}: a block takes {speed.token_ms:.2f} ms a token (it reads {speed.read_gb_s:.1f} GB/s of "
            f"weights), and {speed.prompt_ms:.2f} ms for {speed.prompt_tokens} tokens of a prompt",
        ),
        (
            "memory",
            f"{fits} of {counted(benched.num_blocks, 'block')} fit: {capacity.free_bytes / 1e9:.1f} GB are free, a block takes "
            f"{max(capacity.block_bytes) / 1e6:.1f} MB with its K/V reserve",
        ),
        ("network", f"{counted(len(trips), 'answering node')}{f', {near} away' if near else ''}{silent}{came}"),
        ("route", _route(benched.gain.route_before, route, fault)),
        ("newcomer", f"a node here would host blocks {benched.gain.span}: {benched.gain.reason}"),
        ("gain", _gain(benched.gain)),
    ]


def _route(predicted: Prediction, route: RouteSpeed | None, fault: str) -> str:
    expected = f"predicted {predicted.token_ms:.1f} ms a token" if predicted.legs else "none for a client without weights"
    if route is None:
        return f"{expected}; not measured: {one_line(fault)}"
    return f"{_hops(route.route)}: {expected}, measured {route.token_ms:.1f} ms ({1e3 / route.token_ms:.0f} tokens/s)"


def _hops(route: Route) -> str:
    return ", ".join(f"{short_peer(hop.peer)} {hop.span}" for hop in route)


def _gain(gain: Gain) -> str:
    if gain.missing_before:
        left = (
            f"{', '.join(map(str, gain.missing_after))} would be missing still"
            if gain.missing_after
            else "the model would be whole"
        )
        return f"blocks {', '.join(map(str, gain.missing_before))} have no node; {left}"
    swarm = f"the swarm: {gain.swarm_before:,.0f} tokens/s at the slowest block, then {gain.swarm_after:,.0f}"
    before, after = gain.route_before, gain.route_after
    if not before.legs or not after.legs:
        return swarm
    return f"{swarm}; one answer from here: {before.token_ms:.1f} ms a token, then {after.token_ms:.1f} (predicted)"


def facts(benched: Benched, route: RouteSpeed | None, fault: str) -> dict[str, object]:
    """The same for programs."""
    gain = benched.gain
    measured = None if route is None else {"token_ms": route.token_ms, "hops": [[hop.peer, str(hop.span)] for hop in route.route]}
    return {
        "model": str(benched.model), "num_blocks": benched.num_blocks,
        "machine": {**asdict(benched.speed), "read_gb_s": benched.speed.read_gb_s},
        "memory": {"free_bytes": benched.capacity.free_bytes, "block_bytes": max(benched.capacity.block_bytes),
                   "blocks_that_fit": benched.capacity.blocks_anywhere()},
        "network": {"trips_ms": benched.look.trips_ms, "silent": sorted(benched.look.silent),
                    "fetched_bytes": benched.fetched_bytes, "fetched_s": benched.fetched_s},
        "route": {"predicted": _legs(gain.route_before), "measured": measured, "fault": fault},
        "newcomer": {"blocks": str(gain.span), "reason": gain.reason, "missing_before": list(map(str, gain.missing_before)),
                     "missing_after": list(map(str, gain.missing_after)), "swarm_tokens_s_before": gain.swarm_before,
                     "swarm_tokens_s_after": gain.swarm_after, "predicted": _legs(gain.route_after)},
    }  # fmt: skip


def _legs(predicted: Prediction) -> dict[str, object] | None:
    """None if there is no route."""
    return {"token_ms": predicted.token_ms, "legs": [asdict(leg) for leg in predicted.legs]} if predicted.legs else None
