"""Texts for the tokens of many answers, decoded on one event loop.

The tokenizer has a sandbox of its own, so that a long prompt that is encoded meanwhile delays no answer. What is asked while the sandbox
works is asked together afterwards: with many answers, one trip over the pipe serves several tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """What `Decoding` needs of `sandboxed_tokenizer.SandboxedTokenizer`."""

    async def decode_soon(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]: ...


class _Wanted:
    """Runs of one caller, and their texts to come."""

    def __init__(self, runs: Sequence[Sequence[int]]) -> None:
        self.runs = runs
        self.texts: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()


class Decoding:
    """All methods belong to one event loop; nothing else asks the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: dict[bool, list[_Wanted]] = {True: [], False: []}
        self._work: asyncio.Task[None] | None = None

    async def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each run of ids; errors as of `Sandbox.ask`."""
        wanted = _Wanted(runs)
        self._waiting[skip_special_tokens].append(wanted)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._decode(), name="decoding")
        return await wanted.texts

    async def close(self) -> None:
        """Leave what is asked without an answer."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _decode(self) -> None:
        while any(self._waiting.values()):
            for skips in (True, False):
                batch, self._waiting[skips] = self._waiting[skips], []
                if batch:
                    await self._answer(batch, skips)

    async def _answer(self, batch: Sequence[_Wanted], skips: bool) -> None:
        try:
            texts = await self._tokenizer.decode_soon([run for wanted in batch for run in wanted.runs], skips)
        except Exception as error:  # each caller raises it
            for wanted in batch:
                if not wanted.texts.done():
                    wanted.texts.set_exception(error)
            return
        start = 0
        for wanted in batch:
            stop = start + len(wanted.runs)
            if not wanted.texts.done():  # its caller may have gone
                wanted.texts.set_result(texts[start:stop])
            start = stop
