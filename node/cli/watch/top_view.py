"""A swarm as lines of a terminal. Pure.

Texts of peers have no control characters here: all go through `one_line`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, tzinfo
from types import MappingProxyType

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from node.watching import run_losses
from node.watching.changes import Change, label
from node.watching.grid import LOADS, level_of
from node.watching.look import Look
from node.watching.model_rows import PeerRow
from node.watching.verdict import verdict
from protocols.ids import PeerId
from protocols.words import counted, one_line
from swarm.suggestion import NodeCommand

LEAST_EVENTS = 4
"""Lines of events that there are, however many nodes there are."""

STATE_STYLES = {"serving": "green", "silent": "bold red", "joining": "yellow", "draining": "yellow", "paused": "yellow"}
LOAD_STYLES = ("", "", "yellow", "bold red")
EVENT_STYLES = {"died": "bold red", "gap": "bold red", "problem": "bold red", "failover": "yellow", "left": "yellow"}
BAR = "·▁▃▅█"
"""Of a block: no node, one, two, three, more."""

NAME, TRIP = 22, 9
WIDE_COLUMNS = 78
"""A narrower terminal gets fewer columns."""


def screen(
    swarm: str, look: Look, changes: Iterable[Change], hosting: NodeCommand, columns: int, rows: int, zone: tzinfo | None = None,
    histories: run_losses.Histories = MappingProxyType({}),
) -> list[Text]:  # fmt: skip
    """At most `rows` lines of at most `columns` cells: models with their nodes, runs, and below them the newest events.

    zone: of times. histories: of runs, as trainers tell them.
    """
    head = [_head(swarm, look, zone)]
    body = [*_models(look, hosting, columns), *_runs(look, histories)]
    told = list(changes)
    num_events = max(min(len(told), LEAST_EVENTS), rows - len(head) - len(body) - 2)
    kept = max(0, rows - len(head) - 2 - min(num_events, len(told)))
    if len(body) > kept:
        body = [
            *body[: max(0, kept - 1)],
            Text(f"… and {len(body) - max(0, kept - 1)} more lines, which need a higher window", "dim"),
        ]
    events = (
        [_event(one, zone) for one in told[-num_events:]] if told and num_events > 0 else [Text("nothing has changed yet", "dim")]
    )
    lines = [*head, *body, Text("events", "bold"), *events]
    return [_cut(line, columns) for line in lines[:rows]]


def _head(swarm: str, look: Look, zone: tzinfo | None) -> Text:
    at = datetime.fromtimestamp(look.at_s, zone)
    counts = f"{counted(len(look.records), 'node')}, {counted(len(look.models), 'model')}"
    made = Text(f"swarm {one_line(swarm)}: {counts}, at {at:%H:%M:%S}", "bold")
    if look.problem:
        made.append(f"  {one_line(look.problem)}", "bold red")
    return made


def _models(look: Look, hosting: NodeCommand, columns: int) -> Iterator[Text]:
    if not look.models:
        yield Text(f"no node serves any model; be the first: {hosting.text('MODEL')}")
    for rows in look.models:
        yield Text(one_line(f"{rows.name}@{rows.digest[:12]}, {counted(rows.num_blocks, 'block')}"), "bold cyan")
        said, *command = verdict(rows, hosting)
        yield Text(one_line(f"  {said}"), "bold red" if command else "")
        for line in command:
            yield Text(one_line(f"  {line}"))
        yield Text(f"  {_bar(rows.replicas, columns - 2)}", "green")
        yield Text(f"  {_columns(_HEADINGS, columns)}", "dim")
        for row in rows.peers:
            yield _node(row, look, columns)


_HEADINGS = ("blocks", "node", "state", "load", "waiting", "step", "free tokens", "trip")


def _node(row: PeerRow, look: Look, columns: int) -> Text:
    """A node's blocks: how busy, how fast, how far away."""
    level, trip = level_of(row), look.trips_ms.get(PeerId(row.peer))
    load = LOADS[level] if row.state == "serving" else ""
    cells = (
        f"{row.start}:{row.stop}{' +ends' if row.ends else ''}", label(row.name, row.peer), row.state, load, str(row.queue),
        f"{row.step_ms:.1f} ms" if row.step_ms else "-", f"{row.free_tokens:,}", "-" if trip is None else f"{trip:.1f} ms",
    )  # fmt: skip
    style = LOAD_STYLES[level] or STATE_STYLES.get(row.state, "")
    return Text(f"  {_columns(cells, columns)}", "" if row.state == "serving" and not LOAD_STYLES[level] else style)


def _columns(cells: Sequence[str], columns: int) -> str:
    """One table row; a narrow terminal gets the columns that matter most."""
    blocks, node, state, load, waiting, step, free, trip = map(one_line, cells)
    start = f"{set_cell_size(blocks, 11)} {set_cell_size(node, NAME)} {state:<8} {load:<9}"
    if columns < WIDE_COLUMNS:
        return f"{set_cell_size(blocks, 11)} {state:<8} {waiting:>7} {set_cell_size(node, NAME)}"
    end = f" {trip:>{TRIP}}" if columns >= WIDE_COLUMNS + 24 else ""
    more = f" {free:>11}" if columns >= WIDE_COLUMNS + 12 else ""
    return f"{start} {waiting:>7} {step:>9}{more}{end}"


def _bar(replicas: Sequence[int], columns: int) -> str:
    """A letter for each block, or for several of them the one with the fewest nodes."""
    per = -(-len(replicas) // max(1, columns))
    parts = [min(replicas[start : start + per]) for start in range(0, len(replicas), per)]
    return "".join(BAR[min(count, len(BAR) - 1)] for count in parts)


def _runs(look: Look, histories: run_losses.Histories) -> Iterator[Text]:
    """Two lines for each training run."""
    for row in run_losses.rows(look, histories):
        first, *more = run_losses.lines(row)
        yield Text(one_line(first), "cyan")
        yield from (Text(one_line(line)) for line in more)


def _event(one: Change, zone: tzinfo | None) -> Text:
    at = datetime.fromtimestamp(one.at_s, zone)
    return Text(f"  {at:%H:%M:%S} {one.kind:<9} {one_line(one.text)}", EVENT_STYLES.get(one.kind, ""))


def _cut(line: Text, columns: int) -> Text:
    """No wider than the terminal."""
    if cell_len(line.plain) > columns:
        line.truncate(columns, overflow="ellipsis")
    return line
