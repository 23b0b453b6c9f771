"""Attacks a swarm of real nodes and measures honest clients.

Six nodes on this machine; four honest clients ask meanwhile. It prints what each attack cost them.

Before and after each attack the same clients are measured undisturbed, and the ratio is to the mean of both. Attackers that would
take a core of this machine from those whom they attack run at its lowest priority: they have what nodes and clients leave.

Run: scripts/attack [--only swallow refuse] [--seconds 20]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import attacks  # noqa: E402

RECOVERY_S = 90.0
"""Longest wait for all clients to be answered as before: a dead node's record lives 60 s."""

COLUMNS = ("attack", "rate", "latency", "wrong", "errors", "back", "MB", "+5 s", "files", "CPU", "hello")
"""Of the table; its caption explains them."""

CAPTION = (
    "rate: right answers a second, of undisturbed (goal: 0.8, and none wrong); latency: of one answer, likewise; back: seconds until all "
    "clients are served as before; MB: what all nodes took at most, and hold 5 s after the end, beyond before; files: most of one process; "
    "CPU: of all nodes, of undisturbed; hello: the longest of a bystander, in seconds"
)

GOAL = 0.8
"""Of the undisturbed throughput."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was seen from one moment to another."""

    answers_s: float
    """Right answers a second, all clients together."""
    median_s: float
    """How long a right answer took; NaN without any."""
    longest_s: float
    num_wrong: int
    num_errors: int
    error: str
    """The first one."""
    megabytes: float
    """Most that all nodes together held."""
    descriptors: int
    cpu: float
    """CPU seconds a second, all nodes together."""
    stall_s: float
    """The longest hello of a bystander."""


def look(arena: Any, watch: Any, begin_s: float, end_s: float) -> Window:
    """The window from `begin_s` to `end_s` (Unix times)."""
    answers = [one for one in arena.answers() if begin_s <= one["ended"] < end_s]
    right = [one["ended"] - one["began"] for one in answers if one["is_right"]]
    errors = [one["error"] for one in answers if one["error"]]
    samples = [one for one in watch.samples if begin_s <= one.at_s < end_s]
    return Window(
        answers_s=len(right) / (end_s - begin_s),
        median_s=median(right) if right else float("nan"),
        longest_s=max(right, default=float("nan")),
        num_wrong=sum(not one["is_right"] and not one["error"] for one in answers),
        num_errors=len(errors),
        error=errors[0] if errors else "",
        megabytes=max(one.megabytes for one in samples),
        descriptors=max(one.descriptors for one in samples),
        cpu=(samples[-1].cpu_s - samples[0].cpu_s) / max(0.1, samples[-1].at_s - samples[0].at_s),
        stall_s=max((one.took_s for one in watch.hellos if begin_s <= one.at_s < end_s), default=float("nan")),
    )


def recovered(arena: Any, since_s: float, usual_s: float) -> float:
    """Seconds from `since_s` until every client had a right answer, begun after it, in at most twice the usual time; NaN = not in time."""
    while time.time() < since_s + RECOVERY_S:
        found: dict[int, float] = {}
        for one in arena.answers():
            is_usual = one["is_right"] and one["began"] >= since_s and one["ended"] - one["began"] <= 2 * usual_s
            if is_usual and one["client"] not in found:
                found[one["client"]] = one["ended"] - since_s
        if len(found) == len(arena.clients):
            return max(found.values())
        time.sleep(0.25)
    return float("nan")


def run_one(arena: Any, watch: Any, name: str, seconds: float) -> dict[str, Any]:
    """Undisturbed, attacked, recovered, undisturbed again."""
    before = _wait(arena, watch, seconds)
    with arena.attacker(name) as process:
        if name in attacks.BUSY:
            os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        _until_it_attacks(arena, name)
        attacked = _wait(arena, watch, seconds)
    ended_s = time.time()
    recovery_s = recovered(arena, ended_s, max(0.1, before.median_s))
    time.sleep(max(0.0, ended_s + 5 - time.time()))
    after_megabytes = watch.samples[-1].megabytes
    after = _wait(arena, watch, seconds)
    usual = (before.answers_s + after.answers_s) / 2
    return {
        "attack": name,
        "throughput": attacked.answers_s / usual if usual else float("nan"),
        "latency": attacked.median_s / median([before.median_s, after.median_s]),
        "recovery_s": recovery_s,
        "megabytes_after_5_s": after_megabytes,
        **{key: asdict(window) for key, window in (("before", before), ("attacked", attacked), ("after", after))},
    }


def _until_it_attacks(arena: Any, name: str) -> None:
    said = arena.folder / f"attacker-{name}.stdout"
    deadline = time.monotonic() + 60
    while said.read_text().count("attacking") < attacks.PROCESSES.get(name, 1) and time.monotonic() < deadline:
        time.sleep(0.1)


def _wait(arena: Any, watch: Any, seconds: float) -> Window:
    begin_s = time.time()
    time.sleep(seconds)
    return look(arena, watch, begin_s, time.time())


def table(rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    shown = Table(title="honest clients and nodes under attack", caption=CAPTION, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "attack" else "right", no_wrap=True, min_width=4)
    for row in rows:
        before, now = row["before"], row["attacked"]
        is_met = row["throughput"] >= GOAL and not now["num_wrong"]
        shown.add_row(
            row["attack"],
            f"{'' if is_met else '[red]'}{row['throughput']:.2f}",
            f"{row['latency']:.1f}",
            f"{now['num_wrong']}",
            f"{now['num_errors']}",
            f"{row['recovery_s']:.1f}",
            f"{now['megabytes'] - before['megabytes']:+.0f}",
            f"{row['megabytes_after_5_s'] - before['megabytes']:+.0f}",
            f"{now['descriptors']}",
            f"{now['cpu'] / before['cpu']:.1f}",
            f"{now['stall_s']:.1f}",
        )
    return shown


def run(names: list[str], seconds: float, folder: Path) -> list[dict[str, Any]]:
    from attacks.arena import arena
    from volunteers import console

    rows = []
    with arena(folder) as place:
        watch = place.watch()
        watch.start()
        for name in names:
            with console.status(f"{name}: {attacks.NAMES[name]}"):
                rows.append(run_one(place, watch, name, seconds))
            console.print(f"{name}: {rows[-1]['throughput']:.2f} of the undisturbed rate")
        watch.stop()
    return rows


def main() -> int:
    what = "\n".join(f"  {name:12}{text}" for name, text in attacks.NAMES.items())
    parser = argparse.ArgumentParser(
        prog="scripts/attack", description=(__doc__ or "").partition("\n")[0], epilog=f"attacks:\n{what}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", default=list(attacks.NAMES), choices=attacks.NAMES, metavar="ATTACK")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each attack, and before and after it (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="also write everything that was measured as JSON to this file")
    parser.add_argument("--keep", action="store_true", help="keep what nodes, clients and attackers said, and say where")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything ends with us
    os.environ.update(OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error")
    from volunteers import VolunteerError, console

    folder = Path(tempfile.mkdtemp(prefix="murmuration-attack-"))
    try:
        rows = run(arguments.only, arguments.seconds, folder)
    except VolunteerError as error:
        print(f"attack: {error}", file=sys.stderr)
        arguments.keep = True
        return 1
    finally:
        if arguments.keep:
            print(f"attack: the output of all processes is in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["throughput"] >= GOAL and not row["attacked"]["num_wrong"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
