"""The rules of the tree: imports, a pure `protocols`, true documents."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sources import LAYERS, ROOT, called, imports, nodes_of, tracked, tree_of

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "cryptography": ("protocols/identity.py", "swarm/rpc"),
    "fastapi": ("node/dashboard/pages", "node/gateway"),
    "grpc": ("swarm/rpc",),
    "hivemind": ("swarm/dht",),
    "gguf": ("swarm/models/gguf_main.py",),
    "google": ("swarm/lan",),
    "huggingface_hub": ("swarm/checkpoints",),
    "jinja2": ("swarm/thin",),
    "libp2p": ("swarm/lan",),
    "llguidance": ("swarm/thin/grammar/grammar.py",),
    "msgpack": ("protocols",),
    "opentelemetry": ("node/telemetry.py",),
    "matplotlib": ("node/training/report/plots.py",),
    "packaging": ("node/doctor",),
    "nicegui": ("node/dashboard/pages",),
    "numpy": ("node/training/data", "swarm/averaging", "swarm/thin"),
    "prometheus_client": ("node/metrics.py", "node/metrics_page.py"),
    "prompt_toolkit": ("node/cli/terminal/line_editor.py",),
    "psutil": ("swarm/lan/network.py",),
    "pydantic": ("node/gateway",),
    "pydantic_core": ("node/gateway",),
    "pyarrow": ("node/training/data/columns.py",),
    "rich": ("node/cli",),
    "safetensors": ("swarm/models",),
    "tensorboard": ("node/training/report/tensorboard.py",),
    "tokenizers": ("node/training/spec", "swarm/thin"),
    "torch": (
        "protocols/compression.py",
        "swarm/averaging",
        "swarm/client",
        "swarm/inference",
        "swarm/models",
        "swarm/training",
        "node",
    ),
    "tqdm": ("swarm/models/gguf_main.py",),
    "starlette": ("node/dashboard", "node/gateway"),
    "transformers": ("swarm/models", "swarm/client", "node/engines"),
    "typer": ("node/cli",),
    "uvicorn": ("node/gateway",),
    "zeroconf": ("swarm/lan",),
}
"""Third-party package -> the folders and files that may import it. A package without an entry may be imported nowhere."""


FOLDERS: dict[str, tuple[str, ...]] = {
    "swarm": (),
    "swarm/placement": (),
    "swarm/checkpoints": ("swarm",),
    "swarm/dht": ("swarm",),
    "swarm/routing": ("swarm",),
    "swarm/rpc": ("swarm",),
    "swarm/models": ("swarm", "swarm/checkpoints"),
    "swarm/lan": ("swarm/dht",),
    "swarm/averaging": ("swarm", "swarm/rpc"),
    "swarm/directory": ("swarm", "swarm/dht", "swarm/rpc"),
    "swarm/streams": ("swarm", "swarm/rpc"),
    "swarm/weights": ("swarm", "swarm/checkpoints", "swarm/placement", "swarm/rpc"),
    "swarm/training": ("swarm", "swarm/averaging", "swarm/models", "swarm/rpc", "swarm/weights"),
    "swarm/meeting": ("swarm", "swarm/dht", "swarm/directory", "swarm/lan", "swarm/rpc"),
    "swarm/inference": ("swarm", "swarm/streams"),
    "swarm/inference/hop": ("swarm", "swarm/inference", "swarm/streams"),
    "swarm/inference/client": ("swarm", "swarm/inference", "swarm/routing", "swarm/streams"),
    "swarm/peer": ("swarm", "swarm/dht", "swarm/directory", "swarm/meeting", "swarm/rpc"),
    "swarm/thin": (
        "swarm",
        "swarm/checkpoints",
        "swarm/inference/client",
        "swarm/meeting",
        "swarm/peer",
        "swarm/routing",
        "swarm/streams",
        "swarm/thin/grammar",
        "swarm/thin/tokenizing",
        "swarm/weights",
    ),
    "swarm/thin/tokenizing": ("swarm", "swarm/checkpoints", "swarm/models", "swarm/thin/grammar"),
    "swarm/thin/grammar": (),
    "swarm/client": (
        "swarm",
        "swarm/checkpoints",
        "swarm/inference/client",
        "swarm/meeting",
        "swarm/models",
        "swarm/peer",
        "swarm/routing",
        "swarm/rpc",
        "swarm/streams",
        "swarm/thin",
        "swarm/thin/tokenizing",
        "swarm/training",
        "swarm/weights",
    ),
    "node/units": ("swarm/models",),
    "node/engines/graphs": ("node/units",),
    "node/training/data": ("swarm", "swarm/thin/tokenizing"),
    "node/training/checkpoint": ("swarm", "swarm/checkpoints", "swarm/models", "swarm/rpc", "swarm/training"),
    "node/training/optimizer": (),
    "node/training/spec": ("node/training/data", "node/training/optimizer", "swarm", "swarm/checkpoints", "swarm/models"),
    "node/training": (
        "node/device",
        "node/engines",
        "node/training/data",
        "node/training/optimizer",
        "swarm",
        "swarm/averaging",
        "swarm/checkpoints",
        "swarm/models",
        "swarm/rpc",
        "swarm/training",
    ),
    "node/training/report": ("node/training",),
    "node/runs": (
        "node",
        "node/training",
        "node/training/checkpoint",
        "node/training/data",
        "node/training/spec",
        "swarm",
        "swarm/checkpoints",
        "swarm/directory",
        "swarm/models",
        "swarm/peer",
        "swarm/rpc",
        "swarm/training",
        "swarm/weights",
    ),
    "node/runs/stage": (
        "node",
        "node/device",
        "node/hosting",
        "node/placement",
        "node/runs",
        "node/serving",
        "node/training",
        "swarm",
        "swarm/averaging",
        "swarm/meeting",
        "swarm/models",
        "swarm/peer",
        "swarm/rpc",
        "swarm/training",
        "swarm/weights",
    ),
    "node/runs/trainer": (
        "node",
        "node/about.py",
        "node/runs",
        "node/training",
        "node/training/data",
        "node/training/optimizer",
        "node/training/spec",
        "swarm",
        "swarm/inference/client",
        "swarm/meeting",
        "swarm/models",
        "swarm/peer",
        "swarm/routing",
        "swarm/rpc",
        "swarm/streams",
        "swarm/thin",
        "swarm/thin/tokenizing",
        "swarm/training",
        "swarm/weights",
    ),
    "node": ("node/training/spec", "swarm", "swarm/meeting", "swarm/peer"),
    "node/about.py": ("node", "swarm", "swarm/rpc"),
    "node/engines": ("node/engines/graphs", "swarm/inference/hop", "swarm/models"),
    "node/device": ("node/engines", "swarm", "swarm/inference/hop"),
    "node/serving": (
        "node",
        "node/device",
        "node/engines",
        "node/units",
        "swarm",
        "swarm/inference",
        "swarm/inference/hop",
        "swarm/models",
        "swarm/rpc",
        "swarm/streams",
    ),
    "node/placement": (
        "node",
        "node/serving",
        "swarm",
        "swarm/inference/client",
        "swarm/inference/hop",
        "swarm/models",
        "swarm/peer",
        "swarm/placement",
        "swarm/routing",
        "swarm/rpc",
        "swarm/streams",
    ),
    "node/telling.py": ("node", "node/serving"),
    "node/hosting": (
        "node",
        "node/device",
        "node/engines",
        "node/placement",
        "node/serving",
        "node/units",
        "swarm",
        "swarm/checkpoints",
        "swarm/inference/hop",
        "swarm/meeting",
        "swarm/models",
        "swarm/peer",
        "swarm/placement",
        "swarm/weights",
    ),
    "node/gradients": ("node/device", "node/serving", "node/training", "node/units"),
    "node/operating": ("node", "node/placement", "node/serving", "swarm", "swarm/peer", "swarm/rpc"),
    "node/node_services.py": (
        "node",
        "node/about.py",
        "node/device",
        "node/gradients",
        "node/operating",
        "node/runs/stage",
        "node/serving",
        "node/training",
        "swarm",
        "swarm/peer",
        "swarm/rpc",
        "swarm/weights",
    ),
    "node/app.py": (
        "node",
        "node/hosting",
        "node/node_services.py",
        "node/placement",
        "node/runs/stage",
        "node/serving",
        "node/telling.py",
        "swarm",
        "swarm/meeting",
        "swarm/peer",
    ),
    "node/benching": (
        "node",
        "node/engines",
        "node/hosting",
        "node/placement",
        "node/watching",
        "swarm",
        "swarm/inference/client",
        "swarm/models",
        "swarm/peer",
        "swarm/placement",
        "swarm/thin",
        "swarm/weights",
    ),
    "node/doctor": ("node", "swarm", "swarm/dht", "swarm/lan", "swarm/meeting", "swarm/peer"),
    "node/watching": (
        "node/runs",
        "node/training",
        "node/training/report",
        "swarm",
        "swarm/checkpoints",
        "swarm/directory",
        "swarm/placement",
        "swarm/routing",
        "swarm/rpc",
        "swarm/training",
        "swarm/weights",
    ),
    "node/dashboard": ("node/watching", "swarm"),
    "node/dashboard/pages": ("node/dashboard", "node/training/report", "node/watching"),
    "node/gateway/http": ("swarm", "swarm/thin"),
    "node/gateway/tools": ("node/gateway/http", "swarm/thin", "swarm/thin/grammar"),
    "node/cli/terminal": ("node", "swarm", "swarm/lan", "swarm/weights"),
    "node/cli/flags": (
        "node",
        "node/cli/terminal",
        "node/training/spec",
        "swarm",
        "swarm/checkpoints",
        "swarm/client",
        "swarm/meeting",
        "swarm/thin",
        "swarm/weights",
    ),
    "node/cli/ask": (
        "node/cli/flags",
        "node/cli/terminal",
        "node/training",
        "node/training/data",
        "node/training/spec",
        "swarm",
        "swarm/client",
        "swarm/thin",
        "swarm/thin/tokenizing",
    ),
    "node/cli/watch": (
        "node/cli/flags",
        "node/cli/terminal",
        "node/runs",
        "node/watching",
        "swarm",
        "swarm/meeting",
        "swarm/peer",
        "swarm/training",
        "swarm/weights",
    ),
    "node/cli/machine": (
        "node",
        "node/benching",
        "node/cli/flags",
        "node/cli/terminal",
        "node/doctor",
        "node/hosting",
        "node/watching",
        "swarm",
        "swarm/checkpoints",
        "swarm/meeting",
        "swarm/peer",
        "swarm/thin",
        "swarm/weights",
    ),
    "node/gateway/callers": ("node", "node/dashboard", "node/gateway/http", "node/watching", "swarm", "swarm/peer"),
    "node/gateway/answers": (
        "node",
        "node/dashboard",
        "node/gateway/callers",
        "node/gateway/http",
        "node/gateway/tools",
        "node/watching",
        "swarm",
        "swarm/meeting",
        "swarm/peer",
        "swarm/thin",
        "swarm/thin/grammar",
        "swarm/thin/tokenizing",
    ),
    "node/gateway/anthropic": (
        "node/gateway/answers",
        "node/gateway/callers",
        "node/gateway/http",
        "node/gateway/tools",
        "swarm/thin/tokenizing",
    ),
    "node/gateway/openai": (
        "node/gateway/answers",
        "node/gateway/callers",
        "node/gateway/http",
        "node/gateway/tools",
        "swarm/thin/tokenizing",
    ),
    "node/gateway/ollama": (
        "node/gateway/answers",
        "node/gateway/callers",
        "node/gateway/http",
        "node/gateway/openai",
        "node/gateway/tools",
        "swarm",
        "swarm/thin/tokenizing",
    ),
    "node/gateway": (
        "node/dashboard",
        "node/dashboard/pages",
        "node/gateway/answers",
        "node/gateway/anthropic",
        "node/gateway/callers",
        "node/gateway/http",
        "node/gateway/ollama",
        "node/gateway/openai",
        "node/watching",
        "swarm",
    ),
    "node/cli/host": (
        "node",
        "node/app.py",
        "node/cli/flags",
        "node/cli/terminal",
        "node/gateway",
        "node/gateway/answers",
        "node/gateway/http",
        "node/runs/stage",
        "node/training/spec",
        "swarm",
        "swarm/checkpoints",
        "swarm/dht",
        "swarm/meeting",
        "swarm/peer",
    ),
    "node/cli/train": (
        "node",
        "node/cli/flags",
        "node/cli/host",
        "node/cli/terminal",
        "node/runs/trainer",
        "node/training",
        "node/training/data",
        "node/training/report",
        "node/training/spec",
        "swarm",
    ),
    "node/cli": (
        "node",
        "node/cli/ask",
        "node/cli/flags",
        "node/cli/host",
        "node/cli/machine",
        "node/cli/terminal",
        "node/cli/train",
        "node/cli/watch",
        "swarm/meeting",
    ),
    "node/__main__.py": ("node/cli",),
}
"""From the ground up: folder, or file, -> the folders that it imports besides `protocols`, which all may import."""

IMPURE = frozenset(
    [
        *("http", "select", "selectors", "socket", "socketserver", "ssl", "urllib"),  # sockets
        *("fcntl", "glob", "io", "logging", "mmap", "os", "pathlib", "shutil", "tempfile"),  # files
        *("datetime", "sched", "time"),  # clock
        *("asyncio", "concurrent", "contextvars", "multiprocessing", "queue", "signal", "subprocess", "threading"),  # tasks
        *("random", "secrets", "uuid"),  # randomness
    ]
)
"""Standard modules that `protocols` may not import: sockets, files, clock, tasks, randomness."""


CLOCK_READERS: dict[str, str] = {
    "node/telemetry.py": "when a span began and ended, which others read",
    "node/cli": "what a person sees: ages, times of expiry, seconds that a command took",
    "node/training/report/tensorboard.py": "the time of an event in a file",
    "swarm/weights/served.py": "since when the user waits, to be shown",
    "swarm/dht/sockets.py": "how old a socket's file is",
    "swarm/meeting/entering.py": "whether an invitation has expired; a test passes the moment",
    "swarm/meeting/bootstrap.py": "the edge of `known_peers.py`, whose functions take the moment",
    "swarm/inference/hop/process_step.py": "the deadline of one step, for the device's thread",
    "swarm/trace.py": "a log of when what happened",
    "swarm/rpc": "real connections: deadlines of calls, and credentials, which other machines read",
    "swarm/thin/model_lookup.py": "since when the user waits, to be shown",
    "swarm/thin/tokenizing/sandbox.py": "the deadline of a child process",
    "swarm/weights/download.py": "one download over real connections; its rules (`roster.py`, `planner.py`) take the moment",
    "swarm/weights/naming.py": "when a name was last used, for the file that remembers it",
}
"""File or folder of swarm/ and node/ -> why it may read the clock itself; whatever else decides by time gets a `Clock`."""


def may_import(path: Path, module: str) -> str:
    """Why `path` may not import `module`, or ""."""
    package, layer = module.partition(".")[0], path.parts[0]
    if not package:
        return "relative: imports are absolute"
    if package in LAYERS:
        return "" if LAYERS.index(package) <= LAYERS.index(layer) else "upwards: imports go node -> swarm -> protocols"
    if package in sys.stdlib_module_names:
        return "protocols has no sockets, files, clock, tasks or randomness" if layer == "protocols" and package in IMPURE else ""
    if package not in MAY_IMPORT:
        return "a package without an entry in MAY_IMPORT"
    is_open = any(path == Path(place) or Path(place) in path.parents for place in MAY_IMPORT[package])
    return "" if is_open else f"only {', '.join(MAY_IMPORT[package])} may import {package}"


def test_every_place_of_may_import_imports_its_package() -> None:
    idle = {(package, place) for package, places in MAY_IMPORT.items() for place in places}
    for path in tracked(*LAYERS):
        packages = {module.partition(".")[0] for _, module in imports(path)}
        idle -= {(package, str(place)) for package in packages for place in (path, *path.parents)}
    assert not idle, f"{sorted(idle)} are imported no more: take them out of MAY_IMPORT"


def test_every_import_goes_down_and_is_allowed() -> None:
    files = tracked(*LAYERS)
    assert len(files) > 20, "the walk found too few files to prove anything"
    wrong = []
    for path in files:
        for line, module in imports(path):
            if reason := may_import(path, module):
                wrong.append(f"{path}:{line} imports {module}: {reason}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "module", "is_allowed"),
    [
        ("node/serving/host.py", "swarm.peer.peer", True),
        ("swarm/peer/peer.py", "node.config", False),
        ("protocols/ids.py", "swarm", False),
        ("protocols/frame.py", "time", False),
        ("protocols/frame.py", "struct", True),
        ("protocols/frame.py", "torch", False),
        ("protocols/compression.py", "torch", True),
        ("swarm/rpc/server.py", "grpc.aio", True),
        ("swarm/inference/client/session.py", "grpc", False),
        ("node/cli/app.py", "typer", True),
        ("node/config.py", "typer", False),
        ("node/config.py", "flask", False),
        ("node/config.py", ".cli", False),
    ],
)
def test_the_rule_itself_refuses_what_it_should(path: str, module: str, is_allowed: bool) -> None:
    assert (may_import(Path(path), module) == "") is is_allowed


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports at the top of a file count, those for type checkers too; an import inside a function is there to be late."""
    modules = {".".join(path.with_suffix("").parts): path for path in tracked(*LAYERS) if path.name != "__init__.py"}
    graph = {}
    for name, path in modules.items():
        top = [node for node in tree_of(path).body if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
        froms = [node for one in top for node in ast.walk(one) if isinstance(node, ast.ImportFrom)]
        named = {f"{node.module}.{alias.name}" for node in froms for alias in node.names} | {node.module or "" for node in froms}
        graph[name] = named & modules.keys() - {name}
    assert sum(map(len, graph.values())) > 500, "the walk found too few imports to prove anything"
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names one


def test_protocols_opens_no_file_and_evaluates_nothing() -> None:
    banned = {"open", "eval", "exec", "compile", "__import__", "input", "print"}
    for path in tracked("protocols"):
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned, f"{path}:{node.lineno} calls {node.func.id}()"


def test_nothing_unpickles_or_evaluates_what_a_peer_sent() -> None:
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in tracked(*LAYERS):
        assert not banned & {module.partition(".")[0] for _, module in imports(path)}, f"{path} can unpickle"
        for node in nodes_of(path):
            if isinstance(node, ast.Call):
                assert called(node) not in ("torch.load", "eval", "exec"), f"{path}:{node.lineno} calls {called(node)}"


def clock_reads(nodes: Sequence[ast.AST]) -> list[int]:
    """Lines that call time.time, time.monotonic or their kin; a default argument is no call."""
    names = {f"time.{name}{kind}" for name in ("time", "monotonic") for kind in ("", "_ns")}
    calls = [node for node in nodes if isinstance(node, ast.Call) and called(node) in names]
    hidden = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "time"]
    return sorted(node.lineno for node in (*calls, *hidden))


