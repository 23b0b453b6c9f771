"""Prompts from a word, stdin or a file; the form of `--json`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from node.cli.terminal import as_json, prompts
from protocols.errors import BadRequestError, ConfigError
from tests.node.cli.test_commands import run
from tests.node.cli.test_flags import PEER


def test_a_word_names_a_text_stdin_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("two\r\nlines, 世界\n\n".encode())
    text = "two\r\nlines, 世界\n"
    assert prompts.chosen(None, file) == prompts.chosen(f"@{file}", None) == text
    assert [prompts.read(word, "x") for word in ("a @b", "@@b", "@", "")] == ["a @b", "@b", "@", ""]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prompts.read("@~/prompt.txt", "x") == text
    monkeypatch.setattr(sys, "stdin", io.StringIO("of stdin\n"))
    assert prompts.read("-", "x") == "of stdin"


def test_what_cannot_be_a_prompt_is_refused_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.terminal.utf8.MAX_PROMPT", 200)
    (tmp_path / "bad").write_bytes(b"caf\xe9")
    (tmp_path / "long").write_text("x" * 400)
    with pytest.raises(BadRequestError, match=r"the prompt \(.*bad\) is not UTF-8: byte 0xe9 at offset 3 after 'caf'"):
        prompts.read(f"@{tmp_path}/bad", "the prompt")
    with pytest.raises(BadRequestError, match="more than 200 letters"):
        prompts.chosen(None, tmp_path / "long")
    with pytest.raises(ConfigError, match="none cannot be read: No such file or directory; @@… says a text that begins with @"):
        prompts.read(f"@{tmp_path}/none", "the prompt")
    with pytest.raises(ConfigError, match=r"--prompt-file: .* cannot be read: Is a directory$"):
        prompts.chosen(None, tmp_path)
    with pytest.raises(ConfigError, match="given twice"):
        prompts.chosen("x", tmp_path / "long")
    code, _, said = run("generate", "model", "--peer", PEER)
    assert code == 2 and "Missing argument 'PROMPT': a text, - for stdin, @FILE for a file; or --prompt-file FILE" in said


def test_the_system_s_words_come_from_a_file_too(tmp_path: Path) -> None:
    code, _, said = run("chat", "model", "--peer", PEER, "--system", f"@{tmp_path}/none")
    assert code == 2 and "--system: " in said and "cannot be read" in said


def test_json_is_one_object_in_ascii_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    as_json.show(
        {"a": float("nan"), "path": Path("x"), "name": "\x1b]0;é\x07", "list": (1, 2.5, None, True, {"b": float("inf")})}
    )
    said = capsys.readouterr().out
    assert said.isascii() and "\x1b" not in said
    assert json.loads(said) == {"a": None, "path": "x", "name": "\x1b]0;é\x07", "list": [1, 2.5, None, True, {"b": None}]}


def test_what_prints_one_thing_prints_it_as_json_too(tmp_path: Path) -> None:
    data = ("--json", "--data-dir", str(tmp_path))
    for arguments, keys in (
        (("whoami",), {"peer", "file"}),
        (("keys", "add", "ada"), {"name", "key", "file"}),
        (("keys", "list"), {"file", "keys"}),
        (("keys", "revoke", "ada"), {"revoked"}),
        (("cache",), {"directory", "models", "conversions"}),
        (("cache", "prune", "--all"), {"removed", "kept"}),
        (("invite", "--peer", PEER), {"invitation", "swarm", "is_private", "peers", "expires_unix_s"}),
    ):
        code, said, remarks = run(*arguments, *data)
        assert code == 0 and json.loads(said).keys() == keys, (arguments, said, remarks)


def test_the_configuration_is_shown_as_json_without_an_invitation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.toml").write_text(
        'join = "murmuration1secret"\n[node]\nname = "attic"\n[[serve]]\nmodel = "tiny"\nblocks = "0:2"'
    )
    code, said, _ = run("config", "node", "--json", "--config", str(tmp_path / "x.toml"))
    shown = json.loads(said)
    found = {one["key"]: (one["command"], one["value"], one["source"].partition(": ")[2]) for one in shown["options"]}
    assert code == 0 and "secret" not in said and shown["serve"] == [{"model": "tiny", "blocks": "0:2"}]
    assert found["name"] == ("node", "attic", "key 'name' in [node]") and found["stay"] == ("node", False, "")
