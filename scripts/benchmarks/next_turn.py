"""The next turn of a conversation, whose beginning the nodes have kept.

Through the gateway: a prompt of 2,000 tokens, and then that prompt with its answer and a few more tokens. Each round has other tokens.
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
NEW = 8


def measure(running: Swarms, repeats: int) -> dict[str, Any]:
    """Section `next turn`: the model of 110M parameters, two nodes."""
    shape = models.SMALL
    _, address = gateway.start(running, shape)
    rounds = itertools.count()

    def turns() -> tuple[float, float]:
        return asyncio.run(_turns(address, shape, next(rounds)))

    times = timing.interleaved({"turns": turns}, repeats, "next turn")["turns"]
    first, second = [one for one, _ in times], [other for _, other in times]
    return {
        "model": str(shape),
        "tokens": PROMPT_TOKENS,
        "first_ms": timing.spread(first),
        "second_ms": timing.spread(second),
        "times": timing.spread([one / other for one, other in times], largest=True),
    }


async def _turns(address: str, shape: models.Shape, number: int) -> tuple[float, float]:
    """Milliseconds until the first token of each turn."""
    ids = models.prompt(shape, PROMPT_TOKENS + number)[0].tolist()[number:]
    began_s = time.perf_counter()
    first = await gateway.ask(address, shape.name, ids, NEW)
    first_ms = (first[0].at_s - began_s) * 1e3
    answer = [int(event.text.removeprefix(" ").removeprefix("w")) for event in first]
    question = models.prompt(shape, QUESTION_TOKENS)[0].tolist()
    began_s = time.perf_counter()
    second = await gateway.ask(address, shape.name, [*ids, *answer, *question], NEW)
    return first_ms, (second[0].at_s - began_s) * 1e3
