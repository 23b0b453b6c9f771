"""`swarm keys`: who may ask a gateway, and how much."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from node import api_keys
from node.api_keys import Key
from node.cli.terminal import as_json
from node.cli.terminal.console import remark
from swarm import places


def file_of(data_dir: Path | None) -> Path:
    """Where the keys of this data directory are kept."""
    return (data_dir or places.data_dir()) / api_keys.FILE


def add(
    data_dir: Path | None, name: str, requests_per_minute: int | None, tokens_per_day: int | None, is_operator: bool = False, *,
    is_json: bool = False,
) -> None:  # fmt: skip
    """Print a new key on stdout, once."""
    secret = api_keys.add(
        file_of(data_dir), name, time.time(), requests_per_minute=requests_per_minute, tokens_per_day=tokens_per_day,
        is_operator=is_operator,
    )  # fmt: skip
    if is_json:
        as_json.show({"name": name, "key": secret, "file": file_of(data_dir)})
    else:
        print(secret, flush=True)
    remark(f"this key is shown only now, and kept nowhere; programs send it as `Authorization: Bearer {api_keys.PREFIX}…`")


def show(data_dir: Path | None, *, is_json: bool) -> None:
    """All keys by name, without what is secret."""
    path = file_of(data_dir)
    keys = api_keys.read(path)
    if is_json:
        shown = [{name: value for name, value in asdict(key).items() if name != "sha256"} for key in keys]
        as_json.show({"file": path, "keys": shown})
        return
    if not keys:
        print(f"no keys in {path}: a gateway listens for this machine only, and every program on it may ask")
    for key in keys:
        print(_line(key))


def _line(key: Key) -> str:
    limits = ((key.requests_per_minute, "requests a minute"), (key.tokens_per_day, "tokens a day"))
    said = [f"{most:,} {what}" for most, what in limits if most is not None]
    said = [", ".join(said) or "no limits"] + ["may give orders on the page"] * key.is_operator
    made = datetime.fromtimestamp(key.made_unix_s, UTC)
    return f"{key.name}  made {made:%Y-%m-%d %H:%M} UTC, {', '.join(said)}"


def revoke(data_dir: Path | None, name: str, *, is_json: bool = False) -> None:
    """End a key: a running gateway refuses its next request."""
    api_keys.revoke(file_of(data_dir), name)
    if is_json:
        as_json.show({"revoked": name})
    else:
        print(f"revoked {name}")
