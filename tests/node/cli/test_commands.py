"""The commands as a new user types them, at two real nodes.

The nodes serve one tiny random llama; clients run in this process, since importing torch again would take seconds each time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from node.cli.app import main
from protocols.ids import PeerId
from swarm.client import SwarmModelForCausalLM
from tests.end_to_end.processes import NodeProcess, ProcessPool, members
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import ForkServer
from tests.paced import Pace

ROOT = Path(__file__).parents[3]
PROMPT = "The quick brown fox"
NEW = 12
LEAVE_S = 60.0
NOBODY = PeerId("12D3KooWQyghzNm3dd2BoC926uxmm2Yck5hqypAagttkaPRaDtKr")


def eventually(holds: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Poll until it holds; a deadline, not a pause."""
    ends_at = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.05)
    return True


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
            main(arguments)
    finally:
        sys.stdin = before
    assert isinstance(exited.value.code, int)
    return exited.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five blocks, and a tokenizer whose 256 tokens are the bytes."""
    directory = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path_factory.mktemp("nodes"), fork_server) as made:
        yield made


@pytest.fixture(scope="module")
def swarm(model: Path, pool: ProcessPool) -> tuple[NodeProcess, NodeProcess]:
    """The first two blocks at one node, and a second that finds out by itself what is missing."""
    first = pool.node(str(model), "--blocks", "0:2", "--name", "first")
    return first, pool.node(str(model), "--peer", first.said["multiaddr"], "--name", "second")


@pytest.fixture
def pace(pool: ProcessPool) -> Pace:
    """Of both nodes."""
    return pool.pace


@pytest.fixture
def peer(swarm: tuple[NodeProcess, NodeProcess]) -> str:
    return swarm[0].said["multiaddr"]


def local_text(model: Path, new: int) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    output = AutoModelForCausalLM.from_pretrained(model).generate(ids, max_new_tokens=new, do_sample=False)
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text


def test_a_node_says_who_and_where_it_is_and_how_to_invite(swarm: tuple[NodeProcess, NodeProcess], model: Path) -> None:
    first, second = (node.said for node in swarm)
    assert first["serving"].startswith("blocks 0:2 of tiny@") and first["serving"].endswith("(packed, float32)")
    assert second["serving"].startswith("blocks 2:5 of tiny@")  # what was missing
    assert "no node hosts them" in second["placement"]
    assert first["multiaddr"].startswith("/ip4/127.0.0.1/tcp/") and first["multiaddr"].endswith(f"/p2p/{first['peer']}")
    assert first["peer"] != second["peer"]  # the second took the next identity by itself
    assert first["invite"] == f"swarm node {model.name} --peer {first['multiaddr']}"
    assert first["model"].startswith("tiny@") and first["model"].endswith("(5 blocks)")


def test_generate_streams_what_one_machine_would_say(model: Path, peer: str) -> None:
    code, said, remarks = run("generate", str(model), PROMPT, "--max-new-tokens", str(NEW), "--peer", peer, "--stats")
    assert (code, said) == (0, local_text(model, NEW) + "\n"), remarks
    assert f"{NEW} tokens" in remarks and "over 2 hops, 0 replaced" in remarks
    assert re.search(
        r"ms of the first token: route \d.*, network [\d.]+; of each later step: .* compute [\d.]+, network", remarks
    )
    assert run("generate", str(model), "-", "--max-new-tokens", str(NEW), "--peer", peer, stdin=PROMPT)[:2] == (0, said)


def test_bench_measures_a_block_the_network_and_a_route(model: Path, peer: str, tmp_path: Path) -> None:
    asked = ("--no-lan", "--peer", peer, "--data-dir", str(tmp_path), "--device", "cpu")
    code, said, remarks = run("bench", "tiny", *asked, "--json")
    assert code == 0, remarks
    found = json.loads(said)
    assert found["machine"]["token_ms"] > 0 < found["machine"]["prompt_ms"] and found["memory"]["blocks_that_fit"] == 5
    assert len(found["network"]["trips_ms"]) == 2 and found["network"]["fetched_bytes"] > 0 < found["network"]["fetched_s"]
    assert [blocks for _, blocks in found["route"]["measured"]["hops"]] == ["0:2", "2:5"], found["route"]
    assert found["route"]["measured"]["token_ms"] > 0 < found["route"]["predicted"]["token_ms"]
    assert found["newcomer"]["blocks"] and found["newcomer"]["missing_before"] == []
    code, said, remarks = run("bench", str(model), *asked)
    kinds = [line.partition(":")[0] for line in said.splitlines()]
    assert code == 0 and kinds == ["model", "machine", "memory", "network", "route", "newcomer", "gain"], remarks
    assert "came at" not in said, "a directory is here already"


def test_a_user_without_a_home_directory_is_answered(
    model: Path, peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    asked = ("generate", str(model), PROMPT, "--max-new-tokens", "3", "--peer", peer, "--data-dir", str(tmp_path))
    assert run(*asked)[:2] == (0, local_text(model, 3) + "\n")


def thin(*arguments: str, data_dir: Path, stdin: str = "") -> tuple[int, str, str, list[str]]:
    """(exit code, stdout, stderr, libraries that came in) of a thin command, as a process of its own."""
    script = (
        "import sys\nfrom node.cli.app import main\n"
        f"try: main({[*arguments, '--thin', '--data-dir', str(data_dir)]!r})\n"
        "except SystemExit as error: code = error.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'hivemind', 'safetensors', 'huggingface_hub') if name in sys.modules]\n"
        "print('heavy:', *heavy, file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, input=stdin)
    remarks, _, heavy = done.stderr.rpartition("heavy:")
    return done.returncode, done.stdout, remarks, heavy.split()


def test_thin_prints_the_same_with_an_empty_directory_and_neither_torch_nor_hivemind(
    model: Path, peer: str, tmp_path: Path
) -> None:
    asked = ("generate", "tiny", PROMPT, "--max-new-tokens", str(NEW), "--peer", peer, "--stats")
    code, said, remarks, heavy = thin(*asked, data_dir=tmp_path)
    assert (code, said, heavy) == (0, local_text(model, NEW) + "\n", []), remarks
    assert f"{NEW} tokens" in remarks and "over 2 hops, 0 replaced" in remarks
    assert re.search(
        r"ms of the first token: route \d.*, network [\d.]+; of each later step: .* compute [\d.]+, network", remarks
    )
    assert not list(tmp_path.rglob("*.safetensors"))  # config and tokenizer, not a weight
    draw = ("generate", "tiny", "-", "--max-new-tokens", "8", "--peer", peer, "--temperature", "1.5", "--top-p", "0.9", "--seed")
    first, again, other = (thin(*draw, seed, data_dir=tmp_path, stdin=PROMPT)[1] for seed in ("1", "1", "2"))
    assert first == again != other


def test_closed_streams_and_a_reader_that_leaves_change_no_answer(model: Path, peer: str, tmp_path: Path) -> None:
    """Sockets must not take the numbers of stdin and stderr; `| head` ends an answer with the documented code."""
    words = f"-m node generate tiny '{PROMPT}' --thin --max-new-tokens {NEW} --peer {peer} --data-dir {tmp_path} --stats"
    script = f"{sys.executable} {words} <&- 2>&-; echo $? >&3; {{ {sys.executable} {words}; echo $? >&3; }} | true"
    read, write = os.pipe()
    command = ["bash", "-c", f"exec 3>&{write}\n{script}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, pass_fds=[write])
    os.close(write)
    with os.fdopen(read) as codes:
        assert codes.read().split() == ["0", "141"], done.stderr
    assert done.stdout == local_text(model, NEW) + "\n" and "Traceback" not in done.stderr


def test_thin_chat_says_what_the_full_one_says(model: Path, peer: str, tmp_path: Path) -> None:
    asked, lines = (
        ("chat", "--peer", peer, "--max-new-tokens", "6", "--stats"),
        "hello\nand you?\n/reset\nhello\n/exit\nnever read\n",
    )
    expected = run("chat", str(model), *asked[1:], stdin=lines)
    code, said, remarks, heavy = thin("chat", "tiny", *asked[1:], data_dir=tmp_path, stdin=lines)
    assert (code, said, heavy) == (0, expected[1], []), remarks
    assert remarks.count("tokens, the first after") == 3


def test_a_model_without_weights_from_a_name_alone(model: Path, peer: str, tmp_path: Path) -> None:
    with SwarmModelForCausalLM.from_pretrained("tiny", peers=[peer], thin=True, cache_dir=tmp_path) as ours:
        ids = ours.tokenizer(PROMPT, return_tensors="pt").input_ids
        output = ours.generate(ids, max_new_tokens=NEW, do_sample=False)
        assert ours.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == local_text(model, NEW)
        assert not list(ours.parameters()) and not list(tmp_path.rglob("*.safetensors"))


def test_thin_guesses_in_fewer_trips_and_prints_the_same(model: Path, peer: str, tmp_path: Path) -> None:
    asked = ("generate", "tiny", "abcabcabcabc", "--max-new-tokens", "24", "--peer", peer, "--stats")
    plain, guessed = (thin(*asked, *more, data_dir=tmp_path) for more in ((), ("--speculate", "4")))
    assert guessed[0] == plain[0] == 0 and guessed[1] == plain[1] and not guessed[3]
    assert " trips (" in guessed[2] and " trips (" not in plain[2]


def test_what_goes_wrong_thin_is_one_line_too(peer: str, tmp_path: Path) -> None:
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}"
    for arguments, expected, words in (
        (["generate", "tony", "x", "--peer", peer], 4, ["no model named 'tony'", "it serves tiny"]),
        (["generate", "tiny", "x", "--peer", dead], 6, ["no peer of the swarm answers", "check --peer"]),
        (["generate", "tiny", "x", "--peer", peer, "--swarm", "other"], 2, ["different swarms", "--swarm"]),
        (["generate", "tiny", "", "--peer", peer], 2, ["empty"]),
        (["generate", "tiny", "x" * 300, "--peer", peer], 2, ["300 tokens", "limit is 256", "shorten"]),
    ):
        code, _, remarks, heavy = thin(*arguments, data_dir=tmp_path / str(expected))  # no peer is remembered from before
        errors = [line for line in remarks.splitlines() if line.startswith("error: ")]
        assert (code, len(errors), heavy) == (expected, 1, []) and "Traceback" not in remarks, f"{arguments}: {code} {remarks}"
        assert all(word in errors[0] for word in words), errors


def test_sampling_is_repeatable_with_a_seed(model: Path, peer: str) -> None:
    asked = ("generate", str(model), PROMPT, "--max-new-tokens", "8", "--peer", peer, "--temperature", "1.5")
    first, again, other = (run(*asked, "--seed", seed)[1] for seed in ("1", "1", "2"))
    assert first == again != other


def test_chat_remembers_until_it_is_told_to_forget(model: Path, peer: str) -> None:
    """The K/V of earlier turns are at the nodes: what a turn says must not depend on whether they still are."""
    asked = ("chat", str(model), "--peer", peer, "--max-new-tokens", "6", "--stats")
    code, said, remarks = run(*asked, stdin="hello\nand you?\n/reset\nhello\n/exit\nnever read\n")
    assert code == 0, remarks
    assert remarks.count("tokens, the first after") == 3
    alone = run(*asked, stdin="hello\n")[1]
    assert said.startswith(alone) and said.endswith(alone), (said, alone)


def test_guessing_ahead_saves_trips_and_changes_nothing(model: Path, peer: str) -> None:
    """The draft is the model itself, so that runs of several tokens are right; in a chat the text's own past guesses."""
    asked = ("generate", str(model), PROMPT, "--max-new-tokens", str(NEW), "--peer", peer, "--stats")
    code, said, remarks = run(*asked, "--draft", str(model), "--speculate", "4")
    assert (code, said) == (0, local_text(model, NEW) + "\n"), remarks
    trips = re.search(r"in (\d+) trips \((\d+\.\d) tokens each\)", remarks)
    assert trips and int(trips[1]) < NEW and float(trips[2]) > 1
    turns = ("chat", str(model), "--peer", peer, "--max-new-tokens", "12", "--stats")
    plain, guessed = (run(*turns, *more, stdin="hello\nand you?\n") for more in ((), ("--speculate", "4")))
    assert plain[:2] == guessed[:2] and guessed[0] == 0, (plain, guessed)
    assert "trip" in guessed[2] and "trip" not in plain[2]


