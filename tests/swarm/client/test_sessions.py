"""Sessions end with `generate`, an exception or their last reference.

Nothing leaks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from protocols.errors import BadRequestError, NoRouteError

PROMPT = torch.randint(3, 250, (1, 11), generator=torch.Generator().manual_seed(11))
GREEDY: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)


def assert_all_closed(backend: Any, opened: int) -> None:
    assert (backend.num_opened, backend.num_closed, backend.used_bytes) == (opened, opened, 0)


def test_a_returned_cache_keeps_its_session_until_it_is_dropped(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    result = ours.generate(PROMPT, **GREEDY, return_dict_in_generate=True)
    assert (backend.num_opened, backend.num_closed) == (1, 0)
    del result
    gc.collect()
    assert_all_closed(backend, 1)


def test_a_forwards_cache_ends_with_its_output(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    output = ours(PROMPT)
    assert backend.num_closed == 0 and output.past_key_values.get_seq_length() == 11
    del output
    gc.collect()
    assert_all_closed(backend, 1)
    ours(PROMPT, use_cache=False)
    assert_all_closed(backend, 2)


@pytest.mark.parametrize("error", [NoRouteError("nobody"), KeyboardInterrupt()], ids=["typed", "Ctrl-C"])
def test_a_step_that_fails_ends_the_session_and_passes_the_error_on(error: BaseException, pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    cache = ours.new_cache()
    ours(PROMPT, past_key_values=cache)
    backend.fail_next = error
    with pytest.raises(type(error)):
        ours.generate(torch.cat([PROMPT, PROMPT], 1), past_key_values=cache, **GREEDY)
    assert_all_closed(backend, 1)
    with pytest.raises(BadRequestError, match="has ended"):
        ours(PROMPT, past_key_values=cache)


class Broken(BaseStreamer):
    def __init__(self, after: int) -> None:
        self.left = after

    def put(self, value: Tensor) -> None:
        self.left -= 1
        if not self.left:
            raise BrokenPipeError("the terminal went away")

    def end(self) -> None:
        pass


def test_a_callers_exception_ends_the_session_that_generate_made(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    with pytest.raises(BrokenPipeError):
        ours.generate(PROMPT, **GREEDY, streamer=Broken(after=4))
    assert len(backend.calls) == 3
    assert_all_closed(backend, 1)


def test_a_callers_exception_leaves_the_callers_own_cache_usable(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama")
    cache = ours.new_cache()
    with pytest.raises(BrokenPipeError):
        ours.generate(PROMPT, **GREEDY, streamer=Broken(after=2), past_key_values=cache)
    assert backend.num_closed == 0 and cache.get_seq_length() == 11
    got = ours.generate(torch.cat([PROMPT, PROMPT], 1), past_key_values=cache, **GREEDY)
    assert got.tolist() == theirs.generate(torch.cat([PROMPT, PROMPT], 1), **GREEDY).tolist()
    cache.close()
    cache.close()
    assert_all_closed(backend, 1)


def test_a_cache_that_was_never_used_opens_nothing(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    ours.new_cache().close()
    assert_all_closed(backend, 0)


def test_reset_starts_over_in_a_new_session(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    cache = ours.new_cache()
    first = ours(PROMPT, past_key_values=cache).logits
    cache.reset()
    assert torch.equal(ours(PROMPT, past_key_values=cache).logits, first)
    cache.close()
    assert_all_closed(backend, 2)


def test_several_threads_use_one_model(pair: Callable[[str], Any]) -> None:
    """The plan of a step travels beside the forward: it must not leak from one thread's forward to another's."""
    from concurrent.futures import ThreadPoolExecutor

    theirs, ours, backend = pair("llama")
    prompts = [PROMPT.roll(i, 1)[:, : 4 + i] for i in range(6)]
    expected = [theirs.generate(prompt, **GREEDY).tolist() for prompt in prompts]
    with ThreadPoolExecutor(6) as threads:
        got = list(threads.map(lambda prompt: ours.generate(prompt, **GREEDY).tolist(), prompts))
    assert got == expected
    assert_all_closed(backend, 6)
