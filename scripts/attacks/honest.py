"""An honest client in a process of its own: it asks again and again, and writes a line about each answer.

`python -m attacks.honest CHECKPOINT FILE SEED ADDRESS …` until its stdin ends. A line: {"began", "ended", "is_right", "error"}.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

TOKENS = 8
PROMPT = 16
PAUSE_S = 0.5
"""Between two answers: the machine has time left, so that the nodes' own speed is what an attack can lower."""

PATIENCE_S = 30.0


def main() -> None:
    checkpoint, file, seed, addresses = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    import torch
    from transformers import AutoModelForCausalLM

    from swarm.client import SwarmModelForCausalLM

    torch.set_num_threads(1)
    ids = torch.randint(3, 256, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
    alone = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    expected = _ask(alone, ids)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    model = SwarmModelForCausalLM.from_pretrained(checkpoint, peers=addresses, dtype="float32", patience_s=PATIENCE_S)
    with model, file.open("w", buffering=1) as log:
        while not over.wait(PAUSE_S):
            log.write(json.dumps(_answer(model, ids, expected)) + "\n")


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