def test_status_shows_spans_and_gaps(model: Path, peer: str) -> None:
    expected = [("first", 0, 2, "serving"), ("second", 2, 5, "serving")]

    def shows_both() -> bool:
        code, said, _ = run("status", str(model), "--json", "--peer", peer)
        print(said)
        (rows,) = json.loads(said)["models"]
        found = [(row["name"], row["start"], row["stop"], row["state"]) for row in rows["peers"]]
        return code == 0 and rows["is_complete"] and rows["missing"] == [] and found == expected

    assert eventually(shows_both), "a node that is late once is shown as silent then, on a busy machine"

    def top_shows_both() -> bool:
        code, said, _ = run("top", "--json", "--peer", peer)
        print(said)
        seen = json.loads(said)
        has_asked = code == 0 and seen["problem"] is None and not seen["silent"] and len(seen["round_trips_ms"]) == 2
        return has_asked and [one["name"] for one in seen["models"][0]["peers"]] == ["first", "second"]

    def shows_machines() -> bool:
        said = run("status", str(model), "--machines", "--json", "--peer", peer)[1]
        print(said)
        about = json.loads(said)["models"][0]["peers"][0]["about"]
        return about is not None and about["machine"]["device"] == "cpu" and about["machine"]["cores"] > 0 < about["uptime_s"]

    assert eventually(top_shows_both) and eventually(shows_machines)
    assert eventually(lambda: "  served: " in run("status", str(model), "--machines", "--peer", peer)[1])

    def shows_all_models() -> bool:
        code, said, _ = run("status", "--peer", peer)
        print(said)
        return code == 0 and "tiny@" in said and "complete: every block has 1 node" in said

    assert eventually(shows_all_models)


