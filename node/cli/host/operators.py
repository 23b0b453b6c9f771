"""The operator of a gateway: its key, and the gateway's own bans."""

from __future__ import annotations

from pathlib import Path

from node.cli.terminal.console import remark
from protocols.identity import Identity
from swarm import places
from swarm.bans import Bans

BANS_FILE = "bans-gateway.json"
"""In the data directory: peers over which answers do not go."""


def of_gateway(key: Path | None, data_dir: Path | None) -> tuple[Identity | None, Bans | None]:
    """Who gives the orders of the page's visitors, and whom the gateway avoids; None without `--operator-key`. ConfigError."""
    if key is None:
        return None, None
    from swarm.peer import operator

    return operator.read(key), Bans((data_dir or places.data_dir()) / BANS_FILE)


def remark_who_orders(identity: Identity | None, num_keys: int) -> None:
    """For a person who starts a gateway."""
    if identity is not None:
        who = "visitors with a key that was added with --operator" if num_keys else "all users of this machine"
        remark(f"the page has the buttons of operator {identity.peer_id}, for {who}")
