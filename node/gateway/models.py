"""The models of a gateway, each opened at its first use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import ParamSpec, TypeVar

from protocols.errors import ModelNotFoundError, shown
from swarm.thin.model import ThinModel

P = ParamSpec("P")
T = TypeVar("T")
Open = Callable[[str], AbstractAsyncContextManager[ThinModel]]


class ServedModel:
    """A model, and the thread in which its tokenizer works: a sandbox answers one question after the other, and blocks."""

    def __init__(self, name: str, model: ThinModel) -> None:
        self.name, self.model = name, model
        self._thread = ThreadPoolExecutor(1, "murmuration-tokenizer")

    async def aside(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on the tokenizer in its thread. If the caller is cancelled, the work goes on, within the sandbox's limits."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class Models:
    """Opens each model once; an opening that failed is tried again by the next request. All methods belong to one event loop."""

    def __init__(self, names: Sequence[str], open_model: Open) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._open = open_model
        self._stack = AsyncExitStack()
        self._opening: dict[str, asyncio.Task[ServedModel]] = {}

    async def get(self, name: str) -> ServedModel:
        """ModelNotFoundError if the gateway has no model of this name; else whatever opening it meets."""
        if name not in self.names:
            raise ModelNotFoundError(f"no model {shown(name)} here; this gateway serves {', '.join(self.names)}")
        task = self._opening.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._opening[name] = asyncio.create_task(self._opened(name), name=f"opening {name}")
        return await asyncio.shield(task)  # a client that hangs up does not end it for the others

    def opened(self, name: str) -> ServedModel | None:
        """The model, if it is open."""
        task = self._opening.get(name)
        is_open = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return task.result() if task is not None and is_open else None

    async def close(self) -> None:
        """End every session, and leave the swarm."""
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        await self._stack.aclose()

    async def _opened(self, name: str) -> ServedModel:
        model = await self._stack.enter_async_context(self._open(name))
        found = ServedModel(name, model)
        self._stack.callback(found.close)
        return found
