"""A node ends in order at SIGTERM, SIGHUP and Ctrl-C.

Also in the middle of an answer; and even `kill -9` leaves no process and no file behind.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.local_swarm import LocalSwarm
from tests.end_to_end.processes import NodeProcess, members

LEAVE_S = 60.0
"""Of a busy machine; the README promises five of a quiet one."""

ORPHAN_S = 60.0
"""How long p2pd may outlive a node that was killed; it takes a fraction of a second."""


def sockets(node: NodeProcess) -> list[Path]:
    """The socket file of its p2pd; the one of hivemind's own end is named alike."""
    words = [word for pid in members(node.pid) for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")]
    return [Path(word.removeprefix("-listen=/unix")) for word in words if word.startswith("-listen=/unix/")]


def ports(node: NodeProcess) -> tuple[int, int]:
    """(p2p, gRPC)"""
    port = int(node.said["multiaddr"].split("/")[4])
    return port, port + 1


def listening() -> set[int]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


@pytest.mark.parametrize(("hop", "how"), [(0, signal.SIGTERM), (1, signal.SIGHUP), (2, signal.SIGINT)])
def test_a_planned_leaving_in_the_middle_of_an_answer(swarm: LocalSwarm, hop: int, how: signal.Signals) -> None:
    left: list[tuple[NodeProcess, float, list[Path]]] = []

    def leave(number: int, journey: Any) -> None:
        if number == 9:
            node = swarm.on_route(journey, hop)
            left.append((node, time.monotonic(), sockets(node)))
            os.kill(node.pid, how)

    swarm.check(swarm.prompt(3), leave)
    node, asked_at_s, files = left[0]
    assert node.has_ended(LEAVE_S - (time.monotonic() - asked_at_s)), node.last_words()
    print(f"left after at most {time.monotonic() - asked_at_s:.1f} s")
    assert node.code == 0
    node.wait_for("left")
    assert files and not [file for name in files for file in Path("/tmp").glob(f"*{name.name.split('-', 2)[2]}") if file.exists()]
    assert not members(node.pid)
    assert not set(ports(node)) & listening()
    assert not list(node.log.with_suffix(".tmp").iterdir())


def test_kill_leaves_no_orphan(swarm: LocalSwarm) -> None:
    node = swarm.replicas(1)[0]
    daemons = [pid for pid in members(node.pid) if pid != node.pid]
    assert daemons, "it had no p2pd, so this test would show nothing"
    watched = [os.pidfd_open(pid) for pid in daemons]
    assert node.end(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + ORPHAN_S
    for pidfd in watched:
        assert select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0], "p2pd outlives its node"
        os.close(pidfd)
    assert not set(ports(node)) & listening()
