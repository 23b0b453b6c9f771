"""Untrusted text reaches the terminal as text only.

It sets no title and no clipboard, and hides nothing. A file gets an answer as it is.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from node import logs
from protocols.errors import PeerUnreachableError
from tests.end_to_end.processes import ProcessPool
from tests.forked import ForkServer
from tests.node.cli.terminal import PROMPT, Terminal

TITLE, CLIPBOARD = "\x1b]0;mine\x07", "\x1b]52;c;cm0gLXJm\x07"
CURSOR = "\x9b2J"
"""The same in one letter of C1."""


@pytest.fixture(scope="module")
def asking(pool: ProcessPool, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """How a command goes on: a model whose every file that shows somewhere speaks to the terminal."""
    folder = tmp_path_factory.mktemp("terminal") / "speaking"
    shutil.copytree(checkpoint, folder)
    words = {f"{CLIPBOARD}{CURSOR}é\u200d\u00a0{number}.": number for number in range(256)}
    inner = Tokenizer(models.WordLevel(vocab=words, unk_token=next(iter(words))))
    inner.decoder = decoders.Fuse()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": TITLE, "max_time": f"a\n{CURSOR}"}))
    (folder / "chat_template.jinja").write_text("{{ 'x'.encode('" + TITLE + CURSOR + "') }}")
    data = pool.folder / "terminal"
    command = [
        "node",
        str(folder),
        "--name",
        "speaking",
        "--ends",
        "--listen",
        "127.0.0.1:0",
        "--no-lan",
        "--data-dir",
        str(data),
    ]
    node = pool.start("terminal", command)
    node.wait_for("ready")
    yield ["speaking", "--peer", node.said["multiaddr"], "--no-lan", "--data-dir", str(data / "client")]
    node.end(signal.SIGTERM)


def spoken_to(shown: str) -> list[str]:
    return [sequence for sequence in ("\x1b]", "\x07", "\x9b") if sequence in shown]


def test_settings_and_templates_of_strangers_are_shown_as_text(asking: list[str], fork_server: ForkServer) -> None:
    terminal = Terminal(fork_server, "chat", *asking, "--thin")
    try:
        terminal.until("asks for num_beams (\\x1b]0;mine\\x07), max_time (a \\x9b2J)")
        terminal.until(PROMPT)
        terminal.type("hello\n")
        terminal.until("error: the model's chat template cannot be rendered")
        terminal.until("\\x1b]0;mine\\x07\\x9b2J")
        terminal.until(PROMPT)
        terminal.type(b"\x04")
        assert terminal.end() == 0
        assert spoken_to(terminal.shown) == []
    finally:
        terminal.close()


def test_an_answer_is_text_on_a_terminal_and_exact_in_a_file(asking: list[str], fork_server: ForkServer) -> None:
    command = ["generate", *asking[:1], "a prompt", *asking[1:], "--thin", "--greedy", "--max-new-tokens", "6"]
    terminal = Terminal(fork_server, *command)
    try:
        assert terminal.end() == 0
        assert spoken_to(terminal.shown) == []
    finally:
        terminal.close()
    piped = fork_server.run(command, text=False)
    assert piped.returncode == 0, piped.stderr
    answer = piped.stdout.decode().removesuffix("\n")
    assert answer.count(CLIPBOARD) == answer.count(CURSOR) == 6
    on_terminal = answer.replace(CLIPBOARD, "]52;c;cm0gLXJm").replace(CURSOR, "2J")
    assert on_terminal in terminal.shown  # joiners and spaces that do not break are kept


def test_a_line_of_the_log_is_one_line_of_text(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("DEBUG")
    try:
        raise PeerUnreachableError(f"they say {TITLE}")
    except PeerUnreachableError:
        logging.getLogger("swarm.peer.peer").exception(
            "peer %s left: %s", "12D3", f"{CLIPBOARD}\n12:00:00 INFO swarm: all is well"
        )
    logging.getLogger("of.a.library").warning("their words: %s", CURSOR)
    said = capfd.readouterr().err
    assert spoken_to(said) == []
    assert said.splitlines()[0].endswith(r"peer 12D3 left: \x1b]52;c;cm0gLXJm\x07 12:00:00 INFO swarm: all is well")
    assert r"PeerUnreachableError: they say \x1b]0;mine\x07" in said