def test_what_decides_by_time_is_given_a_clock() -> None:
    readers = {path for path in tracked("swarm", "node") if clock_reads(nodes_of(path))}
    listed = {Path(name) for name in CLOCK_READERS}
    wrong = sorted(str(path) for path in readers if not listed & {path, *path.parents})
    assert not wrong, f"{wrong} read the clock: pass a swarm.clock.Clock, or say why not in CLOCK_READERS"
    idle = sorted(str(one) for one in listed if not any(one in (path, *path.parents) for path in readers))
    assert not idle, f"{idle} read no clock: take them off CLOCK_READERS"
    code = "import time\nfrom time import monotonic\nx = time.time()\ndef f(c=time.time): ..."
    assert clock_reads(list(ast.walk(ast.parse(code)))) == [2, 3]


def test_every_folder_of_tests_is_a_package() -> None:
    """Without `__init__.py`, `import swarm` would find `tests/swarm`."""
    missing = {path.parent for path in tracked("tests") if not (ROOT / path.parent / "__init__.py").exists()}
    assert not missing, f"no __init__.py in {sorted(map(str, missing))}"


def test_every_file_says_first_what_it_is() -> None:
    silent = [str(path) for path in tracked(*LAYERS, "scripts", "tests") if path.name != "__init__.py" and not _docstring(path)]
    assert not silent, f"no docstring at the top of {silent}"


