"""One node process serves two models, both exact and both announced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm.client import SwarmModelForCausalLM
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.families import make_checkpoint
from tests.forked import ForkServer
from tests.node.cli.test_commands import run

NEW = 16
GREEDY: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of other shapes, whose blocks have the same numbers."""
    folder = tmp_path_factory.mktemp("models")
    return make_checkpoint("llama", folder / "first"), make_checkpoint("qwen2", folder / "second")


@pytest.fixture(scope="module")
def node(paths: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[NodeProcess]:
    with ProcessPool(tmp_path_factory.mktemp("nodes"), fork_server) as pool:
        yield pool.node(*map(str, paths))


def test_four_sessions_of_each_model_are_exact(paths: tuple[Path, Path], node: NodeProcess) -> None:
    prompts = [torch.randint(3, 200, (1, 5 + number), generator=torch.Generator().manual_seed(number)) for number in range(4)]
    expected = []
    for path in paths:
        alone = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        expected += [alone.generate(prompt, **GREEDY).tolist() for prompt in prompts]
    models = [SwarmModelForCausalLM.from_pretrained(path, peers=[node.said["multiaddr"]], dtype="float32") for path in paths]
    try:
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(model.generate, prompt, **GREEDY) for model in models for prompt in prompts]
            assert [one.result(180).tolist() for one in asked] == expected
    finally:
        for model in models:
            model.close()


def test_status_shows_both_models_of_one_peer(node: NodeProcess) -> None:
    code, said, remarks = run("status", "--json", "--peer", node.said["multiaddr"])
    assert code == 0, remarks
    shown = json.loads(said)["models"]
    assert sorted(one["name"] for one in shown) == ["first", "second"]
    assert said.count(node.said["peer"]) >= 2
    assert sum(line.startswith("serving: ") for line in node.lines) == 2


def test_serve_tables_say_what_a_node_serves(paths: tuple[Path, Path], tmp_path: Path, fork_server: ForkServer) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[[serve]]\nmodel = "{paths[0]}"\nblocks = "1:3"\n[[serve]]\nmodel = "{paths[1]}"\n')
    with ProcessPool(tmp_path, fork_server) as pool:
        node = pool.start(
            "both", ["node", "--config", str(file), "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
        )
        node.wait_for("ready")
        spans = [line.split()[2] for line in node.lines if line.startswith("serving: ")]
        assert spans[0] == "1:3" and spans[1].startswith("0:")
