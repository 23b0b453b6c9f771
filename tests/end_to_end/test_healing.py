"""A swarm answers exactly after nodes came, died, left and returned.

No node is told which blocks to host. The client's route timeout is the time that the README states, and some for a busy machine.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import torch
import transformers

from protocols.defaults import HEAL_S
from swarm.client import SwarmModelForCausalLM
from tests.end_to_end.local_swarm import make_llama
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer

BUSY_S = 30.0
"""What a machine that runs other things may add to HEAL_S."""

SPANS = {"0:2", "2:4", "4:6"}


class Volunteers:
    """Nodes that place themselves, two blocks each; and a client of the nodes that are there."""

    def __init__(self, folder: Path, pool: ProcessPool, seed: int) -> None:
        self.folder, self.pool, self.random = folder, pool, random.Random(seed)
        self.checkpoint = make_llama(folder / "llama")
        self.alone = transformers.AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32).eval()
        self.nodes: dict[str, NodeProcess] = {}

    def come(self, name: str) -> None:
        arguments = ["node", str(self.checkpoint), "--name", name, "--num-blocks", "2", "--listen", "127.0.0.1:0", "--no-lan"]
        arguments += ["--dtype", "float32", "--data-dir", str(self.folder / name)]
        for other in self.living():
            if "multiaddr" in other.said:
                arguments += ["--peer", other.said["multiaddr"]]
        if name in self.nodes:
            self.nodes[name].close()
        self.nodes[name] = self.pool.start(name, arguments)

    def living(self) -> list[NodeProcess]:
        return [node for node in self.nodes.values() if not node.has_ended()]

    def span(self, node: NodeProcess) -> str:
        """Where it is, by its own last word."""
        node.hear()
        if "moved" in node.said:
            return node.said["moved"].split(": ")[0].rpartition(" ")[2]
        return node.said["placement"].split(": ")[0].rpartition(" ")[2]

    def at(self, span: str) -> list[NodeProcess]:
        return [node for node in self.living() if self.span(node) == span]

    def heal(self, event: str) -> None:
        """An answer, as on one machine, over the nodes that serve within the stated time."""
        started_s = time.monotonic()
        ids = torch.randint(3, 256, (1, 6), generator=torch.Generator().manual_seed(self.random.randrange(1 << 30)))
        with torch.no_grad():
            expected = self.alone.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        peers = [node.said["multiaddr"] for node in self.living()]
        with SwarmModelForCausalLM.from_pretrained(self.checkpoint, peers=peers, patience_s=HEAL_S + BUSY_S) as model:
            answer = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert answer.tolist() == expected.tolist()
        where = sorted(self.span(node) for node in self.living())
        print(f"{event}: answered after {time.monotonic() - started_s:.1f} s; {where}")
        assert set(where) == SPANS


def test_six_volunteers_keep_a_model_covered_whoever_comes_and_goes(tmp_path: Path, fork_server: ForkServer) -> None:
    seed = 4
    torch.set_num_threads(1)
    with ProcessPool(tmp_path, fork_server) as pool:
        swarm = Volunteers(tmp_path, pool, seed)
        names = list("abcdef")
        swarm.come(names[0])
        swarm.nodes[names[0]].wait_for("multiaddr")
        for name in names[1:]:
            swarm.come(name)
        for node in swarm.living():
            node.wait_for("ready")
        chosen = Counter(node.said["placement"].split(": ")[0].rpartition(" ")[2] for node in swarm.living())
        print("seed", seed, "chosen at once:", dict(chosen))
        assert set(chosen) == SPANS, "two took the same blocks while others had no host"
        swarm.heal("six came")

        crowded = swarm.random.choice(sorted(SPANS))
        for node in swarm.at(crowded):
            node.end(signal.SIGKILL)
        swarm.heal(f"all of {crowded} were killed")

        lonely = swarm.random.choice(sorted(span for span in SPANS if len(swarm.at(span)) == 1))
        swarm.at(lonely)[0].end(signal.SIGKILL)
        if len(swarm.living()) >= len(SPANS):
            swarm.heal(f"the only one of {lonely} was killed")

        gone = [name for name, node in swarm.nodes.items() if node.has_ended()]
        for back in gone[: max(1, len(SPANS) + 1 - len(swarm.living()))]:  # one to spare
            swarm.come(back)
            swarm.nodes[back].wait_for("ready")
        swarm.heal("one of them came back")
        leaving = swarm.random.choice([node for node in swarm.living() if len(swarm.at(swarm.span(node))) > 1])
        leaving.end(signal.SIGTERM)
        swarm.heal("a spare one left")
