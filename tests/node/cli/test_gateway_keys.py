"""`swarm keys`: what is printed, and what `swarm serve` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node import api_keys
from node.cli.host import serve
from protocols.errors import ConfigError
from tests.node.cli.test_commands import run
from tests.node.cli.test_flags import PEER


def keys(folder: Path, *arguments: str) -> tuple[int, str, str]:
    return run("keys", *arguments, "--data-dir", str(folder))


def test_a_key_is_printed_once_and_listed_without_what_is_secret(tmp_path: Path) -> None:
    code, said, remarks = keys(tmp_path, "add", "alice", "--requests-per-minute", "60", "--tokens-per-day", "200000")
    secret = said.strip()
    assert code == 0 and said == f"{secret}\n" and secret.startswith("mur_"), "scripts take stdout as the key"
    assert "only now" in remarks and secret not in remarks
    assert keys(tmp_path, "add", "bob")[0] == 0
    code, said, remarks = keys(tmp_path, "list")
    assert (code, remarks) == (0, "") and secret not in said
    first, second = said.splitlines()
    assert first.startswith("alice  made 20") and first.endswith("UTC, 60 requests a minute, 200,000 tokens a day")
    assert second.startswith("bob  made 20") and second.endswith("UTC, no limits")
    found = json.loads(keys(tmp_path, "list", "--json")[1])
    assert found["file"] == str(tmp_path / "gateway_keys.json")
    assert [set(one) for one in found["keys"]] == [
        {"name", "made_unix_s", "requests_per_minute", "tokens_per_day", "is_operator"}
    ] * 2
    assert [one["tokens_per_day"] for one in found["keys"]] == [200_000, None]
    match = api_keys.matching(api_keys.read(tmp_path / api_keys.FILE), secret)
    assert match is not None and match.name == "alice"


def test_revoking_ends_a_key(tmp_path: Path) -> None:
    keys(tmp_path, "add", "alice")
    assert keys(tmp_path, "revoke", "alice") == (0, "revoked alice\n", "")
    assert "every program on it may ask" in keys(tmp_path, "list")[1]
    assert keys(tmp_path, "revoke", "alice") == (2, "", "error: no key 'alice'; there are no keys\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "a b"], "letters, digits"),
        (["add", "a", "--requests-per-minute", "0"], "requests_per_minute is from 1 to 10000, got 0"),
        (["add", "a", "--tokens-per-day", "-5"], "tokens_per_day is from 1"),
        (["add", "a", "--tokens-per-day", "many"], "--tokens-per-day"),
        (["add"], "NAME"),
        ([], "Missing command: add, list, revoke; see swarm keys --help"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    code, said, remarks = run("keys", *arguments, *(["--data-dir", str(tmp_path)] if arguments else []))
    assert (code, said) == (2, "") and remarks.startswith("error: ") and remarks.count("\n") == 1 and words in remarks
    assert not list(tmp_path.iterdir())


def test_serve_names_the_file_of_keys_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / api_keys.FILE).write_text("{")
    code, said, remarks = run("serve", "tiny", "--peer", PEER, "--port", "0", "--data-dir", str(tmp_path))
    assert (code, said) == (2, "") and "damaged" in remarks and str(tmp_path) in remarks


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
@pytest.mark.parametrize("num_keys", [0, 1])
def test_this_machine_may_ask_with_and_without_keys(host: str, num_keys: int) -> None:
    assert serve.reached(host, num_keys)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_machines_may_ask_only_with_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="swarm keys add"):
        serve.reached(host, 0)
    assert not serve.reached(host, 1)


def test_a_person_is_told_who_may_ask() -> None:
    assert "only programs on this machine" in serve.who_may_ask(0, True)
    assert serve.who_may_ask(1, True) == "every request needs the key"
    assert serve.who_may_ask(3, False).startswith("every request needs one of 3 keys; HTTP is not encrypted")
