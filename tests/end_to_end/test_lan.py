"""Two nodes and a client without addresses meet by mDNS.

Each is a machine of its own (a network namespace) on one bridge.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from swarm.lan import mdns
from tests.end_to_end.bridge import Bridge, BridgeError
from tests.end_to_end.processes import ProcessPool
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import ForkServer

PROMPT, NEW = "The quick brown fox", 8
READY_S = 120.0
"""For a start on a machine that is busy with seven other things."""


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    try:
        with Bridge(3) as bridge:
            yield bridge
    except BridgeError as error:
        pytest.skip(f"no network namespaces on a bridge here: {error}")


@contextlib.contextmanager
def at(bridge: Bridge, machine: int) -> Iterator[dict[str, Any]]:
    """How to start a process at one machine of the bridge."""
    network = bridge.network(machine)
    try:
        yield {"network": network, "environment": os.environ | {"MURMURATION_LOG": "INFO"}}
    finally:
        os.close(network)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(directory)
    return directory


def local_text(model: Path) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    output = AutoModelForCausalLM.from_pretrained(model).generate(ids, max_new_tokens=NEW, do_sample=False)
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text


@pytest.mark.skipif(not mdns.is_installed(), reason="the extra `lan` is not installed")
def test_two_nodes_and_a_client_without_an_address_find_each_other(
    bridge: Bridge, model: Path, tmp_path: Path, fork_server: ForkServer
) -> None:
    """No --peer, no file of known peers: what they know of each other came over the bridge."""
    with ProcessPool(tmp_path, fork_server) as pool:
        nodes = []
        for machine, blocks in enumerate(("0:2", "2:5")):
            command = ["node", str(model), "--blocks", blocks, "--data-dir", str(tmp_path / f"data{machine}")]
            with at(bridge, machine) as where:
                nodes.append(pool.start(f"node{machine}", command, **where))
        for node in nodes:
            assert "10.83.0." in node.wait_for("multiaddr", READY_S)
            node.wait_for("ready", READY_S)

        asking = ["generate", model, PROMPT, "--data-dir", tmp_path / "data2", "--max-new-tokens", NEW, "--stats"]
        with at(bridge, 2) as where:
            client = fork_server.run(asking, timeout=READY_S, **where)
        assert (client.returncode, client.stdout.removesuffix("\n")) == (0, local_text(model)), client.stderr
        for remark in ("over 2 hops, 0 replaced", "neighbouring peers answer"):
            assert remark in client.stderr
        assert re.search("of swarm `public` on this network: joining (it|them); --no-lan to stay alone", client.stderr), (
            "one or both"
        )
        for node in nodes:
            node.hear()
        joined = [line for node in nodes for line in node.lines if line.startswith("joined: ")]
        assert joined and all("neighbouring" in line for line in joined)  # one of them heard the other, at least

        with at(bridge, 2) as where:
            again = fork_server.run([*asking, "--no-lan"], timeout=READY_S, **where)
        assert again.returncode == 0 and "remembered peers answer" in again.stderr, again.stderr  # now it remembers
        for node in nodes:
            assert node.end(signal.SIGTERM, READY_S) == 0
