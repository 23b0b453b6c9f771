"""`swarm chat` and `swarm generate` at a real node, thin and full.

The model has settings of its own and a template that refuses.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.cli.ask import chat, saved_chat
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import PIPE, ForkServer
from tests.node.cli.terminal import PROMPT, Terminal
from tests.node.cli.test_commands import eventually, run

ALT_ENTER = "\x1b\r"
UP = "\x1b[A"
PASTE = "\x1b[200~{}\x1b[201~"
NEW = 12
SETTINGS = {
    **{"do_sample": True, "temperature": 0.7, "top_p": 0.9, "eos_token_id": 300},
    **{"use_cache": False, "num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True},
}
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"
)
SAMPLING = "sampling as the model's settings say: temperature 0.7, top_p 0.9; --greedy picks the likeliest\n"


def said(file: Path) -> list[str]:
    """What the person said, of a saved chat."""
    return [one["content"] for one in saved_chat.load(file)[1] if one["role"] == "user"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **SETTINGS}))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path_factory.mktemp("node"), fork_server) as made:
        yield made


@pytest.fixture(scope="module")
def node(model: Path, pool: ProcessPool) -> NodeProcess:
    data = str(pool.folder / "data")
    command = ["node", str(model), "--listen", "127.0.0.1:0", "--no-lan", "--data-dir", data]
    started = pool.start("node", command, environment={"MURMURATION_LOG": "INFO"})
    started.wait_for("ready")
    return started


@pytest.fixture(scope="module")
def asks(model: Path, node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """How the command line goes on after `chat` or `generate`: thin and full."""
    data, rest = str(tmp_path_factory.mktemp("client")), ["--peer", node.said["multiaddr"], "--no-lan", "--data-dir"]
    return [["tiny", "--thin", *rest, data], [str(model), *rest, data]]


def in_bytes(*arguments: str | bytes, stdin: bytes = b"") -> tuple[int, str, str]:
    """A command in this process, whose stdin is bytes as from a pipe."""
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    from node.cli.app import main

    words = [word if isinstance(word, str) else word.decode(errors="surrogateescape") for word in arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
            main(words)
    finally:
        sys.stdin = before
    assert isinstance(exited.value.code, int)
    return exited.value.code, out.getvalue(), err.getvalue()


def greedy(model: Path, text: str, new: int = NEW) -> str:
    """What transformers says, with one beam."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    settings = model / "generation_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({"eos_token_id": 300}))
    try:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        output = AutoModelForCausalLM.from_pretrained(model).generate(ids, max_new_tokens=new, do_sample=False)
    finally:
        settings.write_text(before)
    said: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return said


def test_generate_is_greedy_whatever_the_settings_say(model: Path, asks: list[list[str]]) -> None:
    expected = greedy(model, "abcabcabc")
    for ask in asks:
        for more in ([], ["--speculate", "4"]):
            code, said, remarks = run("generate", ask[0], "abcabcabc", *ask[1:], "--max-new-tokens", str(NEW), *more)
            assert (code, said) == (0, expected + "\n"), remarks
            assert "asks for num_beams (3); commands answer with one token after the other" in remarks
            assert "sampling" not in remarks


def test_chat_samples_as_the_settings_say_and_flags_override(model: Path, asks: list[list[str]]) -> None:
    first = greedy(model, "[user]hello[assistant]")
    second = greedy(model, f"[user]hello[assistant]{first.strip()}[user]and you?[assistant]")
    for ask in asks:
        command = ("chat", *ask, "--max-new-tokens", str(NEW))
        drawn = [run(*command, "--seed", seed, stdin="hello\nand you?\n") for seed in ("1", "1", "2")]
        assert all(code == 0 and SAMPLING in remarks for code, _, remarks in drawn), drawn
        assert drawn[0][1] == drawn[1][1] != drawn[2][1]
        for more in (["--greedy"], ["--temperature", "0"], ["--greedy", "--speculate", "4"]):
            code, said, remarks = run(*command, *more, stdin="hello\nand you?\n")
            assert (code, said) == (0, f"{first}\n{second}\n") and "sampling" not in remarks, remarks
        assert "say: top_p 0.9; --greedy" in run(*command, "--temperature", "2", stdin="hello\n")[2]
        code, _, remarks = run(*command, "--greedy", "--temperature", "2")
        assert code == 2 and "--greedy picks the likeliest token and --temperature draws one" in remarks


