"""Continues prompts with what a run's nodes serve.

The same sessions as `swarm generate --thin`, over the connections that the trainer has. A sample says how far the model is to a person;
it is greedy, so that two versions can be compared.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.ids import ModelId
from protocols.tensors import COMPUTE_DTYPES
from swarm.inference.session import SessionConfig
from swarm.peer.peer import Peer
from swarm.suggestion import NodeCommand
from swarm.thin.defaults import read_defaults
from swarm.thin.generation import generate
from swarm.thin.model import ThinModel
from swarm.thin.sampling import Chooser, TokenSampling
from swarm.thin.sandbox import Sandbox
from swarm.thin.sandboxed_tokenizer import SandboxedTokenizer
from swarm.waiting import Waits
from swarm.weights import served

SAMPLE_TOKENS = 40
"""Longest continuation of a prompt."""


class ServedSamples:
    """Of one run. Belongs to one event loop; `close` it."""

    def __init__(self, peer: Peer, run: ModelId, num_blocks: int, files: Path, tokenizer: Path) -> None:
        """files: the folder with `config.json`. tokenizer: the folder with `tokenizer.json`."""
        self._peer, self._run, self._num_blocks, self._files, self._folder = peer, run, num_blocks, files, tokenizer
        self._sandbox = Sandbox(run.name)
        self._tokenizer: SandboxedTokenizer | None = None

    async def sample(self, prompt: str) -> str:
        """As `evaluator.Samples.sample`."""
        if self._tokenizer is None:
            self._tokenizer = await asyncio.to_thread(SandboxedTokenizer, self._sandbox, self._folder)
        ids = await asyncio.to_thread(self._tokenizer.encode, prompt)
        model = await self._model(self._tokenizer)
        sequence, found = model.start(), list[int]()
        try:
            limits = model.limits(SAMPLE_TOKENS)
            async with aclosing(generate(sequence, ids, Chooser(TokenSampling()), limits)) as tokens:
                async for token in tokens:
                    found.append(token)
        finally:
            await model.close()
        return await asyncio.to_thread(self._tokenizer.decode, found)

    async def _model(self, tokenizer: SandboxedTokenizer) -> ThinModel:
        """In the precision in which most of it is served."""
        peers = (await self._peer.directory.snapshot(self._run.name)).peers
        blocks = [one for _, one in served.served(peers, self._run.name) if one.weights.model == self._run]
        defaults = read_defaults(self._files)
        config = SessionConfig(
            route_timeout_s=ROUTE_TIMEOUT_S, dtype=served.best_dtype(blocks, self._num_blocks, COMPUTE_DTYPES),
            hidden_size=defaults.hidden_size or 1, vocab_size=defaults.vocab_size,
        )  # fmt: skip
        peer: Any = self._peer  # it has the face of a ThinPeer
        return ThinModel(peer, self._run, self._num_blocks, defaults, tokenizer, config, NodeCommand(), Waits())

    def close(self) -> None:
        self._sandbox.close()
