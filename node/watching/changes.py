"""What has changed between two looks at a swarm. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from node.watching.look import Look
from node.watching.model_rows import PAUSED, ModelRows, PeerRow
from protocols.ids import PeerId, short_peer
from protocols.words import one_line

KINDS = (
    "joined",
    "left",
    "died",
    "returned",
    "loads",
    "moved",
    "version",
    "gap",
    "complete",
    "failover",
    "order",
    "paused",
    "resumed",
    "problem",
)
"""What is told, as it is called in the list of events."""

MAX_LETTERS = 300
"""Of one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of the list of events."""

    at_s: float
    """Unix time."""

    kind: str
    text: str
    """One line without control characters."""

    peer: str = ""
    """Whom it is about; empty = no single peer."""


def change(at_s: float, kind: str, text: str, peer: str = "") -> Change:
    """A change whose text may come from anyone: it is made safe to show."""
    return Change(at_s=at_s, kind=kind, text=one_line(text)[:MAX_LETTERS], peer=peer)


def label(name: str, peer: str) -> str:
    """What a peer is called here: its own name, and the end of its PeerID, which it cannot choose freely."""
    return one_line(f"{name} {short_peer(PeerId(peer))}".strip())


def between(before: Look, now: Look) -> list[Change]:
    """In the order in which they matter to a reader: peers first, then what that means for the models."""
    return [*_peers(before, now), *_models(before, now)]


def _peers(before: Look, now: Look) -> Iterator[Change]:
    old, new = _rows(before), _rows(now)
    for peer in sorted({*old, *new}, key=lambda one: (one not in new, one)):
        rows = new.get(peer) or old[peer]
        who, is_silent, was_silent = label(rows[0][1].name, peer), peer in now.silent, peer in before.silent
        if peer not in old:
            if not is_silent:
                yield change(now.at_s, "joined", f"{who} {_hosts(rows)}", peer)
        elif peer not in new:
            if not was_silent:
                yield change(now.at_s, "left", f"{who}, which {_hosts(rows)}", peer)
        elif is_silent and not was_silent and all(row.state == "draining" for _, row in old[peer]):
            yield change(now.at_s, "left", f"{who}, as it had said: it takes no sessions any more, and does not answer", peer)
        elif is_silent != was_silent:
            kind, what = ("died", "does not answer any more; it") if is_silent else ("returned", "answers again; it")
            yield change(now.at_s, kind, f"{who} {what} {_hosts(old[peer] if is_silent else rows)}", peer)
        elif not is_silent:
            yield from _moves(now.at_s, who, peer, old[peer], rows)


def _moves(at_s: float, who: str, peer: str, old: list[tuple[str, PeerRow]], new: list[tuple[str, PeerRow]]) -> Iterator[Change]:
    for model in sorted({name for name, _ in (*old, *new)}):
        was, is_now = _spans(old, model), _spans(new, model)
        for span in sorted(is_now.keys() - was.keys()):
            if is_now[span].state == "joining":
                yield change(at_s, "loads", f"{who} loads blocks {span} of {model}", peer)
        served, serves = (_serving(spans) for spans in (was, is_now))
        was_paused, is_paused = (bool(spans) and {row.state for row in spans.values()} == {PAUSED} for spans in (was, is_now))
        if is_paused and served:
            yield change(at_s, "paused", f"{who} takes no new sessions of {model}: its operator has paused it", peer)
        elif was_paused and serves:
            yield change(at_s, "resumed", f"{who} takes new sessions of {model} again", peer)
        elif serves - served:
            gone = f", and no more {', '.join(sorted(served - serves))}" if served - serves else ""
            kind = "moved" if served else "joined"
            yield change(at_s, kind, f"{who} serves blocks {', '.join(sorted(serves - served))} of {model}{gone}", peer)
        elif served - serves:
            yield change(at_s, "moved", f"{who} gives up blocks {', '.join(sorted(served - serves))} of {model}", peer)
        versions = [max((row.version for row in spans.values()), default=0) for spans in (was, is_now)]
        if versions[1] > versions[0] and served:
            yield change(at_s, "version", f"{who} serves version {versions[1]} of {model}", peer)


def _models(before: Look, now: Look) -> Iterator[Change]:
    old = {(rows.name, rows.digest): rows for rows in before.models}
    for rows in now.models:
        was = old.get((rows.name, rows.digest))
        missing = set(rows.missing) - set(was.missing if was else ())
        if rows.missing and missing:
            yield change(now.at_s, "gap", f"no node serves blocks {', '.join(rows.missing)} of {_model(rows)}")
        elif was is not None and was.missing and not rows.missing:
            yield change(now.at_s, "complete", f"every block of {_model(rows)} is served")


def _model(rows: ModelRows) -> str:
    return rows.name if rows.is_meant else f"{rows.name}@{rows.digest[:12]}"


def _rows(look: Look) -> dict[str, list[tuple[str, PeerRow]]]:
    found: dict[str, list[tuple[str, PeerRow]]] = {}
    for rows in look.models:
        for row in rows.peers:
            found.setdefault(row.peer, []).append((_model(rows), row))
    return found


def _spans(rows: list[tuple[str, PeerRow]], model: str) -> dict[str, PeerRow]:
    return {f"{row.start}:{row.stop}": row for name, row in rows if name == model}


def _serving(spans: Mapping[str, PeerRow]) -> set[str]:
    return {span for span, row in spans.items() if row.state == "serving"}


def _hosts(rows: list[tuple[str, PeerRow]]) -> str:
    some = [f"{row.start}:{row.stop} of {model}" for model, row in rows[:4]]
    verb = "loads" if all(row.state == "joining" for _, row in rows) else "hosts"
    return f"{verb} blocks {', '.join(some)}"
