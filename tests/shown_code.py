"""Lines of shell and blocks of Python that the documents show.

A test runs each of them, or EXCUSED says why not.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(sh|bash|console|python)\n(.*?)^ *```", re.M | re.S)

EXCUSED = {
    "git clone": "a repository's address is needed",
    "scripts/setup": "installs gigabytes; tests/test_scripts.py runs it up to its first download",
    "cd murmuration": "of git clone",
    ". .venv/bin/activate": "the tests run in this environment",
    "scripts/demo": "tests/test_scripts.py runs it, with a smaller model",
    "scripts/real_model": "downloads a wheel of 80 MB; what it converts with is tested in tests/end_to_end/test_gguf.py",
    "scripts/test": "runs these tests",
    ".ci/run": "runs these tests",
    "scripts/check": "half a minute of a core; a part is in tests/test_layers.py, and CI runs it",
    "scripts/gpu_check": "a minute; tests/test_gpu_check.py runs its parts",
    ".venv/bin/python scripts/docs.py": "rewrites this checkout; tests/test_documents.py and tests/test_layers.py compare what it writes",
    ".venv/bin/python scripts/site.py": "tests/test_site.py builds the site",
    "scripts/words": "tests/test_words.py looks for the words",
    ".venv/bin/python -m pip install --dry-run": "needs a package index",
    "scripts/trace_gradient": "tests/end_to_end/test_trace_gradient.py runs its parts",
    "scripts/trace_token": "needs the demo's model, whose training takes a minute; 13 s more of a core",
    "scripts/bench": "minutes on a quiet machine; docs/benchmarks.md is what it wrote",
    "scripts/attack": "a minute; tests/hostile/test_untrusted_peers.py runs attacks of it",
    "scripts/fuzz": "a million inputs; tests/hostile/test_fuzz.py sends 30,000",
    "swarm doctor": "multiplies matrices for seconds; tests/node/cli/test_doctor.py runs it",
    "swarm operator ask first": "orders to a node of another document; docs/operating.md has one, tests/hostile/test_orders.py all",
    "swarm operator pause first": "as ask",
    "swarm operator drain first": "as ask",
    "swarm operator ban first": "as ask",
    "docker compose": "needs a container engine; tests/test_deploy.py reads the file",
    "export MODEL_DIR": "of docker compose",
    "export GRAFANA_PASSWORD": "of docker compose",
}
"""How a command begins -> why no test runs it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a document shows: one command with its continuation lines, or one block of Python."""

    document: str
    language: str
    text: str

    @property
    def excuse(self) -> str | None:
        """Why no test runs it; None = one does."""
        found = [begin for begin in EXCUSED if self.text.startswith(begin)]
        return EXCUSED[max(found, key=len)] if self.language == "sh" and found else None


def shown_by(document: Path) -> Iterator[Shown]:
    """In the document's order."""
    name = str(document.relative_to(ROOT))
    for indent, language, block in BLOCK.findall(document.read_text(encoding="utf-8")):
        if language == "python":
            yield Shown(name, "python", textwrap.dedent(block) if indent else block)
        else:
            yield from (Shown(name, "sh", command) for command in commands_of(block))


def commands_of(block: str) -> Iterator[str]:
    """Each command of a block of shell, without comments."""
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line)
        yield from (command.strip() for command in line.split("&&") if command.strip())


ALL = [one for document in DOCUMENTS for one in shown_by(document)]
