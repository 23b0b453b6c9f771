"""Runs every causal language model of transformers, and writes docs/families.md.

Tiny configurations, through two nodes' spans.

Each configuration (`family_configs.py`) is checked (`family_check.py`) in a worker process, so that one that crashes or hangs costs
only itself. Results are kept in a file as they come; with `--resume` a run goes on where an earlier one ended.

With `--gradients`, those that are served exactly are trained instead (`gradient_check.py`): one micro-batch through two stages, against
transformers' whole model. That fills one column of the page.

Run: scripts/families [--gradients] [--only NAME ...] [--resume] [--json] [--list]
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".families.jsonl"
GRADIENTS = ROOT / ".gradients.jsonl"
TABLE = ROOT / "docs" / "families.md"
LIMIT_S = 120.0
"""Time for one configuration (the slowest take about 10 s on a quiet core)."""


# --- the worker: names in, outcomes out


def work(gradients: bool) -> None:
    """Check every name that comes on standard input; one line of JSON each on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with answers
    import torch
    import transformers
    from family_configs import all_configurations

    if gradients:
        from gradient_check import check
    else:
        from family_check import check
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    configurations = all_configurations()
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps(asdict(check(name, configurations[name]))), file=answers, flush=True)


class Worker:
    """A process that checks one configuration after another; it is started again after it died."""

    def __init__(self, limit_s: float, show_errors: bool, gradients: bool = False) -> None:
        self._limit_s, self._show_errors = limit_s, show_errors
        self._options = ["--worker", *(["--gradients"] if gradients else [])]
        self._process: subprocess.Popen[str] | None = None

    def check(self, name: str) -> dict[str, Any]:
        """The outcome of one configuration, also where the process crashed or ran out of time."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        started = time.monotonic()
        line = ""
        try:
            process.stdin.write(name + "\n")
            process.stdin.flush()
            line = _line_within(process.stdout, self._limit_s)
        except BrokenPipeError:
            pass
        if line:
            outcome: dict[str, Any] = json.loads(line)
            return outcome
        seconds = time.monotonic() - started
        self.stop()
        what = (
            f"no answer within {self._limit_s:.0f} s" if seconds >= self._limit_s else f"the process died ({process.returncode})"
        )
        return {"name": name, "verdict": "fails", "reason": what, "architecture": "", "remark": "", "seconds": round(seconds, 1)}

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
        errors = None if self._show_errors else subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *self._options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        return self._process


def _line_within(stream: IO[str], limit_s: float) -> str:
    """The next line; "" at the end of the stream, or when the time is over."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
    try:
        return lines.get(timeout=limit_s)
    except queue.Empty:
        return ""


# --- the run


def run(names: list[str], options: argparse.Namespace, keep: Path | None) -> list[dict[str, Any]]:
    """Outcomes in the order of `names`; progress on standard error, each outcome appended to `keep` as it comes."""
    workers: queue.Queue[Worker] = queue.Queue()
    every = [Worker(options.limit_s, options.verbose, options.gradients) for _ in range(options.workers)]
    for worker in every:
        workers.put(worker)
    done, lock = 0, threading.Lock()

    def one(name: str) -> dict[str, Any]:
        nonlocal done
        worker = workers.get()
        try:
            outcome = worker.check(name)
        finally:
            workers.put(worker)
        with lock:
            done += 1
            if keep is not None:
                with keep.open("a") as file:
                    file.write(json.dumps(outcome) + "\n")
            print(
                f"{done:>3}/{len(names)} {name}: {outcome['verdict']} ({outcome['seconds']} s) {outcome['reason']}",
                file=sys.stderr,
            )
        return outcome

    try:
        with ThreadPoolExecutor(options.workers) as pool:
            return list(pool.map(one, names))
    finally:
        for worker in every:
            worker.stop()


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """Outcomes that an earlier run left, by name; a line cut short by a kill counts for nothing."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            outcome = json.loads(line)
            found[outcome["name"]] = outcome
        except (ValueError, KeyError):
            continue
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/families", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", action="append", metavar="NAME", default=[], help="check only this one, and write no table; can be repeated"
    )
    parser.add_argument("--gradients", action="store_true", help="compare gradients of those that are served exactly")
    parser.add_argument("--resume", action="store_true", help="keep the outcomes of an earlier run, and check the others")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument("--list", action="store_true", help="print the names, and end")
    parser.add_argument("--workers", type=int, default=1, help="processes, with one thread each (1)")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help=f"seconds for one configuration ({LIMIT_S:.0f})")
    parser.add_argument("--verbose", action="store_true", help="show what workers print")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.worker:
        work(options.gradients)
        return 0
    from family_configs import all_configurations
    from family_table import exact_names, gradients_of, summary, summary_of_gradients, table, with_gradients

    page, results = TABLE.read_text(), GRADIENTS if options.gradients else RESULTS
    names = exact_names(page) if options.gradients else list(all_configurations())
    if options.list:
        print("\n".join(names))
        return 0
    wanted = options.only or names
    if unknown := [name for name in wanted if name not in names]:
        print(f"no configuration {unknown[0]!r}; scripts/families --list names them", file=sys.stderr)
        return 2
    if not options.resume and not options.only:
        results.unlink(missing_ok=True)
    before = {} if options.only else earlier(results)
    outcomes = before | {
        outcome["name"]: outcome
        for outcome in run([name for name in wanted if name not in before], options, None if options.only else results)
    }
    ordered = [outcomes[name] for name in wanted]
    if options.json:
        print(json.dumps(ordered, indent=1))
    if not options.only:
        found = {one["name"]: one["verdict"] for one in ordered} if options.gradients else gradients_of(page)
        TABLE.write_text(with_gradients(page if options.gradients else table(ordered), found))
    print((summary_of_gradients if options.gradients else summary)(ordered))
    return 0 if all(outcome["verdict"] not in ("differs", "fails") for outcome in ordered) else 1


if __name__ == "__main__":
    sys.exit(main())