def bad_inputs(model: Path, peer: str) -> dict[str, tuple[list[str], int, list[str]]]:
    cut = model.parent / "cut"
    if not cut.exists():
        cut.mkdir()
        (cut / "config.json").write_bytes((model / "config.json").read_bytes())
        (cut / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1_000])
    port = peer.split("/")[4]
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}"
    return {
        "unknown model": (["node", "/nowhere/model", "--no-lan"], 4, ["/nowhere/model", "check the path"]),
        "truncated file": (["node", str(cut), "--no-lan"], 4, ["model.safetensors", "truncated", "download it again"]),
        "unknown device": (["node", str(model), "--device", "tpu"], 2, ["'tpu'", "cpu", "--device auto"]),
        "blocks beyond": (["node", str(model), "--blocks", "3:9", "--no-lan"], 2, ["3:9", "5 blocks", "within 0:5"]),
        "port taken": (["node", str(model), "--listen", f"127.0.0.1:{port}"], 2, [port, "taken", "--listen"]),
        "long prompt": (["generate", str(model), "x" * 300, "--peer", peer], 2, ["300 tokens", "limit is 256", "shorten"]),
        "too many new": (
            ["generate", str(model), "x", "--max-new-tokens", "999", "--peer", peer],
            2,
            ["limit of 256", "at most 256"],
        ),
        "empty prompt": (["generate", str(model), "", "--peer", peer], 2, ["empty"]),
        "another swarm": (["status", "--peer", peer, "--swarm", "other"], 2, ["different swarms", "--swarm"]),
        "no node serves it": (
            ["generate", str(model), "x", "--model-name", "foo", "--patience", "0.5", "--peer", peer],
            7,
            ["foo", f"host it: swarm node {model} --model-name foo --peer {peer}"],
        ),
        "dead peer": (["status", "--peer", dead], 6, ["127.0.0.1:2", "check --peer"]),
    }


