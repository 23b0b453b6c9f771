"""Tokens one by one for servers, as an async generator.

It runs `generate` in a separate thread.

A Hugging Face forward cannot wait in its middle without a thread. So a stream is `generate` itself, in a thread that sleeps while the
swarm computes: every logits processor and stopping criterion counts, and a token costs one forward. The steps run on the caller's loop,
so that leaving the stream cancels the step under way. A stream costs about 0.25 MB (docs/log.md); a server for thousands of streams
uses the thin client of `swarm/thin`, which needs none.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from protocols.errors import BadRequestError
from swarm.client import checks
from swarm.client.sampling import Draw, Sampling
from swarm.client.stepping import OnLoop, waits
from swarm.thin.settings import ONE_SEQUENCE

NOT_TAKEN = (
    *("streamer", "past_key_values", "cache_params", "generation_config", "custom_generate"),
    *("inputs", "input_ids", "inputs_embeds", "max_length"),
)
"""Arguments of `generate` that a stream has other ones for, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedToken:
    """One new token."""

    id: int
    text: str
    """What it adds to the answer; empty while a letter is incomplete, for special tokens, and if there is no tokenizer."""
    finish: str | None = None
    """On the last token: `stop` (the model or a stopping criterion ended) or `length` (`max_new_tokens`, or the model's limit)."""
    version: int | None = None
    """Of a model in training: the version that computed it."""


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


# --- generate's side: a thread


class StreamLeftError(Exception):
    """Not a failure: the reader has left the stream, and `generate` has to end."""


@dataclass(frozen=True, slots=True)
class _Token:
    id: int
    is_last: bool
    version: int | None = None


class _Watched(StoppingCriteriaList):  # type: ignore[misc]
    """All stopping criteria of one `generate`; each new token is reported, and whether it is the last."""

    def __init__(self, criteria: Sequence[Any], length: int, report: Callable[[_Token], None]) -> None:
        super().__init__(criteria)
        self._length, self._report = length, report

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        is_done: Tensor = super().__call__(input_ids, scores, **kwargs)
        new = input_ids[0, self._length :].tolist()  # assisted decoding brings several at once
        self._length += len(new)
        for number, token in enumerate(new, 1):
            self._report(_Token(token, number == len(new) and bool(is_done[0])))
        return is_done


class Streaming:
    """Comes before a model's own class: lets a stream watch the `generate` that runs in its thread."""

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        processors, producer = super()._get_logits_processor(*args, **kwargs), _producer.get()  # type: ignore[misc]
        return processors if producer is None else producer.drawing(processors)

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        """After `_get_logits_processor`. Only the first `generate` in the thread is the stream's: a model that drafts for itself
        calls it again, and its guesses are no tokens of the answer."""
        criteria, producer = super()._get_stopping_criteria(*args, **kwargs), _producer.get()  # type: ignore[misc]
        if producer is None:
            return criteria
        _producer.set(None)
        return producer.watched(criteria)


class _Producer:
    """`generate` of one prompt in a thread, and its tokens for a reader on a loop."""

    def __init__(self, model: Any, prompt: Tensor, arguments: dict[str, Any], draw: Draw | None) -> None:
        self._model, self._prompt, self._arguments, self._draw = model, prompt, arguments, draw
        self._loop = asyncio.get_running_loop()
        self._steps = OnLoop(self._loop)
        self._tokens: asyncio.Queue[_Token | BaseException | None] = asyncio.Queue()
        self._taken = threading.Semaphore(0)
        self._is_left = False
        self._ended = self._loop.create_future()

    def start(self) -> None:
        threading.Thread(target=self._run, name="murmuration-stream", daemon=True).start()

    async def take(self) -> _Token | None:
        """The next token; None after the last. Raises what `generate` raised."""
        token = await self._tokens.get()
        self._taken.release()
        if isinstance(token, BaseException):
            raise token
        return token

    async def leave(self) -> None:
        """End `generate`, if it still runs, and wait until its session is closed."""
        self._is_left = True
        self._steps.leave()
        self._taken.release()
        await self._ended

    def watched(self, criteria: Any) -> _Watched:
        """In the thread: `criteria`, which report to the reader."""
        return _Watched(criteria, self._prompt.shape[1], self._report)

    def drawing(self, processors: Any) -> Any:
        """In the thread: `processors`, and behind them the one that draws."""
        return processors if self._draw is None else LogitsProcessorList([*processors, self._draw])

    def _report(self, token: _Token) -> None:
        self._post(replace(token, version=self._steps.version))
        self._taken.acquire()  # one token ahead of the reader, and no more: a reader that pauses costs nothing
        if self._is_left:
            raise StreamLeftError

    def _run(self) -> None:
        _producer.set(self)  # this thread has a context of its own
        end: BaseException | None = None
        try:
            with torch.no_grad(), waits(self._steps):
                self._model.generate(self._prompt, **self._arguments)
        except BaseException as error:  # the reader raises it
            end = error
        finally:
            self._post(end)

    def _post(self, token: _Token | BaseException | None) -> None:
        def put() -> None:
            self._tokens.put_nowait(token)
            if not isinstance(token, _Token) and not self._ended.done():
                self._ended.set_result(None)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(put)


_producer: ContextVar[_Producer | None] = ContextVar("murmuration_stream", default=None)


# --- the reader's side: a coroutine


async def stream(
    model: Any, prompt: str | Sequence[int] | Tensor, max_new_tokens: int, sampling: Sampling, options: dict[str, Any]
) -> AsyncIterator[StreamedToken]:
    """Continue `prompt` token by token; the session ends with the generator, however it ends.

    options: further arguments of `generate`. Stops as `generate` does, and at the model's limit.
    """
    _check_options(max_new_tokens, options)
    ids, tokenizer = await asyncio.to_thread(_prepared, model, prompt)
    limit = model.remote.max_positions
    most = max_new_tokens if limit is None else min(max_new_tokens, limit - ids.shape[1] + 1)
    all_real = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in inspect.signature(model.forward).parameters else {}
    arguments = {**ONE_SEQUENCE, **sampling.arguments(options), "tokenizer": tokenizer, **all_real, **options}
    arguments["max_new_tokens"] = most
    producer, pieces = _Producer(model, ids, arguments, sampling.draw(options)), TextPieces(tokenizer)
    ends = _ends(options.get("eos_token_id", model.generation_config.eos_token_id))
    producer.start()
    try:
        number = 0
        while (token := await producer.take()) is not None:
            number += 1
            finish = None if not token.is_last else "length" if number == most and token.id not in ends else "stop"
            yield StreamedToken(id=token.id, text=pieces.add(token.id, token.is_last), finish=finish, version=token.version)
    finally:
        await producer.leave()


def _check_options(max_new_tokens: int, options: Mapping[str, Any]) -> None:
    if max_new_tokens < 1:
        raise BadRequestError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    for name in (*ONE_SEQUENCE, *NOT_TAKEN):
        if name in options and options[name] != ONE_SEQUENCE.get(name):
            raise BadRequestError(
                f"a stream is one sequence, token by token, in a session of its own; it takes no {name}: call generate for that"
            )


def _prepared(model: Any, prompt: str | Sequence[int] | Tensor) -> tuple[Tensor, Any]:
    """The prompt's ids [1, T] on the model's device, checked, and the tokenizer if one is needed or at hand."""
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


def _ends(eos_token_id: Any) -> Sequence[int]:
    ends = [] if eos_token_id is None else torch.as_tensor(eos_token_id).reshape(-1).tolist()
    return cast("Sequence[int]", ends)
