"""Real nodes without files join by a model's name.

They fetch their span from peers, serve it, and give it to others.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from swarm.client import SwarmModelForCausalLM
from tests.end_to_end.local_swarm import make_llama
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer

PROMPT = torch.arange(3, 13)[None]


class Village:
    """A checkpoint that one node has as a directory, and nodes that know only its name."""

    def __init__(self, folder: Path, pool: ProcessPool) -> None:
        self.folder, self.pool = folder, pool
        self.checkpoint = make_llama(folder / "llama")
        self.nodes: dict[str, NodeProcess] = {}
        alone = transformers.AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32).eval()
        self.expected = alone.generate(PROMPT, max_new_tokens=8, min_new_tokens=8, do_sample=False).tolist()

    def start(self, name: str, model: str, blocks: str, *more: str) -> NodeProcess:
        arguments = ["node", model, "--name", name, "--blocks", blocks, "--listen", "127.0.0.1:0", "--dtype", "float32"]
        arguments += ["--data-dir", str(self.folder / name), *more]
        for other in self.nodes.values():
            arguments += ["--peer", other.said["multiaddr"]] if not other.has_ended() else []
        scratch = self.folder / f"{name}.tmp"
        scratch.mkdir(exist_ok=True)
        node = self.pool.start(name, arguments, {"TMPDIR": str(scratch)})
        node.wait_for("ready")
        self.nodes[name] = node
        return node

    def answer(self, model: str | Path, *peers: str, **settings: Any) -> list[list[int]]:
        with SwarmModelForCausalLM.from_pretrained(
            model, peers=[self.nodes[name].said["multiaddr"] for name in peers], **settings
        ) as asked:
            found: list[list[int]] = asked.generate(PROMPT, max_new_tokens=8, min_new_tokens=8, do_sample=False).tolist()
            return found


@pytest.fixture(scope="module")
def village(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[Village]:
    folder = tmp_path_factory.mktemp("village")
    with ProcessPool(folder, fork_server) as pool:
        yield Village(folder, pool)


def test_newcomers_with_an_empty_disk_serve_and_then_give_on_what_they_got(village: Village) -> None:
    village.start("owner", str(village.checkpoint), "0:3")
    heir = village.start("heir", "llama", "3:6", "--no-ends")
    received = int(re.search(r"(\d+) bytes received", heir.said["fetched"])[1])  # type: ignore[index]
    stored = sum(
        tensor.nbytes for name, tensor in _tensors(village.checkpoint).items() if re.match(r"model\.layers\.[345]\.", name)
    )
    assert stored <= received <= 1.05 * stored
    assert village.answer(village.checkpoint, "owner") == village.expected
    assert village.answer("llama", "owner", cache_dir=village.folder / "asker") == village.expected
    assert not list(village.folder.glob("asker/weights/*/*.part")) and list(village.folder.glob("asker/weights/*/*.safetensors"))

    village.start("guest", "llama@" + heir.said["model"].partition("@")[2][:10], "0:3")
    assert village.nodes["owner"].end(signal.SIGTERM) == 0
    pupil = village.start(
        "pupil", "llama", "3:6", "--no-ends"
    )  # only heir has these now, and heir has no other copy than its cache
    assert "from 1 peer" in pupil.said["fetched"]
    assert village.nodes["heir"].end(signal.SIGKILL) == -signal.SIGKILL
    assert village.answer(village.checkpoint, "guest", "pupil") == village.expected


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(checkpoint / "model.safetensors"))
