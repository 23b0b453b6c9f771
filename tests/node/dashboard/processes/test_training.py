"""A training run on other machines, followed in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.training_swarm import TrainingSwarm, write_short_run
from tests.forked import ForkServer
from tests.node.dashboard.processes.test_map import home
from tests.node.gateway.processes.conftest import serve

STEPS = 2_000
"""More than are waited for."""


@pytest.fixture
def pool(tmp_path: Path, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path, fork_server) as made:
        yield made


def version_of(browser: Browser) -> int:
    """As the page shows it; 0 = not yet."""
    facts = browser.text(".mm-facts").split("\n")
    said = facts[1].split(" of ")[0] if len(facts) > 1 else ""
    return int(said) if said.isdecimal() else 0


def test_a_run_is_followed_from_its_curves_to_its_samples(browser: Browser, pool: ProcessPool, tmp_path: Path) -> None:
    run = write_short_run(
        tmp_path / "run",
        training__steps=STEPS,
        evaluation__every_steps=5,
        evaluation__samples=["The assert"],
    )
    swarm = TrainingSwarm(pool, run)
    node = swarm.node("node", "0:3")
    node.wait_for("ready")
    swarm.trainer("trainer")
    peer = node.said["multiaddr"]
    gateway = serve(pool, "gateway", "--peer", peer)
    browser.open(f"{home(gateway)}page/training")
    browser.until(lambda: version_of(browser) >= 3, what="version 3")
    first = version_of(browser)
    assert f"of {STEPS}" in browser.text(".mm-facts")
    browser.until_text("tokens/s", ".mm-facts")
    browser.until_text("Who takes part", ".mm-table")
    assert "stage" in browser.text("section[aria-label='Run']") and "training" in browser.text("section[aria-label='Run']")
    browser.until(lambda: "training " in browser.text(".mm-charts"))
    assert browser.run("return document.querySelectorAll('.mm-chart canvas').length") == 2
    browser.until(lambda: "micro-batch" in browser.text("section[aria-label='Run'] .mm-table"), what="what each has given")
    browser.until_text("Samples at version", "section[aria-label='Run']")
    assert "The assert" in browser.text("section[aria-label='Run']")
    browser.until(lambda: version_of(browser) > first, what="a later version")
    assert "1, 1, 1" in browser.text(".mm-facts"), "who watches is no trainer"
    swarm.node("second", "0:3")
    browser.until_text("joined", "section[aria-label='Run']")
    assert browser.faults() == []