def _docstring(path: Path) -> str:
    return ast.get_docstring(tree_of(path)) or ""


def test_documents_repeat_what_the_code_says() -> None:
    """docs/tree.md names every file with its caption, docs/architecture.md every default with its value, and so on."""
    done = subprocess.run([sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def folder_of(path: Path) -> str:
    """The entry of FOLDERS that a file belongs to: the file itself, or its folder."""
    return str(path) if str(path) in FOLDERS else str(path.parent)


def folder_imports() -> dict[str, dict[str, str]]:
    """Folder -> the folders that it imports, each with one import as proof. Imports inside functions count, too."""
    files = {".".join(path.with_suffix("").parts): path for path in tracked(*LAYERS)}
    found: dict[str, dict[str, str]] = {}
    for path in files.values():
        for node in nodes_of(path):
            named = (
                [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for target in (files[name] for name in named if name in files):
                if folder_of(target) != folder_of(path):
                    found.setdefault(folder_of(path), {})[folder_of(target)] = f"{path}:{node.lineno}"
    return found


def test_folders_import_only_what_the_table_names_and_all_of_it() -> None:
    found = folder_imports()
    assert sum(map(len, found.values())) > 100, "the walk found too few imports to prove anything"
    closed = [
        f"{proof}: {folder} may not import {other} (FOLDERS)"
        for folder, others in found.items()
        for other, proof in others.items()
        if other != "protocols" and other not in FOLDERS.get(folder, ())
    ]
    assert not closed, "\n".join(closed)
    unused = [
        f"{folder} -> {other}" for folder, others in FOLDERS.items() for other in others if other not in found.get(folder, {})
    ]
    assert not unused, f"{unused} are imported no more: take them out of FOLDERS"


def test_no_folders_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(FOLDERS).prepare()  # CycleError names one
