"""What the gateway adds to a token, beside the Python client.

Both ask the same two nodes, by the same route, for the same greedy tokens: 1, 4 and 16 streams at once. The client in Python makes no text
of its tokens; the gateway makes text, JSON and server-sent events, and the benchmark reads those from a plain socket.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from volunteers import Node, start_process

from benchmarks import models, timing
from benchmarks.swarms import Swarms

STREAMS = (1, 4, 16)
PROMPT_TOKENS = 16

Times = tuple[float, float]
"""Milliseconds until the first token, and of each further one: medians over the streams."""

Rows = list[dict[str, Any]]


def measure(running: Swarms, repeats: int, num_tokens: int) -> dict[str, Any]:
    """Section `streams`: tiny model, two nodes."""
    shape = models.TINY
    peer, address = start(running, shape)
    with asyncio.Runner() as runner:
        rows = _rows(runner, running, shape, peer, address, repeats, num_tokens)
    return {"model": str(shape), "tokens": num_tokens, "rows": rows}


def start(running: Swarms, shape: models.Shape) -> tuple[str, str]:
    """Two nodes and a gateway: the address of a node, and of the gateway's API."""
    write_tokenizer(running.path(shape), shape.vocab)
    nodes, gateway = begin(running, shape, 2)
    return nodes[0].wait_for("multiaddr"), gateway.wait_for("address")


def begin(running: Swarms, shape: models.Shape, num_nodes: int) -> tuple[list[Node], Node]:
    """Nodes, and a gateway that serves their model."""
    nodes = running.start(shape, num_nodes)
    folder = Path(tempfile.mkdtemp(prefix="gateway-", dir=running.folder))
    peer = nodes[0].wait_for("multiaddr")
    words = ["serve", shape.name, "--port", "0", "--peer", peer, "--no-lan", "--data-dir", str(folder / "data")]
    running.nodes.append(gateway := start_process("gateway", words, folder))
    gateway.wait_for("ready")
    return nodes, gateway


def _rows(
    runner: asyncio.Runner, running: Swarms, shape: models.Shape, peer: str, address: str, repeats: int, num_tokens: int
) -> Rows:
    from swarm.thin.model import open_model

    ids, stack, rows = models.prompt(shape, PROMPT_TOKENS)[0].tolist(), AsyncExitStack(), list[dict[str, Any]]()
    try:
        opened = open_model(shape.name, peers=[peer], root=running.folder / "client-data" / "weights")
        model = runner.run(stack.enter_async_context(opened))
        for number in STREAMS:
            python = partial(_together, runner, partial(_python, model, ids, num_tokens), number)
            http = partial(_together, runner, partial(_http, address, shape.name, ids, num_tokens), number)
            runs = timing.interleaved({"python": python, "http": http}, repeats, f"{number} streams")
            rows.append({"streams": number} | _row(runs["python"], runs["http"]))
    finally:
        runner.run(stack.aclose())
    return rows


def _row(python: list[Times], http: list[Times]) -> dict[str, Any]:
    first, each = ([[times[at] for times in runs] for runs in (python, http)] for at in (0, 1))
    return {
        "python_token_ms": timing.spread(each[0]),
        "http_token_ms": timing.spread(each[1]),
        "added_ms": timing.beyond(each[1], each[0]),
        "python_first_ms": timing.spread(first[0]),
        "http_first_ms": timing.spread(first[1]),
        "first_added_ms": timing.beyond(first[1], first[0]),
    }


def _together(runner: asyncio.Runner, one: Callable[[], Awaitable[list[float]]], number: int) -> Times:
    async def all_of_them() -> list[list[float]]:
        return await asyncio.gather(*(one() for _ in range(number)))

    began_s = time.perf_counter()
    found = runner.run(all_of_them())
    first = [(at_s[0] - began_s) * 1e3 for at_s in found]
    each = [(at_s[-1] - at_s[0]) * 1e3 / (len(at_s) - 1) for at_s in found]
    return statistics.median(first), statistics.median(each)


async def _python(model: Any, ids: list[int], num_tokens: int) -> list[float]:
    """When each token came."""
    from swarm.thin.generation import generate
    from swarm.thin.sampling import Chooser, TokenSampling

    at_s, sequence = list[float](), model.start()
    try:
        async with aclosing(generate(sequence, ids, Chooser(TokenSampling()), model.limits(num_tokens))) as tokens:
            async for _ in tokens:
                at_s.append(time.perf_counter())
    finally:
        await model.end(sequence)
    return at_s


async def _http(address: str, name: str, ids: list[int], num_tokens: int) -> list[float]:
    return [event.at_s for event in await ask(address, name, ids, num_tokens)]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of a stream, and when it came."""

    at_s: float
    text: str


async def ask(address: str, name: str, ids: list[int], num_tokens: int) -> list[TokenEvent]:
    """The events with text: one for each token, since every token of this tokenizer is a word."""
    url = urlsplit(address)
    body = json.dumps({"model": name, "prompt": ids, "max_tokens": num_tokens, "temperature": 0, "stream": True}).encode()
    head = (
        f"POST {url.path}/completions HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    found = list[TokenEvent]()
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async for line in reader:
            if line.startswith(b"data: {") and (text := json.loads(line[6:])["choices"][0]["text"]):
                found.append(TokenEvent(time.perf_counter(), text))
    finally:
        writer.close()
    assert len(found) == num_tokens, f"{len(found)} events with text for {num_tokens} tokens"
    return found


def write_tokenizer(checkpoint: Path, size: int) -> None:
    """A tokenizer of so many words, w0 to w(size - 1)."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(checkpoint)
