"""Bad input gives one line on stderr and the documented exit code.

The line has what, got, expected and next step; a traceback comes on demand only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli.app import main
from node.cli.failures import describe, first_cause
from protocols.errors import CacheFullError, ConfigError, NoRouteError, SwarmError
from swarm.checkpoints.resolve import resolve
from tests.node.training.spec.files import write_run

PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooW" + "A" * 44
RUN = Path(__file__).parents[3] / "examples" / "prose" / "run.toml"
BAD = {
    "no command": (["nod"], 2, ["No such command", "--help"]),
    "no such flag": (["node", "m", "--blox", "0:3"], 2, ["--blox", "swarm node --help"]),
    "bad blocks": (["node", "m", "--blocks", "3"], 2, ["--blocks", "start:stop", "'3'"]),
    "empty blocks": (["node", "m", "--blocks", "3:3"], 2, ["--blocks", "start < stop", "3:3"]),
    "both": (["node", "m", "--blocks", "0:3", "--num-blocks", "2"], 2, ["--blocks", "--num-blocks", "give one"]),
    "no blocks": (["node", "m", "--num-blocks", "0"], 2, ["--num-blocks", "at least 1", "got 0"]),
    "bad listen": (["node", "m", "--listen", "localhost"], 2, ["--listen", "HOST:PORT", "'localhost'"]),
    "bad port": (["node", "m", "--listen", "localhost:70000"], 2, ["--listen", "70000"]),
    "bad announce": (["node", "m", "--announce", ":1"], 2, ["--announce", "HOST:PORT", "':1'"]),
    "bad multiaddr": (["node", "m", "--peer", "10.0.0.1:4000"], 2, ["--peer", "/ip4/", "'10.0.0.1:4000'"]),
    "bad dtype": (["node", "m", "--dtype", "int8"], 2, ["--dtype", "bfloat16", "'int8'"]),
    "bad swarm": (["node", "m", "--swarm", ""], 2, ["--swarm", "''"]),
    "no peer to ask": (["generate", "m", "hello", "--no-lan"], 2, ["--peer", "swarm node", "leave out --no-lan"]),
    "no peer to ask for status": (["status", "--no-lan"], 2, ["--peer", "none is remembered"]),
    "no run file": (["node", "--run", "gone.toml"], 2, ["gone.toml", "cannot be read", "examples/prose/run.toml"]),
    "a node's field of no run": (
        ["node", "m", "--training.steps", "3"],
        2,
        ["--training.steps", "--run is missing", "--run RUN.toml"],
    ),
    "a node's field of a run by name": (["node", "--run", "prose", "--seed.x=3"], 2, ["--seed.x=3", "prose", "has its own"]),
    "a node's field nearly": (
        ["node", "--run", "{run}", "--training.step", "3"],
        2,
        ["--training.step", "did you mean training.steps?"],
    ),
    "a node's run that contradicts itself": (["node", "--run", "{run}", "--training.steps", "-1"], 2, ["training.steps", "-1"]),
    "no run file to train": (["train", "gone.toml"], 2, ["gone.toml", "cannot be read", "examples/prose/run.toml"]),
    "a flag nearly": (["train", "gone.toml", "--lcoal"], 2, ["--lcoal", "did you mean --local?", "swarm train --help"]),
    "a field nearly": (["train", "gone.toml", "--training.step", "3"], 2, ["--training.step", "did you mean training.steps?"]),
    "a client's bad dtype": (["chat", "m", "--peer", PEER, "--dtype", "f32"], 2, ["--dtype", "'f32'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_typing_error_is_one_line_with_what_got_and_next(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # no peer is remembered here, whatever other tests have met
    arguments, code, words = BAD[name]
    with pytest.raises(SystemExit) as exited:
        main([word.format(run=RUN) for word in arguments])
    said = capsys.readouterr()
    assert exited.value.code == code
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert all(word in said.err for word in words), said.err


def test_a_run_file_that_contradicts_itself_is_refused_before_its_text_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write_run(tmp_path)  # without its text
    with pytest.raises(SystemExit) as exited:
        main(["train", str(file), "--local", "--training.steps", "3", "--out", str(tmp_path), "--data-dir", str(tmp_path)])
    assert exited.value.code == 2 and "'schedule.warmup_steps' must be at most the 3 steps" in capsys.readouterr().err


def test_a_dry_run_says_which_data_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write_run(tmp_path)
    (tmp_path / "held-out.txt").write_text("A list is")
    with pytest.raises(SystemExit) as exited:
        main(["train", str(file), "--dry-run"])
    assert exited.value.code == 0
    missing, here = capsys.readouterr().out.splitlines()[-2:]
    assert missing.startswith("data.train[0]: no file matches") and missing.endswith("a trainer needs it, a node does not")
    assert here == "data.validation[0]: 1 file of 9 B here"


def test_a_dry_run_says_the_same_for_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write_run(tmp_path)
    (tmp_path / "held-out.txt").write_text("A list is")
    said = {}
    for form in ((), ("--json",)):
        with pytest.raises(SystemExit) as exited:
            main(["train", str(file), "--dry-run", *form])
        assert exited.value.code == 0
        said[form] = capsys.readouterr().out
    found, plain = json.loads(said["--json",]), said[()]
    assert (
        found["parameters"] == sum(unit["num_parameters"] for unit in found["units"])
        and f"{found['parameters']:,} parameters" in plain
    )
    assert found["tokens"] == found["steps"] * found["step"]["tokens"] and f"{found['tokens']:,} tokens" in plain
    train, validation = found["sources"]
    assert "no file matches" in train["problem"] and validation == {
        "source": "data.validation[0]",
        "num_files": 1,
        "num_bytes": 9,
        "problem": None,
    }
    with pytest.raises(SystemExit) as exited:
        main(["train", str(file), "--json"])
    assert exited.value.code == 2 and "give --dry-run too" in capsys.readouterr().err


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "node", "m", "--blocks", "3"], ["node", "m", "--blocks", "3", "--debug"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # behind `--` it is text
        main(["generate", "--peer", "nowhere", "m", "--", "--debug"])
    assert "Traceback" not in capsys.readouterr().err


def test_errors_are_described_by_their_class() -> None:
    assert describe(NoRouteError("blocks 3:6\nare missing")) == ("blocks 3:6 are missing", 7)
    assert describe(KeyboardInterrupt()) == ("", 130)
    assert describe(FileNotFoundError(2, "No such file", "x.json"))[0].startswith("No such file: x.json")
    text, code = describe(ZeroDivisionError("by zero"))
    assert code == 1 and "unexpected ZeroDivisionError: by zero" in text and "--debug" in text
    assert "\x1b" not in describe(SwarmError("\x1b[31mred"))[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError("libfoo.so: cannot allocate memory in static TLS block"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_library_that_does_not_fit_is_want_of_memory(error: BaseException) -> None:
    text, code = describe(error)
    assert code == 2 and text.startswith("out of memory")
    assert describe(ImportError("no module named x"))[1] == 1


def test_a_limit_on_memory_is_not_a_fault_of_ours() -> None:
    """`ulimit -v` of 350 MB: torch's libraries do not fit."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (350 << 20, 350 << 20))\n"
        f"from node.cli.app import main; main(['generate', 'm', 'x', '--peer', {PEER!r}])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr.startswith("error: out of memory")) == (2, True), result.stderr


