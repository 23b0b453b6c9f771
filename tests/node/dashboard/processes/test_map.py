"""The map in a browser shows changes of real nodes soon."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import ForkServer
from tests.node.gateway.processes.conftest import serve
from tests.sources import ROOT

SOON_S = 30.0
"""On a busy machine. A record of a node that is dead lasts for a minute, and the page of an idle browser is not drawn anew."""


@pytest.fixture
def pool(tmp_path: Path, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path, fork_server) as made:
        yield made


def home(gateway: NodeProcess) -> str:
    return gateway.said["address"].removesuffix("v1")


def test_joins_gaps_and_deaths_are_shown_soon(browser: Browser, pool: ProcessPool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama", tmp_path / "tiny")
    add_byte_tokenizer(checkpoint)
    first = pool.node(str(checkpoint), "--blocks", "0:3", "--name", "first")
    gateway = serve(pool, "gateway", "tiny", "--peer", first.said["multiaddr"])
    browser.open(home(gateway))
    browser.until_text("missing: blocks 3:5; host them:", ".mm-verdict")
    assert f"swarm node tiny --blocks 3:5 --peer {first.said['multiaddr']}" in browser.text(".mm-command")
    assert browser.text(".mm-gaps").split() == ["missing", "gap", "3:5"]
    second = pool.node(str(checkpoint), "--blocks", "3:5", "--name", "second", "--peer", first.said["multiaddr"])
    second.wait_for("ready")
    browser.until_text("complete: every block has 1 node or more; thin clients can ask", ".mm-verdict", SOON_S)
    second_row = browser.text(".mm-grid tbody tr:nth-child(2)")
    assert second_row.startswith("second") and "serving" in second_row and "3:5" in second_row
    second.send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    browser.until_text("died", ".mm-events", SOON_S)
    print(f"a death was shown {time.monotonic() - killed_s:.2f} s after it")
    browser.until_text("missing: blocks 3:5", ".mm-verdict", SOON_S)
    events = browser.text(".mm-events")
    assert "complete" in events and "second" in events and "gap" in events
    assert browser.faults() == []


def test_a_node_shows_the_page_without_a_gateway_and_nothing_comes_from_elsewhere(
    browser: Browser, pool: ProcessPool, tmp_path: Path
) -> None:
    node = pool.node(str(make_checkpoint("llama", tmp_path / "tiny")), "--dashboard", "0")
    url = node.wait_for("page")
    browser.open(url)
    browser.until_text("complete", ".mm-verdict")
    hosts = browser.run("return [...new Set(performance.getEntriesByType('resource').map(one => new URL(one.name).host))]")
    assert hosts == [url.split("/")[2]]
    browser.open(f"{url}page/chat")
    browser.until_text("This node answers no questions itself")
    assert browser.faults() == []
    assert node.end(signal.SIGINT) == 0, "an open page keeps no node from leaving"


def test_neither_the_gateway_nor_its_page_imports_torch() -> None:
    code = (
        "import sys, node.gateway; assert 'nicegui' not in sys.modules, 'a gateway starts without the page'; "
        "import node.dashboard.pages.site; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
