"""Benchmarks against a reference in the same run, interleaved.

Machines are noisy, so trust ratios and the best of many.

Every process has one torch thread; all are on this machine and talk over TLS. Sections (`scripts/benchmarks/`), each runnable alone:
hops, decode, real, prefill, sessions, chats, node, wide area; of training: averaging, state, pipeline, wide pipeline; of the gateway:
streams, next turn, shared prompt, held, schemas, beside. Only --publish changes docs/bench/*.json, the documents and the plots. `real` is
left out if `scripts/real_model` has not fetched its model.

Run: scripts/bench inference [--only hops decode] [--publish]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    "inference": ("hops", "decode", "real", "prefill", "sessions", "chats", "node", "wide area"),
    "training": ("averaging", "state", "pipeline", "wide pipeline"),
    "gateway": ("streams", "next turn", "shared prompt", "held", "schemas", "beside"),
}
"""By benchmark."""


def result_file(benchmark: str) -> Path:
    """Where `--publish` keeps a benchmark's results."""
    return ROOT / "docs" / "bench" / f"{benchmark}.json"


def sections(running: Any, repeats: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each section runs."""
    from benchmarks import (
        averaging,
        crowd,
        gateway,
        gateway_load,
        generation,
        hops,
        models,
        next_turn,
        node_cost,
        pipeline,
        shared_prompt,
        state,
        wide_area,
        wide_pipeline,
    )

    few = max(3, repeats // 3)
    return {
        "hops": lambda: hops.measure(running, repeats, 48, (1, 2, 4)),
        "decode": lambda: generation.decode(running, repeats, 24),
        "real": lambda: generation.decode(running, repeats, 24, [models.real()]),
        "prefill": lambda: generation.prefill(running, repeats),
        "sessions": lambda: crowd.throughput(running, repeats, 24),
        "chats": lambda: crowd.disturbed(running, few, 60) | {"repeats": few},
        "node": lambda: node_cost.measure(running, few) | {"repeats": few},
        "wide area": lambda: wide_area.measure(running, few, 24) | {"repeats": few},
        "streams": lambda: gateway.measure(running, repeats, 64),
        "next turn": lambda: next_turn.measure(running, few) | {"repeats": few},
        "shared prompt": lambda: shared_prompt.measure(running, few) | {"repeats": few},
        "held": lambda: gateway_load.held(running) | {"repeats": 1},
        "schemas": lambda: gateway_load.schemas(running) | {"repeats": 1},
        "beside": lambda: gateway_load.beside(running, few, 60) | {"repeats": few},
        "averaging": lambda: averaging.measure(running.folder, repeats),
        "state": lambda: state.measure(repeats),
        "pipeline": lambda: pipeline.measure(running.folder, few) | {"repeats": few},
        "wide pipeline": lambda: wide_pipeline.measure(running.folder, few) | {"repeats": few},
    }


def run(names: list[str], repeats: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The sections' results, and why others have none."""
    import real_model
    from benchmarks import swarms
    from volunteers import VolunteerError

    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with swarms.folder() as folder:
        os.environ["SWARM_TRACE"] = str(folder / "trace.jsonl")  # read when `swarm` is imported, in every process
        import torch
        from transformers.utils import logging

        torch.set_num_threads(1)
        logging.disable_progress_bar()
        for name in names:
            if name == "real" and real_model.found() is None:
                print("bench: no section 'real': the model is not here; scripts/real_model fetches it", file=sys.stderr)
                continue
            before, started = os.getloadavg()[0], time.time()
            try:
                with swarms.running_swarms(folder) as running:
                    result = sections(running, repeats)[name]()
            except VolunteerError as error:
                failed[name] = str(error)
                continue
            load = [round(before, 2), round(os.getloadavg()[0], 2)]
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(started))
            done[name] = {"when": when, "load_average": load, "repeats": repeats} | result
            print("\n".join(report.tables({name: done[name]})), flush=True)
    return done, failed


def publish(result: dict[str, Any]) -> None:
    """Put these sections into docs/bench/BENCHMARK.json beside older ones, and have the documents written anew."""
    name = result["benchmark"]
    path = result_file(name)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = old.get("sections", {})
    merged = kept | result["sections"]
    result = result | {"sections": {section: merged[section] for section in SECTIONS[name] if section in merged}}
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "SWARM_TRACE"}  # its folder is gone
    subprocess.run([sys.executable, ROOT / "scripts" / "docs.py"], check=True, env=environment)


def machine() -> str:
    from importlib import metadata

    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {metadata.version('torch')}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("benchmark", choices=list(SECTIONS))
    parser.add_argument(
        "--repeats", type=int, default=9, help="counted rounds; the slow sections do a third (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="SECTION", help="; ".join(f"{name}: {', '.join(of)}" for name, of in SECTIONS.items())
    )
    parser.add_argument("--out", type=Path, help="also write these sections as JSON to this file")
    parser.add_argument(
        "--publish", action="store_true", help="put them into docs/bench/BENCHMARK.json, the documents and the plots"
    )
    arguments = parser.parse_args()
    names = arguments.only or list(SECTIONS[arguments.benchmark])
    if wrong := set(names) - set(SECTIONS[arguments.benchmark]):
        parser.error(
            f"no section {', '.join(sorted(wrong))} of {arguments.benchmark}: {', '.join(SECTIONS[arguments.benchmark])}"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nodes end with us
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["OMP_NUM_THREADS"] = "1"
    done, failed = run(names, arguments.repeats)
    result = {"benchmark": arguments.benchmark, "machine": machine(), "sections": done}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.publish and done:
        publish(result)
    for name, reason in failed.items():
        print(f"bench: no section {name!r}: {reason}", file=sys.stderr)
    if not arguments.publish and not arguments.out:
        print("bench: nothing was written; --out FILE keeps the JSON, --publish puts it into the documents", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
