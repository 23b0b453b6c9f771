"""Random requests: each is answered or refused, never with a fault."""

from __future__ import annotations

import http.client
import importlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from node.gateway.anthropic.messages import CountBody, MessagesBody
from node.gateway.http.error_forms import form_of
from node.gateway.http.refusal import Refusal
from node.gateway.ollama.asking import GenerateBody, OllamaChatBody
from node.gateway.ollama.embeddings import EmbedBody, OldBody
from node.gateway.ollama.models import ShowBody
from node.gateway.openai.chat import ChatBody
from node.gateway.openai.completions import CompletionBody
from node.gateway.openai.embeddings import EmbeddingsBody
from node.gateway.openai.responses import ResponsesBody
from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
LEAVES |= st.sampled_from(["tiny", "user", "text", "tool", "tool_use", "tool_result", "function", 1, 0.5, -1, 2**64])
KEYS = st.text() | st.sampled_from(["role", "content", "type", "function", "name", "input", "tool_calls", "arguments"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8)
TALK = [{"role": "user", "content": "x"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": TALK, "max_tokens": 1},
    "/v1/completions": {"model": "tiny", "prompt": "x", "max_tokens": 1},
    "/v1/responses": {"model": "tiny", "input": "x", "max_output_tokens": 1},
    "/v1/messages": {"model": "tiny", "messages": TALK, "max_tokens": 1},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": TALK},
    "/api/chat": {"model": "tiny", "messages": TALK, "options": {"num_predict": 1}},
    "/api/generate": {"model": "tiny", "prompt": "x", "options": {"num_predict": 1}},
    "/api/show": {"model": "tiny"},
    "/v1/embeddings": {"model": "tiny", "input": "x"},
    "/api/embed": {"model": "tiny", "input": "x"},
    "/api/embeddings": {"model": "tiny", "prompt": "x"},
}
ASKING = (ChatBody, CompletionBody, ResponsesBody, MessagesBody, CountBody, OllamaChatBody, GenerateBody, ShowBody)
BODIES = (*ASKING, EmbeddingsBody, EmbedBody, OldBody)
FIELDS = {path: sorted(body.model_fields) for path, body in zip(GOOD, BODIES, strict=True)}
LENGTHS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "options"}
"""An answer may be long, and that is no fault."""


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A right request with some fields changed; or its bytes cut and mixed."""
    path = draw(st.sampled_from(sorted(GOOD)))
    changed = draw(st.dictionaries(st.sampled_from(FIELDS[path]) | st.text(max_size=8), VALUES, min_size=1, max_size=3))
    data = json.dumps(GOOD[path] | {key: value for key, value in changed.items() if key not in LENGTHS}).encode()
    if draw(st.integers(0, 5)) == 0:
        at, stop = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        data = data[:at] + draw(st.binary(max_size=4)) + data[stop:]
    return path, data


def test_no_request_is_answered_with_a_fault(swarm: GatewaySwarm) -> None:
    connection = http.client.HTTPConnection(urlsplit(swarm.url).netloc, timeout=LIMIT_S)
    statuses = set[tuple[str, int]]()

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(requests())
    def one(request: tuple[str, bytes]) -> None:
        path, data = request
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        statuses.add((path, response.status))
        assert response.status < 500, body
        if response.status != 200:
            assert set(json.loads(body)) == set(form_of(path)(Refusal(status=400, message="")))

    for path, good in GOOD.items():
        one = example((path, json.dumps(good).encode()))(example((path, b"{"))(one))
    one()
    assert statuses >= {(path, status) for path in GOOD for status in (200, 400)}


def test_requests_from_the_published_document_meet_no_fault(swarm: GatewaySwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run of `scripts/malformed`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[4] / "scripts"))
    malformed = importlib.import_module("malformed")
    verdicts = {one.endpoint: one for one in malformed.flood(swarm.url.removesuffix("/v1"), "tiny", 100, number=7)}
    assert not [fault for one in verdicts.values() for fault in one.faults]
    posts = {f"POST {path}" for path in GOOD}
    assert verdicts.keys() > posts and all(verdicts[post].statuses[400] for post in posts)
    kept = sum(verdicts[post].num_kept for post in posts)
    assert kept > 20 and sum(verdicts[post].num_answered for post in posts) * 3 >= kept, "a third reaches the model"


@pytest.mark.parametrize(
    ("path", "status", "content", "is_fault"),
    [
        ("/v1/completions", 500, b"{}", True),
        ("/v1/completions", 400, b"no JSON", True),
        ("/v1/completions", 400, b'{"error": {}}', False),
        ("/v1/messages", 400, b'{"error": {}}', True),
        ("/v1/messages", 200, b"", False),
    ],
)  # fmt: skip
def test_a_fault_is_seen(path: str, status: int, content: bytes, is_fault: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[4] / "scripts"))
    assert (importlib.import_module("malformed").fault_of(path, status, content) is not None) is is_fault
