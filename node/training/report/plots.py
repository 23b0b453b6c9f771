"""The plots of a run, as PNGs. matplotlib draws them (extra `train`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.training.amounts import short
from node.training.report.history import History, smoothed, thinned
from protocols.errors import ConfigError

INK, GRID, BLUE, PALE, ORANGE, GREEN, RED = "#22272e", "#e4e7eb", "#1f6feb", "#a9c7f7", "#e36209", "#2da44e", "#cf222e"
COLOURS = {"joined": GREEN, "gone": RED, "waiting": ORANGE, "checkpoint": "#8250df"}
"""Of events; others are grey."""

SIZE_INCHES, DOTS_PER_INCH = (6.4, 3.6), 144


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture."""

    file: str
    title: str
    draw: Callable[[Any, History], None]


def write_plots(history: History, folder: Path) -> list[tuple[Plot, bytes]]:
    """Draw all plots into the folder; each with its PNG. ConfigError if matplotlib is not installed. OSError: it cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the report's plots need matplotlib: pip install 'murmuration[train]'") from None
    found = []
    for plot in PLOTS:
        figure: Any = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        _prepare(axes, plot.title)
        plot.draw(axes, history)
        figure.savefig(folder / plot.file)
        found.append((plot, (folder / plot.file).read_bytes()))
    return found


def _prepare(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b0b7c0")


def _labelled(axes: Any, x: str, y: str, formatter: Callable[[float], str] | None = None) -> None:
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    if formatter is not None:
        axes.xaxis.set_major_formatter(lambda value, place: formatter(value))


def _loss(axes: Any, history: History, x: Sequence[float], x_of_evaluations: Sequence[float]) -> None:
    losses = history.column("loss")
    axes.plot(thinned(x), thinned(losses), color=PALE, linewidth=1, label="training, each version")
    axes.plot(thinned(x), thinned(smoothed(losses)), color=BLUE, linewidth=1.8, label="training, smoothed")
    if x_of_evaluations:
        axes.plot(
            x_of_evaluations, history.evaluated("loss"), color=ORANGE, linewidth=1.2, marker="o", markersize=4, label="validation"
        )
    _legend(axes, loc="upper right")


def _loss_by_tokens(axes: Any, history: History) -> None:
    batch = history.batch_tokens[-1]
    _loss(axes, history, history.column("tokens"), [version * batch for version in history.evaluated("evaluation")])
    _labelled(axes, "tokens", "loss (nats per token)", short)


def _loss_by_time(axes: Any, history: History) -> None:
    scale, unit = _time_unit(history)
    _loss(axes, history, _times(history), [time_s / scale for time_s in history.evaluated("time_s")])
    _events(axes, history, with_legend=False)
    _labelled(axes, f"time ({unit})", "loss (nats per token)")


def _learning_rate(axes: Any, history: History) -> None:
    axes.plot(thinned(history.column("tokens")), thinned(history.column("lr")), color=BLUE, linewidth=1.8, label="learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 2))
    _labelled(axes, "tokens", "learning rate", short)
    right = axes.twinx()
    right.plot(
        thinned(history.column("tokens")), thinned(history.column("grad_norm")), color=ORANGE, linewidth=1, label="gradient"
    )
    right.set_ylim(bottom=0)
    right.set_ylabel("gradient norm before clipping", fontsize=9, color=ORANGE)
    right.tick_params(colors=ORANGE, labelsize=8.5, length=0)
    for side in ("top", "right", "left", "bottom"):
        right.spines[side].set_visible(False)


def _peers(axes: Any, history: History) -> None:
    axes.step(thinned(_times(history)), thinned(history.column("peers")), where="post", color=BLUE, linewidth=1.8)
    axes.set_ylim(0, max(history.column("peers")) * 1.25 + 0.5)
    axes.yaxis.get_major_locator().set_params(integer=True)
    _events(axes, history, with_legend=True)
    _labelled(axes, f"time ({_time_unit(history)[1]})", "stages")


def _speed(axes: Any, history: History) -> None:
    speeds = history.column("tokens_per_s")
    axes.plot(thinned(_times(history)), thinned(speeds), color=PALE, linewidth=1)
    axes.plot(thinned(_times(history)), thinned(smoothed(speeds)), color=BLUE, linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, place: short(value))
    _events(axes, history, with_legend=False)
    _labelled(axes, f"time ({_time_unit(history)[1]})", "tokens per second")


def _bytes(axes: Any, history: History) -> None:
    axes.plot(thinned(history.column("tokens")), thinned(history.bytes_per_token), color=BLUE, linewidth=1.8)
    axes.set_ylim(0, max(history.bytes_per_token) * 1.25 or 1)
    axes.yaxis.set_major_formatter(lambda value, place: short(value))
    _labelled(axes, "tokens", "bytes sent between stages per token", short)


PLOTS = (
    Plot("loss-tokens.png", "Loss against tokens", _loss_by_tokens),
    Plot("loss-time.png", "Loss against time", _loss_by_time),
    Plot("learning-rate.png", "Learning rate and gradient", _learning_rate),
    Plot("peers.png", "Peers over time", _peers),
    Plot("tokens-per-s.png", "Speed", _speed),
    Plot("bytes-per-token.png", "Network", _bytes),
)


def _events(axes: Any, history: History, *, with_legend: bool) -> None:
    """A line at each event, by the colour of its kind."""
    scale, _ = _time_unit(history)
    seen: set[str] = set()
    for one in history.events[-200:]:
        label = f"_{one.event}" if one.event in seen or not with_legend else one.event
        seen.add(one.event)
        colour = COLOURS.get(one.event, "#8c959f")
        axes.axvline(one.time_s / scale, color=colour, linewidth=1.1, linestyle=(0, (3, 2)), alpha=0.8, label=label)
    if seen and with_legend:
        _legend(axes, ncols=4, loc="upper left")


def _legend(axes: Any, **options: Any) -> None:
    axes.legend(fontsize=8.5, labelcolor=INK, facecolor="white", edgecolor="none", framealpha=0.9, **options).set_zorder(5)


def _times(history: History) -> list[float]:
    scale, _ = _time_unit(history)
    return [time_s / scale for time_s in history.column("time_s")]


def _time_unit(history: History) -> tuple[float, str]:
    """(seconds of the unit, its name), so that numbers stay small."""
    last_s = history.column("time_s")[-1]
    return (3600.0, "h") if last_s > 7_200 else (60.0, "min") if last_s > 300 else (1.0, "s")
