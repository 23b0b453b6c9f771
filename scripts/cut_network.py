"""A run in a network that is cut in two and heals.

Two machines with stages and one with a trainer at each side, so that each side can train on alone. While the network is cut, both do. Once
it is whole, all stages must come to one history: for each unit and version one chain, at all of its replicas. Needs root and network
namespaces.

Run: scripts/cut_network [--cut-s 20] [--after-s 30]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from node.config import DEFAULT_SWARM
from scripts.run_files import write_run
from swarm.meeting.bootstrap import FindConfig
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.training.members import Members
from tests.end_to_end.bridge import Bridge
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.training_swarm import TrainingSwarm
from tests.forked import ROOT, ForkServer

SIDES = ((0, 1, 2), (3, 4, 5))
"""Machines: two stages and a trainer each."""
SPANS = ("0:2", "2:3")
READY_S = 60.0
RUN = {
    "training.steps": 100_000, "training.batch_tokens": 256, "training.micro_batch_sequences": 1, "averaging.deadline_s": 5,
    "evaluation.every_steps": 0,
}  # fmt: skip
State = dict[str, dict[str, tuple[int, str]]]
"""By stage and unit: version and chain."""


def states(bridge: Bridge, machine: int, peer: str) -> State:
    """What the stages say that this machine reaches; asked by a process there."""
    command = [sys.executable, __file__, "--states", peer]
    done = subprocess.run(
        bridge.command(machine, command), capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {stage: {unit: tuple(found) for unit, found in units.items()} for stage, units in json.loads(done.stdout).items()}


async def ask(peer_address: str) -> State:
    """The stages of the only run."""
    config = PeerConfig(swarm=DEFAULT_SWARM, bootstrap=(peer_address,), find=FindConfig(), listen=None, client_mode=True)
    async with Peer(config, {}) as peer:
        (name,) = await peer.directory.models()
        snapshot = await peer.directory.snapshot(name)
        run = next(role.model for record in snapshot.peers for role in record.roles)
        stages = await Members(run, peer.directory, peer.pool).look()
        return {stage.peer: {str(unit): (one.version, one.chain.hex()) for unit, one in stage.units.items()} for stage in stages}


def forks(found: list[State]) -> list[str]:
    """Units and versions of which two chains were seen."""
    chains: dict[tuple[str, int], set[str]] = {}
    for state in found:
        for units in state.values():
            for unit, (version, chain) in units.items():
                chains.setdefault((unit, version), set()).add(chain)
    return sorted(f"unit {unit}, version {version}" for (unit, version), own in chains.items() if len(own) > 1)


def highest(state: State) -> int:
    return max((version for units in state.values() for version, _ in units.values()), default=0)


def versions_of(state: State) -> dict[str, list[int]]:
    return {stage[-6:]: sorted({version for version, _ in units.values()}) for stage, units in state.items()}


def is_one(state: State) -> bool:
    """All four stages, and the replicas of each unit at most one step apart, of one history."""
    versions = [version for units in state.values() for version, _ in units.values()]
    return len(state) == 4 and max(versions) - min(versions) <= 1 and not forks([state])


@contextlib.contextmanager
def at(bridge: Bridge, machine: int) -> Iterator[int]:
    network = bridge.network(machine)
    try:
        yield network
    finally:
        os.close(network)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with Bridge(6) as bridge, ForkServer() as server, ProcessPool(folder, server) as pool:
        swarm = TrainingSwarm(pool, write_run(folder / "run", RUN, config={"num_hidden_layers": 3}))
        for side in SIDES:
            for machine, blocks in zip(side, SPANS, strict=False):
                with at(bridge, machine) as network:
                    swarm.node(f"stage{machine}", blocks, network=network).wait_for("ready")
        peers = {side: swarm.up[2 * number].wait_for("multiaddr") for number, side in enumerate(SIDES)}
        for side in SIDES:
            with at(bridge, side[-1]) as network:
                swarm.trainer(f"trainer{side[-1]}", "--out", str(folder / f"out{side[-1]}"), network=network)
        first, other = SIDES
        ends_s = time.monotonic() + READY_S
        while highest(before := states(bridge, first[0], peers[first])) < 3:
            assert time.monotonic() < ends_s, "the run does not begin"
        bridge.cut(other)
        time.sleep(options.cut_s)
        alone = [states(bridge, side[0], peers[side]) for side in SIDES]
        bridge.heal()
        healed_s = time.monotonic()
        seen: list[State] = []
        while not seen or not is_one(seen[-1]):
            assert time.monotonic() < healed_s + READY_S, f"no one state: {seen[-1]}"
            seen.append(states(bridge, first[0], peers[first]))
            print(f"{time.monotonic() - healed_s:5.1f} s: {versions_of(seen[-1])}", file=sys.stderr)
        one_s = time.monotonic() - healed_s
        after = [seen[-1]]
        ends_s = healed_s + one_s + options.after_s
        while time.monotonic() < ends_s or (
            not is_one(after[-1]) and time.monotonic() < ends_s + READY_S
        ):  # a look takes its time
            after.append(states(bridge, first[0], peers[first]))
        for process in swarm.up:
            process.hear()
    return {
        "version when it was cut": highest(before), "each side alone": [highest(state) for state in alone],
        "forked": len(forks(alone)), "s until one state": round(one_s, 1), "its version": highest(after[0]),
        "last version": highest(after[-1]), "forks since": forks(after), "is one at the end": is_one(after[-1]),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut-s", type=float, default=20.0, help="seconds in which the network is cut")
    parser.add_argument("--after-s", type=float, default=30.0, help="seconds that the run goes on after it")
    parser.add_argument("--folder", type=Path, help="keep logs here")
    parser.add_argument("--states", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.states:
        print(json.dumps(asyncio.run(ask(options.states))))
        return 0
    with contextlib.nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    print(json.dumps(result))
    has_gone_on = result["last version"] > result["its version"]
    return 0 if has_gone_on and result["is one at the end"] and not result["forks since"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
