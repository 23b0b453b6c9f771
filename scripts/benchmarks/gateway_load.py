"""A gateway under load.

Many connections and streams held for a minute, answers of JSON schemas, and 8 chats beside a long prompt, all by HTTP from plain sockets.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gateways import Size, start_gateway
from volunteers import Node

from benchmarks import models, timing
from benchmarks.gateway import begin, write_tokenizer
from benchmarks.swarms import Swarms

T = TypeVar("T")

CONNECTIONS, STREAMS, BATCH = 1_000, 64, 100
WARM_S, HELD_S, LOOK_S = 180.0, 60.0, 10.0
"""Seconds; memory that nodes and gateway keep for later grows for two to three minutes."""
STREAM_TOKENS = 200
"""Of one stream; its successor follows at once."""

NUM_ANSWERS, AT_ONCE = 200, 8
NUM_CHATS, CHAT_PROMPT, LONG_PROMPT = 8, 32, 2_000


# --- connections and streams that are held


@dataclass
class Held:
    """What happened in the minute."""

    errors: list[str] = field(default_factory=list)
    num_streams: int = 0
    num_tokens: int = 0


def held(running: Swarms) -> dict[str, Any]:
    """Section `held`: 1,000 idle connections and 64 streams for a minute, tiny model, two nodes."""
    shape = models.TINY
    write_tokenizer(running.path(shape), shape.vocab)
    nodes, gateway = begin(running, shape, 2)
    found, memory = asyncio.run(
        _hold(gateway.wait_for("address"), shape.name, {"gateway": gateway, "first node": nodes[0], "second node": nodes[1]})
    )
    grown = {name: round(values[-1] - values[0], 1) for name, values in memory.items()}
    return {
        "model": str(shape), "connections": CONNECTIONS, "streams": STREAMS, "seconds": HELD_S, "errors": len(found.errors),
        "some_errors": found.errors[:5], "streams_ended": found.num_streams, "tokens_per_s": round(found.num_tokens / HELD_S),
        "memory_mb": memory, "grown_mb": grown, "most_grown_mb": max(grown.values()),
    }  # fmt: skip


async def _hold(address: str, name: str, processes: dict[str, Node]) -> tuple[Held, dict[str, list[float]]]:
    """What happened, and the memory of each process every LOOK_S of the minute."""
    found, is_over = Held(), asyncio.Event()
    streams = [asyncio.create_task(_streams(address, name, number, found, is_over)) for number in range(STREAMS)]
    await asyncio.sleep(WARM_S)
    idle = await _together([_Idle.opened(address) for _ in range(CONNECTIONS)])
    memory = {one: [memory_mb(it)] for one, it in processes.items()}
    found.num_tokens = found.num_streams = 0
    for _ in range(round(HELD_S / LOOK_S)):
        await asyncio.sleep(LOOK_S)
        for one, it in processes.items():
            memory[one].append(memory_mb(it))
    num_tokens, num_streams = found.num_tokens, found.num_streams
    found.errors += [fault for fault in await _together([one.asked_again() for one in idle]) if fault]
    is_over.set()
    await asyncio.gather(*streams)
    found.num_tokens, found.num_streams = num_tokens, num_streams
    return found, memory


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results; BATCH at once."""
    found: list[T] = []
    for at in range(0, len(work), BATCH):
        found += await asyncio.gather(*work[at : at + BATCH])
    return found


