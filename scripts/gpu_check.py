"""Checks serving and training with CUDA, without a network.

Tests of every engine, then decode, prefill and captured forwards; with --training a stage's forward, backward and step instead. Every
section is a process of its own with a time limit, so one that fails, hangs or breaks the device's context stops no other. All limits
together stay below eight minutes. Speeds are shares of what the same card was just measured to copy and to multiply.

Run: scripts/gpu_check --fetch                          here: wheels into .gpu_wheels (an ignored folder that travels)
     scripts/gpu_check [--only decode prefill]          there: JSON into $OUT/gpu_check.json, a table last; 1 if a section failed
     scripts/gpu_check --training                       there: the share of the card's matrix rate that training reaches
     scripts/gpu_check --device cpu --small             the same code without a card, in a minute
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu import table, wheels
from pip_download import DownloadError

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / ".gpu_wheels"
LIMITS_S = {"tests": 190, "ceilings": 45, "model": 75, "decode": 75, "prefill": 45, "graphs": 45}
"""Seconds of each section of serving, imports included. `model` writes the checkpoint that those after it load."""

TRAINING_S = 180
"""Seconds of section `training`, which is not among the usual ones."""

SECTIONS = (*LIMITS_S, "training")


def section(name: str, device: str, is_small: bool, folder: Path) -> dict[str, Any]:
    """What one section finds, in this process."""
    from gpu import blocks, ceilings, sizes, speed, suite, training

    size = sizes.SMALL if is_small else sizes.FULL
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "tests": lambda: suite.run(device, size),
        "ceilings": lambda: ceilings.measure(device, size),
        "model": lambda: blocks.make(device, size, folder),
        "decode": lambda: speed.decode(device, size, folder),
        "prefill": lambda: speed.prefill(device, size, folder),
        "graphs": lambda: speed.graphs(device, size, folder),
        "training": lambda: training.measure(device, size, folder),
    }
    return measures[name]()


def run(name: str, arguments: argparse.Namespace, folder: Path, site: Path) -> tuple[dict[str, Any], str | None]:
    """A section in its own process: what it found (nothing if it gave no result), and what is wrong."""
    result, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, __file__, "--device", arguments.device, "--section", name, "--folder", str(folder)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "pytest_timeout",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command + ["--small"] * arguments.small,
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit_s(name))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    if code is None:
        return found, f"it took longer than {limit_s(name)} s"
    if not result.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [
            f"it said nothing (exit code {code})"
        ]
        return found, lines[-1].strip()[:300]
    fault = found.pop("fault", None)
    return found, fault


def check(arguments: argparse.Namespace) -> int:
    """All wanted sections, one after the other; the JSON, then the table."""
    started = time.monotonic()
    out = arguments.out or (Path(os.environ["OUT"]) / "gpu_check.json" if os.environ.get("OUT") else None)
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="murmuration-gpu-") as temporary:
        folder, site = Path(temporary), Path(temporary) / "site"
        num_wheels = wheels.unpack(carried(arguments.wheels), site)
        for name in with_model(arguments.only):
            print(f"gpu_check: {name} (at most {limit_s(name)} s)", file=sys.stderr, flush=True)
            found, fault = run(name, arguments, folder, site)
            if found:
                done[name] = found
            if fault is not None:
                failed[name] = fault
                _keep_log(folder / f"{name}.log", out)
    result = table.with_shares(
        {
            "check": "gpu",
            "device": arguments.device,
            "small": arguments.small,
            "wheels": num_wheels,
            "seconds": round(time.monotonic() - started, 1),
            "sections": done,
            "failed": failed,
        }
    )
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table.text(result))
    if out is None:
        print("gpu_check: no JSON was written; --out FILE, or the variable OUT, names a place", file=sys.stderr)
    return 1 if failed else 0


def carried(given: Path | None) -> Path | None:
    """The folder of wheels to use: the given one, or `.gpu_wheels` if they are for this Python; None = what is installed will do."""
    if given is not None or not WHEELS.is_dir():
        return given
    return WHEELS if f"{sys.version_info.major}.{sys.version_info.minor}" == wheels.PYTHON else None


def with_model(names: list[str]) -> list[str]:
    """The sections in order, with what they need."""
    needs_model = {"decode", "prefill", "graphs", "training"} & set(names)
    needed = {*names, *(["model"] if needs_model else [])}
    return [name for name in SECTIONS if name in needed]


def limit_s(name: str) -> int:
    """Seconds that a section may take."""
    return LIMITS_S.get(name, TRAINING_S)


def _keep_log(log: Path, out: Path | None) -> None:
    """A failed section's output: its end to stderr, all of it beside the JSON."""
    text = log.read_text(errors="replace")
    print("".join(text.splitlines(keepends=True)[-40:]), file=sys.stderr)
    if out is not None:
        out.with_name(f"{out.stem}.{log.name}").write_text(text, encoding="utf-8")


def fetch(folder: Path) -> int:
    """The wheels, with their sizes."""
    try:
        found = wheels.fetch(folder, ROOT / "requirements.lock")
    except (wheels.WheelsError, DownloadError) as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    for name, size in found:
        print(f"{size / 1e6:8.2f} MB  {name}")
    print(
        f"{sum(size for _, size in found) / 1e6:8.2f} MB  in {len(found)} wheels in {folder}, at most {wheels.MAX_BYTES / 1e6:.0f}"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, and the tests of one family for each engine")
    parser.add_argument(
        "--only", nargs="+", default=list(LIMITS_S), choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS)
    )
    parser.add_argument(
        "--training",
        action="store_const",
        dest="only",
        const=["ceilings", "training"],
        help="the same as --only ceilings training",
    )
    parser.add_argument("--out", type=Path, help="the JSON's file (default: gpu_check.json in the folder that OUT names)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels (default: .gpu_wheels, if it is there and for this Python)")
    parser.add_argument("--fetch", action="store_true", help="only download the wheels into that folder")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fetch:
        return fetch(arguments.wheels or WHEELS)
    if arguments.section:
        found = section(arguments.section, arguments.device, arguments.small, arguments.folder)
        (arguments.folder / f"{arguments.section}.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    return check(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
