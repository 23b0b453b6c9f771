"""Measures the page in headless Chromium, with a large made swarm.

First content on loopback, and how long the browser's main thread works in a second while the loads of 200 nodes over 128 blocks change with
every look. Run: .venv/bin/python scripts/page_speed.py [--peers 200] [--blocks 128] [--seconds 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import MISSING, Browser, is_here, open_browser  # noqa: E402
from tests.node.dashboard.made_swarm import MadeSource, many, serving  # noqa: E402

LOADS = 3
"""Loads of the page that are measured; the first one imports NiceGUI at the server."""


def measure(num_peers: int, num_blocks: int, seconds: float) -> dict[str, Any]:
    """Milliseconds."""
    source = MadeSource(many(num_peers, num_blocks), rng=random.Random(1))
    with serving(source) as url, open_browser() as browser:
        first = [_first_content_ms(browser, url) for _ in range(LOADS)]
        browser.until_text("complete", ".mm-verdict", 30)
        rows = browser.run("return document.querySelectorAll('.mm-grid tbody tr').length")
        assert rows == num_peers + 1, f"{rows} lines are drawn"
        return {
            "peers": num_peers, "blocks": num_blocks, "first_visit_ms": first[0], "first_content_ms": min(first[1:]),
            **busy_ms(browser, seconds),
        }  # fmt: skip


def busy_ms(browser: Browser, seconds: float) -> dict[str, float]:
    """What the main thread computes in a second, by DevTools' metrics: its own time, which other work on the machine does not lengthen."""
    browser.devtools("Performance.enable", timeDomain="threadTicks")
    before, began_s = _metrics(browser), time.monotonic()
    time.sleep(seconds)
    after, took_s = _metrics(browser), time.monotonic() - began_s
    names = {
        "TaskDuration": "main_thread",
        "ScriptDuration": "script",
        "LayoutDuration": "layout",
        "RecalcStyleDuration": "style",
    }
    return {f"{name}_ms_per_s": round((after[key] - before[key]) * 1e3 / took_s, 1) for key, name in names.items()}


def _metrics(browser: Browser) -> dict[str, float]:
    return {one["name"]: one["value"] for one in browser.devtools("Performance.getMetrics")["metrics"]}


def _first_content_ms(browser: Browser, url: str) -> float:
    browser.open(url)
    paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    return round(browser.until(lambda: browser.run(paint)), 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    if not is_here():
        print(MISSING, file=sys.stderr)
        return 1
    found = measure(flags.peers, flags.blocks, flags.seconds)
    print(json.dumps(found) if flags.json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
