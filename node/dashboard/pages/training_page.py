"""Training: runs with their progress, curves, participants, evaluations and samples."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from node.dashboard.pages.frame import frame, heading
from node.dashboard.pages.tables import Redrawn, fact_list, table
from node.dashboard.pages.visit import dashboard_here, keep_up, watch_runs
from node.training.report.history import History
from node.watching import runs
from node.watching.changes import label
from node.watching.run_watcher import RunWatcher
from node.watching.runs import Curve, Participant, RunView
from protocols.words import counted, one_line

NO_RUN = "no run is under way; begin one: swarm node --run RUN.toml, and swarm train RUN.toml"

SHOWN = 12
"""Evaluations, and events, that are listed, the newest first."""

MAX_SAMPLE = 400
"""Letters of a sample."""

HEADS = ("peer", "roles", "state", "version", "in hand", "in its sums", "has given", "forward, ms", "backward, ms", "serves")


def register() -> None:
    """Give the page its address."""
    ui.page("/training")(show)


def show() -> None:
    """Build the page for one visitor."""
    with frame("Training"):
        with ui.element("h1").classes("mm-only-read"):
            ui.label("Training runs")
        Training(dashboard_here().runs)


class Training:
    """What one visitor sees of the runs."""

    def __init__(self, watched: RunWatcher) -> None:
        self._watched = watched
        self._told = ui.label("looking for runs").classes("mm-quiet").props('role="status"')
        self._runs: dict[tuple[str, str], Run] = {}
        self._box = ui.element("div")
        watch_runs()
        keep_up(self._draw, 0.5)

    def _draw(self) -> None:
        watched = self._watched
        views = {(one.overview.name, one.overview.digest): one for one in watched.views}
        known = watched.known
        if watched.has_looked or known:
            self._told.set_text(watched.problem or ("" if known else NO_RUN))
        self._told.set_visibility(bool(self._told.text))
        for gone in self._runs.keys() - set(known):
            self._runs.pop(gone).delete()
        for run in known:
            if run not in self._runs:
                with self._box:
                    self._runs[run] = Run(run[0])
            self._runs[run].draw(views.get(run), watched.history(*run))


class Run:
    """One run's part of the page."""

    def __init__(self, name: str) -> None:
        with ui.element("section").classes("mm-card").props('aria-label="Run"') as self._card:
            heading(one_line(name))
            self._facts = Redrawn()
            self._charts = ui.element("div").classes("mm-charts")
            self._participants, self._written = Redrawn(), Redrawn()
        self._curves: tuple[Chart, Chart] | None = None
        self._drawn = 0, 0, 0

    def delete(self) -> None:
        """Take it off the page."""
        self._card.delete()

    def draw(self, view: RunView | None, history: History | None) -> None:
        """As they are now. view: None = no peer of the swarm takes part; history: None = no trainer has said anything."""
        if self._facts.is_new((view.overview if view else None, history is None)):
            with self._facts.box:
                _facts(view, history)
        if view is not None and self._participants.is_new(view.participants):
            with self._participants.box:
                table("Who takes part", HEADS, [_cells(one) for one in view.participants], num_texts=3)
        if history is not None:
            drawn = _size(history)
            if drawn != self._drawn:
                self._drawn = drawn
                self._draw_curves(history)
            if self._written.is_new((drawn[1], drawn[2], len(history.events))):
                with self._written.box:
                    _written(history)

    def _draw_curves(self, history: History) -> None:
        if self._curves is None:
            with self._charts:
                self._curves = Chart("Loss, nats per token"), Chart("Tokens per second")
        losses, speeds = self._curves
        losses.show({"training": runs.curve(history, "loss"), "validation": runs.evaluated(history, "loss")})
        speeds.show({"tokens/s": runs.curve(history, "tokens_per_s")})


def _size(history: History) -> tuple[int, int, int]:
    """Another one if anything of its curves is new; they are thinned out, so their number may stay."""
    newest = int(history.versions[-1]["version"]) if history.versions else 0
    return newest, len(history.evaluations), int(history.evaluations[-1]["evaluation"]) if history.evaluations else 0


