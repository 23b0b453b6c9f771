"""Sends mutated inputs through every parser of untrusted data.

Refusals are typed, memory and time are bounded.

The same seed gives the same inputs; a fault names its input as SEED/PARSER/NUMBER, and --only PARSER --first NUMBER runs it again.

Run: scripts/fuzz [--inputs 1000000] [--seed 1] [--only PARSER] [--first N]; exit code 1 where a parser failed
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.hostile.fuzzing import PEAK_BYTES, PEAK_FACTOR, SLOW_S, Verdict, run  # noqa: E402
from tests.hostile.parsers import Parser, all_parsers  # noqa: E402

ROUNDS = 20
"""Each parser is fuzzed in so many rounds, and progress is printed after each."""


def arguments(parsers: dict[str, Parser]) -> argparse.Namespace:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--inputs", type=int, default=1_000_000, help="in all, shared by the parsers (1000000)")
    words.add_argument("--seed", type=int, default=1, help="the same seed gives the same inputs (1)")
    words.add_argument("--only", choices=sorted(parsers), metavar="PARSER", help=f"one of: {', '.join(sorted(parsers))}")
    words.add_argument("--first", type=int, default=0, help="number of the first input of each parser (0)")
    return words.parse_args()


def main() -> int:
    parsers = all_parsers()
    asked = arguments(parsers)
    chosen = {asked.only: parsers[asked.only]} if asked.only else parsers
    others = tuple(sample for parser in parsers.values() for sample in parser.samples)
    verdicts = {name: Verdict(name) for name in chosen}
    each = max(1, -(-asked.inputs // len(chosen)))
    started = time.monotonic()
    for turn in range(ROUNDS):
        first, last = each * turn // ROUNDS, each * (turn + 1) // ROUNDS
        for name, parser in chosen.items():
            run(name, parser, others, asked.seed, asked.first + first, last - first, verdicts[name])
        done, spent_s = last * len(chosen), time.monotonic() - started
        faults = sum(len(verdict.faults) for verdict in verdicts.values())
        print(f"{done} inputs, {done / spent_s:.0f} a second, {faults} faults", file=sys.stderr, flush=True)
    return report(list(verdicts.values()))


def report(verdicts: list[Verdict]) -> int:
    """Print a line a parser, and the faults. The exit code."""
    print(
        f"{'parser':22} {'inputs':>9} {'refused':>9} {'slowest':>10} {'peak':>10}   (peak: KB beyond {PEAK_FACTOR} x the input)"
    )
    for one in verdicts:
        print(f"{one.name:22} {one.inputs:9} {one.refused:9} {one.slowest_s * 1e3:7.2f} ms {one.peak_bytes / 1024:10.0f}")
    total, refused = sum(one.inputs for one in verdicts), sum(one.refused for one in verdicts)
    faults = [fault for one in verdicts for fault in one.faults]
    print(f"{total} inputs, {refused} refused, {len(faults)} faults (limits: {SLOW_S * 1e3:.0f} ms, {PEAK_BYTES >> 10} KB)")
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
