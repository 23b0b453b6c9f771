"""`report.html`: one file with all pictures in it."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from node.training.amounts import duration, short, size
from node.training.report.history import History, read_history
from node.training.report.plots import Plot, write_plots
from protocols.errors import DiskFullError

FILE = "report.html"
PICTURES = "report"
"""The folder of the PNGs, beside the page."""

MAX_EVENTS = 200

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #22272e; background: #f6f8fa; margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 32px 0 10px; }
p.about { color: #59636e; margin: 0 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.tile, figure { background: #fff; border: 1px solid #d9dee3; border-radius: 8px; }
.tile { padding: 10px 14px; } .tile b { display: block; font-size: 20px; font-weight: 650; white-space: nowrap; }
.tile span { color: #59636e; font-size: 12.5px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 10px; } figure img { width: 100%; display: block; }
table { border-collapse: collapse; width: 100%; background: #fff; border: 1px solid #d9dee3; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 12px; border-top: 1px solid #e4e7eb; vertical-align: top; }
th { color: #59636e; font-weight: 600; border-top: 0; white-space: nowrap; } th.number { text-align: right; }
td:last-child { width: 100%; } td.number { text-align: right; white-space: nowrap; }
td.sample { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; white-space: pre-wrap; }
td.sample i { color: #1f6feb; font-style: normal; }
"""


def write_report(folder: Path) -> Path:
    """Write `report.html` and its PNGs into a run's folder; the page's path.

    CheckpointError: no metrics there. ConfigError: matplotlib is not installed. DiskFullError: it cannot be written; an older page stays.
    """
    history = read_history(folder)
    try:
        (folder / PICTURES).mkdir(exist_ok=True)
        text = page(history, write_plots(history, folder / PICTURES))
        draft = folder / f".{FILE}"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, folder / FILE)
    except OSError as error:
        raise DiskFullError(f"cannot write {folder / FILE}: {error.strerror or error}") from error
    return folder / FILE


def page(history: History, pictures: Sequence[tuple[Plot, bytes]]) -> str:
    """The whole text. What a run, a model or a peer says is escaped."""
    last = history.versions[-1]
    figures = "".join(
        f'<figure><img alt="{html.escape(plot.title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>\n'
        for plot, png in pictures
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(history.name)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f'<h1>{html.escape(history.name)}</h1>\n<p class="about">Training run at version {last["version"]}. '
        "Losses are in nats per token; bits per byte compare models with different tokenizers.</p>\n"
        f'<div class="tiles">{_tiles(history)}</div>\n<h2>Curves</h2>\n<div class="plots">{figures}</div>\n'
        f"{_evaluations(history)}{_events(history)}</main></body></html>\n"
    )


def _tiles(history: History) -> str:
    last = history.versions[-1]
    sent, seconds = sum(history.column("bytes_sent")), float(last["time_s"])
    recent = history.versions[-50:]
    found = [
        ("version", str(last["version"])), ("training loss", f"{history.column('loss')[-1]:.4f}"), ("tokens", short(last["tokens"])),
        ("tokens per second", short(sum(row["tokens_per_s"] for row in recent) / len(recent))), ("time", duration(seconds)),
        ("stages", str(last["peers"])), ("sent between stages", size(sent)),
        ("micro-batches redone", str(round(sum(history.column("redone"))))),
    ]  # fmt: skip
    if bits := history.evaluated("bits_per_byte"):
        found[2:2] = [
            ("validation loss", f"{history.evaluated('loss')[-1]:.4f}"),
            ("perplexity", f"{history.evaluated('perplexity')[-1]:.4g}"),
            ("bits per byte", f"{bits[-1]:.4f}"),
        ]
    return "".join(f'<div class="tile"><b>{html.escape(value)}</b><span>{key}</span></div>' for key, value in found)


def _evaluations(history: History) -> str:
    if not history.evaluations:
        return ""
    lines = []
    for row in reversed(history.evaluations):
        samples = "<br>".join(
            f"{html.escape(str(prompt))}<i>{html.escape(str(said).rstrip() or ' (white space)')}</i>"
            for prompt, said in row.get("samples", {}).items()
        )
        numbers = "".join(f'<td class="number">{_number(row.get(key))}</td>' for key in ("loss", "perplexity", "bits_per_byte"))
        lines.append(f'<tr><td class="number">{row["evaluation"]}</td>{numbers}<td class="sample">{samples}</td></tr>\n')
    head = "".join(f'<th class="number">{name}</th>' for name in ("version", "loss", "perplexity", "bits per byte"))
    return f"<h2>Evaluations</h2>\n<table><tr>{head}<th>samples</th></tr>\n{''.join(lines)}</table>\n"


def _events(history: History) -> str:
    if not history.events:
        return ""
    shown: Iterable[str] = (
        f'<tr><td class="number">{duration(one.time_s)}</td><td class="number">{one.version}</td>'
        f"<td>{html.escape(one.event)}</td><td>{html.escape(one.text)}</td></tr>\n"
        for one in list(history.events)[-MAX_EVENTS:]
    )
    head = '<tr><th class="number">time</th><th class="number">version</th><th>event</th><th></th></tr>'
    return f"<h2>Events</h2>\n<table>{head}\n{''.join(shown)}</table>\n"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–"
