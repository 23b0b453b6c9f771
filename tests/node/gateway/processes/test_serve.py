"""`swarm serve` as a process: libraries, its end, deaths of nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, OpenAI

from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ROOT, ForkServer
from tests.node.cli.test_commands import NOBODY, run
from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm, serve
from tests.node.gateway.processes.test_openai_client import NEW, PROMPT, generated

SERVE = (
    "import sys\nfrom node.cli.app import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit as error: code = error.code\n"
    "heavy = [name for name in ('torch', 'transformers', 'hivemind', 'safetensors', 'huggingface_hub') if name in sys.modules]\n"
    "print('heavy:', *heavy, flush=True)\nsys.exit(code)"
)


@pytest.fixture
def pool(tmp_path: Path, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path, fork_server) as made:
        yield made


def client_of(gateway: NodeProcess) -> OpenAI:
    return OpenAI(base_url=gateway.said["address"], api_key="none", max_retries=0, timeout=LIMIT_S)


def test_a_gateway_loads_no_torch_and_fetches_no_weights(swarm: GatewaySwarm, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE, "serve", "tiny", "--peer", swarm.peer, "--port", "0", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = [process.stdout.readline() for _ in range(3)]
            assert said[0].startswith("address: http://127.0.0.1:") and said[2] == "ready: tiny\n"
            assert said[1] == said[0].replace("address", "page").removesuffix("v1\n") + "\n"
            client = OpenAI(base_url=said[0].split()[1], api_key="none", max_retries=0)
            for fields in ({}, {"temperature": 1.5, "seed": 3}, {"logprobs": 2}):
                made: Any = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, **fields)  # type: ignore[call-overload]
                assert made.usage.completion_tokens == 3
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=LIMIT_S)[0] == "heavy:\n"
        finally:
            process.kill()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_with_a_key_other_machines_may_ask_and_a_key_can_be_added_meanwhile(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    data = ["--data-dir", str(pool.folder / "gateway")]
    first = run("keys", "add", "first", "--requests-per-minute", "1", *data)[1].strip()
    gateway = serve(pool, "gateway", "tiny", "--peer", swarm.peer, "--host", "0.0.0.0")
    gateway.wait_for("ready")
    port = gateway.said["address"].rpartition(":")[2]
    second = run("keys", "add", "second", *data)[1].strip()
    for key, status in ((first, 200), (first, 429), (second, 200), ("none", 401), (first + "x", 401)):
        client = OpenAI(base_url=f"http://127.0.0.3:{port}", api_key=key, max_retries=0, timeout=LIMIT_S)
        try:
            made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW)
            assert (made.choices[0].text, status) == (generated(swarm), 200)
        except APIStatusError as refused:
            assert refused.status_code == status, refused
    log = gateway.log.read_text()
    assert "every request needs the key; HTTP is not encrypted" in log and first not in log and second not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_running_answers_end(swarm: GatewaySwarm, number: signal.Signals) -> None:
    gateway = serve(swarm.pool, f"drained-{number}", "tiny", "--peer", swarm.peer)
    gateway.wait_for("ready")
    client, expected = client_of(gateway), generated(swarm, new=200)
    stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=200, stream=True)
    said = [next(stream).choices[0].text]
    gateway.send_signal(number)
    said += [chunk.choices[0].text for chunk in stream]
    assert "".join(said) == expected
    assert gateway.has_ended(60)
    assert gateway.code == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert "Traceback" not in gateway.log.read_text()


@pytest.mark.parametrize("hop", [0, 1])
def test_a_death_in_a_stream_is_invisible(swarm: GatewaySwarm, pool: ProcessPool, hop: int) -> None:
    faults, peers = pool.folder / "faults", []
    faults.mkdir()
    for number, span in enumerate(["0:2", "2:5", "0:2" if hop == 0 else "2:5"]):
        mine = {"SWARM_FAULTS": str(faults)} if span == ("0:2", "2:5")[hop] else {}
        arguments = ["node", str(swarm.checkpoint), "--blocks", span, "--listen", "127.0.0.1:0", "--quiet", *peers]
        node = pool.start(f"node{number}", [*arguments, "--data-dir", str(pool.folder / f"data{number}")], mine)
        node.wait_for("ready")
        peers += ["--peer", node.said["multiaddr"]]
    gateway = serve(pool, "gateway", "tiny", *peers)
    gateway.wait_for("ready")
    fault = faults / "before_compute:step=6"
    fault.touch()
    stream = client_of(gateway).completions.create(model="tiny", prompt=PROMPT, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == generated(swarm, new=24)
    assert not fault.exists(), "no node has died, so this test has shown nothing"


def test_without_a_route_the_missing_blocks_are_named(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    node = pool.node(str(swarm.checkpoint), "--blocks", "0:2")
    gateway = serve(pool, "gateway", "tiny", "--peer", node.said["multiaddr"], "--patience", "1")
    gateway.wait_for("ready")
    for is_stream in (False, True):
        with pytest.raises(APIStatusError) as refused:
            client_of(gateway).completions.create(model="tiny", prompt=PROMPT, stream=is_stream)
        assert (refused.value.status_code, refused.value.code) == (503, "no_route")
        assert int(refused.value.response.headers["retry-after"]) > 0 and "2:5" in refused.value.message


def test_before_the_swarm_is_there_the_gateway_says_so_and_waits(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}"
    gateway = serve(pool, "gateway", "tiny", "--peer", dead, "--patience", "1")
    with pytest.raises(urllib.error.HTTPError) as unwell:
        urllib.request.urlopen(gateway.said["address"].removesuffix("/v1") + "/health", timeout=LIMIT_S)
    assert unwell.value.code == 503 and json.load(unwell.value)["models"] == {"tiny": False}
    with pytest.raises(APIStatusError) as refused:
        client_of(gateway).completions.create(model="tiny", prompt=PROMPT)
    assert (refused.value.status_code, refused.value.code) == (503, "peer_unreachable")


def test_flags_that_make_no_sense_are_one_line(swarm: GatewaySwarm, tmp_path: Path) -> None:
    taken = swarm.url.rpartition(":")[2].removesuffix("/v1")
    for arguments, words in (
        (["--host", "0.0.0.0"], ["without keys", "127.0.0.1"]),
        (["--host", "example.org"], ["without keys"]),
        (["--port", "70000"], ["--port", "65535"]),
        (["--port", taken], ["cannot listen", taken]),
        (["--patience", "-1"], ["--patience"]),
        (["--priority", "5"], ["--priority"]),
        (["--max-requests", "0"], ["--max-requests"]),
    ):
        code, said, remarks = run("serve", "tiny", "--peer", swarm.peer, "--data-dir", str(tmp_path), *arguments)
        assert (code, said) == (2, "") and remarks.count("\n") == 1 and all(word in remarks for word in words), remarks


def test_a_model_that_the_swarm_does_not_serve_is_404(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    gateway = serve(pool, "gateway", "tiny", "tony", "--peer", swarm.peer)
    with pytest.raises(APIStatusError) as refused:
        client_of(gateway).completions.create(model="tony", prompt=PROMPT)
    assert (refused.value.status_code, refused.value.code) == (
        404,
        "model_not_found",
    ) and "did you mean tiny" in refused.value.message
    made = client_of(gateway).completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW)
    assert made.choices[0].text == generated(swarm)


def test_curl_reads_a_stream_as_it_comes(swarm: GatewaySwarm) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{swarm.url}/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"


def test_without_a_name_whatever_the_swarm_serves_is_served(swarm: GatewaySwarm) -> None:
    gateway = serve(swarm.pool, "all", "--peer", swarm.peer)
    assert gateway.wait_for("ready") == "tiny"
    client = client_of(gateway)
    digest = swarm.nodes[0].said["model"].split()[0].partition("@")[2]
    assert [model.id for model in client.models.list()] == ["tiny"]
    for name in ("tiny", f"tiny@{digest}"):
        made = client.completions.create(model=name, prompt=PROMPT, max_tokens=NEW)
        assert made.choices[0].text == generated(swarm) and made.model == name
    with pytest.raises(APIStatusError) as refused:
        client.completions.create(model="tony", prompt=PROMPT)
    assert refused.value.status_code == 404 and "serves tiny" in refused.value.message
