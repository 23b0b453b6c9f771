"""Keys of a gateway: kept hashed, in one file, by several processes."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from node import api_keys
from node.api_keys import Key
from protocols.errors import ConfigError

NOW_S = 1_800_000_000.0


def key(name: str = "alice", **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": "0" * 64, "made_unix_s": NOW_S} | fields


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / api_keys.FILE


def test_a_key_is_found_again_and_the_file_holds_only_its_hash(path: Path) -> None:
    secrets = {name: api_keys.add(path, name, NOW_S, requests_per_minute=3) for name in ("alice", "bob")}
    keys = api_keys.read(path)
    for name, secret in secrets.items():
        found = api_keys.matching(keys, secret)
        assert found is not None
        assert (found.name, found.requests_per_minute, found.tokens_per_day, found.made_unix_s) == (name, 3, None, NOW_S)
        assert found.sha256 == hashlib.sha256(secret.encode()).hexdigest()
        assert len(secret) >= len(api_keys.PREFIX) + 43, "43 letters of base64 are 32 bytes"
        for one in path.parent.iterdir():
            assert secret.removeprefix(api_keys.PREFIX) not in one.read_text()
    for wrong in (
        "",
        "x",
        secrets["bob"][:-1],
        secrets["bob"] + "x",
        secrets["bob"].upper(),
        found.sha256,
        "\ud800",
        "x" * 10**6,
    ):
        assert api_keys.matching(keys, wrong) is None


def test_only_the_user_can_read_the_file(path: Path) -> None:
    before = os.umask(0)
    try:
        api_keys.add(path, "alice", NOW_S)
    finally:
        os.umask(before)
    assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_revoked_key_is_unknown_and_its_name_free(path: Path) -> None:
    old, other = api_keys.add(path, "alice", NOW_S), api_keys.add(path, "bob", NOW_S)
    with pytest.raises(ConfigError, match=r"there is a key alice already.*swarm keys revoke alice"):
        api_keys.add(path, "alice", NOW_S)
    api_keys.revoke(path, "alice")
    keys = api_keys.read(path)
    assert api_keys.matching(keys, old) is None and api_keys.matching(keys, other) is not None
    with pytest.raises(ConfigError, match="no key 'alice'; there is: bob"):
        api_keys.revoke(path, "alice")
    assert api_keys.add(path, "alice", NOW_S) != old


def test_keys_that_are_made_at_once_are_all_there(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        secrets = list(threads.map(lambda number: api_keys.add(path, f"user{number}", NOW_S), range(24)))
    keys = api_keys.read(path)
    found = [api_keys.matching(keys, secret) for secret in secrets]
    assert [one.name for one in found if one] == [f"user{number}" for number in range(24)]


def test_every_change_gives_another_stamp(path: Path) -> None:
    stamps = [api_keys.stamp(path)]
    for name in ("a", "b"):
        api_keys.add(path, name, NOW_S)
        stamps.append(api_keys.stamp(path))
    api_keys.revoke(path, "b")
    stamps.append(api_keys.stamp(path))
    assert stamps[0] is None and len(set(stamps)) == 4


def test_without_a_file_there_are_no_keys_and_too_many_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_keys.read(path) == ()
    monkeypatch.setattr(api_keys, "MAX_KEYS", 1)
    api_keys.add(path, "a", NOW_S)
    with pytest.raises(ConfigError, match="1 keys, as many as may be"):
        api_keys.add(path, "b", NOW_S)


@pytest.mark.parametrize(
    "fields",
    [
        *({"name": name} for name in ("", "-x", "a b", "a\n", "x" * 65, "é", 3, None)),
        *({"requests_per_minute": value} for value in (0, -1, True, 1.5, "3", api_keys.MAX_REQUESTS + 1)),
        *({"tokens_per_day": value} for value in (0, 2.0, api_keys.MAX_TOKENS + 1)),
        *({"sha256": value} for value in ("", "0" * 63, "G" * 64, None)),
        *({"made_unix_s": value} for value in (-1, "now", None, float("nan"), 1e13, True)),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_refused(fields: dict[str, Any]) -> None:
    Key(**key())
    with pytest.raises(ConfigError):
        Key(**key() | fields)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b"\xff", b'{"keys": {}}', b'{"keys": [3]}', b'{"keys": [{}]}', b"[" * 100_000),
        json.dumps({"keys": [key(), key()]}).encode(),
        json.dumps({"keys": [key(f"k{number}") for number in range(api_keys.MAX_KEYS + 1)]}).encode(),
        json.dumps({"keys": [key(sha256="x")]}).encode(),
        b'{"keys": []}' + b" " * (1 << 20),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_damaged_file_is_refused_and_kept(path: Path, content: bytes) -> None:
    """Else a damaged file would open the gateway, or the next `add` would drop all keys."""
    path.parent.mkdir()
    path.write_bytes(content)
    for work in (lambda: api_keys.read(path), lambda: api_keys.add(path, "a", NOW_S), lambda: api_keys.revoke(path, "a")):
        with pytest.raises(ConfigError, match="damaged"):
            work()
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_or_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / api_keys.FILE
    with pytest.raises(ConfigError, match="cannot be read"):
        api_keys.read(below)
    with pytest.raises(ConfigError, match=r"cannot be kept.*--data-dir"):
        api_keys.add(below, "a", NOW_S)
