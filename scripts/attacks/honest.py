"""An honest client in a process of its own.

It asks again and again, and writes a line about each answer.

Clients that know honest peers do not try others, so after `LIFE_S` it begins anew: a new identity that has met no peer.

`python -m attacks.honest CHECKPOINT FILE SEED ADDRESS …` until its stdin ends. A line: {"began", "ended", "is_right", "error"}.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOKENS = 8
PROMPT = 16
PAUSE_S = 0.5
"""Between two answers: the machine has time left, so that the nodes' own speed is what an attack can lower."""

ROUTE_TIMEOUT_S = 30.0

LIFE_S = 30.0
"""Seconds that a client keeps one identity. Its first period is shorter, so that the clients do not restart together."""


def main() -> None:
    checkpoint, file, seed, addresses = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    ids = torch.randint(3, 256, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
    alone = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    expected = _ask(alone, ids)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    life_s = LIFE_S * random.Random(seed).random()
    with file.open("w", buffering=1) as log:
        for number in itertools.count():
            os.environ["XDG_DATA_HOME"] = str(file.with_suffix(f".life-{number}"))
            for answer in _live(checkpoint, addresses, life_s, lambda model: _answer(model, ids, expected)):
                log.write(json.dumps(answer) + "\n")
                if over.wait(PAUSE_S):
                    return
            life_s = LIFE_S


def _live(
    checkpoint: Path, addresses: list[str], life_s: float, ask: Callable[[Any], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Answers for so many seconds; one line, too, if it does not get in."""
    from protocols.errors import SwarmError
    from swarm.client import SwarmModelForCausalLM

    began_s, until_s = time.time(), time.monotonic() + life_s
    try:
        with SwarmModelForCausalLM.from_pretrained(
            checkpoint, peers=addresses, dtype="float32", patience_s=ROUTE_TIMEOUT_S
        ) as model:
            yield ask(model)
            while time.monotonic() < until_s:
                yield ask(model)
    except SwarmError as error:
        yield {"began": began_s, "ended": time.time(), "is_right": False, "error": f"{type(error).__name__}: {error}"[:300]}


def _answer(model: Any, ids: Any, expected: list[int]) -> dict[str, Any]:
    began, error, found = time.time(), "", None
    try:
        found = _ask(model, ids)
    except Exception as raised:  # what a user would see; it is counted and shown
        error = f"{type(raised).__name__}: {raised}"[:300]
    return {"began": began, "ended": time.time(), "is_right": found == expected, "error": error}


def _ask(model: Any, ids: Any) -> list[int]:
    return list(model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)[0].tolist())


if __name__ == "__main__":
    main()
