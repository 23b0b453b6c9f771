"""`swarm report`: the page of a run from its metrics."""

from __future__ import annotations

from pathlib import Path

from node.cli.terminal import as_json
from node.cli.terminal.console import Lines
from node.cli.terminal.waiting import shown
from protocols.errors import CheckpointError, SwarmError
from swarm.waiting import Wait

DRAWING = Wait(kind="drawing", text="drawing the plots")


def run(folder: Path, *, is_json: bool) -> None:
    """Write it anew, and print where it is."""
    from node.training.report.page import write_report

    with shown() as on_wait:
        on_wait(DRAWING)
        written = write_report(folder)
    if is_json:
        as_json.show({"report": written.resolve()})
    else:
        print(written, flush=True)


def after_training(folder: Path, lines: Lines) -> None:
    """Write it at the end of a run; what keeps it from that is said, and no error. Without a version there is nothing to report."""
    from node.training.report.page import write_report

    try:
        lines.say("report", str(write_report(folder)))
    except CheckpointError:
        pass
    except SwarmError as error:
        lines.say("report", f"not written: {error}")
