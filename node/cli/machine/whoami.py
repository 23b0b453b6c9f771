"""`swarm whoami`: the PeerID of a node or a key file."""

from __future__ import annotations

from pathlib import Path

from node.cli.terminal import as_json
from swarm import places
from swarm.peer import keys


def run(identity: Path | None, data_dir: Path | None, *, is_json: bool) -> None:
    """Print it; the key file is made if there is none."""
    file = identity or (data_dir or places.data_dir()) / keys.DEFAULT_NAME
    peer = keys.peer_id(file)
    if is_json:
        as_json.show({"peer": peer, "file": file})
    else:
        print(peer, flush=True)
