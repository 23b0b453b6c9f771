"""The surface of the commands: every flag, frozen.

Adding one is a decision, removing one breaks a user's script.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from node.cli.app import app, main
from node.cli.failures import EXIT_CODES
from protocols.errors import BY_CODE

ROOT = Path(__file__).resolve().parents[3]
PEER = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWJ7NKEeJEXYdWmFd1HXJgn5minVvmV74PEhEpt76MVbY7"
MEETING = ["--peer", "--lan", "--swarm", "--join", "--allow", "--deny", "--trust", "--identity", "--data-dir"]
PEER_OPTIONS = [
    *("--peer", "--listen", "--announce", "--identity", "--accept-new-weights", "--metrics"),
    *("--lan", "--swarm", "--join", "--allow", "--deny", "--trust", "--data-dir"),
]
EVALUATION = ["--model-name", "--device", "--dtype", "--patience", "--accept-new-weights", *MEETING]
ASKING = [
    *("--max-new-tokens", "--temperature", "--top-p", "--top-k", "--seed", "--priority", "--stats", "--speculate", "--draft"),
    *("--thin", "--follow", "--greedy", *EVALUATION),
]
FLAGS = {
    "runs": ["--json", *MEETING],
    "eval": ["MODEL", "--data", "--sequence-tokens", "--json", *EVALUATION],
    "report": ["DIR", "--json"],
    "train": ["RUN.toml", "--local", "--dry-run", "--json", "--out", "--name", *PEER_OPTIONS],
    "node": [
        *(
            "MODEL",
            "--dashboard",
            "--operator-key",
            "--run",
            "--train-hours",
            "--train-share",
            "--keep",
            "--blocks",
            "--num-blocks",
            "--ends",
            "--stay",
            "--device",
        ),
        *(
            "--dtype",
            "--name",
            "--model-name",
            "--upload-mbit",
            "--disk-gb",
            "--operators",
            "--test-swarm",
            "--otlp",
            "--quiet",
            *PEER_OPTIONS,
        ),
    ],
    "up": [
        *(
            "MODEL",
            "--port",
            "--host",
            "--max-requests",
            "--max-seconds",
            "--allow-origin",
            "--runs-dir",
            "--operator-key",
            "--blocks",
            "--num-blocks",
            "--ends",
            "--stay",
            "--device",
            "--dtype",
        ),
        *(
            "--name",
            "--model-name",
            "--upload-mbit",
            "--disk-gb",
            "--operators",
            "--test-swarm",
            "--otlp",
            "--quiet",
            *PEER_OPTIONS,
        ),
    ],
    "generate": ["MODEL", "PROMPT", "--prompt-file", *ASKING],
    "chat": ["MODEL", "--system", "--keep-all", "--history", *ASKING],
    "serve": [
        *(
            "[MODEL]...",
            "--port",
            "--host",
            "--max-requests",
            "--max-seconds",
            "--allow-origin",
            "--runs-dir",
            "--operator-key",
            "--dtype",
            "--patience",
        ),
        *("--priority", "--follow", "--accept-new-weights", "--otlp", *MEETING),
    ],
    "config": ["[COMMAND]", "--example", "--json"],
    "completion": ["SHELL"],
    "bench": ["MODEL", "--json", "--device", "--dtype", "--patience", *MEETING],
    "doctor": ["--json", "--listen", "--announce", "--device", *MEETING],
    "cache": ["--json", "--data-dir"],
    "keys": [],
    "operator": [],
    "top": ["[MODEL]...", "--once", "--json", *MEETING],
    "status": ["[MODEL]", "--machines", "--json", *MEETING],
    "invite": ["--private", "--swarm", "--peer", "--days", "--new-key", "--json", "--data-dir"],
    "whoami": ["--identity", "--json", "--data-dir"],
}


def surface(command: Any) -> list[str]:
    names = (parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar for parameter in command.params)
    return [name for name in names if name != "--help"]


def test_the_commands_and_their_flags_are_these() -> None:
    group: Any = typer.main.get_command(app)
    assert {name: surface(command) for name, command in group.commands.items()} == FLAGS
    prune = ["[MODEL]", "--older-than", "--all", "--max-gb", "--yes", "--json", "--data-dir"]
    assert surface(group.commands["cache"].commands["prune"]) == prune
    keys = group.commands["keys"].commands
    assert {name: surface(command) for name, command in keys.items()} == {
        "add": ["NAME", "--requests-per-minute", "--tokens-per-day", "--operator", "--json", "--data-dir"],
        "list": ["--json", "--data-dir"],
        "revoke": ["NAME", "--json", "--data-dir"],
    }
    told = ["--json", "--operator-key", *MEETING]
    assert {name: surface(command) for name, command in group.commands["operator"].commands.items()} == {
        "new": ["--operator-key", "--json", "--data-dir"],
        **{name: ["NODE", *told] for name in ("ask", "pause", "resume", "drain", "kill")},
        "ban": ["NODE", "PEER", "--seconds", *told],
        "unban": ["NODE", "PEER", *told],
    }
    assert surface(group) == ["--version", "--debug", "--config", "--log-format"]


TALKS_OR_STAYS = {"node", "up", "generate", "chat", "serve", "completion"}
"""What these print is an answer, a script, or lines as things happen."""


def test_every_command_that_lists_something_does_so_as_json() -> None:
    group: Any = typer.main.get_command(app)
    leaves = {name: command for name, command in group.commands.items() if name not in ("keys", "operator")}
    leaves |= {
        f"{name} {one}": found for name in ("cache", "keys", "operator") for one, found in group.commands[name].commands.items()
    }
    without = {name for name, command in leaves.items() if "--json" not in surface(command)}
    assert without == TALKS_OR_STAYS
    documented = (ROOT / "docs/commands.md").read_text(encoding="utf-8").partition("\n## `--json`")[2].partition("\n## ")[0]
    missing = [name for name in leaves.keys() - without if f"`{name.split()[0]}" not in documented]
    assert not missing


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["node", "--help"], ["generate", "--help"], ["node", "x", "--blocks", "no"], ["up", "x", "--port", "-1"]],
)
def test_help_and_typing_errors_load_nothing_heavy(arguments: list[str]) -> None:
    """What makes `swarm --help` answer at once."""
    script = (
        "import sys\nfrom node.cli.app import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'hivemind', 'grpc', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "heavy: []", result.stderr


def test_every_error_has_a_documented_exit_code() -> None:
    assert {kind.exit_code for kind in BY_CODE.values()} <= set(EXIT_CODES)
    page = (Path(__file__).parents[3] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert all(f"| {code} | {meaning} |" in page for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--max-new-tokens", "0"), ("--temperature", "-1.0"), ("--temperature", "nan"), ("--top-p", "3.0")),
        *(("--top-k", "0"), ("--seed", str(2**64)), ("--patience", "-1.0"), ("--priority", "1")),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_what_was_given(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "model", "x", "--peer", PEER, flag, value])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {flag} is ") and said.endswith(f", got {value}\n"), said
