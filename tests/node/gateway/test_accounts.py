"""Keys share nothing, not even a name after each other."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import Headers

from node import api_keys
from node.gateway.callers.accounts import Account, Accounts
from swarm.clock import SYSTEM


def test_a_new_key_under_an_old_name_shares_no_prompts_with_the_old_one(tmp_path: Path) -> None:
    """What hops have kept for the old key would tell the new one, by time and by cached tokens, what that had asked."""
    path = tmp_path / api_keys.FILE
    accounts = Accounts(path, SYSTEM)

    def made(name: str) -> Account:
        secret = api_keys.add(path, name, 1.0)
        return accounts.of(Headers({"authorization": f"Bearer {secret}"}))

    old = made("bob")
    api_keys.revoke(path, "bob")
    new, other = made("bob"), made("carol")
    assert old.name == new.name and len({old.owner, new.owner, other.owner, ""}) == 4
