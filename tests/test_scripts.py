"""The scripts set up, check and make the demo's model.

Set-up refuses in one line, checks quickly and never twice at once; the demo's model is an ordinary checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from node.training.spec.reading import read

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("awk", "bash", "cat", "cut", "df", "dirname", "env", "flock", "git", "grep", "mkdir", "rm", "sha256sum", "tail")


def load(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Checkout:
    """A copy of what set-up reads, and a PATH of our own with the real tools behind it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin = folder / "checkout", folder / "bin"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("scripts/setup", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, f"{tool} is needed to test set-up"
            (self.bin / tool).symlink_to(found)

    def replace(self, tool: str, script: str) -> Path:
        """Put a program of our own in a tool's place."""
        path = self.bin / tool
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def start(self, **environment: str) -> subprocess.Popen[str]:
        given = {
            "PATH": str(self.bin),
            "HOME": str(self.root),
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            **environment,
        }
        return subprocess.Popen(
            [self.root / "scripts" / "setup"], env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )

    def refusal(self, **environment: str) -> str:
        """The one line that a failing set-up says."""
        process = self.start(**environment)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1, said
        assert len(said.splitlines()) == 1, said
        return said


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_setup_names_the_python_that_it_needs(checkout: Checkout) -> None:
    old = checkout.replace("oldpython", "exit 1")
    said = checkout.refusal(PYTHON=str(old))
    assert "3.11 or newer" in said and str(old) in said and "PYTHON=" in said
    assert not (checkout.root / ".venv").exists()


def test_setup_names_a_missing_tool(checkout: Checkout) -> None:
    (checkout.bin / "git").unlink()
    assert "git is missing: install it" in checkout.refusal()


def test_setup_says_how_much_disk_it_needs(checkout: Checkout) -> None:
    checkout.replace("df", "printf 'Filesystem 1M-blocks Used Available Capacity Mounted\\n/dev/vda 9 9 77 99%% /\\n'")
    said = checkout.refusal()
    assert "has 77 MB of free disk" in said and "needs 3072 MB" in said


def test_setup_names_a_python_without_venv(checkout: Checkout) -> None:
    (checkout.root / "broken").mkdir()
    (checkout.root / "broken" / "ensurepip.py").write_text("raise ImportError\n")
    assert "has no venv module" in checkout.refusal(PYTHONPATH=str(checkout.root / "broken"))


def test_setup_without_a_network_says_so(checkout: Checkout) -> None:
    said = checkout.refusal(PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0")
    assert "no package index could be reached while installing torch" in said
    assert not (checkout.root / ".venv" / "setup.stamp").exists(), "a failed set-up must be tried again"


def test_two_setups_of_one_checkout_do_not_meet(checkout: Checkout) -> None:
    checkout.replace("df", "printf 'x\\n/dev/vda 9 9 77 99%% /\\n'")  # so that it ends soon after it has the lock
    with (checkout.root / "scripts" / "setup").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = checkout.start()
        assert process.stdout and "another set-up" in process.stdout.readline()
        assert process.poll() is None
        fcntl.flock(held, fcntl.LOCK_UN)
        _, said = process.communicate(timeout=120)
    assert "77 MB" in said


@pytest.mark.skipif(
    (ROOT / ".venv").is_symlink() or not (ROOT / ".venv/setup.stamp").exists(),
    reason="this .venv is another checkout's, or was not made by scripts/setup: a set-up would change it",
)
def test_a_second_setup_only_looks() -> None:
    stamp = ROOT / ".venv/setup.stamp"
    before = stamp.stat().st_mtime_ns
    done = subprocess.run([ROOT / "scripts" / "setup"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == before, "it has installed"


def test_scripts_are_executable_and_parse() -> None:
    commands = [ROOT / ".ci/run", *(path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)]
    assert {"setup", "check", "test", "demo"} <= {path.name for path in commands}
    for path in commands:
        assert os.access(path, os.X_OK), f"chmod +x {path}"
        assert path.read_bytes().startswith(b"#!/usr/bin/env bash\n"), path
        subprocess.run(["bash", "-n", path], check=True)


ONLY_XDIST = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
"""For small runs of pytest: without the other plugins they start faster."""


def two_files_of_tests(folder: Path) -> list[str | Path]:
    """A checkout with the real `scripts/test` and two files of tests; returns the command that runs them."""
    files = {
        "scripts/test": (ROOT / "scripts/test").read_text(),
        "scripts/setup": "#!/bin/sh\n",
        ".venv/bin/python": f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n',
        "pyproject.toml": '[tool.pytest.ini_options]\ntestpaths = ["tests"]\naddopts = "-q"\n',
    }
    for name in ("one", "two"):  # each waits for the other
        files[f"tests/test_{name}.py"] = f"""
import os, pathlib, time, pytest
folder = pathlib.Path(__file__).parent
def test_that_meets_the_other():
    (folder / "{name}.pid").write_text(str(os.getpid()))
    while len(list(folder.glob("*.pid"))) < 2:
        time.sleep(0.01)
@pytest.mark.skipif("{name}" == "one", reason="once")
def test_that_fails_in_two():
    assert False, "on purpose"
def test_that_hangs_on_request():
    if (folder / "hangs").exists():
        (folder / "{name}.waits").touch()
        time.sleep(600)
"""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return [folder / "scripts/test"]


def test_the_suite_runs_in_several_processes_with_one_result(tmp_path: Path) -> None:
    command = two_files_of_tests(tmp_path)
    done = subprocess.run([*command, "--durations=3"], capture_output=True, text=True, timeout=180, env=ONLY_XDIST)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AssertionError: on purpose" in done.stdout and "FAILED tests/test_two.py::test_that_fails_in_two" in done.stdout
    assert "slowest 3 durations" in done.stdout and not done.stderr
    assert re.fullmatch(r"1 failed, 4 passed, 1 skipped in [0-9.]+s", done.stdout.splitlines()[-1]), done.stdout
    assert len({path.read_text() for path in (tmp_path / "tests").glob("*.pid")}) == 2


def test_an_interrupt_ends_all_processes_of_the_suite(tmp_path: Path) -> None:
    command = two_files_of_tests(tmp_path)
    (tmp_path / "tests/hangs").touch()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = subprocess.Popen(command, **pipes, env=ONLY_XDIST, start_new_session=True)
    try:
        assert running.stdout and running.stdout.readline(), "it says something at once"
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "tests").glob("*.waits"))) < 2:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
        said, _ = running.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 2 and "KeyboardInterrupt" in said, said
    pids = [path.read_text() for path in (tmp_path / "tests").glob("*.pid")]
    assert len(pids) == 2 and not [pid for pid in pids if Path("/proc", pid).exists()]


@pytest.mark.parametrize("arguments", ["", "--fast", "--fast --durations=3", "tests/swarm", "-k failover", "--fast tests/swarm"])
def test_only_the_whole_suite_runs_in_several_processes(tmp_path: Path, arguments: str) -> None:
    command = two_files_of_tests(tmp_path)
    (tmp_path / ".venv/bin/python").write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    done = subprocess.run([*command, *arguments.split()], capture_output=True, text=True, timeout=60)
    is_whole = all(argument.startswith("--") for argument in arguments.split())
    all_of_it = "-n 2 --dist loadfile --no-loadscope-reorder " if is_whole else ""
    assert done.stdout.strip() == f"-m pytest {all_of_it}{arguments}".strip() and done.returncode == 3


def test_the_lock_holds_exact_versions_and_no_torch() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    assert all("==" in line for line in lines)
    assert names == sorted(set(names)), "sorted, each once"
    assert not [name for name in names if name.startswith(("torch", "nvidia", "triton"))], "torch comes first and on its own"
    assert {"hivemind", "transformers", "grpcio", "libp2p", "fastecdsa", "pytest"} <= set(names)


def test_the_demos_model_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_model = load("make_model")
    losses: list[float] = []
    recipe = make_model.Recipe(
        train_s=3.0,
        enough_steps=80,
        learning_rate=1e-2,
        hidden_size=32,
        num_blocks=2,
        batch=4,
        sequence_tokens=16,
        vocab_size=512,
    )
    make_model.make(tmp_path / "tiny", recipe, lambda _spent, _steps, loss: losses.append(loss))
    assert losses[-1] < losses[0], f"the loss must fall in {len(losses)} steps"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    text = "The value of an expression is a naïve object."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    assert model(ids).logits.isfinite().all() and model.dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "nothing unfinished is left"


def test_training_waits_for_a_busy_machine_but_not_for_ever() -> None:
    make_model = load("make_model")
    recipe = make_model.Recipe(train_s=60.0, enough_steps=200)
    assert make_model.share_spent(recipe, 60.0, 400) == 1, "an idle machine stops when the time is up"
    assert make_model.share_spent(recipe, 30.0, 400) == 0.5
    assert make_model.share_spent(recipe, 60.0, 100) == 0.5, "a busy one goes on"
    assert make_model.share_spent(recipe, 120.0, 100) == 1, "up to twice as long"


def test_a_model_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    make_model = load("make_model")

    def stop(_spent: float, _steps: int, _loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_model.make(tmp_path / "tiny", make_model.Recipe(hidden_size=32, num_blocks=1, vocab_size=300, batch=1), stop)
    assert list(tmp_path.iterdir()) == []


def test_the_demos_run_file_is_the_examples_with_other_numbers(tmp_path: Path) -> None:
    prepare = "import sys, pathlib, demo_training; demo_training.prepare(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", prepare, tmp_path], check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")})
    file = read(tmp_path / "run.toml")
    assert (file.name, file.training.batch_tokens, file.training.micro_batch_sequences) == ("prose", 1024, 2)
    assert (
        file.training.steps == file.checkpoint.every_steps == file.evaluation.every_steps == 360 and not file.evaluation.samples
    )


def test_the_demo_survives_a_kill_and_leaves_a_swarm_to_talk_to(tmp_path: Path) -> None:
    """The real thing, with less training: it exits 0 only where the text is that of one machine and a death was survived."""
    command = [
        sys.executable,
        "scripts/demo.py",
        "--keep",
        "--train-seconds",
        "2",
        "--tokens",
        "24",
        "--model-dir",
        tmp_path / "tiny",
    ]
    temporary = tmp_path / "a folder"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "TMPDIR": str(temporary)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    commands = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ") and "--peer" in line]
    stop = next((line.strip() for line in done.stdout.splitlines() if line.startswith("  kill ")), "")
    pids = [int(word) for word in re.findall(r"\d+", stop.partition(";")[0])]
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "is dead" in done.stdout and "took over from" in done.stdout and "the same as transformers alone" in done.stdout
        assert len(pids) == 2 and all(Path(f"/proc/{pid}").exists() for pid in pids), "the survivors serve on"
        generate = [*shlex.split(next(line for line in commands if " generate " in line)), "--max-new-tokens", "4"]
        generate[:1] = [sys.executable, "-m", "node"]
        answer = subprocess.run(generate, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
        assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr
    finally:
        assert stop, done.stdout + done.stderr
        ended = subprocess.run(["sh", "-c", stop], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not [pid for pid in pids if _is_running(pid)], "they were told to leave"
    assert not list(temporary.glob("murmuration-demo-*")), "their files are removed"


def _is_running(pid: int) -> bool:
    """False for a zombie, too: its parent, the demo, is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
