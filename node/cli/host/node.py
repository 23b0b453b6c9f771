"""`swarm node`: from flags to a running node.

Signals end it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from node.cli.flags import threads
from node.cli.flags.command_options import Hosting
from node.cli.host.following import following
from node.cli.host.switching import Switching
from node.cli.terminal import consent
from node.cli.terminal.console import Lines, forget_terminal, remark, show_cursor
from node.cli.terminal.fetching import FetchProgress
from node.cli.terminal.waiting import shown
from node.config import NodeConfig, Serve, parse_address, parse_port
from node.events import Event, OnEvent
from node.logs import Repetitions
from node.train_hours import TrainHours
from protocols.errors import BadRequestError, ConfigError
from protocols.ids import Span
from swarm import descriptors, garbage, places
from swarm.checkpoints import resolve

if TYPE_CHECKING:
    from node.telemetry import Telemetry
    from node.training.spec.run_file import RunFile

LAST_RESORT_S = 4.5
"""After the signal: a thread that reads or loads weights cannot be interrupted, so the process ends around it."""

LOOK_S = 0.1
"""Between two looks at whether that time is over."""


def run(serve: Sequence[Serve], flags: Hosting, run: RunFile | str | None = None) -> NoReturn:
    """Serve until Ctrl-C, SIGTERM or SIGHUP, then end the process; raises what kept the node from serving. run: it trains in that."""
    config = read(serve, flags, run)
    if flags.dashboard is None:
        if flags.operator_key is not None:
            raise ConfigError(
                "--operator-key is of the node's page: add --dashboard PORT; who may order here is said by --operators"
            )
        host(config, lambda hosted, on_event, _: hosted(on_event), flags.otlp)
    from node.cli.host.node_page import NodePage

    host(config, NodePage(config, flags.dashboard, flags.operator_key).run, flags.otlp)


Hosted = Callable[[OnEvent], Coroutine[object, object, None]]
"""A node, from its start until it is cancelled."""

Work = Callable[[Hosted, OnEvent, "Telemetry | None"], Coroutine[object, object, None]]
"""All that a command does with its node; traces are kept by the last argument."""


def host(
    config: NodeConfig, work: Work, otlp: str | None = None, last_resort_s: Callable[[], float] = lambda: LAST_RESORT_S
) -> NoReturn:
    """Run `work(node, on_event, traces)`, which starts the node, until a signal; then end the process.

    otlp: where traces are sent, as of `following`. last_resort_s: as for `run_until_signalled`.
    """
    descriptors.raise_limit()
    lines = Lines()
    on_event = _saying(lines)
    threads.wait_quietly()
    from swarm import trace
    from swarm.waiting import Waits, loading

    with shown() as on_wait, garbage.importing():
        on_wait(loading("torch"))
        from node.app import run_node  # 4 s of imports: only after the flags have proved right

        importlib.import_module("swarm.dht.node")  # its peer needs it next

    async def hosted(hear: OnEvent) -> None:
        if config.run is None:
            await run_node(config, hear, progress.show, waits)
        else:
            with Switching(config.train_hours) as switching:
                await run_node(config, switching.heard(hear), progress.show, waits, switching.switch)
        _LastResort(last_resort_s())  # an operator has ordered it: the rest of this process ends as by a signal

    with (
        following(otlp, "node", config.name) as telemetry,
        shown() as on_wait,
        FetchProgress(lines) as progress,
    ):
        waits = Waits(on_wait)
        run_until_signalled(lambda: work(hosted, on_event, telemetry), last_resort_s)
    lines.say("left")
    sys.stderr.flush()
    trace.flush()
    os._exit(0)  # everything of ours is closed; taking torch apart took 7 s more on a busy machine


def _saying(lines: Lines) -> OnEvent:
    """Says each event in a line of its own; a warning that repeats itself, once."""
    warned = Repetitions()

    def on_event(event: Event) -> None:
        if event.kind != "warning" or warned.is_new(event.text):
            lines.say(event.kind, event.text)

    return on_event


def run_of(given: str | None, fields: Sequence[str]) -> RunFile | str | None:
    """What `--run` names: a run file, with these fields of it (`--section.field VALUE`) replaced, or a run of the swarm, by its name.

    ConfigError as of `node.training.spec.reading.read`, and for fields without a file.
    """
    if given is not None and (given.endswith(".toml") or Path(given).is_file()):
        from node.training.spec.reading import parse_overrides, read

        return read(Path(given), parse_overrides(fields))
    if fields:
        run = f"the run {given} in the swarm has its own" if given else "--run is missing"
        raise ConfigError(f"{fields[0]} is a field of a run's file, and {run}: give --run RUN.toml, or leave the field out")
    return given


def read(serve: Sequence[Serve], flags: Hosting, run: RunFile | str | None = None) -> NodeConfig:
    """Parse and check the flags; ConfigError or BadRequestError names the one that is wrong. serve: at least one model."""
    first, *more = serve
    if more and flags.blocks is not None:
        raise ConfigError(
            f"--blocks says which blocks of one model, got it with {len(serve)}; give each its own in a [[serve]] table of the file"
        )
    for one in serve if run is None else ():
        resolve.check(one.model)
    blocks = first.blocks if flags.blocks is None else _span(flags.blocks)
    data_dir, into = flags.data_dir or places.data_dir(), flags.enter()
    return NodeConfig(
        model=first.model,
        run=run,
        train_hours=None if flags.train_hours is None else TrainHours.parse(flags.train_hours),
        train_share=flags.train_share,
        keep=flags.keep,
        more=tuple(more),
        model_name=flags.model_name,
        blocks=blocks,
        num_blocks=flags.num_blocks,
        ends=flags.ends,
        stays=flags.stay,
        peers=into.peers,
        lan=flags.lan,
        may_join=consent.asker(data_dir, into.swarm) if flags.lan else None,
        listen=parse_address(flags.listen, "--listen"),
        announce=None if flags.announce is None else parse_address(flags.announce, "--announce"),
        metrics=None if flags.metrics is None else parse_port(flags.metrics, "--metrics"),
        swarm=into.swarm,
        entry=into.entry,
        device=flags.device,
        dtype=flags.dtype,
        name=flags.name,
        is_test=flags.test_swarm,
        identity=flags.identity,
        data_dir=data_dir,
        upload_mbit=flags.upload_mbit,
        disk_gb=flags.disk_gb,
        is_quiet=flags.quiet,
        accept_new_weights=flags.accept_new_weights,
    )


def _span(text: str) -> Span:
    try:
        return Span.parse(text)
    except BadRequestError as error:
        raise ConfigError(f"--blocks: {error}") from None


def run_until_signalled(
    serve: Callable[[], Coroutine[object, object, None]], last_resort_s: Callable[[], float] = lambda: LAST_RESORT_S
) -> None:
    """Run `serve()` on a loop of its own and cancel it at the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.

    So do `last_resort_s()` seconds, asked at the signal, until the loop is closed. SIGHUP says that the terminal was closed, so nothing is
    written to it any more. Under `nohup` it stays ignored.
    """
    with contextlib.ExitStack() as ending:

        def on_signal() -> None:
            ending.callback(_LastResort(last_resort_s()).cancel)

        asyncio.run(_until_signalled(serve, on_signal))


async def _until_signalled(serve: Callable[[], Coroutine[object, object, None]], on_signal: Callable[[], None]) -> None:
    task = asyncio.create_task(serve())
    was_signalled = False

    def leave(number: int) -> None:
        nonlocal was_signalled
        if number == signal.SIGHUP:
            forget_terminal()
        if was_signalled:
            show_cursor()
            os._exit(130)
        was_signalled = True
        task.cancel()
        on_signal()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, leave, number)
    try:
        await task
    except asyncio.CancelledError:
        if not was_signalled:
            raise


class _LastResort(threading.Thread):
    """Ends the process after so many seconds, whatever goes on. Those in which it did not run itself do not count."""

    def __init__(self, after_s: float) -> None:
        super().__init__(name="last resort", daemon=True)
        self._left_s, self._is_cancelled = after_s, threading.Event()
        self.start()

    def run(self) -> None:
        while self._left_s > 0:
            if self._is_cancelled.wait(LOOK_S):
                return
            self._left_s -= LOOK_S
        _give_up()

    def cancel(self) -> None:
        self._is_cancelled.set()


def _give_up() -> None:
    remark("left without waiting for a thread that was still busy")
    show_cursor()
    os._exit(0)
