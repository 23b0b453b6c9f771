"""What a node costs its volunteer.

That is memory beyond the weights, seconds until it serves, and processes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import models, process_session, timing
from benchmarks.swarms import Swarms


def measure(running: Swarms, repeats: int) -> dict[str, Any]:
    """Section `node`: one with all blocks and the ends of the 110M model, started again and again; weights on disk, in the page cache."""
    shape = models.SMALL
    running.path(shape)
    starts, rss, extra, processes = [], [], [], [0]
    for _ in range(repeats):
        started = time.perf_counter()
        (node,) = running.start(shape, 1)
        starts.append(time.perf_counter() - started)
        model = running.connect(shape, [node])
        timing.decode_ms(model, models.prompt(shape, 512), 8)
        family = process_session.processes_of(node.process.pid)
        processes = [len(family)]
        rss.append(_kilobytes(node.process.pid, "VmRSS") / 1e3)
        extra.append(sum(_kilobytes(pid, "VmRSS") for pid in family if pid != node.process.pid) / 1e3)
        running.stop_all()
    weights_mb = (shape.block_bytes + shape.ends_bytes) / 1e6  # a node with all blocks hosts embedding and head, too
    return {
        "model": str(shape),
        "weights_mb": round(weights_mb, 1),
        "rss_mb": timing.spread(rss, 1),
        "beyond_weights_mb": timing.spread([value - weights_mb for value in rss], 1),
        "helper_rss_mb": timing.spread(extra, 1),
        "start_s": timing.spread(starts, 2),
        "processes": processes[0],
    }


def _kilobytes(pid: int, key: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return float(line.split()[1])
    raise ValueError(f"/proc/{pid}/status has no {key}")
