"""Continues prompts with what a run's nodes serve.

The same sessions as `swarm generate --thin`, over the connections that the trainer has. A sample says how far the model is to a person;
it is greedy, so that two versions can be compared.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.ids import ModelId
from protocols.tensors import COMPUTE_DTYPES
from protocols.weights_id import Weights
from swarm.inference.client.session import Session, SessionConfig
from swarm.peer.peer import Peer
from swarm.routing.regard import regard_of
from swarm.routing.router import Router
from swarm.streams.links import Links
from swarm.suggestion import NodeCommand
from swarm.thin.defaults import read_defaults
from swarm.thin.generation import Limits, TokenSequence, generate
from swarm.thin.sampling import Chooser, TokenSampling
from swarm.thin.text import HALF_A_LETTER
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from swarm.weights import served

SAMPLE_TOKENS = 40
"""Longest continuation of a prompt."""


class ServedSamples:
    """Of one run. Belongs to one event loop; `close` it."""

    def __init__(self, peer: Peer, run: ModelId, num_blocks: int, files: Path, tokenizer: Path) -> None:
        """files: the folder with `config.json`. tokenizer: the folder with `tokenizer.json`."""
        self._peer, self._run, self._num_blocks, self._folder = peer, run, num_blocks, tokenizer
        self._defaults = read_defaults(files)
        self._sandbox = Sandbox(run.name)
        self._tokenizer: SandboxedTokenizer | None = None

    async def sample(self, prompt: str) -> str:
        """As `evaluator.Samples.sample`."""
        if self._tokenizer is None:
            self._tokenizer = await asyncio.to_thread(SandboxedTokenizer, self._sandbox, self._folder)
        ids = await asyncio.to_thread(self._tokenizer.encode, prompt)
        config, router = await self._route()
        session = Session(router, Links(self._peer.pool), self._peer.identity, config)
        found = list[int]()
        try:
            limits = Limits(max_new_tokens=SAMPLE_TOKENS, max_positions=self._defaults.max_positions, ends=self._defaults.ends)
            async with aclosing(generate(TokenSequence(session), ids, Chooser(TokenSampling()), limits)) as tokens:
                async for token in tokens:
                    found.append(token)
        finally:
            await session.close()
            router.close()
        return whole_letters(await asyncio.to_thread(self._tokenizer.decode, found), is_cut=len(found) >= SAMPLE_TOKENS)

    async def _route(self) -> tuple[SessionConfig, Router]:
        """To the newest version that is served, in the precision in which most blocks are."""
        peers = (await self._peer.directory.snapshot(self._run.name)).peers
        blocks = [one for _, one in served.served(peers, self._run.name) if one.weights.model == self._run]
        dtype = served.best_dtype(blocks, self._num_blocks, COMPUTE_DTYPES)
        config = SessionConfig(
            route_timeout_s=ROUTE_TIMEOUT_S, dtype=dtype, hidden_size=self._defaults.hidden_size or 1,
            vocab_size=self._defaults.vocab_size,
        )  # fmt: skip
        peer = self._peer
        router = Router(
            peer.directory, peer.ping, Weights(self._run), self._num_blocks, NodeCommand(), regard_of(peer), takes_newest=True
        )
        return config, router

    def close(self) -> None:
        self._sandbox.close()


def whole_letters(text: str, *, is_cut: bool) -> str:
    """Without half a letter at its end, if it was cut off there. What is no letter in its middle is what the model says. Pure."""
    return text.removesuffix(HALF_A_LETTER) if is_cut else text
