"""Tokens one by one for servers: an async generator that holds no thread while the swarm computes.

A Hugging Face forward cannot wait in its middle. So the model's forward is run twice around each step: the first run ends where
the blocks begin and leaves what they were to be asked; the reply is awaited; the second run gets it there and goes on to the
logits. What runs twice is the embedding of the new tokens. Both runs are in a worker thread, never on the caller's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protocols.errors import BadRequestError
from swarm.client import checks
from swarm.client.backend import StepRequest, StepSession
from swarm.client.cache import RemoteCache, StepPausedError
from swarm.client.sampling import Sampler, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedToken:
    """One new token."""

    id: int
    text: str
    """What it adds to the answer; empty while a letter is incomplete, for special tokens, and where there is no tokenizer."""
    finish: str | None = None
    """On the last token: `stop` (the model ended) or `length` (`max_new_tokens`, or the model's limit)."""


class TwoPassSession:
    """A step session that is asked twice for each step: the first time it notes the request, the second it has the reply."""

    def __init__(self, session: StepSession) -> None:
        self._session = session
        self._request: StepRequest | None = None
        self._reply: Tensor | None = None

    def step(self, request: StepRequest) -> Tensor:
        if self._reply is None:
            self._request = request
            raise StepPausedError
        reply, self._reply = self._reply, None
        return reply

    async def step_async(self, request: StepRequest) -> Tensor:
        return await self._session.step_async(request)

    async def fetch(self) -> None:
        """Send what the first pass noted, and keep the reply for the second."""
        assert self._request is not None
        request, self._request = self._request, None
        self._reply = await self.step_async(request)

    def close(self) -> None:
        self._session.close()


class TextPieces:
    """Turns token ids into pieces of text that can be printed one after the other."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = self._ready = 0  # ids before `_ready` are printed; decoding starts at `_shown`, for the spaces in between

    def add(self, token: int, is_last: bool = False) -> str:
        """The text that `token` completes. An unfinished letter is kept back, unless nothing follows."""
        if self._tokenizer is None:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._shown : self._ready])
        now = self._decode(self._ids[self._shown :])
        if now.endswith("�") and not is_last:
            return ""
        self._shown, self._ready = self._ready, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


async def stream(
    model: Any, prompt: str | Sequence[int] | Tensor, max_new_tokens: int, sampling: Sampling
) -> AsyncIterator[StreamedToken]:
    """Continue `prompt` token by token; the session ends with the generator, however it ends.

    Stops at an end token of the model's generation config, after `max_new_tokens`, or at the model's limit.
    """
    if max_new_tokens < 1:
        raise BadRequestError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    ids, tokenizer = await asyncio.to_thread(_prepared, model, prompt)
    limit = model.remote.max_positions
    length = ids.shape[1]
    left = max_new_tokens if limit is None else min(max_new_tokens, limit - length + 1)
    ends = _end_tokens(model.generation_config)
    session = TwoPassSession(model.remote.backend.open())
    cache = RemoteCache(lambda: session)
    sampler, pieces = Sampler(sampling), TextPieces(tokenizer)
    try:
        while left:
            if model.remote.cache_key is not None:
                await asyncio.to_thread(_first_pass, model, ids, cache)
                await session.fetch()
            token = await asyncio.to_thread(_last_pass, model, ids, cache, sampler)
            left -= 1
            finish = "stop" if token in ends else None if left else "length"
            yield StreamedToken(id=token, text=pieces.add(token, finish is not None), finish=finish)
            if finish:
                return
            new = torch.tensor([[token]], device=ids.device)
            ids = new if model.remote.cache_key is not None else torch.cat([ids, new], dim=1)
    finally:
        cache.close()
        session.close()


def _prepared(model: Any, prompt: str | Sequence[int] | Tensor) -> tuple[Tensor, Any]:
    """The prompt's ids [1, T] on the model's device, checked, and the tokenizer where one is needed or at hand."""
    tokenizer = model.tokenizer if isinstance(prompt, str) else model.tokenizer_if_any()
    if isinstance(prompt, str):
        prompt = tokenizer(prompt).input_ids
    ids = torch.as_tensor(prompt, device=model.device)
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise BadRequestError(f"a stream continues one prompt, got token ids of shape {list(ids.shape)}; open a stream for each")
    checks.check_ids(ids, model.remote.vocab_size)
    checks.check_length(ids.shape[1], model.remote.max_positions)
    return ids, tokenizer


def _end_tokens(generation_config: Any) -> frozenset[int]:
    ends = generation_config.eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def _forward(model: Any, ids: Tensor, cache: RemoteCache) -> Any:
    options: dict[str, Any] = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    if model.remote.cache_key is not None:  # else a session for every step, which brings all tokens, in this thread
        options |= {"use_cache": True, model.remote.cache_key: cache}
    with torch.no_grad():
        return model(input_ids=ids, **options)


def _first_pass(model: Any, ids: Tensor, cache: RemoteCache) -> None:
    try:
        _forward(model, ids, cache)
    except StepPausedError:
        return
    raise AssertionError("the model's forward did not reach its blocks")


def _last_pass(model: Any, ids: Tensor, cache: RemoteCache, sampler: Sampler) -> int:
    return sampler.choose(_forward(model, ids, cache).logits[0, -1])
