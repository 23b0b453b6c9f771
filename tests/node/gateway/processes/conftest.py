"""One swarm of two nodes, and a gateway, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from tests.collector import Collector
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import ForkServer
from tests.node.cli.conftest import process_as_before as process_as_before

LIMIT_S = 120.0
"""Of one request: none takes so long, however busy the machine is."""

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and m.content == 'no' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ m.role[:1] }}:{{ m.content }};{% endfor %}a:"
)


@dataclass(frozen=True)
class GatewaySwarm:
    """What is running: `client` is OpenAI's own."""

    checkpoint: Path
    nodes: tuple[NodeProcess, NodeProcess]
    gateway: NodeProcess
    pool: ProcessPool
    collector: Collector
    """Gets the spans of the second node; the first one keeps no traces."""

    @property
    def peer(self) -> str:
        return self.nodes[0].said["multiaddr"]

    @property
    def url(self) -> str:
        return self.gateway.said["address"]

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=LIMIT_S)


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    with Collector() as started:
        yield started


@pytest.fixture(scope="package")
def swarm(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer, collector: Collector) -> Iterator[GatewaySwarm]:
    checkpoint = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(checkpoint)
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    with ProcessPool(tmp_path_factory.mktemp("swarm"), fork_server) as pool:
        first = pool.node(str(checkpoint), "--blocks", "0:2", "--name", "first", "--metrics", "0")
        second = pool.node(str(checkpoint), "--peer", first.said["multiaddr"], "--name", "second", "--otlp", collector.url)
        gateway = serve(pool, "gateway", "tiny", "--peer", first.said["multiaddr"])
        gateway.wait_for("ready")
        yield GatewaySwarm(checkpoint, (first, second), gateway, pool, collector)


def serve(pool: ProcessPool, name: str, *arguments: str) -> NodeProcess:
    """`swarm serve ARGUMENTS` that listens."""
    started = pool.start(name, ["serve", *arguments, "--port", "0", "--no-lan", "--data-dir", str(pool.folder / name)])
    started.wait_for("address")
    return started
