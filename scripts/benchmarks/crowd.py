"""Many sessions at once.

Measured: tokens per second of 8 against one, on one node and on two, and what a long prompt does to 8 chats.
"""

from __future__ import annotations

import asyncio
import statistics
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks import models, timing
from benchmarks.headless import Headless, tokens_per_s
from benchmarks.swarms import Swarms

NUM_SESSIONS = 8
PROMPT_TOKENS = 32
LONG_PROMPT = 2_000


def throughput(running: Swarms, repeats: int, num_tokens: int) -> dict[str, Any]:
    """Section `sessions`: tokens per second, 110M model, driven with hidden states."""
    shape = models.SMALL
    rows = []
    for number in (1, 2):
        client = _client(running, shape, number)
        runs = timing.interleaved(
            {str(sessions): partial(_tokens_per_s, client, sessions, num_tokens) for sessions in (1, NUM_SESSIONS)},
            repeats,
            f"sessions on {number}",
        )
        client.close()
        running.stop_all()
        one, many = runs["1"], runs[str(NUM_SESSIONS)]
        own = [there / here for there, here in zip(many, one, strict=True)]
        rows.append(
            {
                "nodes": number,
                "one_tokens_per_s": timing.spread(one, largest=True),
                "many_tokens_per_s": timing.spread(many, largest=True),
                "times": {"best": round(max(many) / max(one), 2), "median": round(statistics.median(own), 2)},
            }
        )
    return {"model": str(shape), "sessions": NUM_SESSIONS, "tokens": num_tokens, "rows": rows}


def _tokens_per_s(client: Headless, sessions: int, num_tokens: int) -> float:
    return asyncio.run(tokens_per_s(client, sessions, PROMPT_TOKENS, num_tokens))


def disturbed(running: Swarms, repeats: int, num_tokens: int) -> dict[str, Any]:
    """Section `chats`: time between tokens of 8 chats on one node, alone and while a prompt of 2,000 tokens is prefilled."""
    shape = models.SMALL
    client = _client(running, shape, 1)
    runs = timing.interleaved(
        {
            "alone": lambda: asyncio.run(_gaps_ms(client, num_tokens, is_disturbed=False)),
            "disturbed": lambda: asyncio.run(_gaps_ms(client, num_tokens, is_disturbed=True)),
        },
        repeats,
        "chats beside a prompt",
    )
    client.close()
    p99 = {name: [_percentile(gaps, 99) for gaps, _ in many] for name, many in runs.items()}
    own = [there / here for there, here in zip(p99["disturbed"], p99["alone"], strict=True)]
    return {
        "model": str(shape),
        "chats": NUM_SESSIONS,
        "prompt": LONG_PROMPT,
        "alone_p99_ms": timing.spread(p99["alone"]),
        "disturbed_p99_ms": timing.spread(p99["disturbed"]),
        "times": {"best": round(min(own), 2), "median": round(statistics.median(own), 2)},
        "prompt_s": timing.spread([prompt_ms / 1e3 for _, prompt_ms in runs["disturbed"]]),
    }


async def _gaps_ms(client: Headless, num_tokens: int, *, is_disturbed: bool) -> tuple[list[float], float]:
    """Milliseconds between tokens of all chats, while the prompt ran (or over `num_tokens` tokens); and what the prompt took."""
    chats = [await client.open(PROMPT_TOKENS) for _ in range(NUM_SESSIONS)]
    await asyncio.gather(*(chat.decode(2) for chat in chats))
    prompt = asyncio.create_task(client.prefill_ms(LONG_PROMPT)) if is_disturbed else None

    async def talk(chat: Any) -> list[float]:
        at_s: list[float] = []
        while len(at_s) < num_tokens or (prompt and not prompt.done()):
            at_s += await chat.decode(1)
        return at_s

    times = await asyncio.gather(*(talk(chat) for chat in chats))
    for chat in chats:
        chat.close()
    gaps = [(later - earlier) * 1e3 for at_s in times for earlier, later in pairwise(at_s)]
    return gaps, await prompt if prompt else 0.0


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _client(running: Swarms, shape: models.Shape, num_nodes: int) -> Headless:
    nodes = running.start(shape, num_nodes)
    return Headless(running.path(shape), nodes[0].wait_for("multiaddr"), shape.hidden)
