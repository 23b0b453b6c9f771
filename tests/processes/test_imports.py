"""What an import loads, in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "hivemind", "numpy", "safetensors")
UNWANTED = {
    "swarm.inference.client.session": HEAVY,
    "swarm.streams.links": HEAVY,
    "swarm.routing.router": HEAVY,
    "swarm.rpc.pool": HEAVY,
    "swarm.rpc.server": HEAVY,
    "swarm.weights.fetch": HEAVY,
    "swarm.weights.lookup": HEAVY,
    "swarm.weights.uploader": HEAVY,
    "swarm.checkpoints.digest": HEAVY,
    "swarm.peer.peer": HEAVY,
    "swarm.client": ("hivemind", "node", "typer", "rich"),
}
"""Modules that only pass bytes on must not import the packages that compute."""


@pytest.fixture(scope="module")
def brought() -> dict[str, list[str]]:
    """The unwanted packages that are there after each module, all of them imported by one process in this order."""
    code = (
        "import importlib, json, sys\nbrought = {}\n"
        "for name, unwanted in json.loads(sys.argv[1]).items():\n"
        "    importlib.import_module(name)\n"
        "    brought[name] = [package for package in unwanted if package in sys.modules]\n"
        "print(json.dumps(brought))"
    )
    command = [sys.executable, "-c", code, json.dumps(UNWANTED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", UNWANTED)
def test_an_import_brings_nothing_heavy(module: str, brought: dict[str, list[str]]) -> None:
    assert brought[module] == []


def test_grpc_is_told_before_it_is_loaded_that_its_event_engine_is_not_wanted() -> None:
    """It reads its settings once, when it is loaded: set later, they do nothing, and nothing says so."""
    code = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"), os.environ.get("GRPC_VERBOSITY"))

sys.meta_path.insert(0, Watch())
import swarm.rpc
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout == "-event_engine_client,-event_engine_listener NONE\n", done.stderr