def test_bad_input_is_one_line_and_the_documented_code(
    model: Path, peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (arguments, code, words) in bad_inputs(model, peer).items():
        if name == "dead peer":
            monkeypatch.setattr("swarm.peer.peer.JOIN_S", 1.0)  # how long to wait for it
        # a folder each: whom one command has met, the next would ask where its own peer is dead
        got, _, remarks = run(*arguments, "--data-dir", str(tmp_path / name.replace(" ", "-")))
        errors = [line for line in remarks.splitlines() if line.startswith("error: ")]
        assert got == code and len(errors) == 1 and "Traceback" not in remarks, f"{name}: {got} {remarks}"
        assert all(word in errors[0] for word in words), f"{name}: {errors}"


def test_ctrl_c_ends_an_answer_with_130(model: Path, peer: str, pace: Pace, fork_server: ForkServer) -> None:
    asking = fork_server.popen(["generate", model, PROMPT, "--max-new-tokens", "230", "--peer", peer], text=False)
    try:
        with pace.slow():
            assert asking.stdout and asking.stdout.read(1)  # it is answering
            asking.send_signal(signal.SIGINT)
            _, remarks = asking.communicate(timeout=LEAVE_S)
        assert asking.returncode == 130 and b"Traceback" not in remarks, remarks
    finally:
        asking.kill()
        asking.communicate()


def test_a_node_whose_terminal_is_closed_withdraws(model: Path, peer: str, tmp_path: Path, fork_server: ForkServer) -> None:
    """A real terminal: writing to it after that is an error."""
    ours, theirs = pty.openpty()
    command = [
        "node",
        model,
        "--blocks",
        "2:5",
        "--peer",
        peer,
        "--listen",
        "127.0.0.1:0",
        "--name",
        "visitor",
        "--data-dir",
        tmp_path,
    ]
    node = fork_server.popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        said = b""
        while b"ready" not in said:
            assert select.select([ours], [], [], 60)[0], said
            said += os.read(ours, 4096)
        os.close(ours)
        node.send_signal(signal.SIGHUP)  # as the kernel tells the session's leader
        assert node.wait(LEAVE_S) == 0, said
        assert eventually(lambda: "visitor" not in names_and_gaps(model, peer)[0])
    finally:
        node.kill()
        node.wait()


def names_and_gaps(model: Path, peer: str) -> tuple[list[str], list[str]]:
    """Of the nodes that are announced, and of what is missing. A node answers from a memory of a second."""
    (rows,) = json.loads(run("status", str(model), "--json", "--peer", peer)[1])["models"]
    return [row["name"] for row in rows["peers"]], rows["missing"]


def test_leaving_and_dying_leave_nothing_behind(model: Path, swarm: tuple[NodeProcess, NodeProcess], peer: str) -> None:
    """Last of this file: it ends both nodes."""
    first, second = swarm
    assert len(members(second.pid)) > 1, "p2pd is of its session"
    assert second.end(signal.SIGTERM, LEAVE_S) == 0, second.last_words()
    second.hear()
    assert second.lines[second.lines.index("ready") + 1 :] == ["leaving", "left"]
    assert not members(second.pid)

    assert eventually(lambda: names_and_gaps(model, peer) == (["first"], ["2:5"])), "withdrawn, not merely expiring"
    code, _, remarks = run("generate", str(model), "x", "--patience", "1", "--peer", peer)
    assert code == 7 and "2:5" in remarks and "swarm node" in remarks

    assert len(members(first.pid)) > 1
    first.end(signal.SIGKILL)
    assert eventually(lambda: not members(first.pid))