def test_the_typed_error_is_found_in_a_group() -> None:
    inner = ExceptionGroup("inner", [ValueError("x"), CacheFullError("full")])
    assert isinstance(first_cause(ExceptionGroup("outer", [KeyError("y"), inner])), CacheFullError)


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("arguments", [["--help"], ["config", "--example"], ["cache", "--help"], ["nod"]])
def test_a_reader_that_goes_away_is_141(arguments: list[str], tmp_path: Path) -> None:
    """`swarm --help | head -0`: no traceback, and the code that the documents promise; a command that fails has its own."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "node", *arguments]
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, timeout=60)
    os.close(write)
    if arguments == ["nod"]:
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    else:
        assert (result.returncode, result.stderr) == (141, "")


def test_the_reader_of_errors_may_go_away_too() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-m", "node", "nod"], stdout=subprocess.PIPE, stderr=write, cwd=ROOT, timeout=60)
    os.close(write)
    assert (result.returncode, result.stdout) == (2, b"")


CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-"}
CODES = {"--help": 0, "nod": 2, "status --no-lan": 2, "generate x - --no-lan": 2, "cache": 0}


@pytest.mark.parametrize("closed", CLOSED)
def test_a_closed_stream_is_as_an_empty_one(closed: str, tmp_path: Path) -> None:
    """Never an error on stdout, never a fault of ours, and what is opened later does not take the place of the stream."""
    script = "".join(
        f"{sys.executable} -m node {words} >{tmp_path}/{number}.out 2>{tmp_path}/{number}.err {CLOSED[closed]}\necho $?\n"
        for number, words in enumerate(CODES)
    )
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path / "data")}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert [int(code) for code in done.stdout.split()] == list(CODES.values())
    for number, (words, code) in enumerate(CODES.items()):
        out, err = ((tmp_path / f"{number}.{name}").read_text() for name in ("out", "err"))
        assert "error" not in out.partition("Exit codes")[0] and bool(out) == (code == 0 and closed not in ("stdout", "all")), (
            words
        )
        assert err.count("error: ") == (code != 0 and closed not in ("stderr", "all")) and "fault of ours" not in err, words


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that is in no list of users, as in a container: Python's own search for a home finds none."""
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, []),
        (["config"], 0, []),
        (["cache", "--data-dir", "DIR"], 0, []),
        (["cache"], 2, ["no home directory", "--data-dir"]),
        (["node", "tiny", "--no-lan"], 2, ["no home directory", "--data-dir"]),
        (["generate", "tiny", "x", "--peer", PEER], 2, ["no home directory", "--data-dir"]),
        (["generate", "tiny", "x", "--peer", PEER, "--thin"], 2, ["no home directory", "--data-dir"]),
        (["status", "--no-lan", "--data-dir", "DIR"], 2, ["no peer to ask"]),
        (["generate", "~/x", "y", "--no-lan", "--data-dir", "DIR"], 2, ["no peer to ask"]),
        (["cache", "prune", "--all", "--data-dir", "~nobody/x"], 0, []),
    ],
)
def test_a_user_without_a_home_needs_a_data_directory_and_no_more(
    arguments: list[str], code: int, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exited:
        main([word.replace("DIR", str(tmp_path)) for word in arguments])
    said = capsys.readouterr()
    assert exited.value.code == code, said.err
    assert said.err.count("error: ") == (code != 0) and all(word in said.err for word in words), said.err


@pytest.mark.usefixtures("homeless")
def test_a_hub_name_without_a_place_for_its_files_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub would make a folder `~` in the current one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="set HOME or HF_HOME"):
        resolve("owner/name")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--debug"]])
def test_without_a_command_the_first_steps_are_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, with the code of a line that makes no sense; nothing on stderr."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    said = capsys.readouterr()
    assert exited.value.code == 2 and said.err == "" and "swarm up" in said.out and "swarm --help" in said.out
