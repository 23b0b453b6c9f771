"""Two nodes and a client that know no address find each other by mDNS: machines of their own (network namespaces) on one bridge."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from swarm.lan import mdns
from tests.end_to_end.bridge import Bridge, BridgeError
from tests.families import make_checkpoint
from tests.forked import ForkServer
from tests.node.cli.test_commands import add_byte_tokenizer

ROOT = Path(__file__).resolve().parents[2]
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


class Process:
    """A `swarm` command at one machine of the bridge; its lines are read as they come."""

    def __init__(self, server: ForkServer, bridge: Bridge, machine: int, *arguments: str) -> None:
        network = bridge.network(machine)
        self.process = server.popen(arguments, environment=os.environ | {"MURMURATION_LOG": "INFO"}, network=network)
        os.close(network)
        self.lines: list[str] = []
        self.remarks: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.remarks))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def wait_for(self, start: str) -> str:
        """The first line on stdout that begins so."""

        def found() -> str | None:
            return next((line for line in self.lines if line.startswith(start)), None)

        with self._news:
            assert self._news.wait_for(found, READY_S), f"no line {start!r}: {self.lines} {self.remarks[-20:]}"
        line = found()
        assert line is not None
        return line

    def end(self, code: int | None = None) -> None:
        """Wait for its own end with `code`, or put one to it."""
        if code is None:
            self.process.kill()
        assert self.process.wait(READY_S) == code or code is None, (self.process.returncode, self.lines, self.remarks)
        for reader in self._readers:
            reader.join(READY_S)


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
    running: list[Process] = []
    try:
        for machine, blocks in enumerate(("0:2", "2:5")):
            data = str(tmp_path / f"data{machine}")
            running.append(Process(fork_server, bridge, machine, "node", str(model), "--blocks", blocks, "--data-dir", data))
        for node in running:
            assert "10.83.0." in node.wait_for("multiaddr: ")
            node.wait_for("ready")
        asked = ("--data-dir", str(tmp_path / "data2"), "--max-new-tokens", str(NEW), "--stats")
        client = Process(fork_server, bridge, 2, "generate", str(model), PROMPT, *asked)
        running.append(client)
        client.end(0)
        assert "\n".join(client.lines) == local_text(model)
        assert any("over 2 hops, 0 replaced" in line for line in client.remarks)
        assert any("neighbouring peers answer" in line for line in client.remarks)
        assert any("of swarm `public` on this network: joining it; --no-lan to stay alone" in line for line in client.remarks)
        joined = [line for node in running[:2] for line in node.lines if line.startswith("joined: ")]
        assert joined and all("neighbouring" in line for line in joined)  # one of them heard the other, at least

        again = Process(fork_server, bridge, 2, "generate", str(model), PROMPT, *asked, "--no-lan")  # now it remembers
        running.append(again)
        again.end(0)
        assert any("remembered peers answer" in line for line in again.remarks)
        for node in running[:2]:
            node.process.terminate()
            node.end(0)
    finally:
        for process in running:
            process.end()
