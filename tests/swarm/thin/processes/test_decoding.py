"""Many answers decoded at once get what each would get alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm import awake
from swarm.thin.decoding import Decoding
from swarm.thin.tokenizing import sandbox
from swarm.thin.tokenizing.sandbox import CpuLimits, Sandbox, SandboxEndedError
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from tests.families import add_byte_tokenizer, make_checkpoint


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxedTokenizer]:
    folder = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(folder)
    made = Sandbox("tiny", limits=CpuLimits(decode_s=0.5))
    yield SandboxedTokenizer(made, folder)
    made.close()


@pytest.fixture
def twin(tokenizer: SandboxedTokenizer) -> Iterator[SandboxedTokenizer]:
    made = tokenizer.twin()
    yield made
    made.sandbox.close()


def process_of(tokenizer: SandboxedTokenizer) -> int:
    assert tokenizer.sandbox._process is not None
    return tokenizer.sandbox._process.pid


async def test_each_gets_its_own_texts_in_few_trips(tokenizer: SandboxedTokenizer, twin: SandboxedTokenizer) -> None:
    trips, decoding = 0, Decoding(twin)
    ask = twin.sandbox.ask_soon

    async def counted(*args: object) -> dict[str, object]:
        nonlocal trips
        trips += 1
        return await ask(*args)  # type: ignore[arg-type]

    twin.sandbox.ask_soon = counted  # type: ignore[method-assign, assignment]
    asked = [[list(range(at, at + 3)), [at]] for at in range(40, 140)]
    found = await asyncio.gather(*(decoding.decode_all(runs, at % 2 == 0) for at, runs in enumerate(asked)))
    assert found == [tokenizer.decode_all(runs, at % 2 == 0) for at, runs in enumerate(asked)]
    assert trips <= 4 and process_of(twin) != process_of(tokenizer)
    long = [[65] * 100_000]  # more than a pipe takes at once, there and back
    assert await decoding.decode_all(long) == tokenizer.decode_all(long)
    await decoding.close()


async def test_a_prompt_that_is_encoded_meanwhile_delays_nothing(tokenizer: SandboxedTokenizer, twin: SandboxedTokenizer) -> None:
    decoding = Decoding(twin)
    encoding = asyncio.create_task(asyncio.to_thread(tokenizer.encode, "the long text " * 100_000))
    await asyncio.sleep(0)
    for at in range(50):
        assert len(await decoding.decode_all([[at + 40]])) == 1
    assert not encoding.done(), "it was too short, so this test has shown nothing"
    await encoding
    await decoding.close()


async def test_a_gateway_that_was_stopped_itself_blames_no_tokenizer(
    tokenizer: SandboxedTokenizer, twin: SandboxedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer waits in the pipe when its deadline is noticed."""
    monkeypatch.setattr(sandbox, "LEAST_WAIT_S", 0.5)
    monkeypatch.setattr(sandbox, "PER_CPU", 1.0)
    decoding, before, write = Decoding(twin), process_of(twin), sandbox._write_soon
    limit_s = max(sandbox.LEAST_WAIT_S, sandbox.PER_CPU * twin.sandbox.limits.decode_s)

    async def write_and_stop(*arguments: Any) -> None:
        await write(*arguments)
        asyncio.get_running_loop().call_soon(time.sleep, limit_s + awake.STOPPED_S)

    monkeypatch.setattr(sandbox, "_write_soon", write_and_stop)
    assert await decoding.decode_all([[70, 71]]) == tokenizer.decode_all([[70, 71]])
    assert process_of(twin) == before
    await decoding.close()


async def test_after_a_process_has_ended_another_one_answers(tokenizer: SandboxedTokenizer, twin: SandboxedTokenizer) -> None:
    decoding = Decoding(twin)
    expected = tokenizer.decode_all([[70, 71]])
    before = process_of(twin)
    os.kill(before, signal.SIGSTOP)
    waiting = [asyncio.create_task(decoding.decode_all([[70, 71]])) for _ in range(3)]
    await asyncio.sleep(0)
    os.kill(before, signal.SIGKILL)
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, SandboxEndedError) or one == expected for one in found)
    assert await decoding.decode_all([[70, 71]]) == expected and process_of(twin) != before
    await decoding.close()


async def test_a_caller_that_leaves_spoils_nothing(tokenizer: SandboxedTokenizer, twin: SandboxedTokenizer) -> None:
    decoding, before = Decoding(twin), process_of(twin)
    first, second = (asyncio.create_task(decoding.decode_all([[at]])) for at in (70, 71))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == tokenizer.decode_all([[71]]) and process_of(twin) == before
    await decoding.close()


def test_a_folder_without_a_tokenizer_leaves_no_process(tokenizer: SandboxedTokenizer, tmp_path: Path) -> None:
    lost = SandboxedTokenizer.__new__(SandboxedTokenizer)
    lost.sandbox, lost.folder = tokenizer.sandbox, tmp_path
    with pytest.raises(Exception, match=r"no tokenizer\.json"):
        lost.twin()
