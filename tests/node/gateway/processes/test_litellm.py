"""LiteLLM gets what other clients get, by three APIs.

It runs in a process of its own: its import takes seconds, and changes logging and warnings of a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.node.gateway.processes.conftest import GatewaySwarm
from tests.node.gateway.processes.test_openai_client import NEW, generated

SCRIPT = """
import json, sys
import litellm

url, new = sys.argv[1], int(sys.argv[2])
root = url.removesuffix("/v1")
talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
bases = {"openai/tiny": url, "anthropic/tiny": root, "ollama_chat/tiny": root}
found = {}
for model, base in bases.items():
    asked = {"model": model, "api_base": base, "api_key": "none", "max_tokens": new, "messages": talk, "timeout": 60, "num_retries": 0}
    whole = litellm.completion(**asked)
    parts = [part.choices[0].delta.content or "" for part in litellm.completion(**asked, stream=True)]
    found[model] = {"whole": whole.choices[0].message.content, "stream": "".join(parts), "parts": len(parts),
                    "reason": whole.choices[0].finish_reason, "prompt": whole.usage.prompt_tokens, "new": whole.usage.completion_tokens}
vector = litellm.embedding(model="openai/tiny", input=["a cat"], api_base=url, api_key="none", encoding_format="float").data[0]["embedding"]
found["vector"] = {"length": sum(value * value for value in vector), "width": len(vector)}
try:
    litellm.completion(model="openai/none", api_base=url, api_key="none", messages=talk, num_retries=0)
except litellm.NotFoundError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""

RENDERED = "s:be kind;u:hi;a:"


@pytest.fixture(scope="module")
def found(swarm: GatewaySwarm) -> Any:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SCRIPT, swarm.url, str(NEW)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", ["openai/tiny", "anthropic/tiny", "ollama_chat/tiny"])
def test_a_chat_is_what_the_command_prints(swarm: GatewaySwarm, found: Any, model: str) -> None:
    expected, said = generated(swarm, prompt=RENDERED), found[model]
    assert said["whole"] == expected and said["stream"] == expected and said["parts"] > 2
    assert (said["prompt"], said["new"], said["reason"]) == (len(RENDERED), NEW, "length")


def test_embeddings_and_errors(found: Any) -> None:
    assert abs(found["vector"]["length"] - 1.0) < 1e-4 and found["vector"]["width"] > 1
    assert "none" in found["error"]