def test_what_a_script_says_wrong_is_one_line_and_its_code(asks: list[list[str]]) -> None:
    bad = b"caf\xe9"
    for ask in asks:
        chat = ("chat", *ask, "--max-new-tokens", "4")
        cases: list[tuple[tuple[Any, ...], bytes, int, str]] = [
            (
                (*chat, "--system", "X"),
                b"hello\n",
                4,
                "refuses this conversation: 'System role not supported'; leave out --system",
            ),
            (chat, b"/foo\n", 2, "unknown command '/foo': /help lists them, and //foo says /foo"),
            (chat, b"hello\ncaf\xe9\n", 2, "the line is not UTF-8: byte 0xe9 at offset 3 after 'caf'"),
            (("generate", ask[0], "-", *ask[1:]), b"caf\xe9\n", 2, "the prompt (stdin) is not UTF-8: byte 0xe9 at offset 3"),
            (("generate", ask[0], bad, *ask[1:]), b"", 2, "argument 3 is not UTF-8: byte 0xe9 at offset 3 after 'caf'"),
            (("chat", bad, *ask[1:]), b"", 2, "argument 2 is not UTF-8"),
            ((*chat, "--keep-all"), b"x\n" * 300, 2, "/reset starts over, or leave out --keep-all"),
        ]
        for arguments, stdin, expected, words in cases:
            code, _, remarks = in_bytes(*arguments, stdin=stdin)
            errors = [line for line in remarks.splitlines() if line.startswith("error: ")]
            assert code == expected and len(errors) == 1 and words in errors[0] and "fault of ours" not in remarks, (
                arguments,
                remarks,
            )
        code, _, remarks = in_bytes("generate", ask[0], "-", *ask[1:], "--max-new-tokens", "2", stdin="世界\0\r\n".encode())
        assert code == 0, remarks


