"""A client and two real nodes in one process.

The nodes have DHT, TLS and engines on one loop, the client runs on another; nothing is faked.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.app import run_node
from node.config import NodeConfig
from node.events import Event
from protocols.defaults import RESUME_S
from protocols.errors import ModelMismatchError, ModelNotFoundError, NoRouteError
from protocols.ids import Span
from swarm.client import SwarmModelForCausalLM, connection
from swarm.client.loop import BackgroundLoop
from swarm.inference.hop.hops import Hops
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from tests.families import add_byte_tokenizer
from tests.forked import ForkServer

PROMPT = torch.randint(3, 250, (2, 11), generator=torch.Generator().manual_seed(21))
GREEDY: dict[str, Any] = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)


@dataclass
class Line:
    """A swarm that serves one checkpoint: where it is, and whom to ask."""

    path: Path
    peer: str
    client: dict[str, Any]


async def start(path: Path, blocks: Span, peers: tuple[str, ...], data_dir: Path) -> tuple[asyncio.Task[None], str]:
    """A node that serves; returns its task and its multiaddr. Raises what keeps it from serving."""
    ready, addresses = asyncio.Event(), []

    def on_event(event: Event) -> None:
        if event.kind == "multiaddr":
            addresses.append(event.text)
        elif event.kind == "ready":
            ready.set()

    config = NodeConfig(
        model=str(path), blocks=blocks, peers=peers, listen=("127.0.0.1", 0), data_dir=data_dir, dtype="float32", device="cpu"
    )
    task = asyncio.create_task(run_node(config, on_event))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED, timeout=60)
    if task.done():
        task.result()
    assert ready.is_set(), "the node was not ready in time"
    return task, addresses[0]


@pytest.fixture(scope="module")
def line(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    data_dir, loop = tmp_path_factory.mktemp("data"), BackgroundLoop()
    path = shutil.copytree(checkpoint("llama"), data_dir / checkpoint("llama").name)
    add_byte_tokenizer(path)
    first, address = loop.run(start(path, Span(0, 2), (), data_dir))
    second, _ = loop.run(start(path, Span(2, 5), (address,), data_dir))
    yield Line(path, address, dict(peers=address, cache_dir=data_dir / "digests", patience_s=60))

    async def stop() -> None:
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)

    loop.run(stop())


def num_peers() -> int:
    _loop, pool = connection._peer_pool()
    return len(pool._shared)


async def test_a_model_over_two_nodes_answers_as_one_machine(line: Line, reference: Callable[[str], Any]) -> None:
    model = await asyncio.to_thread(SwarmModelForCausalLM.from_pretrained, line.path, **line.client)
    theirs = reference("llama")
    assert isinstance(model, SwarmModelForCausalLM) and isinstance(model, type(theirs).__mro__[0])
    assert model.remote.backend.dtype == torch.float32 and model.remote.backend.model.name == line.path.name
    for options in (GREEDY, GREEDY | dict(num_beams=3, num_return_sequences=2), GREEDY | dict(use_cache=False)):
        got = await asyncio.to_thread(model.generate, PROMPT, **options)
        assert got.tolist() == theirs.generate(PROMPT, **options).tolist()
    cache = model.new_cache()
    await asyncio.to_thread(model.generate, PROMPT, past_key_values=cache, **GREEDY)
    assert [hop.span for hop in cache.journey.route] == [Span(0, 2), Span(2, 5)] and cache.journey.replaced == 0
    streamed = [token.id async for token in model.stream(PROMPT[0], max_new_tokens=12)]
    assert streamed == theirs.generate(PROMPT[:1], **GREEDY)[0, 11 : 11 + len(streamed)].tolist()
    hidden = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1))
    part = await asyncio.to_thread(model.blocks[1:4], hidden)
    with torch.inference_mode():
        alone = load_span(open_checkpoint(line.path), Span(1, 4), dtype=torch.float32)(hidden)
    assert (part - alone).abs().max() < 5e-5 * alone.abs().max()
    before = num_peers()
    sibling = await asyncio.to_thread(SwarmModelForCausalLM.from_pretrained, line.path, **line.client)
    assert num_peers() == before  # shared
    sibling.close()
    assert (await asyncio.to_thread(model, PROMPT, use_cache=False)).logits.shape == (2, 11, 256)
    model.close()
    model.close()
    with pytest.raises(Exception, match="was closed"):
        await asyncio.to_thread(model, PROMPT)


def test_other_weights_of_the_same_name_are_refused_by_naming_the_tensor(line: Line, tmp_path: Path) -> None:
    other = tmp_path / line.path.name
    shutil.copytree(line.path, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelMismatchError, match=r"tensor 'model.layers.3.mlp.up_proj.weight': ours is F32 \[96,64\]"):
        SwarmModelForCausalLM.from_pretrained(other, **line.client)


def test_a_name_that_nobody_serves(line: Line) -> None:
    with pytest.raises(NoRouteError, match=r"no peer serves other/name \(waited 0 s\); check the name"):
        SwarmModelForCausalLM.from_pretrained(line.path, **line.client | dict(patience_s=0, model_name="other/name"))


@pytest.mark.parametrize("thin", [False, True], ids=["full", "thin"])
def test_a_misspelt_name_is_told_what_the_swarm_serves(line: Line, thin: bool) -> None:
    """The Hub is not asked: what it would say, that there is no connection, is not in the error."""
    served = line.path.name
    with pytest.raises(ModelNotFoundError, match=f"did you mean {served}") as caught:
        SwarmModelForCausalLM.from_pretrained(served[:-2] + served[-1], thin=thin, **line.client)
    assert "Hub" not in str(caught.value)


def test_another_name_is_looked_for_on_the_hub_and_told_what_the_swarm_serves(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no test asks the network
    with pytest.raises(ModelNotFoundError, match=f"Hugging Face Hub.*the swarm serves {line.path.name}"):
        SwarmModelForCausalLM.from_pretrained("nobody/has-such-a-thing", **line.client)


# --- processes that end, and processes that fork


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_stop_ends_its_session(
    line: Line, tmp_path: Path, number: signal.Signals, fork_server: ForkServer
) -> None:
    """Else the nodes would keep the session for RESUME_S. The process dies by the signal, as it would have anyway."""
    wait_until_no_session(RESUME_S + 10)  # earlier tests may have left some, as clients that died do
    command = ["generate", line.path, "abc", "--max-new-tokens", "240", "--peer", line.peer, "--data-dir", tmp_path]
    asking = fork_server.popen(command, text=False)
    try:
        assert asking.stdout is not None
        first = asking.stdout.read(1)
        asking.send_signal(signal.SIGSTOP)  # or its answer may be over before the sessions are counted
        before = num_sessions()
        asking.send_signal(number)
        asking.send_signal(signal.SIGCONT)
        _, said = asking.communicate(timeout=60)
    finally:
        asking.kill()
    assert first and before, (asking.returncode, said)
    assert asking.returncode == -number and b"error" not in said and b"Traceback" not in said, said
    wait_until_no_session(RESUME_S * 2 / 3)


def wait_until_no_session(within_s: float) -> None:
    ends_at = time.monotonic() + within_s
    while num_sessions():
        assert time.monotonic() < ends_at, "a session is still at a node"
        time.sleep(0.05)


def num_sessions() -> int:
    """At all nodes in this process: both of the line, and those of other tests that have not been collected."""
    return sum(len(one) for one in gc.get_objects() if isinstance(one, Hops))


def script(line: Line, fork_server: ForkServer, code: str) -> list[str]:
    """Run `code` in a process of its own, after a model was asked by a cache that stays alive: the lines that it printed.

    `answer(model, **options)` is an answer of 12 tokens, `new()` a model of the same swarm.
    """
    begin = f"""
        import os, signal, sys, torch
        from swarm.client import SwarmModelForCausalLM
        def new(**options): return SwarmModelForCausalLM.from_pretrained({str(line.path)!r}, peers={line.peer!r}, **options)
        def answer(model, **options):
            ids = torch.tensor({PROMPT[:1].tolist()})
            return model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, **options).tolist()
        model = new(cache_dir={str(line.client["cache_dir"])!r})
        cache = model.new_cache()
        print(answer(model, past_key_values=cache), flush=True)
    """
    whole = textwrap.dedent(begin) + textwrap.dedent(code)
    done = fork_server.run([whole], kind="code")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2_000:]
    return done.stdout.splitlines()


def test_a_script_that_ends_without_close_prints_nothing(
    line: Line, fork_server: ForkServer, reference: Callable[[str], Any]
) -> None:
    """Caches are alive, and threads in the middle of answers, when it ends."""
    said = script(
        line,
        fork_server,
        """
        import threading
        caches = [model.new_cache() for _ in range(8)]
        for one in caches: answer(model, past_key_values=one)
        has_answered = threading.Event()
        def ask():
            while True:
                answer(model); has_answered.set()
        for _ in range(2): threading.Thread(target=ask, daemon=True).start()
        assert has_answered.wait(60)
        """,
    )
    assert list(map(json.loads, said)) == [reference("llama").generate(PROMPT[:1], **GREEDY).tolist()]


def test_a_forked_child_is_told_whose_the_model_is_and_may_have_its_own(
    line: Line, fork_server: ForkServer, reference: Callable[[str], Any]
) -> None:
    """The child ends with all of Python's good-byes, and the parent's session goes on."""
    said = script(
        line,
        fork_server,
        """
        def in_child(work):
            sys.stdout.flush()
            if pid := os.fork():
                ended = os.waitpid(pid, 0)[1]
                assert ended == 0, ended
            else:
                signal.alarm(60)
                work()
                sys.exit()
        def refused(ask):
            try: ask()
            except Exception as error: print(type(error).__name__, str(error).replace(str(os.getpid()), "CHILD"), flush=True)
        async def stream(): return [token async for token in model.stream([5, 6, 7], max_new_tokens=2)]
        def use_the_parents():
            import asyncio
            refused(lambda: answer(model))
            refused(lambda: answer(model, past_key_values=cache))
            refused(lambda: asyncio.run(stream()))
            cache.close(); model.close()
        def use_its_own():
            with new() as own: print(answer(own), flush=True)
            in_child(lambda: print(answer(new(thin=True)), flush=True))
        print(os.getpid(), flush=True)
        in_child(use_the_parents)
        in_child(use_its_own)
        kept = torch.tensor([[7]])
        model(kept, past_key_values=cache)
        print(answer(model), cache.journey.replaced, flush=True)
        """,
    )
    expected = reference("llama").generate(PROMPT[:1], **GREEDY).tolist()
    first, process, *refusals, own, grandchilds, after = said
    whose = f"this model belongs to process {process}, and this is process CHILD, a fork of it"
    assert len(refusals) == 3 and all(f"BadRequestError {whose}" in one and "call from_pretrained" in one for one in refusals), (
        refusals
    )
    assert [json.loads(one) for one in (first, own, grandchilds)] == [expected] * 3
    assert after == f"{expected} 0"
