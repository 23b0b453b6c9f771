"""`swarm report`: the page of a run from its metrics."""

from __future__ import annotations

from pathlib import Path

from node.cli.console import Lines
from protocols.errors import CheckpointError, SwarmError


def run(folder: Path) -> None:
    """Write it anew, and print where it is."""
    from node.training.report.page import write_report

    print(write_report(folder), flush=True)


def after_training(folder: Path, lines: Lines) -> None:
    """Write it at the end of a run; what keeps it from that is said, and no error. Without a version there is nothing to report."""
    from node.training.report.page import write_report

    try:
        lines.say("report", str(write_report(folder)))
    except CheckpointError:
        pass
    except SwarmError as error:
        lines.say("report", f"not written: {error}")
