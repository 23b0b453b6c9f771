"""Random requests: each is answered or refused, never with a fault."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.gateway.openai_chat import ChatBody
from node.gateway.openai_completions import CompletionBody
from tests.node.gateway.processes.conftest import GatewaySwarm

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
LEAVES |= st.sampled_from(["tiny", "user", "text", 1, 0.5, -1, 2**64])
KEYS = st.text() | st.sampled_from(["role", "content", "type"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8)
GOOD: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "completions": {"model": "tiny", "prompt": "x", "max_tokens": 1},
}
FIELDS = {"chat/completions": sorted(ChatBody.model_fields), "completions": sorted(CompletionBody.model_fields)}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A right request with some fields changed; or its bytes cut and mixed."""
    path = draw(st.sampled_from(sorted(GOOD)))
    changed = draw(st.dictionaries(st.sampled_from(FIELDS[path]) | st.text(max_size=8), VALUES, min_size=1, max_size=3))
    changed.pop("max_tokens", None)  # an answer may be long, and that is no fault
    changed.pop("max_completion_tokens", None)
    data = json.dumps(GOOD[path] | changed).encode()
    if draw(st.integers(0, 5)) == 0:
        at, stop = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        data = data[:at] + draw(st.binary(max_size=4)) + data[stop:]
    return path, data


def test_no_request_is_answered_with_a_fault(swarm: GatewaySwarm) -> None:
    connection = http.client.HTTPConnection(urlsplit(swarm.url).netloc, timeout=30)
    statuses = set()

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(requests())
    def one(request: tuple[str, bytes]) -> None:
        path, data = request
        connection.request("POST", f"/v1/{path}", data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        statuses.add(response.status)
        assert response.status < 500, body
        if response.status != 200:
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}

    one()
    assert statuses >= {200, 400}
