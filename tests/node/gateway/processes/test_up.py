"""`swarm up`: one command hosts a model and answers HTTP."""

from __future__ import annotations

import shlex
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIStatusError, OpenAI

from node import api_keys
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.node.cli.test_commands import run
from tests.node.cli.test_flags import PEER
from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm
from tests.node.gateway.processes.test_openai_client import NEW, PROMPT, generated


@pytest.fixture
def pool(tmp_path: Path, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path, fork_server) as made:
        yield made


def up(pool: ProcessPool, *arguments: str) -> NodeProcess:
    """`swarm up ARGUMENTS`, started."""
    return pool.start("up", ["up", *arguments, "--port", "0", "--listen", "127.0.0.1:0", "--data-dir", str(pool.folder / "up")])


def client_of(started: NodeProcess, key: str = "none") -> OpenAI:
    return OpenAI(base_url=started.said["address"], api_key=key, max_retries=0, timeout=LIMIT_S)


def test_one_command_hosts_a_model_and_answers_and_the_next_volunteer_joins(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    started = up(pool, str(swarm.checkpoint))
    started.wait_for("address")
    made = client_of(started).completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW)
    assert made.choices[0].text == generated(swarm)
    started.wait_for("ready")
    assert started.said["ready"] == "tiny" and [line.partition(":")[0] for line in started.lines].count("ready") == 1
    words = shlex.split(started.said["invite"])
    assert words[:3] == ["swarm", "node", "tiny"]
    second = pool.start(
        "second", [*words[1:], "--blocks", "0:2", "--listen", "127.0.0.1:0", "--data-dir", str(pool.folder / "second")]
    )
    second.wait_for("ready")
    assert "only programs on this machine can ask" in started.log.read_text()


def test_a_signal_lets_answers_end_and_the_node_leaves_after_them(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    started = up(pool, str(swarm.checkpoint))
    started.wait_for("ready")
    stream = client_of(started).completions.create(model="tiny", prompt=PROMPT, max_tokens=200, stream=True)
    said = [next(stream).choices[0].text]
    started.send_signal(signal.SIGINT)
    said += [chunk.choices[0].text for chunk in stream]
    assert "".join(said) == generated(swarm, new=200)
    assert started.has_ended(60) and started.code == 0
    started.wait_for("left")
    assert started.lines[-2:] == ["leaving", "left"] and "Traceback" not in started.log.read_text()


def test_keys_hold_here_too(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    key = api_keys.add(pool.folder / "up" / api_keys.FILE, "alice", time.time())
    started = up(pool, str(swarm.checkpoint), "--host", "0.0.0.0")
    started.wait_for("ready")
    with pytest.raises(APIStatusError) as refused:
        client_of(started).completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW)
    assert refused.value.status_code == 401
    made = client_of(started, key).completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW)
    assert made.choices[0].text == generated(swarm)


def test_exactly_the_weights_of_the_node_answer(swarm: GatewaySwarm, pool: ProcessPool) -> None:
    """A name that meant other weights in this data directory is no reason to refuse one's own."""
    from tests.families import add_byte_tokenizer, make_checkpoint

    other = make_checkpoint("llama", pool.folder / "other" / "tiny", seed=7)
    add_byte_tokenizer(other)
    digests = set[str]()
    for checkpoint in (swarm.checkpoint, other):
        started = up(pool, str(checkpoint))
        started.wait_for("ready")
        made = client_of(started).completions.create(model="tiny", prompt=PROMPT, max_tokens=1)
        assert made.system_fingerprint is not None
        assert started.said["model"].startswith("tiny@" + made.system_fingerprint.removeprefix("fp_"))
        digests.add(made.system_fingerprint)
        started.end(signal.SIGINT)
    assert len(digests) == 2


def test_what_keeps_the_node_from_serving_ends_the_command(pool: ProcessPool) -> None:
    empty = pool.folder / "empty"
    empty.mkdir()
    started = up(pool, str(empty))
    assert started.has_ended(60) and started.code == 4
    assert started.log.read_text().splitlines()[-1].startswith("error: ")


def test_flags_that_make_no_sense_are_one_line(swarm: GatewaySwarm, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, words in (
            (["--host", "0.0.0.0"], ["without keys"]),
            (["--port", port], ["cannot listen", port]),
            (["--max-requests", "0"], ["--max-requests"]),
            (["--allow", "peers"], ["--allow", "swarm serve --identity"]),
            (["--listen", "nonsense"], ["--listen"]),
        ):
            line = ["up", str(swarm.checkpoint), "--peer", PEER, "--data-dir", str(tmp_path), *arguments]
            code, said, remarks = run(*line)
            assert (code, said) == (2, "") and remarks.count("\n") == 1 and all(word in remarks for word in words), remarks
    code, said, remarks = run("up")
    assert (code, said) == (2, "") and "MODEL" in remarks
