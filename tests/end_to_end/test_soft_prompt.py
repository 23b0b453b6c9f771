"""`examples/soft_prompt.py` through real nodes; a kill changes nothing."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm.client import SwarmModelForCausalLM
from tests.end_to_end.local_swarm import make_llama
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
IDS = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(5))
SPANS = ("0:3", "3:6", "3:6")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[tuple[Path, list[NodeProcess]]]:
    folder = tmp_path_factory.mktemp("soft")
    checkpoint = make_llama(folder / "llama")
    with ProcessPool(folder, fork_server) as pool:
        started: list[NodeProcess] = []
        for number, blocks in enumerate(SPANS):
            peers = ["--peer", started[0].said["multiaddr"]] if started else []
            arguments = ["node", str(checkpoint), "--blocks", blocks, "--listen", "127.0.0.1:0", "--dtype", "float32", "--no-lan"]
            started.append(pool.start(f"n{number}", [*arguments, *peers, "--data-dir", str(folder / f"n{number}")]))
            if number == 0:
                started[0].wait_for("ready")
        for node in started:
            node.wait_for("ready")
        yield checkpoint, started


def test_the_example_learns(nodes: tuple[Path, list[NodeProcess]], tmp_path: Path, fork_server: ForkServer) -> None:
    checkpoint, started = nodes
    code = (ROOT / "examples/soft_prompt.py").read_text()
    command = [code, str(checkpoint), "--peer", started[0].said["multiaddr"]]
    command += ["--steps", "8", "--vectors", "4", "--data-dir", str(tmp_path), "--out", str(tmp_path / "prompt.pt")]
    done = fork_server.run(command, kind="code")
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(float, re.findall(r"loss before ([\d.]+), after ([\d.]+)", done.stdout)[0])
    assert after < before - 0.05 and torch.load(tmp_path / "prompt.pt", weights_only=True).shape == (4, 64)


def test_a_node_that_is_killed_between_forward_and_backward_changes_no_gradient(
    nodes: tuple[Path, list[NodeProcess]], tmp_path: Path
) -> None:
    checkpoint, started = nodes
    alone = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expected = alone.get_input_embeddings()(IDS).detach().requires_grad_()
    alone(inputs_embeds=expected, labels=IDS).loss.backward()
    peers = [node.said["multiaddr"] for node in started]
    with SwarmModelForCausalLM.from_pretrained(checkpoint, peers=peers, cache_dir=tmp_path) as model:
        embeds = expected.detach().clone().requires_grad_()
        loss = model(inputs_embeds=embeds, labels=IDS).loss
        proven = model.remote.backend._ways.router.experience.is_proven
        victim = next(node for node in started[1:] if proven(node.said["peer"]))
        victim.end(signal.SIGKILL)
        loss.backward()
    assert embeds.grad is not None and expected.grad is not None
    assert (embeds.grad - expected.grad).abs().max() <= 1e-5 * expected.grad.abs().max()
