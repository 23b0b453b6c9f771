"""A thin model for `generate --thin` and `chat --thin`.

Nothing of the model is here: no checkpoint, no torch, no hivemind.

One loop lives as long as the command and runs while something is asked; between the turns of a chat the connections rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from node.cli.flags.asking import ClientSettings, Sampling
from node.cli.terminal.waiting import shown
from swarm import places
from swarm.places import name_in_swarm
from swarm.thin.generation import TokenSequence, generate
from swarm.thin.model import ThinModel, open_model
from swarm.thin.sampling import Chooser
from swarm.thin.text import TextOut
from swarm.thin.tokenizing.templates import Message, conversation_ids
from swarm.waiting import Waits

T = TypeVar("T")


@contextmanager
def open_speaker(asking: ClientSettings, sampling: Sampling) -> Iterator[ThinSpeaker]:
    """A loop, and the model on it; closed again whatever happens."""
    sampling.speculation.proposer()  # refuses a draft before a peer is asked
    root = (asking.data_dir or places.data_dir()) / "weights"
    with shown() as on_wait, asyncio.Runner() as runner:
        opening = open_model(
            asking.model_name or name_in_swarm(asking.model), peers=asking.peers, root=root, swarm=asking.swarm,
            dtype=asking.dtype, route_timeout_s=asking.route_timeout_s, priority=asking.priority, find=asking.find, waits=Waits(on_wait),
            entry=asking.entry, accept_new_weights=asking.accept_new_weights, follow=asking.follow,
        )  # fmt: skip
        model = runner.run(opening.__aenter__())
        try:
            yield ThinSpeaker(runner, model, sampling)
        finally:
            runner.run(opening.__aexit__(None, None, None))


class ThinSpeaker:
    """As `node.cli.ask.speaking.Speaker` says."""

    def __init__(self, runner: asyncio.Runner, model: ThinModel, sampling: Sampling) -> None:
        self._runner, self._model, self._sampling = runner, model, sampling
        self.tokenizer = model.tokenizer
        self.settings = model.defaults.settings
        sampling.check(self.settings)
        self._chooser = Chooser(model.defaults.sampling(sampling.wanted, sampling.seed))
        self._sequence: TokenSequence | None = None
        self._task: asyncio.Task[Any] | None = None
        self._is_stopped = False

    @property
    def max_positions(self) -> int | None:
        return self._model.defaults.max_positions

    @property
    def has_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    @property
    def journey(self) -> Any:
        return None if self._sequence is None else self._sequence.session

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def render(self, messages: Sequence[Message]) -> list[int]:
        return self._run(conversation_ids(self.tokenizer, messages))

    def answer(self, ids: Sequence[int], out: TextOut, max_new_tokens: int) -> int | None:
        try:
            return self._run(self._answer(ids, out, max_new_tokens))
        except BaseException:  # the sequence is in an unknown state
            self.forget()
            raise

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop, until `stop_now`."""
        self._is_stopped = False
        try:
            return self._runner.run(self._noted(coroutine))
        except asyncio.CancelledError:
            raise (KeyboardInterrupt if self._is_stopped else asyncio.CancelledError) from None

    async def _noted(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        return await coroutine

    async def _answer(self, ids: Sequence[int], out: TextOut, max_new_tokens: int) -> int | None:
        sequence = self._sequence = self._sequence or self._model.start()
        propose, before = self._sampling.speculation.proposer(), sequence.trips
        out.put(ids)
        async with aclosing(generate(sequence, ids, self._chooser, self._model.limits(max_new_tokens), propose)) as tokens:
            async for token in tokens:
                out.put([token])
                if out.is_stopped:
                    break
        out.end()
        return None if propose is None else sequence.trips - before

    def stop_now(self) -> None:
        self._is_stopped = True
        if self._task is not None:
            self._runner.get_loop().call_soon_threadsafe(self._task.cancel)

    def forget(self) -> None:
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            self._runner.run(self._model.end(sequence))
