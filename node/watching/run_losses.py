"""Training runs with their losses, for `swarm top`. Pure.

The losses are what trainers tell (`node/watching/journals.py`); who takes part is what peers announce.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from node.watching.look import Look
from protocols.ids import ModelId
from protocols.words import counted

if TYPE_CHECKING:
    from node.training.report.history import History

Histories: TypeAlias = "Mapping[ModelId, History]"
"""What trainers have told, by run."""

CURVE = "▁▂▃▄▅▆▇█"
CURVE_LETTERS = 24
"""So many of the newest versions, or means of several of them, are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLosses:
    """One run."""

    name: str
    digest: str
    members: Mapping[str, int]
    """How many peers have each role."""
    served_version: int
    """The newest that nodes serve; 0 = none."""
    version: int | None
    """The newest that a trainer tells of; None = no trainer has told anything, and so for what follows."""
    loss: float | None
    validation_loss: float | None
    """At the newest evaluation."""
    tokens_per_s: float | None
    losses: tuple[float, ...]
    """Of the newest versions, oldest first; each is a mean if there are many."""


def rows(look: Look, histories: Histories) -> list[RunLosses]:
    """All runs, by name."""
    members: dict[ModelId, Counter[str]] = {}
    for record in look.records.values():
        for role in record.roles:
            members.setdefault(role.model, Counter())[role.kind] += 1
    served = {(model.name, model.digest): max((row.version for row in model.peers), default=0) for model in look.models}
    return [
        _row(run, counts, served.get((run.name, run.digest), 0), histories.get(run))
        for run, counts in sorted(members.items(), key=lambda item: (item[0].name, item[0].digest))
    ]


def _row(run: ModelId, members: Mapping[str, int], served_version: int, history: History | None) -> RunLosses:
    newest = history.versions[-1] if history is not None and history.versions else None
    evaluated = history.evaluated("loss") if history is not None else []
    return RunLosses(
        name=run.name, digest=run.digest, members=dict(sorted(members.items())), served_version=served_version,
        version=None if newest is None else int(newest["version"]),
        loss=None if newest is None else newest["loss"],
        validation_loss=evaluated[-1] if evaluated else None,
        tokens_per_s=None if newest is None else float(newest["tokens_per_s"]),
        losses=() if history is None else _newest([version["loss"] for version in history.versions]),
    )  # fmt: skip


def _newest(losses: Sequence[float | None]) -> tuple[float, ...]:
    """CURVE_LETTERS of them at most: the whole curve, in means of as many versions each."""
    known = [loss for loss in losses if loss is not None]
    size = -(-len(known) // CURVE_LETTERS) or 1
    parts = [known[max(0, stop - size) : stop] for stop in range(len(known), 0, -size)]
    return tuple(sum(part) / len(part) for part in reversed(parts))


def lines(run: RunLosses) -> Iterator[str]:
    """Who takes part, then how far it is."""
    what = ", ".join(counted(number, kind) for kind, number in run.members.items())
    yield f"run {run.name}@{run.digest[:12]}: {what}{f', serves version {run.served_version}' if run.served_version else ''}"
    if run.version is None:
        return
    said = [f"version {run.version}", f"loss {run.loss:.3f}" if run.loss is not None else "no loss known"]
    if run.validation_loss is not None:
        said.append(f"validation {run.validation_loss:.3f}")
    said.append(f"{run.tokens_per_s or 0:,.0f} tokens/s")
    yield f"  {', '.join(said)}  {curve(run.losses)}".rstrip()


def curve(values: Sequence[float]) -> str:
    """A letter for each, the higher, the larger it is beside the others; nothing for one alone."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    top = len(CURVE) - 1
    return "".join(CURVE[round((value - low) / (high - low) * top) if high > low else 0] for value in values)
