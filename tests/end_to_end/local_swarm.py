"""A swarm of real nodes for tests of deaths, with its client.

There are three hops of a tiny llama, each with replicas. The client outlives them all.
Every hop has a folder of armed faults that its replicas share (`swarm/faults.py`): whichever is on the route dies.
`heal` starts the dead again, with their data directories and hence their identities, before the next case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from protocols.errors import SwarmError
from swarm.client import SwarmModelForCausalLM
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.families import draw_weights

OnToken = Callable[[int, Any], None]

SPANS = ("0:2", "2:4", "4:6")
REPLICAS = (2, 3, 2)
"""Of the middle hop there are three: a replacement may die as well."""

PROMPT_TOKENS, NEW_TOKENS = 400, 24
"""The prompt travels as steps 0 to 3, the answer's first token comes with it, and decoding is steps 4 to 26."""

FIRST_DECODE, LAST_DECODE = 4, 26


def make_llama(directory: Path) -> Path:
    """A random checkpoint with a context long enough for several prefill chunks."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        draw_weights(model)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(directory)
    return directory


class LocalSwarm:
    """The nodes by name (`hop.replica`), the client's model, and what transformers says on one machine."""

    def __init__(self, folder: Path, pool: ProcessPool) -> None:
        self.folder, self.pool = folder, pool
        self.checkpoint = make_llama(folder / "llama")
        self.alone = transformers.AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32).eval()
        self.nodes: dict[str, NodeProcess] = {}
        self.pauses_s: list[float] = []
        """Of every answer during which a hop was lost while a replica was up: from the loss to the next reply."""
        self._peers: dict[str, str] = {}
        for hop in range(len(SPANS)):
            self.faults(hop).mkdir()
        self.names = [f"{hop}.{replica}" for replica in range(max(REPLICAS)) for hop in range(3) if replica < REPLICAS[hop]]
        self.start(self.names[0])
        self.nodes[self.names[0]].wait_for("ready")
        self.heal()
        self._anchor = self.new_model([node.said["multiaddr"] for node in self.nodes.values()])
        self.model: Any = self._anchor

    def new_model(self, peers: Sequence[str] = (), route_timeout_s: float = 120.0) -> Any:
        """A client that blames no peer yet; without `peers` it shares the DHT of the existing one."""
        return SwarmModelForCausalLM.from_pretrained(self.checkpoint, peers=peers, patience_s=route_timeout_s)

    def close(self) -> None:
        """The client leaves; the nodes end with their pool."""
        self.model.close()
        self._anchor.close()

    # --- nodes

    def faults(self, hop: int) -> Path:
        return self.folder / f"faults-{hop}"

    def start(self, name: str) -> None:
        """Start a node, anew if it has ended; it is not awaited."""
        hop = int(name[0])
        arguments = ["node", str(self.checkpoint), "--name", name, "--blocks", SPANS[hop], "--listen", "127.0.0.1:0"]
        arguments += ["--dtype", "float32", "--data-dir", str(self.folder / name)]
        for other in self.nodes.values():
            if "ready" in other.said and not other.has_ended():
                arguments += ["--peer", other.said["multiaddr"]]
        if name in self.nodes:
            self.nodes[name].close()
        scratch = self.folder / f"{name}.tmp"
        scratch.mkdir(exist_ok=True)
        self.nodes[name] = self.pool.start(name, arguments, {"SWARM_FAULTS": str(self.faults(hop)), "TMPDIR": str(scratch)})

    def renew(self) -> None:
        """All nodes alive, no fault armed, and a client that blames no peer: the next case is like the first."""
        self.heal()
        self.renew_client()

    def renew_client(self) -> None:
        """A client that blames no peer; what it knows of the DHT stays."""
        if self.model is not self._anchor:
            self.model.close()
        self.model = self.new_model()

    def heal(self) -> None:
        """Disarm faults that have not fired, start dead nodes again, and wait until all serve."""
        for hop in range(len(SPANS)):
            for fault in self.faults(hop).iterdir():
                fault.unlink()
        for name in self.names:
            if name not in self.nodes or self.nodes[name].has_ended():
                self.start(name)
        for name, node in self.nodes.items():
            node.wait_for("ready")
            assert self._peers.setdefault(name, node.said["peer"]) == node.said["peer"], "it came back as another peer"

    def arm(self, hop: int, fault: str) -> Path:
        """Let the first replica of `hop` that reaches the moment die there; the file is gone once it has."""
        path = self.faults(hop) / fault
        path.touch()
        return path

    def on_route(self, journey: Any, hop: int) -> NodeProcess:
        """The node that serves a session as hop number `hop`."""
        peer = journey.route[hop].peer
        return next(node for node in self.nodes.values() if node.said["peer"] == peer)

    def replicas(self, hop: int) -> list[NodeProcess]:
        return [node for name, node in self.nodes.items() if name[0] == str(hop)]

    # --- answers

    def prompt(self, seed: int, tokens: int = PROMPT_TOKENS) -> torch.Tensor:
        return torch.randint(3, 256, (1, tokens), generator=torch.Generator().manual_seed(seed))

    def expected(self, ids: torch.Tensor, **settings: Any) -> list[list[int]]:
        """What transformers answers on one machine."""
        with torch.no_grad():
            return list(self.alone.generate(ids, **greedy(settings)).tolist())

    def answer(self, ids: torch.Tensor, on_token: OnToken | None = None, model: Any = None, **settings: Any) -> Answer:
        """Ours, by the swarm's client or another `model`. on_token(n, session) is called as token n comes out, from 0."""
        cache = (model or self.model).new_cache()
        streamer = None if on_token is None else Watcher(lambda number: on_token(number, cache.journey))
        try:
            output = (model or self.model).generate(ids, past_key_values=cache, streamer=streamer, **greedy(settings))
        except SwarmError as error:
            error.add_note(f"ended: {[(name, node.code) for name, node in self.nodes.items() if node.has_ended()]}")
            raise
        finally:
            journey = cache.journey
            cache.close()
        return Answer(output.tolist(), journey.replaced, tuple(journey.pauses_s))

    def check(self, ids: torch.Tensor, on_token: OnToken | None = None, **settings: Any) -> Answer:
        """An answer that is what transformers says, after at least one hop was replaced by one that was up already."""
        answer = self.answer(ids, on_token, **settings)
        assert answer.tokens == self.expected(ids, **settings)
        assert answer.replaced >= 1, "no hop was lost, so this test has shown nothing"
        self.pauses_s += answer.pauses_s
        print("pauses in s:", [round(pause_s, 3) for pause_s in answer.pauses_s])
        return answer


@dataclass(frozen=True)
class Answer:
    """What came out, and what it took."""

    tokens: list[list[int]]
    replaced: int
    """Hops that were lost on the way."""
    pauses_s: tuple[float, ...]


def greedy(settings: dict[str, Any]) -> dict[str, Any]:
    return {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, **settings}


class Watcher(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token, self._number = on_token, -1

    def put(self, value: torch.Tensor) -> None:
        if self._number >= 0:
            self._on_token(self._number)
        self._number += 1

    def end(self) -> None:
        pass