def _facts(view: RunView | None, history: History | None) -> None:
    if view is not None:
        one = view.overview
        if one.share is not None:
            ui.element("progress").classes("mm-progress").props(f'max=100 value={100 * one.share:.1f} aria-label="Progress"')
        steps = "no stage answers" if one.version is None else f"{one.version}{f' of {one.steps}' if one.steps else ''}"
        fact_list([
            ("version", steps), ("throughput", "–" if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f} tokens/s"),
            ("stages, trainers, keepers", f"{one.stages}, {one.trainers}, {one.keepers}"),
            ("served version", "–" if one.served is None else str(one.served)),
        ])  # fmt: skip
    else:
        ui.label("no peer of this swarm takes part now; what is below was told or written by a trainer before").classes(
            "mm-quiet"
        )
    if history is None:
        ui.label("no trainer of it has told its losses, evaluations and events yet").classes("mm-quiet")


def _cells(one: Participant) -> tuple[str, ...]:
    row, is_stage = one.row, bool(one.row.state)
    return (
        label(row.name, row.peer), one_line(", ".join(row.roles)), one_line(row.state) or "–",
        "–" if row.version is None else str(row.version), str(row.queue) if is_stage else "–",
        f"{one.num_held} of {one.num_micro_batches}" if one.num_micro_batches else "–",
        counted(one.given.num_micro_batches, "micro-batch", is_grouped=True) if one.given else "–",
        f"{one.forward_ms:.2f}" if one.forward_ms else "–", f"{one.backward_ms:.2f}" if one.backward_ms else "–",
        ", ".join(map(str, row.served)) or "–",
    )  # fmt: skip


class Chart:
    """Curves over versions; the last values stand above them as text."""

    def __init__(self, title: str) -> None:
        self._title = title
        with ui.element("figure").classes("mm-chart"):
            with ui.element("figcaption"):
                self._caption = ui.label()
            self._chart = ui.echart(_options()).classes("mm-canvas")

    def show(self, curves: dict[str, Curve]) -> None:
        """As they are now."""
        filled = {name: curve for name, curve in curves.items() if curve.values}
        last = ", ".join(f"{name} {curve.values[-1]:.4g} at version {curve.versions[-1]:.0f}" for name, curve in filled.items())
        self._caption.set_text(f"{self._title}: {last}")
        self._chart.options["legend"]["show"] = len(filled) > 1
        self._chart.options["series"] = [
            {
                "type": "line",
                "name": name,
                "showSymbol": name == "validation",
                "data": list(zip(one.versions, one.values, strict=True)),
            }
            for name, one in filled.items()
        ]
        self._chart.update()


def _options() -> dict[str, Any]:
    grey, lines = {"color": "#808690"}, {"lineStyle": {"color": "#80869040"}}
    return {
        "animation": False, "grid": {"left": 52, "right": 14, "top": 30, "bottom": 26}, "legend": {"textStyle": grey, "top": 0},
        "xAxis": {"type": "value", "min": "dataMin", "max": "dataMax", "axisLabel": grey, "splitLine": lines},
        "yAxis": {"type": "value", "scale": True, "axisLabel": grey, "splitLine": lines},
        "tooltip": {"trigger": "axis", "renderMode": "richText"}, "color": ["#2f7de1", "#e8833a"], "series": [],
    }  # fmt: skip


def _written(history: History) -> None:
    evaluations = list(reversed(history.evaluations))[:SHOWN]
    if evaluations:
        rows = [
            tuple(str(one.get("evaluation")) if key == "evaluation" else _number(one.get(key)) for key in _EVALUATED)
            for one in evaluations
        ]
        table("Evaluations", ("version", "loss", "perplexity", "bits per byte"), rows, num_texts=0)
        samples = evaluations[0].get("samples")
        if isinstance(samples, dict) and samples:
            at = f"Samples at version {evaluations[0].get('evaluation')}, of what was served then"
            table(at, ("prompt", "what the model says"), [
                (one_line(str(prompt))[:MAX_SAMPLE], _said(one_line(str(text))[:MAX_SAMPLE])) for prompt, text in samples.items()
            ], num_texts=2)  # fmt: skip
    if history.events:
        rows = [
            (str(one.version), one_line(one.event), one_line(one.text)[:MAX_SAMPLE]) for one in reversed(history.events[-SHOWN:])
        ]
        table(
            "Events of the run: stages that came, went or were left out, and waits",
            ("version", "event", "what"),
            rows,
            num_texts=3,
        )


def _said(text: str) -> str:
    return text if text.strip() else "only white space" if text else "nothing"


_EVALUATED = ("evaluation", "loss", "perplexity", "bits_per_byte")


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else "–"
