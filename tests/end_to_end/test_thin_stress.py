"""Random thin sessions, cancelled, kept and forked, while a node dies."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from node.device.kept import NO_CLIENT
from swarm.clock import SYSTEM
from swarm.tasks import Tasks
from swarm.thin.generation import Limits, TokenSequence, generate
from swarm.thin.model import ThinModel
from swarm.thin.prefixes import Prefixes
from swarm.thin.sampling import Chooser, TokenSampling
from tests.end_to_end.wire import WireSwarm
from tests.families import make_checkpoint
from tests.swarm.inference.toy import until

LIMITS = Limits(max_new_tokens=10, vocab_size=256)
CLOSE = 1e-3
"""Logits of one machine that differ by less may change places: batches round in other ways."""


class Stress(ThinModel):
    """A model whose sessions are those of a swarm in this process, and what is asked of it."""

    def __init__(self, swarm: WireSwarm, seed: int) -> None:
        self._swarm, self._sessions, self._prefixes, self._ending = swarm, [], Prefixes(SYSTEM.now_s), Tasks()
        self.draw = random.Random(seed)
        self.answers: list[tuple[list[int], list[int]]] = []
        self.num_reused = self.num_cancelled = 0

    def start(self) -> TokenSequence:
        chunk_tokens = self.draw.choice((16, 128))
        self._sessions.append(self._swarm.toys.session(route_timeout_s=30, chunk_tokens=chunk_tokens, **self._swarm.sizes))
        return TokenSequence(self._sessions[-1])

    def prompt(self) -> list[int]:
        """That goes on with an earlier answer, or with a part of one, or is a new one."""
        before = [*range(10, 80)]
        if self.answers and self.draw.random() < 0.7:
            ids, answer = self.draw.choice(self.answers[-8:])
            before = [*ids, *answer][:150]
            before = before[: self.draw.randint(66, len(before))]
        return before + self.draw.choices(range(3, 250), k=self.draw.randint(1, 12))

    async def ask(self) -> None:
        """One answer, complete, broken off or cancelled up to two times."""
        asking = asyncio.create_task(self._answer(self.prompt(), self.draw.choice("ab")))
        if self.draw.random() < 0.4:
            await asyncio.sleep(self.draw.random() * 0.1)
            for _ in range(self.draw.randint(1, 2)):
                asking.cancel()
                await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        self.num_cancelled += asking.cancelled()

    async def _answer(self, ids: list[int], owner: str) -> None:
        guess = (lambda said: self.draw.choices(range(256), k=3)) if self.draw.random() < 0.3 else None
        sequence, answer, is_whole = await self.begin(ids, owner), list[int](), False
        try:
            async for token in generate(sequence, ids, Chooser(TokenSampling()), LIMITS, guess):
                answer.append(token)
                if self.draw.random() < 0.03:
                    break
            is_whole = True
        finally:
            await self.end(sequence, owner if is_whole else None)
        self.answers.append((ids, answer))
        self.num_reused += sequence.num_reused > 0


@torch.inference_mode()
def is_right(theirs: Any, ids: list[int], answer: list[int]) -> bool:
    logits = theirs(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]
    return bool((logits.max(-1).values - logits[range(len(answer)), answer] < CLOSE).all())


def test_every_answer_is_right_and_nothing_is_held_afterwards_but_what_is_kept(tmp_path: Path) -> None:
    seed = secrets.randbelow(1 << 30)
    print("seed", seed)
    path = make_checkpoint("llama", tmp_path / "llama")
    swarm = WireSwarm(path, [(0, 2), (2, 5), (0, 2), (2, 5)], with_ends=True)
    model = Stress(swarm, seed)

    async def stress() -> None:
        for number in range(16):
            asked = [asyncio.create_task(model.ask()) for _ in range(5)]
            if number == 8:
                await swarm.nodes[model.draw.randrange(4)].kill()
            await asyncio.gather(*asked)
        nodes = [node for node in swarm.nodes if node.server is not None]
        hops = [node.host.hops for node in nodes]  # below the dead node, a session waits for another hop above it
        await until(lambda: all(one.up.orphaned_since_s is not None for hop in hops for one in hop._hops.values()))
        for hop in hops:
            for session in (*[one.sequences for one in hop._hops.values()], *hop.kept.all_out()):
                await session.free()
        assert not model.sessions and not any(node.engine.used_bytes for node in nodes)
        assert not any(client != NO_CLIENT for node in nodes for client in node.host.runner.holdings.tokens)

    try:
        swarm.run(stress())
    finally:
        swarm.close()
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    assert all(is_right(theirs, *one) for one in model.answers)
    assert model.num_reused and model.num_cancelled and len(model.answers) > 20
