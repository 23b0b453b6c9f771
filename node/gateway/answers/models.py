"""The models of a gateway, each opened at its first use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import ParamSpec, TypeVar

from protocols.errors import ModelNotFoundError, OverloadedError
from swarm.thin.constraining import Constraining
from swarm.thin.decoding import Decoding
from swarm.thin.model import ThinModel
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer

P = ParamSpec("P")
T = TypeVar("T")
Open = Callable[[str], AbstractAsyncContextManager[ThinModel]]


class ServedModel:
    """A model with two processes of its tokenizer: for prompts, asked in a thread, since it blocks; and for answers, on the loop."""

    def __init__(self, name: str, model: ThinModel, decoder: SandboxedTokenizer) -> None:
        self.name, self.model = name, model
        self._decoder, self._decoding = decoder, Decoding(decoder)
        self._thread = ThreadPoolExecutor(1, "murmuration-tokenizer")
        own = model.defaults
        self.constraining = Constraining(name, model.tokenizer.folder, own.vocab_size, sorted(own.ends))

    @classmethod
    async def of(cls, name: str, model: ThinModel) -> ServedModel:
        """Start the second process."""
        return cls(name, model, await asyncio.to_thread(model.tokenizer.twin))

    async def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each run of ids."""
        return await self._decoding.decode_all(runs, skip_special_tokens)

    async def aside(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on the tokenizer of prompts in its thread. If the caller is cancelled, the work goes on, within the sandbox's limits."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    async def close(self) -> None:
        """End the thread and the second process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.constraining.close()
        await self._decoding.close()
        self._decoder.sandbox.close()


MAX_OPEN = 16
"""Models that are open at once, each with two processes; if the gateway serves all models of the swarm, there may be any number."""

MAX_NAMES = 1024
"""Names that are listed."""

MAX_SHOWN, MAX_SHOWN_LETTERS = 8, 120
"""Names in an error, and letters of one."""


class Models:
    """Opens each model once; an opening that failed is tried again by the next request. All methods belong to one event loop."""

    def __init__(self, names: Sequence[str], open_model: Open) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._open, self._is_fixed = open_model, bool(names)
        self._stack = AsyncExitStack()
        self._opening: dict[str, asyncio.Task[ServedModel]] = {}

    async def get(self, name: str) -> ServedModel:
        """ModelNotFoundError if the gateway has no model of this name; else the error that opening it meets."""
        self.check(name)
        task = self._opening.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            self._make_place(name)
            task = self._opening[name] = asyncio.create_task(self._opened(name), name=f"opening {name}")
        return await asyncio.shield(task)  # a client that hangs up does not end it for the others

    def check(self, name: str) -> None:
        """ModelNotFoundError if the gateway has no model of this name."""
        known = name if self._is_fixed else name.partition("@")[0]
        if known not in self.names:
            some = ", ".join(self.names[:MAX_SHOWN]) or "no model yet"
            raise ModelNotFoundError(f"no model {name[:MAX_SHOWN_LETTERS]!r} here; this gateway serves {some}")

    def hear(self, names: Sequence[str]) -> None:
        """What the swarm serves now. A model that it serves no more stays open: its nodes may come back."""
        assert not self._is_fixed
        self.names = tuple(names[:MAX_NAMES])

    def _make_place(self, name: str) -> None:
        """OverloadedError if too many models are open. Openings that failed count no more."""
        kept = {one: task for one, task in self._opening.items() if not task.done() or self.opened(one) is not None}
        self._opening = kept
        if len(kept) >= max(MAX_OPEN, len(self.names) if self._is_fixed else 0):
            raise OverloadedError(f"{name[:MAX_SHOWN_LETTERS]} is not open, and {len(kept)} models are, as many as may be")

    def opened(self, name: str) -> ServedModel | None:
        """The model, if it is open."""
        task = self._opening.get(name)
        is_open = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return task.result() if task is not None and is_open else None

    def all_open(self) -> Iterator[tuple[str, ThinModel]]:
        """Each model that is open, by its name here."""
        for name in tuple(self._opening):
            if served := self.opened(name):
                yield name, served.model

    @property
    def num_open(self) -> int:
        return sum(self.opened(name) is not None for name in self._opening)

    async def close(self) -> None:
        """End every session, and leave the swarm."""
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        await self._stack.aclose()

    async def _opened(self, name: str) -> ServedModel:
        model = await self._stack.enter_async_context(self._open(name))
        found = await ServedModel.of(name, model)
        self._stack.push_async_callback(found.close)
        return found
