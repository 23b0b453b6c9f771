"""Tab at real shells, and what `swarm` alone prints."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main

from node.cli import first_steps
from node.cli.app import app, main
from node.cli.flags import completion

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 60.0
DIGEST = "a" * 64
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(swarm completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit && compinit -u -D; eval "$(swarm completion zsh)"'),
}


def with_swarm(folder: Path, data_dir: Path) -> dict[str, str]:
    """Put a `swarm` into the folder; an environment whose path begins there."""
    own = folder / "swarm"
    own.write_text(f'#!/bin/sh\nexec {sys.executable} -m node "$@"\n')
    own.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {
        **{"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), "TERM": "dumb", "SWARM_DATA_DIR": str(data_dir)},
        **{"XDG_CONFIG_HOME": str(folder), "LC_ALL": "C.UTF-8"},
    }


class Shell:
    """A shell at a pty, with our `swarm` in front of its path."""

    def __init__(self, name: str, folder: Path, data_dir: Path) -> None:
        arguments, self._start = START[name]
        self._fd, theirs = pty.openpty()
        environment = with_swarm(folder, data_dir)
        self._process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder, start_new_session=True
        )
        os.close(theirs)
        self._shown = ""

    def until(self, text: str) -> None:
        """Wait until this is shown, behind what was waited for before."""
        ends_at = time.monotonic() + WAIT_S
        while text not in self._shown:
            assert select.select([self._fd], [], [], max(0.0, ends_at - time.monotonic()))[0], self._shown[-400:]
            self._shown += os.read(self._fd, 65_536).decode(errors="replace")
        self._shown = self._shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def begin(self) -> None:
        self.type(f"{self._start}; echo re''ady\n")
        self.until("ready")

    def close(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)
        os.close(self._fd)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where two names of models are remembered; one of them would run a command if a shell read it."""
    names = {"prose-model": [DIGEST, 1.0], "$(touch x)prose": [DIGEST, 2.0]}
    (tmp_path / "data" / "names").mkdir(parents=True)
    (tmp_path / "data" / "names" / "public.json").write_text(json.dumps(names))
    return tmp_path / "data"


@pytest.mark.parametrize("name", sorted(START))
def test_tab_completes_a_command_a_flag_and_a_model(name: str, tmp_path: Path, data_dir: Path) -> None:
    if name != "bash" and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    shell = Shell(name, tmp_path, data_dir)
    try:
        shell.begin()
        for typed, rest in (("swarm gene", "rate "), ("pro", "se-model "), ("x --max-new", "-tokens")):
            shell.type(typed)
            shell.until(typed)
            shell.type("\t")
            shell.until(rest)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name == "x") == []
    finally:
        shell.close()


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_is_offered_commands_with_their_meaning_and_models(tmp_path: Path, data_dir: Path) -> None:
    asked = 'swarm completion fish | source; complete -C "swarm gene"; complete -C "swarm chat prose"'
    command = ["fish", "--no-config", "-c", asked]
    done = subprocess.run(
        command, env=with_swarm(tmp_path, data_dir), cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.stdout.splitlines() == ["generate\tStream the model's continuation of PROMPT.", "prose-model"], done


def test_names_that_a_shell_would_read_as_more_than_a_word_are_left_out(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_DATA_DIR", str(data_dir))
    assert completion.names("") == ["prose-model"] and completion.names("x") == []
    (data_dir / "names" / "public.json").write_bytes(b"\xff")
    assert completion.names("") == []


def test_swarm_alone_prints_commands_that_there_are_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    said = capsys.readouterr().out
    assert ended.value.code == 2 and said == first_steps.text() + "\n"
    assert max(map(len, said.splitlines())) <= 80 and len(said.splitlines()) <= 24, said
    group: Any = typer.main.get_command(app)
    for line in (line for steps in first_steps.STEPS.values() for line in steps):
        command = group.commands[line.split()[1]]
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in line.split() if word.startswith("--")} <= flags, line
        assert len(line) < first_steps.WIDTH, line
