"""`swarm train`: a trainer, a run in one process, or a description."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli import node
from node.cli.console import Lines
from node.cli.options import Training
from node.config import Serve
from node.events import Event
from node.logs import Repetitions
from swarm import descriptors

if TYPE_CHECKING:
    from node.training.metrics import VersionRow
    from node.training.spec.run_file import RunFile


def run(file: Path, flags: Training, words: Sequence[str]) -> None:
    """Train until the run's last version, or Ctrl-C. words: `--section.field value …`, in place of what the file says."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from node.training.spec.reading import parse_overrides, read

    run_file = read(file, parse_overrides(words))
    if flags.dry_run:
        _describe(run_file)
        return
    lines = Lines()
    if flags.local:
        _train_locally(run_file, flags, lines)
    else:
        _train(run_file, flags, lines)


def _describe(run_file: RunFile) -> None:
    from node.training.spec.description import describe, lines
    from node.training.spec.model_plan import plan_model

    for line in lines(describe(run_file, plan_model(run_file))):
        print(line)


def _train(run_file: RunFile, flags: Training, lines: Lines) -> None:
    config = node.read([Serve(model=run_file.name)], flags.hosting())
    descriptors.raise_limit()
    from node.runs.trainer import TrainConfig, run_trainer
    from swarm import trace

    warned = Repetitions()

    def on_event(event: Event) -> None:
        if event.kind != "warning" or warned.is_new(event.text):
            lines.say(event.kind, event.text)

    train = TrainConfig(file=run_file, node=config, folder=flags.out / run_file.name)
    asyncio.run(node.until_signalled(lambda: run_trainer(train, on_event, lambda row: lines.say("version", told(row)))))
    lines.say("left")
    sys.stderr.flush()
    trace.flush()
    os._exit(0)  # as `swarm node` does


def _train_locally(run_file: RunFile, flags: Training, lines: Lines) -> None:
    from node.runs.local_trainer import train_locally
    from swarm import places

    train_locally(
        run_file,
        flags.data_dir or places.data_dir(),
        flags.out / run_file.name,
        lambda event: lines.say(event.kind, event.text),
        lambda row: lines.say("version", told(row)),
    )


def told(row: VersionRow) -> str:
    """One line about a version."""
    redone = f", {row.redone} redone" if row.redone else ""
    return (
        f"{row.version}: loss {row.loss:.4f}, lr {row.lr:.2e}, {row.tokens_per_s:,.0f} tokens/s, {row.peers} stages, "
        f"{row.bytes_sent / 1e6:.1f} MB sent{redone}"
    )
