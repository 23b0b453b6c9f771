"""Computes the micro-batches that are leased to this trainer.

It goes on with what it has in hand while the coordinating trainer changes: the next one is told in the first request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from protocols.ids import ModelId
from protocols.leases import MAX_DONE, MAX_LEASED, Done, Finished, LeaseAnswer, LeaseRequest
from swarm.training.pipeline import Pipeline

BEAT_S = 1.0
"""Seconds between two requests of a trainer that has its hands full."""

ASK_AGAIN_S = 0.25
"""Seconds between two requests of one that could take more."""

AsksCoordinator = Callable[[LeaseRequest], Awaitable[LeaseAnswer]]
"""Asks the coordinating trainer; an error that it raises ends `work`."""


class Worker:
    """Of one run at one trainer. All methods belong to one event loop."""

    def __init__(
        self,
        run: ModelId,
        pipeline: Pipeline,
        on_finished: Callable[[Finished], None],
        on_begin: Callable[[int], None] = lambda version: None,
        on_done: Callable[[Done], None] = lambda done: None,
    ) -> None:
        """on_finished: told each version that is finished, in order, from the first one on that ends while this trainer takes part.
        on_begin: told each version of which it gets micro-batches. on_done: told each micro-batch that has come back."""
        self._run, self._pipeline, self._on_finished, self._on_begin = run, pipeline, on_finished, on_begin
        self._on_done = on_done
        self._version: int | None = None
        """Of what it has in hand; None before the first."""
        self._running: dict[int, asyncio.Task[Done]] = {}
        self._done: list[Done] = []
        self._num_told = 0
        self._shown: int | None = None

    @property
    def shown(self) -> int:
        """The newest finished version that was passed on; 0 before the first answer."""
        return self._shown or 0

    async def work(self, ask: AsksCoordinator, until: int) -> None:
        """Return once version `until` is finished. What is in hand is kept if it is cancelled, or raises what `ask` raises.

        NonFiniteGradientError as of `Pipeline.carry`.
        """
        self._num_told = 0
        while self.shown < until:
            self._collect()
            request = self.request(self._pipeline.window)
            answer = await ask(request)
            if request.version == answer.version:
                self._num_told += len(request.done)
            await self._take(answer)
            await self._pause(answer)

    def request(self, wanted: int) -> LeaseRequest:
        """What it has done and has in hand now."""
        running = tuple(self._running)[:MAX_LEASED]
        return LeaseRequest(
            run=self._run, version=self._version or 0, done=tuple(self._done[self._num_told :][:MAX_DONE]), running=running,
            wanted=max(0, min(wanted, MAX_LEASED) - len(running)), shown=self.shown,
        )  # fmt: skip

    def empty_handed(self) -> LeaseRequest:
        """It leaves: its micro-batches are free for others."""
        return LeaseRequest(run=self._run, version=self._version or 0, shown=self.shown)

    def show(self, finished: Finished) -> None:
        """Pass a finished version on, once."""
        if self._shown is None or finished.version > self._shown:
            self._shown = finished.version
            self._on_finished(finished)

    async def close(self) -> None:
        """Cancel what it has in hand."""
        running = list(self._running.values())
        self._running.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _collect(self) -> None:
        for index in [index for index, task in self._running.items() if task.done()]:
            self._done.append(self._running.pop(index).result())
            self._on_done(self._done[-1])

    async def _take(self, answer: LeaseAnswer) -> None:
        if self._shown is None:  # what was finished before us is not ours to tell
            self._shown = max((one.version for one in answer.finished), default=0)
        for finished in answer.finished:
            self.show(finished)
        has_moved = self._version is not None and answer.version > self._version
        if has_moved or (answer.indices and answer.version != self._version):
            await self.close()
            self._version, self._done, self._num_told = answer.version, [], 0
            self._shown = min(self._shown, answer.version)  # less if the run has gone back: those versions come again
            self._pipeline.begin(answer.version)
            self._on_begin(answer.version)
        if answer.is_again:
            await self._pipeline.look()
        for index in answer.indices:
            if index not in self._running:
                self._running[index] = asyncio.create_task(self._pipeline.carry(index), name=f"micro-batch {index}")

    async def _pause(self, answer: LeaseAnswer) -> None:
        if self._running:
            is_full = len(self._running) >= self._pipeline.window
            await asyncio.wait(
                self._running.values(), timeout=BEAT_S if is_full else ASK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED
            )
        elif not answer.indices:
            await asyncio.sleep(0.01)
