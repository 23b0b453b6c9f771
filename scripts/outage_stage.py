"""A swarm of namespaces for `outages`: two nodes, a gateway, two clients.

Each process is at a machine of its own. The gateway and the clients are asked all the time; each question leaves a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.bridge import Bridge
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import ROOT

PAUSE_S = 0.5
"""Between two questions of an asker."""

LIMIT_S = 120.0
"""Longest time in which all are answered again."""

SPANS = ("0:2", "2:5")
GATEWAY, FULL, THIN, SPARE = 2, 3, 4, 5
"""Machines; the nodes have the first two."""

ASK_GATEWAY = """
import json, sys, time, urllib.error, urllib.request
body = json.dumps({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}).encode()
while True:
    began_s, error = time.monotonic(), ""
    try:
        asked = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(asked, timeout=150).read()
    except urllib.error.HTTPError as refused:
        error = f"{refused.code}, Retry-After {refused.headers.get('Retry-After')}: {refused.read()[:400].decode()}"
    except OSError as failure:
        error = repr(failure)
    print(json.dumps([began_s, time.monotonic(), error]), flush=True)
    time.sleep(float(sys.argv[1]))
"""

ASK_MODEL = """
import json, sys, time, torch
from protocols.errors import SwarmError
from swarm.client import SwarmModelForCausalLM
model = SwarmModelForCausalLM.from_pretrained("tiny", peers=[sys.argv[3]], thin=sys.argv[2] == "thin", patience_s=10.0)
while True:
    began_s, error = time.monotonic(), ""
    try:
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    except SwarmError as failure:
        error = repr(failure)[:400]
    print(json.dumps([began_s, time.monotonic(), error]), flush=True)
    time.sleep(float(sys.argv[1]))
"""


@dataclass(frozen=True)
class Asker:
    """A gateway or client, and what its questions came to."""

    name: str
    file: Path
    pid: int
    """Of the gateway or client itself."""

    def _answers(self) -> list[tuple[float, float, str]]:
        return [tuple(json.loads(line)) for line in self.file.read_text().split("\n")[:-1]]

    def back_s(self, since_s: float) -> float | None:
        """Seconds from then to the first answer; None = none yet."""
        return next((ended_s - since_s for _, ended_s, error in self._answers() if ended_s > since_s and not error), None)

    def errors(self, since_s: float) -> list[str]:
        """What was said instead of an answer since then, each text once."""
        return list(dict.fromkeys(error for _, ended_s, error in self._answers() if ended_s > since_s and error))


class Stage:
    """What runs, and what can be done to it. `with Stage(folder, bridge, pool) as stage`."""

    def __init__(self, folder: Path, bridge: Bridge, pool: ProcessPool) -> None:
        self._folder, self._bridge, self._pool = folder, bridge, pool
        self._checkpoint = make_checkpoint("llama", folder / "tiny")
        add_byte_tokenizer(self._checkpoint)
        (self._checkpoint / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        self._nodes: dict[int, NodeProcess] = {}
        self.askers: dict[int, Asker] = {}
        self._scripts: list[subprocess.Popen[bytes]] = []
        self._num_nodes = 0

    def __enter__(self) -> Stage:
        self.node(0, [])
        self.node(1, [self.address(0)])
        words = ["serve", "tiny", "--port", "8000", "--peer", self.address(0), "--no-lan"]
        gateway = self._start(GATEWAY, "gateway", [*words, "--data-dir", str(self._folder / "gateway")])
        gateway.wait_for("ready")
        file, _ = self._script(GATEWAY, "asks-gateway", ASK_GATEWAY, [])
        self.askers[GATEWAY] = Asker("gateway", file, gateway.pid)
        for machine, kind in ((FULL, "full"), (THIN, "thin")):
            self.askers[machine] = Asker(kind, *self._script(machine, kind, ASK_MODEL, [kind, self.address(0)]))
        self.all_back(time.monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._scripts:
            process.kill()
            process.wait()

    def _start(self, machine: int, name: str, words: list[str]) -> NodeProcess:
        network = self._bridge.network(machine)
        try:
            return self._pool.start(name, words, {"MURMURATION_LOG": "INFO", "OMP_NUM_THREADS": "1"}, network=network)
        finally:
            os.close(network)

    def _script(self, machine: int, name: str, code: str, arguments: list[str]) -> tuple[Path, int]:
        out, home = self._folder / f"{name}.out", str(self._folder / f"home-{name}")
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": home, "XDG_DATA_HOME": home}
        command = self._bridge.command(machine, [sys.executable, "-c", code, str(PAUSE_S), *arguments])
        with out.open("wb") as stdout, (self._folder / f"{name}.err").open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env={**os.environ, **own})
        self._scripts.append(process)
        return out, process.pid  # `ip netns exec` becomes the command

    def node(self, machine: int, peers: Sequence[str], *, span: str = "", data: str = "", port: int = 0) -> None:
        """Start a node and wait until it serves. data: its folder; another one = another key. port: 0 = one that no node had."""
        self._num_nodes += 1
        words = ["node", str(self._checkpoint), "--blocks", span or SPANS[machine], "--dtype", "float32", "--no-lan"]
        words += ["--listen", f"10.83.0.{machine + 1}:{port or 4000 + 10 * self._num_nodes}"]
        words += ["--data-dir", str(self._folder / (data or f"data{machine}"))]
        for peer in peers:
            words += ["--peer", peer]
        self._nodes[machine] = self._start(machine, f"node{machine}", words)
        self._nodes[machine].wait_for("ready")

    def address(self, machine: int) -> str:
        """As for `--peer`."""
        return self._nodes[machine].said["multiaddr"]

    def port(self, machine: int) -> int:
        """Of its p2pd."""
        return int(self.address(machine).split("/")[4])

    def kill(self, machine: int) -> None:
        """Kill -9 a node."""
        self._nodes[machine].end(signal.SIGKILL)

    @contextlib.contextmanager
    def stopped(self, machines: Sequence[int], *, only: str = "") -> Iterator[None]:
        """SIGSTOP until the end. only: those of their processes whose program has this name."""
        pids = [pid for machine in machines for pid in self._pids(machine) if only in _program(pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _pids(self, machine: int) -> list[int]:
        pid = self._nodes[machine].pid if machine in self._nodes else self.askers[machine].pid
        return [pid, *_children(pid)]

    @contextlib.contextmanager
    def cut(self, machines: Sequence[int]) -> Iterator[None]:
        """Each of them alone until the end."""
        for machine in machines:
            self._bridge.link(machine, "down")
        try:
            yield
        finally:
            for machine in machines:
                self._bridge.link(machine, "up")

    def all_back(self, healed_s: float) -> dict[str, float | None]:
        """Wait for an answer to each asker: seconds from `healed_s`; None = none within LIMIT_S."""
        while True:
            found = {asker.name: asker.back_s(healed_s) for asker in self.askers.values()}
            if None not in found.values() or time.monotonic() > healed_s + LIMIT_S:
                return found
            time.sleep(0.2)


def _program(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]


def _children(pid: int) -> list[int]:
    own = [int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()]
    return [each for one in own for each in (one, *_children(one))]
