"""Requests at once with one long system prompt, computed once.

Through the gateway: the beginning has 2,000 tokens, and each request another question behind it. Beside it one request alone. Each round
has other tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from benchmarks import gateway, models, timing
from benchmarks.swarms import Swarms

PROMPT_TOKENS = 2_000
QUESTION_TOKENS = 16
REQUESTS = 8


def measure(running: Swarms, repeats: int) -> dict[str, Any]:
    """Section `shared prompt`: the model of 110M parameters, two nodes."""
    shape = models.SMALL
    _, address = gateway.start(running, shape)
    rounds = itertools.count(1)

    def asked(requests: int) -> float:
        return asyncio.run(_first_tokens_ms(address, shape, next(rounds), requests))

    ways = {"one": lambda: asked(1), "shared": lambda: asked(REQUESTS)}
    runs = timing.interleaved(ways, repeats, "shared prompt")
    pairs = list(zip(runs["one"], runs["shared"], strict=True))
    return {
        "model": str(shape),
        "tokens": PROMPT_TOKENS,
        "requests": REQUESTS,
        **{f"{way}_ms": timing.spread(times) for way, times in runs.items()},
        "of_one": timing.spread([shared / one for one, shared in pairs]),
    }


async def _first_tokens_ms(address: str, shape: models.Shape, start: int, requests: int) -> float:
    """Milliseconds until all requests have their first token."""
    ids = models.prompt(shape, PROMPT_TOKENS + start)[0].tolist()[start:]
    questions = [models.prompt(shape, QUESTION_TOKENS + number)[0].tolist()[number:] for number in range(requests)]
    prompts = [[*ids, *question] for question in questions]
    began_s = time.perf_counter()
    events = await asyncio.gather(*[gateway.ask(address, shape.name, ids, 1) for ids in prompts])
    return max(event[0].at_s - began_s for event in events) * 1e3
