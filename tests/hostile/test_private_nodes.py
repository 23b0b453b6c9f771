"""A user's way into a private swarm of real nodes.

As in docs/private.md: make it, join it, be refused without its key.
"""

from __future__ import annotations

import base64
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from node.cli.app import main
from protocols.errors import ConfigError, NoRouteError, PrivateSwarmError
from swarm.client import SwarmModelForCausalLM
from swarm.meeting import keyring
from swarm.meeting.invitation import Invitation
from tests.end_to_end.processes import NodeProcess, ProcessPool, members

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def invite(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `swarm invite` prints to stdout."""
    with pytest.raises(SystemExit) as ended:
        main(["invite", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out.strip()


def forms(secret: bytes) -> list[bytes]:
    """How a key might show in a log or in a process list."""
    return [secret, secret.hex().encode(), base64.b64encode(secret)[:-2], base64.b32encode(secret).rstrip(b"=").lower()]


def shown_by(node: NodeProcess, folder: Path) -> bytes:
    """All that a node says to people, and its command lines, those of its p2pd included."""
    lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in members(node.pid))
    node.hear()
    return node.log.read_bytes() + repr(node.said).encode() + lines


def test_a_newcomer_joins_by_an_invitation_and_an_outsider_does_not(
    pool: ProcessPool, checkpoint: Path, alone: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    founder, joiner, user = (tmp_path / name for name in ("founder", "joiner", "user"))

    def start(name: str, *arguments: str, **environment: str) -> NodeProcess:
        command = ["node", *arguments, "--name", name, "--listen", "127.0.0.1:0", "--dtype", "float32", "--debug"]
        node = pool.start(f"private-{name}", command, environment)
        node.wait_for("ready")
        return node

    invite(capsys, "--private", "--swarm", "attic", "--data-dir", str(founder))
    secret = keyring.kept(founder, "attic")
    assert secret is not None
    first = start("first", str(checkpoint), "--swarm", "attic", "--blocks", "0:3", "--data-dir", str(founder))
    assert first.said["private"] == f"swarm `attic` (key {secret.label})"
    word = invite(capsys, "--swarm", "attic", "--data-dir", str(founder))

    # a node without a file of the model: weights come from the swarm; the invitation comes by the environment, which ps does not show
    second = start("second", "llama", "--blocks", "3:6", "--data-dir", str(joiner), SWARM_JOIN=word)
    ids = torch.randint(3, 256, (1, 9), generator=torch.Generator().manual_seed(1))
    expected = alone.generate(ids, **GREEDY).tolist()
    with SwarmModelForCausalLM.from_pretrained(checkpoint, join=word, cache_dir=user) as model:
        assert model.generate(ids, **GREEDY).tolist() == expected
    with SwarmModelForCausalLM.from_pretrained(
        "llama", swarm="attic", thin=True, cache_dir=user, peers=[second.said["multiaddr"]]
    ) as model:
        assert model.generate(ids, **GREEDY).tolist() == expected, "the key was kept, and no invitation is needed any more"

    # outsiders: the name, the addresses, everything but the key
    for thin in (False, True):
        started = time.monotonic()
        with pytest.raises(PrivateSwarmError, match=r"this swarm is private: ask a member for an invitation \(`swarm invite`\)"):
            SwarmModelForCausalLM.from_pretrained(
                "llama", swarm="attic", peers=[first.said["multiaddr"]], cache_dir=tmp_path / "outside", thin=thin
            )
        assert time.monotonic() - started < 14, "a refusal, not a timeout"

    for node in (first, second):
        seen = shown_by(node, pool.folder)
        assert len(members(node.pid)) >= 2, "p2pd was looked at, too"
        assert not any(form in seen for form in forms(secret.secret)) and word.encode() not in seen
    assert second.end(signal.SIGTERM) == 0
    again = start(
        "again", "llama", "--swarm", "attic", "--blocks", "3:6", "--data-dir", str(joiner)
    )  # no invitation: the key is kept
    assert again.said["private"] == first.said["private"] and int(again.said["joined"].split()[0]) >= 1
    for node in (again, first):
        assert node.end(signal.SIGTERM) == 0
    for folder in (founder, joiner, user):
        assert keyring.file_of(folder, "attic").stat().st_mode & 0o777 == 0o600
    assert not list((founder / "swarms").glob("*.running")), "a node that has left is in no new invitation"

    # a member is excluded
    invite(capsys, "--swarm", "attic", "--new-key", "--data-dir", str(founder))
    renewed = start("renewed", str(checkpoint), "--swarm", "attic", "--blocks", "0:3", "--data-dir", str(founder))
    word = invite(capsys, "--swarm", "attic", "--data-dir", str(founder))
    held, file = Invitation.parse(word), keyring.file_of(user, "attic")
    assert held.peers[0] == renewed.said["multiaddr"] and held.key == keyring.kept(founder, "attic") != secret
    with pytest.raises(PrivateSwarmError, match="its key is another than yours"):
        SwarmModelForCausalLM.from_pretrained("llama", swarm="attic", peers=held.peers, cache_dir=user, thin=True)
    with pytest.raises(ConfigError, match=f"than {file}; .*remove that file and join again"):
        SwarmModelForCausalLM.from_pretrained("llama", join=word, cache_dir=user, thin=True)
    file.unlink()
    with pytest.raises(NoRouteError, match="3:6"):  # a member again, and only the blocks are missing
        SwarmModelForCausalLM.from_pretrained("llama", join=word, cache_dir=user, patience_s=0).generate(ids, **GREEDY)
    assert renewed.end(signal.SIGTERM) == 0
