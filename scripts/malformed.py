"""Sends requests to a gateway, made from its published OpenAPI document.

schemathesis makes them: half keep to the document, half break it in one or several places. Each must be answered within a time, by a status
below 500, and a refusal must have the form of its API.

Run: scripts/malformed [--requests 10000] [--seed 1] [--url http://127.0.0.1:8000]; without --url, it starts two nodes and a gateway of a
tiny model. The same seed gives the same requests. Exit code 1 if an answer was a fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from gateways import NAME, Size, start_gateway
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from volunteers import Node, stop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from node.gateway.http.error_forms import form_of  # noqa: E402
from node.gateway.http.refusal import Refusal  # noqa: E402

SLOW_S = 30.0
"""An answer that takes longer is a fault."""

FEW_TOKENS = 4
"""Length of the answers that requests ask for: else most of the time would go into tokens."""

FEW_ANSWERS = 4
"""Most answers to a request: each that keeps to a schema has a process of its own."""

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@dataclass(kw_only=True)
class Verdict:
    """What became of the requests to one endpoint."""

    endpoint: str
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    num_kept: int = 0
    """Requests that keep to the document."""
    num_answered: int = 0
    """Of these, those that were answered: they have reached the model."""


def document_of(url: str, model: str) -> dict[str, Any]:
    """The published one, such that what keeps to it names a model of this run, and asks for a few tokens."""
    document: dict[str, Any] = requests.get(f"{url}/openapi.json", timeout=SLOW_S).json()
    for schema in document["components"]["schemas"].values():
        for name, prop in schema.get("properties", {}).items():
            if name == "model":
                prop["enum"] = [model]
            for one in (prop, *prop.get("anyOf", ())) if name in (*LENGTHS, "n") else ():
                if one.get("type") == "integer":
                    one["minimum"], one["maximum"] = (1, FEW_ANSWERS) if name == "n" else (FEW_TOKENS, FEW_TOKENS)
    return document


def flood(url: str, model: str, num_requests: int, number: int) -> list[Verdict]:
    """Send them, endpoint after endpoint. url: without `/v1`. number: the seed."""
    schema = schemathesis.openapi.from_dict(document_of(url, model))
    endpoints = [found.ok() for found in schema.get_all_operations()]
    posts = sum(one.method.upper() == "POST" for one in endpoints)
    verdicts = []
    with requests.Session() as session:
        for one in endpoints:
            verdict = Verdict(endpoint=f"{one.method.upper()} {one.path}")
            for mode in MODES:
                _send(one, mode, url, session, max(1, num_requests // (len(MODES) * posts)), number, verdict)
            verdicts.append(verdict)
            print(line_of(verdict), file=sys.stderr, flush=True)
    return verdicts


def _send(
    endpoint: Any, mode: GenerationMode, url: str, session: requests.Session, most: int, number: int, verdict: Verdict
) -> None:
    @seed(number)
    @settings(max_examples=most, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=endpoint.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        began_s = time.perf_counter()
        try:
            response = case.call(base_url=url, session=session, timeout=SLOW_S)
            fault = fault_of(endpoint.path, response.status_code, response.content)
        except requests.exceptions.InvalidURL:
            return  # nothing was sent
        except requests.exceptions.RequestException as error:
            fault, response = f"{type(error).__name__}: {error}", None
        verdict.slowest_s = max(verdict.slowest_s, time.perf_counter() - began_s)
        status = 0 if response is None else response.status_code
        verdict.statuses[status] += 1
        verdict.num_kept += mode is GenerationMode.POSITIVE
        verdict.num_answered += mode is GenerationMode.POSITIVE and status == 200
        if fault is not None:
            verdict.faults.append(f"{fault} for {case.as_curl_command()[:4000]}")

    try:
        one()
    except Unsatisfiable:  # a GET has nothing to be broken
        return


def fault_of(path: str, status: int, content: bytes) -> str | None:
    """None if this is how a request may be answered."""
    if status >= 500:
        return f"status {status}, {content[:300]!r}"
    if status == 200:
        return None
    form = set(form_of(path)(Refusal(status=status, message="")))
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return None if isinstance(found, dict) and set(found) == form else f"a refusal of another form: {status}, {content[:300]!r}"


def line_of(verdict: Verdict) -> str:
    found = ", ".join(f"{status}: {count}" for status, count in sorted(verdict.statuses.items()))
    answered = f"{verdict.num_answered} of {verdict.num_kept}"
    return f"{verdict.endpoint:34} {sum(verdict.statuses.values()):6} {verdict.slowest_s:7.2f} s {answered:>14}   {found}"


def report(verdicts: list[Verdict]) -> int:
    """Print the faults, and the sum. The exit code."""
    faults = [fault for one in verdicts for fault in one.faults]
    for fault in faults[:20]:
        print(fault)
    total = sum(sum(one.statuses.values()) for one in verdicts)
    slowest_s = max(one.slowest_s for one in verdicts)
    kept, answered = sum(one.num_kept for one in verdicts), sum(one.num_answered for one in verdicts)
    print(f"{total} requests, {len(faults)} faults, the slowest answer took {slowest_s:.2f} s")
    print(f"{answered} of {kept} requests that keep to the document were answered")
    return 1 if faults else 0


def main() -> int:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--requests", type=int, default=10_000, help="in all, to the endpoints that take a body (10000)")
    words.add_argument("--seed", type=int, default=1, help="the same seed gives the same requests (1)")
    words.add_argument("--url", help="of a gateway that runs; none = start one, with two nodes of a tiny model")
    words.add_argument("--model", default="tiny", help="a model of that gateway (tiny)")
    asked = words.parse_args()
    if asked.url:
        return report(flood(asked.url.rstrip("/").removesuffix("/v1"), asked.model, asked.requests, asked.seed))
    running: list[Node] = []
    with tempfile.TemporaryDirectory(prefix="murmuration-malformed-") as folder:
        try:
            return report(flood(start_gateway(Path(folder), running, Size(context=256)).url, NAME, asked.requests, asked.seed))
        finally:
            stop(running)


if __name__ == "__main__":
    sys.exit(main())
