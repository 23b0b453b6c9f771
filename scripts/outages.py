"""Outages of a swarm, and how soon each asker is answered again.

Two nodes, of which each answer needs both, a gateway, a client with the embedding and one without. All ask twice a second while processes
are stopped, networks cut, and nodes replaced. It prints what they were told meanwhile. Needs root and network namespaces.

Run: scripts/outages [--only NAME ...] [--seconds 90]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.outage_stage import FULL, GATEWAY, SPANS, SPARE, THIN, Stage
from tests.end_to_end.bridge import Bridge
from tests.end_to_end.processes import ProcessPool
from tests.forked import ForkServer

ENOUGH_S = 10.0
"""Who is answered later than that after the end of an outage has not come back by itself."""

Outage = Callable[[Stage, float], None]
"""Makes an outage of so many seconds; when it returns, all that is needed is there again."""


def sleeping(*machines: int, only: str = "") -> Outage:
    """Their processes are stopped, or only some."""

    def make(stage: Stage, seconds: float) -> None:
        with stage.stopped(machines, only=only):
            time.sleep(seconds)

    return make


def cutting(*machines: int) -> Outage:
    """Each is alone."""

    def make(stage: Stage, seconds: float) -> None:
        with stage.cut(machines):
            time.sleep(seconds)

    return make


def same_ports(stage: Stage, seconds: float) -> None:
    """Both nodes are killed, and come back where they were."""
    ports = {machine: stage.port(machine) for machine in (0, 1)}
    for machine in ports:
        stage.kill(machine)
    time.sleep(seconds)
    stage.node(0, [], port=ports[0])
    stage.node(1, [stage.address(0)], port=ports[1])


def rolling(stage: Stage, seconds: float) -> None:
    """One node after the other is killed, and comes back at another port."""
    for machine, other in ((0, 1), (1, 0)) * 2:
        stage.kill(machine)
        time.sleep(seconds / 30)
        stage.node(machine, [stage.address(other)])
        time.sleep(seconds / 15)


def given_are_gone(stage: Stage, seconds: float) -> None:
    """The node that all were given leaves for good, then the other one; new ones have joined by those that were left."""
    stage.kill(0)
    stage.node(SPARE, [stage.address(1)], span=SPANS[0])
    time.sleep(seconds / 30)
    stage.kill(1)
    stage.node(1, [stage.address(SPARE)], data="another")


ASKERS = GATEWAY, FULL, THIN
OUTAGES: dict[str, Outage] = {
    "askers sleep": sleeping(*ASKERS),
    "a node sleeps": sleeping(1),
    "the given node sleeps": sleeping(0),
    "both nodes sleep": sleeping(0, 1),
    "p2pd of the nodes sleeps": sleeping(0, 1, only="p2pd"),
    "p2pd of the client sleeps": sleeping(FULL, only="p2pd"),
    "askers are cut off": cutting(*ASKERS),
    "a node is cut off": cutting(1),
    "the given node is cut off": cutting(0),
    "all are cut off": cutting(0, 1, *ASKERS),
    "same ports": same_ports,
    "rolling restart": rolling,
    "given ones gone": given_are_gone,
}


def show(stage: Stage, name: str, began_s: float, found: dict[str, float | None]) -> None:
    """One line for the outage, and one for each text that an asker got instead of an answer."""
    backs = (f"{who} {'never' if back_s is None else f'{back_s:.1f} s'}" for who, back_s in found.items())
    print(f"{name}: {', '.join(backs)}", flush=True)
    for asker in stage.askers.values():
        for error in asker.errors(began_s):
            print(f"    {asker.name}: {error}", flush=True)


def run(names: list[str], seconds: float, folder: Path) -> bool:
    """Make these outages, one after the other. True if each asker was answered soon enough after each."""
    is_good = True
    with Bridge(6) as bridge, ForkServer() as server, ProcessPool(folder, server) as pool, Stage(folder, bridge, pool) as stage:
        for name in names:
            began_s = time.monotonic()
            OUTAGES[name](stage, seconds)
            found = stage.all_back(time.monotonic())
            show(stage, name, began_s, found)
            is_good = is_good and all(back_s is not None and back_s <= ENOUGH_S for back_s in found.values())
            time.sleep(5.0)
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=list(OUTAGES), default=list(OUTAGES), metavar="NAME", help=", ".join(OUTAGES)
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="of each outage; a record lives for 60")
    parser.add_argument("--folder", type=Path, help="keep logs here; it must exist")
    options = parser.parse_args()
    with contextlib.nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        return 0 if run(options.only, options.seconds, Path(folder)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
