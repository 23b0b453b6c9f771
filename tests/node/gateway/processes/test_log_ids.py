"""A request can be followed through the logs of gateway and nodes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm, serve

Processes = tuple[NodeProcess, NodeProcess, NodeProcess]


@pytest.fixture
def logged(swarm: GatewaySwarm, tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """A gateway and two nodes of a swarm of their own, which log at level INFO."""
    monkeypatch.setenv("MURMURATION_LOG", "INFO")
    with ProcessPool(tmp_path, fork_server) as pool:
        first = pool.node(str(swarm.checkpoint), "--blocks", "0:2", "--no-lan")
        second = pool.node(str(swarm.checkpoint), "--peer", first.said["multiaddr"], "--no-lan")
        gateway = serve(pool, "gateway", "tiny", "--peer", first.said["multiaddr"])
        gateway.wait_for("ready")
        yield gateway, first, second


def lines_of(process: NodeProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]


def asked(gateway: NodeProcess, path: str, body: dict[str, object]) -> tuple[int, str, dict[str, Any]]:
    """(status, the request's id in the response's header, its body)"""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(gateway.said["address"] + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return answer.status, answer.headers["x-request-id"], json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers["x-request-id"], json.load(error)


def said_of(gateway: NodeProcess, path: str, status: int) -> dict[str, Any]:
    """The line that tells of the request's end, which may come a moment after its response."""
    deadline_s, found = time.monotonic() + 30, list[dict[str, Any]]()
    while not found:
        assert time.monotonic() < deadline_s, lines_of(gateway)
        found = [line for line in lines_of(gateway) if line["message"].startswith(f"POST /v1{path}: {status} in ")]
    return found[0]


def test_the_number_of_a_request_leads_to_its_session_at_every_node(logged: Processes) -> None:
    gateway, first, second = logged
    status, number, found = asked(gateway, "/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 3})
    assert status == 200 and number == found["id"]
    ended = said_of(gateway, "/completions", 200)
    assert number.endswith(f"-{ended['request']}") and ended["peer"].startswith("12D3KooW")
    of_it = [line for line in lines_of(gateway) if line.get("request") == ended["request"]]
    (session,) = {line["session"] for line in of_it if "session" in line}
    for node in (first, second):
        (opened,) = [line for line in lines_of(node) if line["message"].startswith("open by ") and line.get("session") == session]
        assert opened["peer"] == node.said["peer"] and opened["level"] == "INFO"
    refused, number, _ = asked(gateway, "/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 0})
    assert refused == 400 and number == f"req_{said_of(gateway, '/completions', 400)['request']}"
    status, number, _ = asked(gateway, "/embeddings", {"model": "tiny", "input": "hello"})
    assert status == 200 and number == f"embd-{said_of(gateway, '/embeddings', 200)['request']}"
