"""Real nodes that are attacked, and the answers of transformers.

All share one fork server and one tiny checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.end_to_end.local_swarm import make_llama
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.node.cli.conftest import process_as_before as process_as_before  # some attacks set up logging here
from tests.swarm.inference.conftest import swarm as swarm

Start = Callable[..., NodeProcess]


@pytest.fixture(scope="package")
def pool(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[ProcessPool]:
    """Starts `swarm` processes in about a second each; all end with this folder."""
    torch.set_num_threads(1)
    with ProcessPool(tmp_path_factory.mktemp("hostile"), fork_server) as running:
        yield running


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 6 blocks, hidden size 64, 256 tokens, a context of 1024 (`tests/end_to_end/local_swarm.py`)."""
    return make_llama(tmp_path_factory.mktemp("hostile-model") / "llama")


@pytest.fixture(scope="package")
def alone(checkpoint: Path) -> Any:
    """The same model on one machine: the reference of every answer."""
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="package")
def start_node(pool: ProcessPool, checkpoint: Path) -> Start:
    """`start_node(name, blocks, *arguments, peers=[node, …])`: a `swarm node` in float32 that is ready when this returns."""

    def start(name: str, blocks: str, *arguments: str, peers: tuple[NodeProcess, ...] = ()) -> NodeProcess:
        command = ["node", str(checkpoint), "--name", name, "--blocks", blocks, "--listen", "127.0.0.1:0", "--dtype", "float32"]
        command += ["--data-dir", str(pool.folder / name), *arguments]
        for peer in peers:
            command += ["--peer", peer.said["multiaddr"]]
        scratch = pool.folder / f"{name}.tmp"
        scratch.mkdir(exist_ok=True)
        node = pool.start(name, command, {"TMPDIR": str(scratch)})
        node.wait_for("ready")
        return node

    return start