@pytest.mark.parametrize("kind", ["thin", "full"])
def test_at_a_terminal_ctrl_c_stops_the_answer_and_what_fails_is_survived(
    kind: str, pool: ProcessPool, node: NodeProcess, asks: list[list[str]], fork_server: ForkServer
) -> None:
    terminal = Terminal(fork_server, "chat", *asks[kind == "full"], "--max-new-tokens", "200", "--greedy")
    try:
        terminal.until(PROMPT)
        with pool.pace.slow():
            terminal.say("hello")
            terminal.more(5)
            terminal.type(b"\x03")  # in the middle of an answer
            stopped = terminal.until("0 replaced")
        assert 0 < int(re.findall(r"(\d+) tokens?, the first after", stopped)[-1]) < 200
        for line, answer in ((b"/foo\n", "unknown command '/foo'"), (b"caf\xff\n", "the line is not UTF-8: byte 0xff")):
            terminal.until(PROMPT)
            terminal.type(line)
            terminal.until(answer)
        terminal.until(PROMPT)
        node.send_signal(signal.SIGSTOP)  # no token will come, and Ctrl-C works all the same
        terminal.say("and you?")
        with contextlib.suppress(AssertionError):
            terminal.until("never shown", 2.0)  # it waits for the node
        terminal.type(b"\x03")
        terminal.until("stopped before a word was said")
        terminal.until(PROMPT)
        node.send_signal(signal.SIGCONT)
        terminal.say("once more")
        terminal.until(" replaced")  # the node was silent for seconds
        terminal.until(PROMPT)
        terminal.type("half a li")
        terminal.until("half a li")
        terminal.type(b"\x03")
        terminal.until("Ctrl-C again, Ctrl-D or /exit leaves")
        terminal.until(PROMPT)
        terminal.type(b"\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.shown
    finally:
        node.send_signal(signal.SIGCONT)
        terminal.close()


def test_at_a_terminal_a_second_ctrl_c_leaves_an_answer_and_a_refusing_template_is_survived(
    asks: list[list[str]], fork_server: ForkServer
) -> None:
    terminal = Terminal(fork_server, "chat", *asks[0], "--system", "X")
    try:
        terminal.until(SAMPLING.strip())
        for _ in range(2):
            terminal.until(PROMPT)
            terminal.type("hello\n")
            terminal.until("error: the model's chat template refuses this conversation: 'System role not supported'")
        terminal.until(PROMPT)
        terminal.type(b"\x04")
        assert terminal.end() == 0
    finally:
        terminal.close()
    terminal = Terminal(fork_server, "chat", *asks[0], "--max-new-tokens", "230")
    try:
        terminal.until(PROMPT)
        terminal.say("hello")
        terminal.more(5)
        assert terminal.leave() == 130 and "Traceback" not in terminal.shown
    finally:
        terminal.close()


def test_a_script_that_is_stopped_ends_with_130(asks: list[list[str]], fork_server: ForkServer) -> None:
    asking = fork_server.popen(["chat", *asks[0], "--max-new-tokens", "230", "--greedy"], stdin=PIPE, text=False)
    try:
        assert asking.stdin and asking.stdout
        asking.stdin.write(b"hello\n" * 50)
        asking.stdin.flush()
        assert asking.stdout.read(1)
        asking.send_signal(signal.SIGINT)
        _, remarks = asking.communicate(timeout=60)
        assert asking.returncode == 130 and b"Traceback" not in remarks, remarks
    finally:
        asking.kill()
        asking.communicate()


def test_several_lines_are_one_text_and_the_next_chat_remembers_them(
    asks: list[list[str]],
    tmp_path: Path,
    fork_server: ForkServer,
) -> None:
    ask = [*asks[0][:-1], str(tmp_path), "--greedy", "--max-new-tokens", "4"]
    file = tmp_path / "saved.json"
    terminal = Terminal(fork_server, "chat", *ask)
    try:
        for typed in (f"one{ALT_ENTER}two\r", "three \\\rfour\r", PASTE.format("five\nsix\n") + "seven\r", f"/save {file}\r"):
            terminal.until(PROMPT)
            terminal.type(typed)
        terminal.until("saved 3 turns in")
        terminal.until(PROMPT)
        terminal.type("/help\r")
        terminal.until("/load FILE  goes on with a conversation from such a file")
        terminal.until(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0 and "Traceback" not in terminal.shown
    finally:
        terminal.close()
    assert said(file) == ["one\ntwo", "three \nfour", "five\nsix\nseven"]
    assert (tmp_path / chat.HISTORY).stat().st_mode & 0o777 == 0o600
    terminal = Terminal(fork_server, "chat", *ask)
    try:
        for typed in (UP * 3 + " and more\r", f"/save {file}\r"):
            terminal.until(PROMPT)
            terminal.type(typed)
        terminal.until("saved 1 turn in")
        terminal.until(PROMPT)
        terminal.type("/exit\r")
        assert terminal.end() == 0
    finally:
        terminal.close()
    assert said(file) == ["five\nsix\nseven and more"]


def test_without_history_nothing_is_kept(asks: list[list[str]], tmp_path: Path, fork_server: ForkServer) -> None:
    ask = [*asks[0][:-1], str(tmp_path), "--greedy", "--max-new-tokens", "4", "--no-history"]
    terminal = Terminal(fork_server, "chat", *ask)
    try:
        terminal.until(PROMPT)
        terminal.say("hello")
        terminal.until(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    finally:
        terminal.close()
    assert not (tmp_path / chat.HISTORY).exists()


def test_a_script_saves_a_chat_and_another_goes_on_with_it(asks: list[list[str]], tmp_path: Path) -> None:
    """The same answers as in one chat: what is loaded is what was said."""
    ask = ("chat", *asks[0], "--greedy", "--max-new-tokens", "6")
    file = tmp_path / "a chat.json"
    code, whole, _ = run(*ask, stdin="hello\nand you?\n")
    assert code == 0
    code, first, remarks = run(*ask, stdin=f"hello\n/save {file}\n")
    assert code == 0 and "saved 1 turn in" in remarks
    code, second, remarks = run(*ask, stdin=f"/load {file}\nand you?\n")
    assert code == 0 and f"goes on after 1 turn of {file}\n" in remarks
    assert first + second == whole
    assert [one["role"] for one in json.loads(file.read_text())["messages"]] == ["user", "assistant"]
    for typed, words in (
        ("/save", "/save needs a file: /save FILE"),
        ("/reset now", "/reset stands alone"),
        ("/sve x", "did you mean /save?"),
    ):
        code, _, remarks = run(*ask, stdin=typed + "\n")
        assert code == 2 and words in remarks


def test_a_node_s_log_names_itself_and_the_session_of_a_client_that_died(
    asks: list[list[str]], pool: ProcessPool, node: NodeProcess, fork_server: ForkServer
) -> None:
    with pool.pace.slow():
        asking = fork_server.popen(["generate", asks[0][0], "hello", *asks[0][1:], "--max-new-tokens", "230"], text=False)
        assert asking.stdout and asking.stdout.read(1)
        asking.send_signal(signal.SIGKILL)
        asking.wait(60)

    def told(words: str) -> list[dict[str, str]]:
        lines = node.log.read_text().splitlines()
        return [one for line in lines if line.startswith("{") and words in (one := json.loads(line))["message"]]

    session = told("open by ")[-1]["session"]  # clients of the tests before have left, too
    assert eventually(lambda: any(one["session"] == session for one in told("the hop above left"))), node.last_words()
    (line,) = [one for one in told("the hop above left") if one["session"] == session]
    assert line["peer"] == node.said["peer"] and f"session {session} " in line["message"] and len(session) == 8
    asking.communicate()