class _Idle:
    """A connection that is kept alive."""

    def __init__(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = urlsplit(address).netloc, reader, writer

    @classmethod
    async def opened(cls, address: str) -> _Idle:
        """It has asked once."""
        url = urlsplit(address)
        made = cls(address, *await asyncio.open_connection(url.hostname, url.port))
        assert await made._ask() == 200
        return made

    async def asked_again(self) -> str | None:
        """Close it; what is wrong if it does not answer."""
        try:
            status = await self._ask()
            return None if status == 200 else f"an idle connection got {status}"
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
            return f"an idle connection: {type(error).__name__}"
        finally:
            self._writer.close()

    async def _ask(self) -> int:
        self._writer.write(f"GET /health HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        await self._reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
        return int(head.split()[1])


async def _streams(address: str, name: str, number: int, found: Held, is_over: asyncio.Event) -> None:
    """One after the other, all complete."""
    ids = [(number + at) % 250 for at in range(16)]
    while not is_over.is_set():
        reason, is_done = None, False
        try:
            async for event in events(address, {"model": name, "prompt": ids, "max_tokens": STREAM_TOKENS, "temperature": 0}):
                is_done = event is None
                reason = event["choices"][0]["finish_reason"] if event else reason
                found.num_tokens += bool(event and event["choices"][0]["text"])
        except (OSError, ValueError, KeyError) as error:
            found.errors.append(f"a stream: {type(error).__name__} {error}")
        if not is_done or reason != "length":
            found.errors.append(f"a stream ended with {reason}, complete: {is_done}")
        found.num_streams += 1


def memory_mb(process: Node) -> float:
    """Resident."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


async def events(address: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | None]:
    """Of a streamed completion, as they come; None = it is complete."""
    url, data = urlsplit(address), json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST {url.path}/completions HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        async for line in reader:
            if line.startswith(b"data: "):
                yield None if line.startswith(b"data: [DONE]") else json.loads(line[6:])
    finally:
        writer.close()


# --- answers of JSON schemas

SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": "x"}]}, "minItems": 2, "maxItems": 5},
    {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "at": {"$ref": "#/$defs/point"}},
        "required": ["kind", "at"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "number", "minimum": -9, "maximum": 9}, "y": {"type": "integer", "multipleOf": 5}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
    {"type": "string", "pattern": "^[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8})?$"},
)


def schemas(running: Swarms) -> dict[str, Any]:
    """Section `schemas`: how many of 200 answers of random weights are valid, drawn at temperature 1, 8 at once."""
    (folder := running.folder / "schemas").mkdir()
    gateway = start_gateway(folder, running.nodes, Size(context=1024))
    began_s = time.perf_counter()
    faults = asyncio.run(_invalid(gateway.url))
    seconds = time.perf_counter() - began_s
    return {
        "answers": NUM_ANSWERS, "valid": NUM_ANSWERS - len(faults), "some_faults": faults[:5], "seconds": round(seconds, 1),
    }  # fmt: skip


async def _invalid(url: str) -> list[str]:
    import httpx
    import jsonschema_rs

    checks = [jsonschema_rs.validator_for(schema) for schema in SCHEMAS]
    free, faults = asyncio.Semaphore(AT_ONCE), list[str]()

    async def one(client: httpx.AsyncClient, number: int) -> None:
        schema = SCHEMAS[number % len(SCHEMAS)]
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "temperature": 1, "seed": number}
        async with free:
            answer = await client.post(f"{url}/v1/chat/completions", json={**body, "response_format": form, "max_tokens": 600})
        try:
            choice = answer.json()["choices"][0]
            checks[number % len(SCHEMAS)].validate(json.loads(choice["message"]["content"]))
            assert choice["finish_reason"] == "stop", choice["finish_reason"]
        except (KeyError, ValueError, AssertionError) as error:
            faults.append(f"answer {number}: {type(error).__name__} {error}: {answer.text[:300]}")

    async with httpx.AsyncClient(timeout=120) as client:
        await asyncio.gather(*(one(client, number) for number in range(NUM_ANSWERS)))
    return faults


# --- chats beside a long prompt


def beside(running: Swarms, repeats: int, num_tokens: int) -> dict[str, Any]:
    """Section `beside`: time between tokens of 8 streams, alone and while a prompt of 2,000 tokens is prefilled; 110M model, one node."""
    shape = models.SMALL
    write_tokenizer(running.path(shape), shape.vocab)
    _, gateway = begin(running, shape, 1)
    address = gateway.wait_for("address")
    runs = timing.interleaved(
        {
            "alone": lambda: asyncio.run(_gaps_ms(address, shape.name, num_tokens, is_disturbed=False)),
            "disturbed": lambda: asyncio.run(_gaps_ms(address, shape.name, num_tokens, is_disturbed=True)),
        },
        repeats,
        "HTTP chats beside a prompt",
    )
    p99 = {name: [_percentile(gaps, 99) for gaps in many] for name, many in runs.items()}
    own = [there / here for there, here in zip(p99["disturbed"], p99["alone"], strict=True)]
    return {
        "model": str(shape), "chats": NUM_CHATS, "prompt": LONG_PROMPT, "alone_p99_ms": timing.spread(p99["alone"]),
        "disturbed_p99_ms": timing.spread(p99["disturbed"]),
        "times": {"best": round(min(own), 2), "median": round(statistics.median(own), 2)},
    }  # fmt: skip


async def _gaps_ms(address: str, name: str, num_tokens: int, *, is_disturbed: bool) -> list[float]:
    """Milliseconds between tokens of all chats while the prompt runs, or over `num_tokens` tokens each."""
    talking, is_over = asyncio.Semaphore(0), asyncio.Event()

    async def chat(number: int) -> list[float]:
        ids, at_s = [(number + at) % 1_000 for at in range(CHAT_PROMPT)], list[float]()
        most = 1_500 if is_disturbed else num_tokens
        async for event in events(address, {"model": name, "prompt": ids, "max_tokens": most, "temperature": 0}):
            if event and event["choices"][0]["text"]:
                at_s.append(time.perf_counter())
                if len(at_s) == 2:
                    talking.release()
                if is_over.is_set() and len(at_s) >= num_tokens:
                    break
        return at_s

    chats = [asyncio.create_task(chat(number)) for number in range(NUM_CHATS)]
    for _ in chats:
        await talking.acquire()
    began_s = time.perf_counter()
    if is_disturbed:
        long = [number % 1_000 for number in range(LONG_PROMPT)]
        async for _ in events(address, {"model": name, "prompt": long, "max_tokens": 1, "temperature": 0}):
            pass
    ended_s = time.perf_counter() if is_disturbed else float("inf")
    is_over.set()
    times = await asyncio.gather(*chats)
    return [
        (later - earlier) * 1e3 for at_s in times for earlier, later in pairwise(at_s) if began_s <= later and earlier <= ended_s
    ]


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
