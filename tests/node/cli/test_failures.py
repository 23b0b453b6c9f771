"""Bad input: one line on stderr with what, got, expected and next step; the documented exit code; a traceback on demand only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli.app import main
from node.cli.failures import describe, first_cause
from protocols.errors import CacheFullError, NoRouteError, SwarmError

PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooW" + "A" * 44
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
    "nobody to ask": (["generate", "m", "hello", "--no-lan"], 2, ["--peer", "swarm node", "leave out --no-lan"]),
    "nobody to ask for status": (["status", "--no-lan"], 2, ["--peer", "none is remembered"]),
    "a client's bad dtype": (["chat", "m", "--peer", PEER, "--dtype", "f32"], 2, ["--dtype", "'f32'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_typing_error_is_one_line_with_what_got_and_next(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # no peer is remembered here, whatever other tests have met
    arguments, code, words = BAD[name]
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    said = capsys.readouterr()
    assert exited.value.code == code
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert all(word in said.err for word in words), said.err


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


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """`swarm --help | head -0`"""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "node", "--help"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3], timeout=60)
    os.close(write)
    assert result.stderr == ""
    assert result.returncode in (0, 1, 141)
