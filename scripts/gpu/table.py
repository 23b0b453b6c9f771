"""The result of `scripts/gpu_check`, with shares, and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def with_shares(result: dict[str, Any]) -> dict[str, Any]:
    """The result with `share`s: of copy bandwidth in decode, of matrix rate in prefill and training. None without ceilings."""
    sections = result["sections"]
    ceilings = sections.get("ceilings", {})
    for row in sections.get("decode", {}).get("rows", []):
        row["share_of_copy"] = _share(row["bytes_per_s"], ceilings.get("copy_bytes_per_s"))
    for name in ("prefill", "training"):
        if name in sections:
            sections[name]["share_of_matmul"] = _share(sections[name]["flop_per_s"], ceilings.get("matmul_flop_per_s"))
    return result


def _share(rate: float, ceiling: float | None) -> float | None:
    return None if ceiling is None else round(rate / ceiling, 4)


def text(result: dict[str, Any]) -> str:
    """One line a measurement; failed sections last."""
    rows = [("section", "what", "value", "share"), *_rows(result["sections"])]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]
    lines += [f"FAILED {name}: {reason}" for name, reason in result["failed"].items()]
    sizes = ", small" if result["small"] else ""
    lines.append(f"{result['device']}{sizes}: {result['seconds']} s, {len(result['failed'])} sections failed")
    return "\n".join(lines)


def _rows(sections: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    if found := sections.get("tests"):
        yield "tests", "passed, failed, skipped", f"{found['passed']}, {found['failed']}, {found['skipped']}", ""
    if found := sections.get("ceilings"):
        yield "ceilings", f"copy on {found['machine']['name']}", f"{found['copy_bytes_per_s'] / 1e9:,.1f} GB/s", "1"
        yield "ceilings", "bfloat16 matrices", f"{found['matmul_flop_per_s'] / 1e12:,.3f} TFLOP/s", "1"
    if found := sections.get("model"):
        yield "model", found["model"], f"{found['parameters'] / 1e6:,.1f} million", ""
    for row in sections.get("decode", {}).get("rows", []):
        what = f"{row['sessions']} sessions, {row['step_ms']['best']:.3f} ms a step"
        yield "decode", what, f"{row['tokens_per_s']:,.1f} tokens/s", _percent(row["share_of_copy"], "copy")
    if found := sections.get("prefill"):
        what = f"{found['tokens']} tokens in {found['forwards']} forwards, {found['ms']['best']:.2f} ms"
        yield "prefill", what, f"{found['tokens_per_s']:,} tokens/s", _percent(found["share_of_matmul"], "matrices")
    if found := sections.get("training"):
        share = _percent(found["share_of_matmul"], "matrices")
        what = f"{found['tokens']} tokens: forward {found['forward_ms']['best']:.2f} ms, backward {found['backward_ms']['best']:.2f} ms"
        yield "training", what, f"{found['flop_per_s'] / 1e12:,.3f} TFLOP/s", share
        yield "training", "their gradients into the sums", f"{found['adding_ms']['best']:.2f} ms", ""
        yield "training", "step of the optimizer", f"{found['step_ms']['best']:.2f} ms", ""
        yield "training", "method", "", found["method"]
    if found := sections.get("graphs"):
        for row in found["rows"]:
            what = f"{row['sessions']} sequences: plain {row['plain_ms']:.3f} ms, captured graph {row['captured_ms']:.3f} ms"
            yield "graphs", what, f"{row['captured_times_faster']} times faster", ""
        yield "graphs", "CUDA graphs", "none", found["cuda_graph_reason"]


def _percent(share: float | None, of: str) -> str:
    return "" if share is None else f"{share:.1%} of {of}"
