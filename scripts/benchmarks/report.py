"""The benchmark's JSON as text and plots.

The text has the targets with what was measured and the table of a token's time; the plots are those of docs/bench.

Everything is a function of the JSON, so that the documents and the plots cannot say anything else (`scripts/docs.py` writes them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound from the newest issue that sets one, on a number of one section."""

    section: str
    what: str
    bound: str
    find: Callable[[dict[str, Any]], Iterator[tuple[str, float, float | None, bool]]]
    """From a section's JSON: (case, best, median if there is one, whether it holds)."""


def _hops(section: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
    for row in section["rows"]:
        if row["hops"]:
            value = row["overhead_per_hop_ms"]
            yield row["path"], value["best"], value["median"], value["best"] <= 1.3


def _speed(bound: float) -> Callable[[dict[str, Any]], Iterator[tuple[str, float, float | None, bool]]]:
    def find(section: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
        row = section["rows"][-1]
        yield row["model"], row["speed_of_local"]["best"], row["speed_of_local"]["median"], row["speed_of_local"]["best"] >= bound

    return find


def _first(section: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
    for row in section["rows"]:
        value = row["first_beyond_local_ms"]
        yield row["model"], value["best"], value["median"], value["best"] <= 10


def _sessions(section: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
    for row, bound in zip(section["rows"], (2.6, 3.5), strict=True):
        yield f"{row['nodes']} node(s), ≥ {bound}", row["times"]["best"], row["times"]["median"], row["times"]["best"] >= bound


def _prefill(section: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
    for row, bound in zip(section["rows"], (1.2, 1.0), strict=True):
        yield (
            f"{row['tokens']} tokens, ≤ {bound}",
            row["of_local"]["best"],
            row["of_local"]["median"],
            row["of_local"]["best"] <= bound,
        )


def _value(
    key: str, is_met: Callable[[float], bool]
) -> Callable[[dict[str, Any]], Iterator[tuple[str, float, float | None, bool]]]:
    def find(section: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
        value = section[key]
        if isinstance(value, dict):
            yield "", value["best"], value["median"], is_met(value["best"])
        else:
            yield "", value, None, is_met(value)

    return find


def _streams(key: str, bound: float) -> Callable[[dict[str, Any]], Iterator[tuple[str, float, float | None, bool]]]:
    def find(section: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
        for row in section["rows"]:
            yield f"{row['streams']} streams", row[key]["best"], row[key]["median"], row[key]["median"] <= bound

    return find


TARGETS = (
    Target("hops", "overhead of a hop beyond compute, ms", "≤ 1.3", _hops),
    Target("decode", "2 nodes decode at this share of local speed", "≥ 0.88", _speed(0.88)),
    Target("real", "2 nodes decode at this share of local speed", "≥ 0.95", _speed(0.95)),
    Target("decode", "first token, prompt of 16, 2 nodes: ms beyond local", "≤ 10", _first),
    Target("sessions", "8 sessions: tokens/s of one session, times", "≥ 2.6, 3.5", _sessions),
    Target("prefill", "prompt over 2 nodes: share of local time", "≤ 1.2, 1.0", _prefill),
    Target("chats", "p99 between tokens of 8 chats beside a prompt of 2,000, times undisturbed", "≤ 2", _value("times", lambda x: x <= 2)),
    Target("node", "node's memory beyond its weights, MB", "≤ 600", _value("beyond_weights_mb", lambda x: x <= 600)),
    Target("node", "start until servable, s", "≤ 10", _value("start_s", lambda x: x <= 10)),
    Target("node", "processes: Python and hivemind's daemon", "2", _value("processes", lambda x: x == 2)),
    Target("wide area", "3 hops, 100 ms: time per token over (one-way delays + compute)", "≤ 1.1", _value("of_floor", lambda x: x <= 1.1)),
    Target("wide area", "bytes of a decoded token's frame", "< 14,000", _value("frame_bytes", lambda x: x < 14_000)),
    Target("wide area", "prompt lookup on repetitive text, times faster", "≥ 1.5", _value("speculation", lambda x: x >= 1.5)),
    Target("streams", "HTTP adds to a token, ms, beside the thin client in Python", "≤ 3 at the median", _streams("added_ms", 3.0)),
    Target("streams", "HTTP adds to the first token, ms", "≤ 15", _streams("first_added_ms", 15.0)),
    Target("next turn", "first token of the turn after 2,000 tokens, times sooner", "≥ 5", _value("times", lambda x: x >= 5)),
    Target("shared prompt", "8 requests at once after one prompt of 2,000, times one", "≤ 1.5", _value("of_one", lambda x: x <= 1.5)),
    Target("held", "1,000 idle connections and 64 streams for a minute: errors", "0", _value("errors", lambda x: x == 0)),
    Target("held", "the same: memory that gateway or node has grown by, MB", "≤ 10", _value("most_grown_mb", lambda x: x <= 10)),
    Target("schemas", "JSON schemas, random weights: valid answers of 200", "200", _value("valid", lambda x: x == 200)),
    Target("beside", "by HTTP: p99 between tokens of 8 chats beside the same prompt, times", "≤ 2", _value("times", lambda x: x <= 2)),
    Target("averaging", "100 MB, 2 peers, float32: times faster than hivemind's averager", "≥ 2.5", _value("times", lambda x: x >= 2.5)),
    Target("state", "download of a unit's state, MB/s", "≥ 200", _value("mb_s", lambda x: x >= 200)),
    Target("pipeline", "2 stages, 10M parameters: tokens/s, share of --local", "≥ 0.85", _value("of_local", lambda x: x >= 0.85)),
)  # fmt: skip


def targets(sections: Sections) -> str:
    """Markdown: every target whose section was measured."""
    lines = ["| what | target | best | median | |", "|---|---|---|---|---|"]
    for target in TARGETS:
        if target.section in sections:
            for case, best, median, is_met in target.find(sections[target.section]):
                what = f"{target.what} ({case})" if case else target.what
                middle = "" if median is None else f"{median:,.10g}"
                lines.append(f"| {what} | {target.bound} | {best:,.10g} | {middle} | {'met' if is_met else '**missed**'} |")
    return "\n".join(lines) + "\n"


def stages(section: dict[str, Any]) -> str:
    """Markdown: where a token's microseconds go, one column for each number of hops."""
    rows = [row for row in section["rows"] if row["hops"]]
    lines = [f"| µs of one token | {' | '.join(row['path'] for row in rows)} |", "|---" * (len(rows) + 1) + "|"]
    for stage in rows[0]["stages_us_of_best_run"]:
        cells = [f"{row['stages_us_of_best_run'][stage]:,.0f}" for row in rows]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def far_and_near(section: dict[str, Any]) -> str:
    """Markdown: what three stages do over a wide area, beside the same without delays."""
    rows = section["rows"]
    where = {"near": "no delay", "far": f"{section['rtt_ms']:g} ms, {section['rate_mbit']:g} Mbit/s"}
    lines = [f"| 3 stages, 10M parameters | {' | '.join(where[row['links']] for row in rows)} |", "|---" * (len(rows) + 1) + "|"]
    cells = {"tokens/s, best": [f"{row['tokens_per_s']['best']:,.0f}" for row in rows]}
    for span in rows[0]["computing"]:
        cells[f"stage {span} computes, share of the time"] = [f"{row['computing'][span]:.2f}" for row in rows]
    cells["closing of versions, share of the time"] = [f"{row['closing']:.2f}" for row in rows]
    cells["busiest link, share of 100 Mbit/s"] = [f"{row['link']:.2f}" for row in rows]
    cells["micro-batches under way"] = [f"{row['under_way']:.1f}" for row in rows]
    for kind, what in (("computing", "is computed"), ("waiting", "waits for a stage's device"), ("travelling", "is on the way")):
        cells[f"ms in which a micro-batch {what}"] = [f"{row['micro_batch_ms'][kind]:,.0f}" for row in rows]
    cells["largest share"] = [row["bound"] for row in rows]
    return "\n".join([*lines, *(f"| {what} | {' | '.join(values)} |" for what, values in cells.items())]) + "\n"


SHORT: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
    (
        "hops",
        "time that a hop adds to a token, beyond computing (2 nodes, tiny model)",
        lambda section: f"{next(row for row in section['rows'] if row['hops'] == 2)['overhead_per_hop_ms']['best']:.2f} ms",
    ),
    (
        "decode",
        "decoding over 2 nodes, share of the speed of transformers on one machine (110M parameters)",
        lambda section: f"{section['rows'][-1]['speed_of_local']['best']:.2f}",
    ),
    (
        "real",
        "the same with a real model, SmolLM2-135M",
        lambda section: f"{section['rows'][-1]['speed_of_local']['best']:.2f}",
    ),
    (
        "decode",
        "first token of a prompt of 16 tokens over 2 nodes, later than on one machine",
        lambda section: f"{section['rows'][-1]['first_beyond_local_ms']['best']:.1f} ms",
    ),
    (
        "prefill",
        "prompt of 2,048 tokens over 2 nodes, share of the time on one machine",
        lambda section: f"{next(row for row in section['rows'] if row['tokens'] == 2048)['of_local']['best']:.2f}",
    ),
    (
        "sessions",
        "8 sessions at once over 2 nodes, tokens/s compared with one session",
        lambda section: f"{section['rows'][-1]['times']['best']:.1f} times",
    ),
    (
        "wide area",
        "3 nodes at 100 ms round trip: time of a token, compared with network delay + computing",
        lambda section: f"{section['of_floor']['best']:.2f} times",
    ),
    ("node", "memory of a node beyond its weights", lambda section: f"{section['beyond_weights_mb']['best']:.0f} MB"),
    ("node", "start of a node until it serves", lambda section: f"{section['start_s']['best']:.1f} s"),
    (
        "pipeline",
        "training over 2 nodes with a core each, tokens/s compared with one process on both (10M parameters)",
        lambda section: f"{section['of_local']['median']:.2f} times",
    ),
    (
        "averaging",
        "2 nodes agree on the sum of 100 MB of gradients, compared with hivemind's averager",
        lambda section: f"{section['times']['median']:.1f} times faster",
    ),
)
"""README's table rows: (section, what, its number as text)."""


def short(result: dict[str, Any]) -> str:
    """The few numbers that README shows."""
    sections: Sections = result["sections"]
    rows = [f"| {what} | {read(sections[name])} |" for name, what, read in SHORT if name in sections]
    head = f"Best of interleaved repeats, on one machine: {result['machine']}."
    return "\n".join([head, "", "| what | measured |", "|---|---|", *rows]) + "\n"


def tables(sections: Sections) -> list[str]:
    """Markdown: the targets, and what some sections show besides."""
    parts = [targets(sections)]
    if "hops" in sections:
        parts += [
            f"Where the time of a token goes: {sections['hops']['model']}, medians of the best run.\n",
            stages(sections["hops"]),
        ]
    if "wide pipeline" in sections:
        parts.append(far_and_near(sections["wide pipeline"]))
    return parts


def page(result: dict[str, Any]) -> str:
    """What docs/benchmarks.md shows of one benchmark's JSON file."""
    sections: Sections = result["sections"]
    loads = [load for section in sections.values() for load in section["load_average"]]
    repeats = sorted({section["repeats"] for section in sections.values()})
    counts = " to ".join(str(number) for number in dict.fromkeys((repeats[0], repeats[-1])))
    parts = [
        f"{result['machine']}; one torch thread a process, everything on one machine over TLS; best and median of {counts} "
        f"interleaved repeats; load average {min(loads):.1f} to {max(loads):.1f} while it ran.\n",
        *tables(sections),
    ]
    parts += [f"![{alt}](bench/{name}.svg)\n" for name, alt, _ in PLOTS if name in plots(sections)]
    return "\n".join(parts)


# --- plots


def _stages_plot(sections: Sections) -> str:
    rows = [row for row in sections["hops"]["rows"] if row["hops"]]
    bars = []
    for row in rows:
        spent = row["stages_us_of_best_run"]
        wire = spent["wire"]
        forward = spent["node: forward"]
        client = sum(value for stage, value in spent.items() if stage in _CLIENT_COMPUTE)
        rest = sum(spent.values()) - wire - forward - client
        bars.append((row["path"], [client / 1e3, forward / 1e3, wire / 1e3, rest / 1e3]))
    return stacked(
        "One token of the tiny model, ms", ("client's own compute", "nodes' forwards", "wire", "threads, checks, framing"), bars
    )


_CLIENT_COMPUTE = ("client: norm, head, sampling, generate", "client: embedding")


def _speed_plot(sections: Sections) -> str:
    bars = []
    for row in sections["sessions"]["rows"]:
        for sessions, key in ((1, "one_tokens_per_s"), (sections["sessions"]["sessions"], "many_tokens_per_s")):
            bars.append(
                (f"{row['nodes']} node{'s' * (row['nodes'] > 1)}, {sessions} session{'s' * (sessions > 1)}", [row[key]["best"]])
            )
    return stacked("Tokens per second, 110M parameters, best repeat", ("tokens/s",), bars)


PLOTS: tuple[tuple[str, str, Callable[[Sections], str]], ...] = (
    ("hops", "where one token's time goes, over 1, 2 and 4 nodes", _stages_plot),
    ("sessions", "tokens per second of 1 and 8 sessions", _speed_plot),
)


def plots(sections: Sections) -> dict[str, str]:
    """SVG by name, for the sections that were measured."""
    return {name: draw(sections) for name, _, draw in PLOTS if name in sections}


_COLOURS = ("#9aa5b1", "#3b7dd8", "#e0872f", "#c2452d")
_LEFT, _WIDTH, _BAR, _TOP = 170, 520, 26, 64


def stacked(title: str, legend: tuple[str, ...], bars: list[tuple[str, list[float]]]) -> str:
    """Horizontal bars of stacked values, as SVG that GitHub shows; readable on a light and on a dark page."""
    longest = max(sum(values) for _, values in bars)
    height = _TOP + _BAR * len(bars) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 70} {height}" '
        'font-family="sans-serif" font-size="13" fill="#7a828c">',
        f'<text x="8" y="20" font-size="15">{title}</text>',
    ]
    at = 8
    for name, colour in zip(legend, _COLOURS, strict=False):
        parts += [f'<rect x="{at}" y="34" width="12" height="12" fill="{colour}"/>', f'<text x="{at + 17}" y="45">{name}</text>']
        at += 34 + 7 * len(name)
    for row, (label, values) in enumerate(bars):
        top, x = _TOP + row * _BAR, float(_LEFT)
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 15}" text-anchor="end">{label}</text>')
        for value, colour in zip(values, _COLOURS, strict=False):
            width = value / longest * _WIDTH
            parts.append(f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_BAR - 6}" fill="{colour}"/>')
            x += width
        parts.append(f'<text x="{x + 6:.1f}" y="{top + 15}">{sum(values):,.4g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
