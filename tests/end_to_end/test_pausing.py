"""A volunteer pauses a node: the run loses nothing."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.run_files import write_run
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.node.cli.terminal import Terminal

STEPS, PAUSED, MICRO_BATCHES = 40, 8, 4
"""PAUSED: versions that are closed while one of the two nodes is paused."""
GIVEN = re.compile(r"contributed\S* ([\d,]+) micro-batch(?:es)?, ([\d,]+) tokens?, ([\d,]+) versions? in \d+ (?:s|min|h)")


def given(text: str) -> list[int]:
    found = GIVEN.findall(text)
    assert found, text[-800:]
    return [int(number.replace(",", "")) for number in found[-1]]


def version(trainer: NodeProcess) -> int:
    """The last that it has closed; it is waited for."""
    return int(trainer.wait_for("version").partition(":")[0])


def states_of(pool: ProcessPool, *words: str) -> dict[str, dict[str, Any]]:
    """What `swarm status` says of who takes part in the run, by state."""
    status = pool.start("status", ["status", "tiny", "--json", *words])
    assert status.has_ended(90) and status.code == 0, status.last_words()
    status.hear()
    (rows,) = json.loads("\n".join(status.lines))["models"]
    return {one["state"]: one for one in rows["run"]}


@pytest.mark.timeout(300)
def test_a_node_pauses_by_key_and_signal_while_the_run_goes_on_and_loses_nothing(tmp_path: Path, fork_server: ForkServer) -> None:
    run_file = write_run(tmp_path / "run", {"training.steps": STEPS})
    shared = ["--listen", "127.0.0.1:0", "--no-lan", "--data-dir"]
    with ProcessPool(tmp_path, fork_server) as pool:
        anna = pool.start("anna", ["node", "--run", str(run_file), "--blocks", "0:4", *shared, str(tmp_path / "anna")])
        anna.wait_for("ready")
        peer = ["--peer", anna.said["multiaddr"]]
        ben = Terminal(fork_server, "node", "--run", str(run_file), "--blocks", "0:4", *peer, *shared, str(tmp_path / "ben"))
        try:
            ben.until("ready")
            words = ["train", str(run_file), *peer, "--out", str(tmp_path / "runs"), *shared, str(tmp_path / "trainer")]
            trainer = pool.start("trainer", words)
            trainer.wait_for("version")

            ben.type("p")
            ben.until("paused: no new micro-batches")
            paused_at = version(trainer)
            while version(trainer) < paused_at + 1 + PAUSED:  # of the first one ben may have had some micro-batches
                trainer.said.clear()
            trainer.send_signal(signal.SIGSTOP)  # the run does not end before it was asked for
            ends_s, states = time.monotonic() + 90, dict[str, dict[str, Any]]()
            while set(states) != {"training", "paused", ""}:  # a node that is late once is shown without its state
                assert time.monotonic() < ends_s, states
                states = states_of(pool, *peer, "--no-lan", "--data-dir", str(tmp_path / "asking"))
            assert states["paused"]["version"] > 0 and states["paused"]["queue"] == 0, "it steps with the others"
            assert "trainer" in states[""]["roles"]
            trainer.send_signal(signal.SIGCONT)

            ben.signal(signal.SIGUSR1)
            ben.until("training goes on")
            trainer.wait_for("trained")
            ben.type("\x03")
            ben.until("left")
            assert ben.end() == 0
            assert anna.end(signal.SIGINT) == 0
            anna.hear()
            trainer.hear()
        finally:
            ben.close()
    print("\n".join(["anna:", *anna.lines, "trainer:", *trainer.lines, "ben:", ben.shown]))
    ours, theirs = given("\n".join(anna.lines)), given(ben.shown)
    assert (ours[2], theirs[2]) == (STEPS, STEPS), "both step through every version"
    assert ours[0] + theirs[0] == STEPS * MICRO_BATCHES, "each micro-batch is in one sum, none was lost or done twice"
    assert ours[1] + theirs[1] == STEPS * MICRO_BATCHES * 128
    assert 0 < theirs[0] <= (STEPS - PAUSED) * MICRO_BATCHES
