"""`generate` over two nodes against transformers on this machine.

Measured: decoding, prompts of 512 and 2,048 tokens, and the first token.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks import models, timing
from benchmarks.swarms import Swarms

NUM_NODES = 2
SHORT_PROMPT = 16
LONG_PROMPTS = (512, 2_048)


def decode(
    running: Swarms, repeats: int, num_tokens: int, shapes: Sequence[models.Shape] = (models.TINY, models.SMALL)
) -> dict[str, Any]:
    """Sections `decode` and `real`: ms per token and until the first one, of each model."""
    rows = []
    for shape in shapes:
        paths = _paths(running, shape)
        ids = models.prompt(shape, SHORT_PROMPT)
        runs = timing.interleaved(
            {name: partial(timing.decode_ms, model, ids, num_tokens) for name, model in paths.items()},
            repeats,
            f"decode {shape.name}",
        )
        running.stop_all()
        tokens = {name: [statistics.median(gaps[1:]) for gaps in many] for name, many in runs.items()}
        first = {name: [gaps[0] for gaps in many] for name, many in runs.items()}
        rows.append(
            {
                "model": shape.name,
                "local_token_ms": timing.spread(tokens["local"]),
                "swarm_token_ms": timing.spread(tokens["swarm"]),
                "speed_of_local": _ratio(tokens["local"], tokens["swarm"]),
                "local_first_ms": timing.spread(first["local"]),
                "swarm_first_ms": timing.spread(first["swarm"]),
                "first_beyond_local_ms": timing.beyond(first["swarm"], first["local"]),
            }
        )
    return {"nodes": NUM_NODES, "prompt": SHORT_PROMPT, "tokens": num_tokens, "rows": rows}


def prefill(running: Swarms, repeats: int) -> dict[str, Any]:
    """Section `prefill`: ms from a long prompt to its first token, 110M model."""
    shape = models.SMALL
    paths = _paths(running, shape)
    rows = []
    for length in LONG_PROMPTS:
        ids = models.prompt(shape, length)
        runs = timing.interleaved(
            {name: partial(timing.decode_ms, model, ids, 1) for name, model in paths.items()},
            repeats,
            f"prompt of {length}",
        )
        local, swarm = ([gaps[0] for gaps in runs[name]] for name in ("local", "swarm"))
        rows.append(
            {
                "tokens": length,
                "local_ms": timing.spread(local),
                "swarm_ms": timing.spread(swarm),
                "of_local": _ratio(swarm, local),
            }
        )
    return {"model": str(shape), "nodes": NUM_NODES, "rows": rows}


def _paths(running: Swarms, shape: models.Shape) -> dict[str, Any]:
    return {"local": models.local(running.path(shape)), "swarm": running.connect(shape, running.start(shape, NUM_NODES))}


def _ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Of the bests, and the median of the repeats' own."""
    own = [a / b for a, b in zip(above, below, strict=True)]
    return {"best": round(min(above) / min(below), 3), "median": round(statistics.median(own), 3)}
