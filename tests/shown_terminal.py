"""Types what documents show, in small real swarms on loopback."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.shown_code import Shown

SERVICES = {"node": 0, "up": 0, "serve": 130}
"""Commands that stay once they have said `ready`, and how they exit at Ctrl-C."""

PLACEHOLDERS = r"/ip4/203\.0\.113\.5/\S*12D3…|/ip4/…/p2p/…|\bMULTIADDR\b|(?<=--peer )…"
WHERE = "http://127.0.0.1:8000"

PYTHON = """
import ast, asyncio, inspect, json, sys
begin, *blocks = json.loads(sys.argv[1])
names = {}
exec(begin, names)
for block in blocks:
    made = eval(compile(block, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), dict(names))
    if inspect.iscoroutine(made):
        asyncio.run(made)
print("all", len(blocks), "have run")
"""


@dataclass
class Terminal:
    """Types lines of documents. Services stay until `close`, and must then end in order."""

    server: ForkServer
    pool: ProcessPool
    folder: Path
    model: Path
    """A directory; its last part is the NAME."""
    run_file: Path
    own: dict[str, str] = field(default_factory=dict)
    """Variables beyond those below."""
    services: dict[str, NodeProcess] = field(default_factory=dict)
    """By the line that started each."""
    _typed: set[str] = field(default_factory=set)

    def environment(self) -> dict[str, str]:
        """Nothing outside loopback is heard or listened to, and an answer has few tokens."""
        given = {"DATA_DIR": self.folder / "data", "OUT": self.folder / "runs", "LISTEN": "127.0.0.1:0", "LAN": "false"}
        given |= {"PORT": "0", "MAX_NEW_TOKENS": "4", "DTYPE": "float32"}
        return {**os.environ, **{f"SWARM_{name}": str(value) for name, value in given.items()}, **self.own}

    def meant(self, text: str) -> str:
        """With what stands for MODEL, NAME, addresses, ports and files here."""
        text = re.sub(PLACEHOLDERS, lambda found: self.peer, text)
        text = re.sub(r"\[?\bNAME\b\]?|\bSmolLM2-135M-Instruct\b", self.model.name, text)
        text = re.sub(r"(serve|status) MODEL\b", rf"\1 {self.model.name}", text)
        text = re.sub(r"\bMODEL\b", str(self.model), text)
        text = re.sub(r"--listen \S+", "--listen 127.0.0.1:0", text).replace("--metrics 9400", "--metrics 0")
        text = text.replace("examples/prose/run.toml", str(self.run_file))
        text = re.sub(r"(--join|--operators|>) (invitation|operators\.txt)", rf"\1 {self.folder}/\2", text)
        return text.replace(WHERE, self._of_a_service("address").removesuffix("/v1") or WHERE)

    @property
    def peer(self) -> str:
        """The address that the newest service has printed, or that of the variables."""
        return self._of_a_service("multiaddr") or self.own.get("SWARM_PEER", "")

    def _of_a_service(self, kind: str) -> str:
        return next((one.said[kind] for one in reversed(self.services.values()) if kind in one.said), "")

    def type(self, shown: Shown) -> None:
        """Run one line to its end, or until it serves; not if it has ended well before. AssertionError if it failed."""
        text, short = self.meant(shown.text), re.sub(r"--(peer|listen) \S+|[][]", "", shown.text).strip()
        if short in self._typed:
            return
        text, _, file = (part.strip() for part in text.partition(" > "))
        words = shlex.split(text)
        if words[0] != "swarm":
            _done(subprocess.run(words, capture_output=True, text=True, timeout=60), shown)
        elif words[1] in SERVICES:
            self._serve(shown, words[1:])
        else:
            said = _done(self.server.run(words[1:], stdin=subprocess.PIPE, environment=self.environment()), shown)
            if file:
                Path(file).write_text(said)
        self._typed.add(short)

    def _serve(self, shown: Shown, words: list[str]) -> None:
        started = self.pool.start(f"{len(self.services)}-{words[0]}", words, self.environment())
        started.wait_for("ready")
        self.services[shown.text] = started

    def python(self, blocks: list[Shown], begin: str) -> None:
        """Blocks that stand together, in one process, each with the names of `begin` alone."""
        told = json.dumps([self.meant(begin), *(self.meant(block.text) for block in blocks)])
        done = self.server.run([PYTHON, told], kind="code", environment=self.environment())
        assert f"all {len(blocks)} have run" in done.stdout, (blocks[0].document, done.stderr)

    def close(self) -> None:
        """End all services, the last one first, and see that each ends in order."""
        while self.services:
            line, service = self.services.popitem()
            assert service.end(signal.SIGINT) == SERVICES[line.split()[1]], (line, service.last_words())


def _done(done: subprocess.CompletedProcess[str], shown: Shown) -> str:
    assert done.returncode == 0, (shown.document, shown.text, done.returncode, done.stdout[-2_000:], done.stderr[-2_000:])
    return done.stdout
