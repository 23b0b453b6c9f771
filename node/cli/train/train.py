"""`swarm train`: a trainer, a run in one process, or a description."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.flags import threads
from node.cli.flags.command_options import Training
from node.cli.host import node
from node.cli.terminal import as_json
from node.cli.terminal.console import Lines
from node.cli.terminal.waiting import shown
from node.cli.train import report
from node.cli.train.train_display import open_display
from node.config import Serve
from node.events import Event
from node.logs import Repetitions
from node.training.amounts import size
from protocols.errors import ConfigError
from protocols.words import counted
from swarm import descriptors, garbage
from swarm.waiting import Waits, loading

if TYPE_CHECKING:
    from node.training.spec.run_file import RunFile


def run(file: Path, flags: Training, words: Sequence[str]) -> None:
    """Train until the run's last version, or Ctrl-C. words: `--section.field value …`, in place of what the file says."""
    threads.wait_quietly()
    from node.training.spec.reading import parse_overrides, read

    _refuse_misspelt(words)
    if flags.as_json and not flags.dry_run:
        raise ConfigError("--json is how --dry-run prints, and training prints lines: give --dry-run too, or leave --json out")
    run_file = read(file, parse_overrides(words))
    if flags.dry_run:
        _describe(run_file, flags.as_json)
        return
    if flags.local:
        _train_locally(run_file, flags)
    else:
        _train(run_file, flags)


def _refuse_misspelt(words: Sequence[str]) -> None:
    """ConfigError for the first word that is none of our flags, but nearly one: it would be taken for a field of the run."""
    flags = [f"--{one.name.replace('_', '-')}" for one in dataclasses.fields(Training)]
    for word in words:
        if (
            word.startswith("--")
            and "." not in word
            and (near := difflib.get_close_matches(word.partition("=")[0], flags, 1, 0.75))
        ):
            raise ConfigError(f"unknown option {word[:80]}: did you mean {near[0]}? see swarm train --help")


def _describe(run_file: RunFile, is_json: bool) -> None:
    from node.training.spec.description import describe, facts, lines
    from node.training.spec.model_plan import plan_model

    description, sources = describe(run_file, plan_model(run_file)), list(_sources(run_file))
    if is_json:
        as_json.show({**facts(description), "sources": [asdict(one) for one in sources]})
        return
    for line in (*lines(description), *map(str, sources)):
        print(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHere:
    """Which files of a source of data are on this machine."""

    source: str
    num_files: int = 0
    num_bytes: int = 0
    problem: str | None = None
    """Why it cannot be read here."""

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.problem}; a trainer needs it, a node does not"
        return f"{self.source}: {counted(self.num_files, 'file')} of {size(self.num_bytes)} here"


def _sources(run_file: RunFile) -> Iterator[SourceHere]:
    from node.training.data.sources import files_of

    for name in ("train", "validation"):
        for number, source in enumerate(getattr(run_file.data, name)):
            where = f"data.{name}[{number}]"
            try:
                files = files_of(source, Path("/"), where)
            except ConfigError as error:
                yield SourceHere(source=where, problem=str(error))
            else:
                yield SourceHere(source=where, num_files=len(files), num_bytes=sum(file.size() for file in files))


def _train(run_file: RunFile, flags: Training) -> None:
    config = node.read([Serve(model=run_file.name)], flags.hosting())
    descriptors.raise_limit()
    with _loading():
        from node.runs.trainer.trainer import TrainConfig, run_trainer
        from node.training.report.tensorboard import TensorBoard
        from swarm import trace

    warned = Repetitions()
    train = TrainConfig(file=run_file, node=config, folder=flags.out / run_file.name)
    try:
        with (
            open_display(run_file.name, _num_steps(run_file)) as display,
            TensorBoard(train.folder) as board,
            shown() as on_wait,
        ):

            def on_event(event: Event) -> None:
                if event.kind != "warning" or warned.is_new(event.text):
                    display.event(event)

            node.run_until_signalled(lambda: run_trainer(train, on_event, [display.row, board.write], waits=Waits(on_wait)))
    finally:
        report.after_training(train.folder, Lines())
    Lines().say("left")
    sys.stderr.flush()
    trace.flush()
    os._exit(0)  # as `swarm node` does


def _train_locally(run_file: RunFile, flags: Training) -> None:
    with _loading():
        from node.runs.trainer.local_trainer import train_locally
        from node.training.report.tensorboard import TensorBoard
        from swarm import places

    folder, data_dir = flags.out / run_file.name, flags.data_dir or places.data_dir()
    try:
        with open_display(run_file.name, _num_steps(run_file)) as display, TensorBoard(folder) as board, shown() as on_wait:
            train_locally(run_file, data_dir, folder, display.event, [display.row, board.write], waits=Waits(on_wait))
    finally:
        report.after_training(folder, Lines())


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Shows that torch is being imported, which takes seconds."""
    with shown() as on_wait, garbage.importing():
        on_wait(loading("torch"))
        yield


def _num_steps(run_file: RunFile) -> int:
    """Versions of the run, computed from tokens or a ratio if the file says those."""
    from node.training.spec.model_plan import plan_model

    return run_file.training.num_steps(plan_model(run_file).num_parameters)
